"""What each kind and state of a finding means for a person, and what to do about it."""

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.findings.models import Finding, Kind

State = Finding.State
# What each kind of finding means, and what a person does about it.
KIND_TEXTS = {
    Kind.ORPHANED: (
        gettext_lazy("Objects whose project was deleted, or was never known."),
        gettext_lazy("A later scan must see them once more before they can be deleted."),
    ),
    Kind.MISSING: (
        gettext_lazy("Rows that tell of objects which are not in the bucket."),
        gettext_lazy("Upload them again, or remove the rows."),
    ),
    Kind.UNTRACKED: (
        gettext_lazy("Objects of projects that exist, of which no row tells."),
        gettext_lazy("Track them, so that they go when their project does."),
    ),
    Kind.CHANGED: (
        gettext_lazy("Objects that are not as their rows say: something else wrote them."),
        gettext_lazy("Find out what did, then track them as they are."),
    ),
    Kind.AMBIGUOUS: (
        gettext_lazy("Objects that may be one project’s or another’s, going by their keys."),
        gettext_lazy("Assign them to the right project, or ignore them."),
    ),
    Kind.UNRECOGNISED: (
        gettext_lazy("Objects whose keys no key format knows."),
        gettext_lazy("Assign them to a project, or ignore them."),
    ),
    Kind.MISNAMED: (
        gettext_lazy("Objects whose keys have the project’s id with its prefix twice."),
        gettext_lazy("Rename them, once nothing links to the old keys."),
    ),
    Kind.UNSTORABLE: (
        gettext_lazy("Objects whose keys no table can hold, and this application cannot delete."),
        gettext_lazy("Delete them in Cloudflare’s dashboard, or ignore them."),
    ),
    Kind.UNFINISHED: (
        gettext_lazy("Uploads that nobody completed; their parts cost money."),
        gettext_lazy("Abort them, if nothing uploads there any more."),
    ),
}
MAY_BE_DELETED = gettext_lazy(
    "Two scans saw it, long enough apart: “Delete orphans” may delete it now."
)
# For open findings the step above is shown.
STATE_TEXTS = {
    State.OPEN: gettext_lazy("Nobody has decided about it yet."),
    State.IGNORED: gettext_lazy(
        "%(who)s said that it may stay as it is, and why: “%(note)s” Nothing is done about it until"
        " somebody reopens it."
    ),
    State.RESOLVED: gettext_lazy(
        "It is settled; the note says how. Nothing needs to be done: should a later scan see it"
        " again, it is open again."
    ),
}


def explain_finding(finding: Finding) -> list[str]:
    """What it means, what was decided about it, and what a person does about it."""
    means, step = KIND_TEXTS[Kind(finding.kind)]
    who = {"who": finding.decided_by or _("Somebody"), "note": finding.note}
    sentences = [str(means), STATE_TEXTS[State(finding.state)] % who]
    if finding.state == State.OPEN:
        is_ripe = Finding.objects.deletable().contains(finding)
        sentences.append(str(MAY_BE_DELETED if is_ripe else step))
    return sentences
