"""What each kind and state of a finding means for a person, and what to do about it."""

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext_lazy

from storage_audit.display_formats import Answer
from storage_audit.findings.models import Finding, Kind
from storage_audit.ownership.ownership_rule import UNRECOGNISED_TEXT

State = Finding.State
# What each kind of finding means, and what a person does about it.
KIND_TEXTS = {
    Kind.ORPHANED: (
        gettext_lazy("Still in the bucket, but the project was deleted or is unknown."),
        gettext_lazy("Run another scan later: two scans must see a file before it can be deleted."),
    ),
    Kind.MISSING: (
        gettext_lazy("Tracked, but missing from the bucket."),
        gettext_lazy("Upload the file again, or untrack it."),
    ),
    Kind.UNTRACKED: (
        gettext_lazy("In the bucket, but not tracked. The project exists."),
        gettext_lazy("Track the file."),
    ),
    Kind.CHANGED: (
        gettext_lazy("The file in the bucket is not the tracked one: something else wrote it."),
        gettext_lazy("Find out what wrote it, then track it as it is."),
    ),
    Kind.AMBIGUOUS: (
        gettext_lazy("The file may belong to one of several projects."),
        gettext_lazy("Assign the file to the right project, or ignore it."),
    ),
    Kind.UNRECOGNISED: (
        UNRECOGNISED_TEXT,
        gettext_lazy("Assign the file to a project, or ignore it."),
    ),
    Kind.MISNAMED: (
        gettext_lazy("Old name that repeats the project prefix."),
        gettext_lazy("Rename the file once nothing links to the old name."),
    ),
    Kind.UNSTORABLE: (
        gettext_lazy("The name has characters that we can't store, so we can't delete the file."),
        gettext_lazy("Delete the file in the Cloudflare dashboard, or ignore it."),
    ),
    Kind.UNFINISHED: (
        gettext_lazy("The upload was never completed, and its parts cost money."),
        gettext_lazy("Abort the upload if nothing is uploading any more."),
    ),
}
KIND_COUNTS = {
    Kind.ORPHANED: ngettext_lazy("%d leftover file", "%d leftover files"),
    Kind.MISSING: ngettext_lazy("%d missing file", "%d missing files"),
    Kind.UNTRACKED: ngettext_lazy("%d untracked file", "%d untracked files"),
    Kind.CHANGED: ngettext_lazy("%d changed file", "%d changed files"),
    Kind.AMBIGUOUS: ngettext_lazy("%d file of unclear owner", "%d files of unclear owner"),
    Kind.UNRECOGNISED: ngettext_lazy("%d unrecognised file", "%d unrecognised files"),
    Kind.MISNAMED: ngettext_lazy("%d file with an old name", "%d files with old names"),
    Kind.UNSTORABLE: ngettext_lazy(
        "%d file with an unsupported name", "%d files with unsupported names"
    ),
    Kind.UNFINISHED: ngettext_lazy("%d unfinished upload", "%d unfinished uploads"),
}
HERO_STYLES = {State.OPEN: "attention", State.IGNORED: "quiet", State.RESOLVED: "good"}
MAY_BE_DELETED = gettext_lazy("Can be deleted now: choose “Delete leftover files”.")
# For open findings the step above is shown.
STATE_TEXTS = {
    State.OPEN: gettext_lazy("Open: nobody has decided yet."),
    State.IGNORED: gettext_lazy(
        "%(who)s ignored this finding: “%(note)s” To act on it, reopen it."
    ),
    State.RESOLVED: gettext_lazy(
        "Resolved; the note says how. If a later scan sees it again, it opens again."
    ),
}


def kind_count(kind: Kind, count: int) -> str:
    """Such as “3 leftover files”."""
    return str(KIND_COUNTS[kind] % count)


def explain_finding(finding: Finding) -> Answer:
    """What it means, what was decided about it, and what a person does about it."""
    means, step = KIND_TEXTS[Kind(finding.kind)]
    who = {"who": finding.decided_by or _("Somebody"), "note": finding.note}
    sentences = [STATE_TEXTS[State(finding.state)] % who]
    if finding.state == State.OPEN:
        is_ripe = Finding.objects.deletable().contains(finding)
        sentences.append(str(MAY_BE_DELETED if is_ripe else step))
    return Answer(HERO_STYLES[State(finding.state)], str(means), sentences)
