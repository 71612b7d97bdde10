"""Files of a cleanup that rows of other tables still use: they are kept, with the row named.

Looked up for the whole plan, for each batch just before it is sent, and once more when the files
are gone: a row that was saved in between lost its file, which a person must know.
"""

from collections.abc import Iterable

from django.db import transaction
from django.dispatch import Signal
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit import project_model
from storage_audit.bucket.errors import DeadlinePassed
from storage_audit.cleanup.models import CleanupItem, CleanupOperation
from storage_audit.cleanup.turn import Work
from storage_audit.conf import conf
from storage_audit.models import R2Object
from storage_audit.ownership.references import Cascade, Used, uses_of_keys, uses_of_rows

Kind = CleanupOperation.Kind
Outcome = CleanupItem.Outcome
# For all questions of one proof.
PROOF_SECONDS = 2.0
KEPT = gettext_lazy(
    "Used by %s, so it was kept. Once no row names it, clean up after the project again. To delete"
    " it all the same, delete its R2 object row. If it has none, adopt it into a project first."
)
LOST = gettext_lazy("Deleted, but %s still names it. Upload the file again, or delete the row.")
# Sent with an operation and a text that names such a row, in the transaction that calls the files
# deleted: a person must know.
files_lost = Signal()


class Unread(Exception):
    """Fields that may name the files cannot be read: a person must approve."""

    def __init__(self, fields: list[str]) -> None:
        super().__init__(unread_text(fields))
        self.fields = fields


def asks(operation: CleanupOperation) -> bool:
    """Not when a person deleted the tracking row of that very file, and not for verifications."""
    return operation.kind in (Kind.PROJECT, Kind.ORPHANS)


def keep(work: Work) -> list[str]:
    """Keep what rows use. Returns the fields that could not be read, and that no person approved
    to do without."""
    operation = work.operation
    items = operation.items.planned().filter(escaped=False)
    items = items.exclude(found_in=CleanupItem.FoundIn.TRACKED)
    if not asks(operation) or not items.exists():
        return []
    used = uses_of_rows(
        operation.bucket,
        items,
        removed=removed_with(operation),
        # The lease must outlast the question.
        seconds=conf().lease.total_seconds() / 2,
        renew=operation.renew,
    )
    if used.rows:
        with transaction.atomic():
            operation.renew()
            say(used.rows, KEPT, outcome=Outcome.PROTECTED)
    return unapproved(operation, used)


def removed_with(operation: CleanupOperation) -> Cascade | None:
    """The rows that would go with the project of a dry run. After a deletion they are gone."""
    project = (
        project_model.with_id(operation.project_id or "").first() if operation.dry_run else None
    )
    return Cascade([project]) if project else None


def say(rows: dict[int, str], text: str | Promise, **values: str) -> None:
    """Write down of each item the row that names it."""
    same = {"changed_at": timezone.now(), **values}
    items = [CleanupItem(pk=pk, reason=text % row, **same) for pk, row in rows.items()]
    CleanupItem.objects.bulk_update(items, ["reason", *same], batch_size=200)


def unapproved(operation: CleanupOperation, used: Used) -> list[str]:
    """A cleanup that was blocked goes on only when a person approved it, with what it said."""
    if not used.unread:
        return []
    blocked = operation.events.filter(step="blocked", data__has_key="unread")
    approved = {one for shown in blocked.values_list("data__unread", flat=True) for one in shown}
    return [one for one in used.unread if one not in approved]


def unread_text(fields: list[str]) -> str:
    if not fields:
        return ""
    text = ngettext(
        "Needs approval: the field %s cannot be read, so its rows may still use these files."
        " Nothing has been deleted. Make it readable, then force-delete this operation. Without"
        " that it deletes files that these rows use.",
        "Needs approval: the fields %s cannot be read, so their rows may still use these files."
        " Nothing has been deleted. Make them readable, then force-delete this operation. Without"
        " that it deletes files that these rows use.",
        len(fields),
    )
    return text % ", ".join(fields)


def doubts_at_proof(work: Work, keys: Iterable[str]) -> dict[str, str]:
    """Why these keys stay, as far as columns with an index tell in two seconds. Raises
    DeadlinePassed and Unread."""
    operation = work.operation
    if not asks(operation):
        return {}
    try:
        used = uses_of_keys(operation.bucket, [(key, key) for key in keys], PROOF_SECONDS)
    except TimeoutError as error:
        text = _("The database takes too long to tell whether rows of %s still use these files.")
        raise DeadlinePassed(text % error) from error
    if unread := unapproved(operation, used):
        raise Unread(unread)
    return {key: KEPT % row for key, row in used.rows.items()}


def lost(work: Work) -> dict[int, str]:
    """The files that were sent and are gone, and that a row names all the same."""
    operation = work.operation
    sent = operation.items.filter(outcome=Outcome.DELETING, calls__gt=0, present_at=None)
    if not asks(operation) or not operation.deletes or not sent.exists():
        return {}
    seconds = conf().lease.total_seconds() / 2
    return uses_of_rows(operation.bucket, sent, seconds=seconds, renew=operation.renew).rows


def tell_lost(operation: CleanupOperation, rows: dict[int, str]) -> None:
    """Say it on the items and in the timeline, and alert. In the transaction that calls them
    deleted."""
    if not rows:
        return
    say(rows, LOST)
    text = ngettext(
        "%(count)d file was deleted, but a row saved meanwhile still names it: %(row)s.",
        "%(count)d files were deleted, but rows saved meanwhile still name them, such as %(row)s.",
        len(rows),
    ) % {"count": len(rows), "row": next(iter(rows.values()))}
    operation.record("verify", text, still_named=list(rows.values())[:100])
    files_lost.send(CleanupOperation, operation=operation, summary=text)


def is_still_lost(operation: CleanupOperation) -> bool:
    """Whether a row still names such a file, and nobody uploaded it again."""
    named = operation.items.filter(outcome=Outcome.DELETED).exclude(reason="")
    here = R2Object.objects.in_bucket(operation.bucket).values("key")
    used = uses_of_rows(operation.bucket, named.exclude(key__in=here), seconds=PROOF_SECONDS)
    return bool(used.rows or used.unread)
