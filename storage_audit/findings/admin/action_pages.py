"""What staff can decide about findings, and what the page shows that asks first."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from django import forms
from django.template.defaultfilters import filesizeformat
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit.cleanup.admin.forms import ProjectIdForm
from storage_audit.findings import action_result, actions, track_files
from storage_audit.findings.action_result import Decision, Skipped
from storage_audit.findings.admin.note_form import NoteForm
from storage_audit.findings.models import Finding, FindingQuerySet, Kind
from storage_audit.findings.orphans import delete_orphans, would_delete
from storage_audit.formats import SHOWN, amount, more, placed_key, shown_key
from storage_audit.redaction import visible


def listed(findings: FindingQuerySet) -> dict[str, Any]:
    first = findings.order_by("bucket", "key", "pk")[:SHOWN]
    rows: list[tuple[Any, ...]] = [
        (
            placed_key(one.bucket, one.key),
            one.get_kind_display(),
            one.get_state_display(),
            size_of(one),
        )
        for one in first
    ]
    heads = (_("Key"), _("Kind"), _("State"), _("Size"))
    return {"heads": heads, "rows": rows + more(findings.count() - len(rows))}


def planned(decide: Callable[..., Decision]) -> Callable[[FindingQuerySet], dict[str, Any]]:
    """What a dry run tells: of few, and so of all of them."""

    def plan(findings: FindingQuerySet) -> dict[str, Any]:
        decision = decide(findings, dry_run=True)
        return {
            "heads": (_("Key"), _("What becomes of it")),
            "figures": digest_of(decision.results),
            "rows": [(shown_key(key), visible(result)) for key, result in decision.results],
            **staying(decision.left, len(decision.left)),
            **({} if decision.results else NOTHING),
        }

    return plan


def deletion(findings: FindingQuerySet) -> dict[str, Any]:
    would = would_delete(findings, SHOWN)
    return {
        "figures": digest_of(would.going),
        "rows": [(amount(len(would.going), would.bytes),)],
        "heads": (_("To be deleted from R2"),),
        **staying(would.left, would.stay),
        **({} if would.going else NOTHING),
    }


def digest_of(facts: Sequence[object]) -> str:
    """What a page sends that was shown these: another one was not confirmed."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def staying(left: list[Skipped], count: int) -> dict[str, Any]:
    title = ngettext("%d stays as it is", "%d stay as they are", count) % count
    rows: list[tuple[Any, ...]] = [(shown_key(key), visible(reason)) for key, reason in left]
    return {"left_title": title, "left": rows + more(count - len(left))}


def size_of(finding: Finding) -> str | None:
    return None if finding.size is None else filesizeformat(finding.size)


# Of a page on which there is nothing to say yes to.
NOTHING: dict[str, Any] = {
    "rows": (),
    "button": "",
    "sentences": (gettext_lazy("Nothing can be done: each of these stays as it is."),),
}


class Act(NamedTuple):
    """What can be decided: `did` says it of the findings; `foresee` gives what the page shows that
    asks. One that `looks` into the bucket takes few findings at once; one that never
    `asks_store` takes no place of those who do."""

    name: str
    decide: Callable[..., Decision]
    title: Any
    did: Any
    sentences: tuple[Any, ...] = ()
    button: Any = ""
    form: type[forms.Form] = forms.Form
    asks: bool = True
    looks: bool = False
    asks_store: bool = True
    foresee: Callable[[FindingQuerySet], dict[str, Any]] = listed
    kinds: Collection[str] = tuple(Kind)
    state: str = Finding.State.OPEN

    def fits(self, finding: Finding) -> bool:
        """Whether to offer it on the finding's page: what it is asked for, it may yet leave."""
        return finding.kind in self.kinds and finding.state == self.state


def plan_deletion(findings: FindingQuerySet) -> Decision:
    return delete_orphans(findings, dry_run=True)


ACKNOWLEDGE = Act(
    "acknowledge",
    action_result.acknowledge,
    gettext_lazy("Acknowledge findings"),
    gettext_lazy("acknowledged"),
    (
        gettext_lazy(
            "They may stay as they are: they leave the list of what is open, and nothing in the"
            " bucket changes. “Reopen” takes it back."
        ),
    ),
    gettext_lazy("Acknowledge"),
    NoteForm,
    asks_store=False,
)
REOPEN = Act(
    "reopen",
    action_result.reopen,
    gettext_lazy("Reopen findings"),
    gettext_lazy("open again"),
    asks=False,
    asks_store=False,
    state=Finding.State.ACKNOWLEDGED,
)
PLAN = Act(
    "plan_deletion",
    plan_deletion,
    gettext_lazy("Plan the deletion of orphans"),
    gettext_lazy("taken up: a dry run deletes nothing, and shows what would go"),
    asks=False,
    kinds=[Kind.ORPHANED],
)
DELETE = Act(
    "delete_orphans",
    delete_orphans,
    gettext_lazy("Delete orphans?"),
    gettext_lazy(
        "taken up. A cleanup is deleting the files from R2. Its page shows when they are gone"
    ),
    (
        gettext_lazy(
            "A cleanup deletes these files from R2. It checks each again first and keeps to the"
            " limits. Its page shows when they are gone. This cannot be undone."
        ),
    ),
    gettext_lazy("Yes, delete"),
    foresee=deletion,
    kinds=[Kind.ORPHANED],
)
ADOPT = Act(
    "adopt",
    track_files.adopt,
    gettext_lazy("Adopt into a project"),
    gettext_lazy("adopted: deleting the project now deletes these files too"),
    (
        gettext_lazy(
            "The objects are given to a project that exists. They stay where they are, and are"
            " deleted with it. Each is looked at in the bucket first."
        ),
    ),
    gettext_lazy("Adopt"),
    ProjectIdForm,
    looks=True,
    kinds=track_files.ADOPTABLE,
)
TRACK = Act(
    "track",
    track_files.track,
    gettext_lazy("Track objects"),
    gettext_lazy("tracked: the table says what the bucket shows"),
    (
        gettext_lazy(
            "The table gets what the bucket shows of these objects by now. Nothing in the bucket"
            " changes."
        ),
    ),
    gettext_lazy("Track"),
    looks=True,
    kinds=track_files.TRACKABLE,
)
UNTRACK = Act(
    "untrack",
    track_files.untrack,
    gettext_lazy("Remove the rows of missing objects"),
    gettext_lazy("resolved: no row tells of what is missing any more"),
    (
        gettext_lazy(
            "The rows of objects that are seen to be missing are removed; what the upload recorded"
            " cannot be brought back. Where the object is there after all, the row stays."
        ),
    ),
    gettext_lazy("Yes, remove the rows"),
    looks=True,
    kinds=[Kind.MISSING],
)
RENAME = Act(
    "rename",
    actions.rename_objects,
    gettext_lazy("Rename misnamed objects?"),
    gettext_lazy("renamed"),
    (
        gettext_lazy(
            "Each object is copied to its new key, and the old one is deleted once the copy is"
            " seen. Links to the old keys break; an object that a row of another table names stays"
            " under its old name. It takes some seconds; if it is stopped, ask again, and it goes"
            " on."
        ),
    ),
    gettext_lazy("Yes, rename"),
    looks=True,
    foresee=planned(actions.rename_objects),
    kinds=[Kind.MISNAMED],
)
ABORT = Act(
    "abort_uploads",
    actions.abort_uploads,
    gettext_lazy("Abort unfinished uploads?"),
    gettext_lazy("resolved"),
    (
        gettext_lazy(
            "What was uploaded of them so far is discarded, which cannot be undone. Objects that"
            " are there already stay."
        ),
    ),
    gettext_lazy("Yes, abort"),
    looks=True,
    foresee=planned(actions.abort_uploads),
    kinds=[Kind.UNFINISHED],
)


ACTS = (ACKNOWLEDGE, REOPEN, PLAN, DELETE, ADOPT, TRACK, UNTRACK, RENAME, ABORT)
