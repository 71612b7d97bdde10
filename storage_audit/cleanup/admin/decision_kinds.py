"""What a person may decide about a deletion: Undo, Cancel, Erase now and Clean up again."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from django import forms
from django.contrib.admin.widgets import AdminTextInputWidget
from django.http import HttpRequest
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit.cleanup import end_deletions
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import KnownProject
from storage_audit.redaction import printable_text
from storage_audit.roles import refusal_reason

Kind, Status = Cleanup.Kind, Cleanup.Status
CANCELLABLE = (Status.BLOCKED, Status.PENDING, Status.RETRYING, Status.FAILED)


class ReasonForm(forms.Form):
    reason = forms.CharField(
        label=gettext_lazy("Reason"), max_length=1000, widget=AdminTextInputWidget
    )


class OptionalReasonForm(ReasonForm):
    reason = forms.CharField(
        label=gettext_lazy("Reason (optional)"),
        max_length=1000,
        required=False,
        widget=AdminTextInputWidget,
    )


class Result(NamedTuple):
    """What a decision led to: a sentence, the cleanups to run, and what could not be done."""

    text: str
    cleanups: Sequence[Cleanup] = ()
    warnings: Sequence[str] = ()


class Decision(NamedTuple):
    """What a person may decide about a deletion."""

    name: str
    permission: str
    label: Any
    title: Any
    sentences: tuple[Any, ...]
    effect: Any
    form: type[forms.Form]
    # Why it can't be done to this cleanup; empty if it can.
    find_refusal: Callable[[Cleanup], str]
    carry_out: Callable[[Cleanup, str], Result]
    name_button: Callable[[int, str], str]
    # What is said once it is done to several.
    summarise: Callable[[int], str]
    is_harmless: bool = True


class Offer(NamedTuple):
    """A button of a cleanup's page; `refusal` says why this person may not press it."""

    name: str
    label: str
    refusal: str
    is_danger: bool
    effect: str


def cancel_refusal(cleanup: Cleanup) -> str:
    is_scheduled_check = cleanup.parent_id is not None and cleanup.status == Status.PENDING
    is_open = cleanup.status in CANCELLABLE and not cleanup.cancelled_at
    if (
        not is_open
        or is_scheduled_check
        or not cleanup.is_deletion
        or cleanup.kind == Kind.VANISHED
    ):
        return _("Can't be cancelled: it is running or over.")
    return ""


def erase_refusal(cleanup: Cleanup) -> str:
    return (
        ""
        if cleanup.parent_id is None and cleanup.shown_hold()
        else _("Not held, so there is nothing to skip.")
    )


def again_refusal(cleanup: Cleanup) -> str:
    if cleanup.kind == Kind.PROJECT and cleanup.status == Status.CANCELLED:
        known = KnownProject.objects.of_deletion(cleanup.project_id, cleanup.project_deleted_at)
        if known.filter(kept_for=KnownProject.KeptFor.CANCELLED).exists():
            return ""
    return _("Not cancelled, or the project was created or cleaned up again since.")


def undo(cleanup: Cleanup, reason: str) -> Result:
    restored = end_deletions.undo_deletion(cleanup, reason)
    count = sum(rows for each in restored for rows in each.rows.values())
    text = ngettext(
        "Deletion of %(project)s undone. %(count)d database row is back.",
        "Deletion of %(project)s undone. %(count)d database rows are back.",
        count,
    )
    words = {"project": printable_text(cleanup.subject), "count": count}
    return Result(text % words, warnings=[line for each in restored for line in each.left_out])


def cancel(cleanup: Cleanup, reason: str) -> Result:
    to_verify = end_deletions.cancel_deletion(cleanup, reason)
    text = _("Cancelled. The files of %s that are still in the bucket stay.")
    return Result(text % printable_text(cleanup.subject), to_verify)


def erase(cleanup: Cleanup, reason: str) -> Result:
    due = end_deletions.erase_deletion(cleanup, reason)
    text = _("A cleanup is deleting the files of %s now. Its page shows when they are gone.")
    return Result(text % printable_text(cleanup.subject), due)


def clean_up_again(cleanup: Cleanup, reason: str) -> Result:
    made = end_deletions.clean_up_again(cleanup.project_id or "", reason)
    text = _("A new cleanup of %s is queued. It deletes the files that stayed.")
    return Result(text % printable_text(cleanup.subject), made)


UNDO = Decision(
    "undo_deletion",
    "undo_cleanup",
    gettext_lazy("Undo deletion"),
    gettext_lazy("Undo the deletion?"),
    (
        gettext_lazy(
            "The project comes back, with the database rows that were deleted with it. None of its"
            " files is deleted."
        ),
    ),
    gettext_lazy("The project comes back. Its files stay."),
    OptionalReasonForm,
    end_deletions.undo_obstacle,
    undo,
    lambda count, files: ngettext("Undo %d deletion", "Undo %d deletions", count) % count,
    lambda count: _("Undid %d deletions. The projects are back.") % count,
)
CANCEL = Decision(
    "cancel_deletion",
    "cancel_cleanup",
    gettext_lazy("Cancel, keep the files"),
    gettext_lazy("Cancel the cleanup and keep the files?"),
    (
        gettext_lazy("The project stays deleted. Files that are not deleted yet stay."),
        gettext_lazy("No cleanup deletes these files until somebody chooses “Clean up again”."),
    ),
    gettext_lazy("The project stays deleted. Files that are not deleted yet stay."),
    OptionalReasonForm,
    cancel_refusal,
    cancel,
    lambda count, files: (
        ngettext(
            "Cancel %(count)d cleanup, keep %(files)s",
            "Cancel %(count)d cleanups, keep %(files)s",
            count,
        )
        % {"count": count, "files": files or _("the files")}
    ),
    lambda count: _("Cancelled %d cleanups. Files that are still in the bucket stay.") % count,
)
ERASE = Decision(
    "erase_deletion",
    "erase_cleanup",
    gettext_lazy("Erase now"),
    gettext_lazy("Erase the files now?"),
    (
        gettext_lazy("The files are deleted now instead of when the hold is over."),
        gettext_lazy("You can't undo this: neither the project nor its files come back."),
        gettext_lazy(
            "Files that may belong to another project are kept. Safety limits still apply."
        ),
    ),
    gettext_lazy("Its files are deleted now. No undo."),
    ReasonForm,
    erase_refusal,
    erase,
    lambda count, files: _("Erase %s now") % (files or _("the files")),
    lambda count: _("%d cleanups are deleting their files now.") % count,
    is_harmless=False,
)
CLEAN_UP_AGAIN = Decision(
    "clean_up_again",
    "force_cleanup",
    gettext_lazy("Clean up again"),
    gettext_lazy("Clean up again?"),
    (
        gettext_lazy("A person cancelled this cleanup. A new one deletes the files that stayed."),
        gettext_lazy("You can't undo this. Safety limits still apply."),
    ),
    gettext_lazy("A new cleanup deletes the files that stayed."),
    ReasonForm,
    again_refusal,
    clean_up_again,
    lambda count, files: (
        _("Delete %s") % files
        if files
        else ngettext("Clean up %d project", "Clean up %d projects", count) % count
    ),
    lambda count: _("%d new cleanups are queued. They delete the files that stayed.") % count,
    is_harmless=False,
)
DECISIONS = (UNDO, CANCEL, ERASE, CLEAN_UP_AGAIN)


def offered_decisions(request: HttpRequest, cleanup: Cleanup) -> Iterator[Offer]:
    """Those that can do something now."""
    for each in DECISIONS:
        if not each.find_refusal(cleanup):
            refusal = refusal_reason(request, each.permission)
            danger, effect = not each.is_harmless, str(each.effect)
            yield Offer(each.name, str(each.label), refusal, danger, effect)
