"""Projects that went without a signal: raw SQL, `_raw_delete`, a cascade in the database.

Each gets a blocked operation, as nobody asked for the deletion. When many go at once it is rather
the table that is wrong: they get one blocked operation together, and count as alive until their
rows are back or a person decides.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from django.db import transaction
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit import project_model
from storage_audit.cleanup import succession
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.conf import conf
from storage_audit.models import KnownProject

Evidence = KnownProject.Evidence
Kind = CleanupOperation.Kind
Status, Trigger = CleanupOperation.Status, CleanupOperation.Trigger
NAMED = 20


def notice() -> int:
    """Learn of new ids, and make blocked operations for those that are gone without a signal.

    Returns the number of projects newly found gone.
    """
    remember_alive()
    if not vanished_ids() and not CleanupOperation.objects.disappearances().exists():
        return 0
    with transaction.atomic():
        hold_other_sweeps()
        gone, many = vanished_ids(), CleanupOperation.objects.disappearances().first()
        if many:
            return follow(many, gone)
        if is_mass(gone):
            return gather(gone)
    return sum(record(project_id) for project_id in gone)


def vanished_ids() -> list[str]:
    return sorted(KnownProject.objects.vanished().values_list("pk", flat=True))


def remember_alive() -> None:
    unknown = project_model.rows().exclude(storage_audit_id__in=KnownProject.objects.values("pk"))
    KnownProject.objects.bulk_create(
        [
            KnownProject(pk=project_id, evidence=Evidence.SEEN)
            for project_id in unknown.values_list("storage_audit_id", flat=True)
        ],
        ignore_conflicts=True,
        batch_size=1000,
    )
    back = KnownProject.objects.reappeared()
    with transaction.atomic():
        # A statement that waited for a lock still sees the projects of before: ask again under it.
        locked = list(back.order_by("pk").select_for_update().values_list("pk", flat=True))
        back.filter(pk__any_of=locked).drop_deletion()


def hold_other_sweeps() -> None:
    """Let them wait until this transaction ends: a row that is written is locked."""
    first = KnownProject.objects.order_by("pk").values("pk")[:1]
    KnownProject.objects.filter(pk__in=first).update(first_seen_at=F("first_seen_at"))


def is_mass(gone: Sequence[str]) -> bool:
    """More than the limit, or all of several."""
    return len(gone) > conf().limit_vanished or (
        len(gone) > 1 and not project_model.rows().exists()
    )


def gather(gone: list[str]) -> int:
    operation = CleanupOperation.objects.request(
        kind=Kind.VANISHED,
        bucket=conf().bucket,
        trigger=Trigger.VANISHED,
        status=Status.BLOCKED,
        next_attempt_at=None,
        **listing(gone),
    )
    operation.record("vanished", operation.error, projects=gone)
    return len(gone)


def follow(operation: CleanupOperation, gone: list[str]) -> int:
    """Bring the operation's list up to date; with nothing left on it, nothing is to be decided."""
    before = operation.cursor["projects"]
    new, back = sorted(set(gone) - set(before)), sorted(set(before) - set(gone))
    if not gone:
        operation.supersede(_("All of these projects are back, or were decided on."))
    elif new or back:
        operation.change(Q(status=Status.BLOCKED), **listing(gone))
    if new or back:
        operation.record("vanished", operation.error, gone=new, back=back)
    return len(new)


def listing(gone: list[str]) -> dict[str, Any]:
    """What the operation keeps, and tells the person who decides, of these projects."""
    text = _(
        "%(gone)s projects are gone at once, and no deletion was signalled; %(left)s are there."
        " Most likely the table was emptied or restored by accident: then restore the rows, and"
        " this settles itself. Until then these projects count as alive, and nothing of theirs is"
        " deleted. If their files are to go, force-delete this operation. They are: %(ids)s"
    ) % {"gone": len(gone), "left": project_model.rows().count(), "ids": names(gone)}
    digest = hashlib.sha256("\n".join(gone).encode()).hexdigest()
    return {"cursor": {"projects": gone}, "plan_digest": digest, "error": text}


def names(gone: list[str]) -> str:
    ids, more = ", ".join(gone[:NAMED]), len(gone) - NAMED
    if more <= 0:
        return f"{ids}."
    return _("%(ids)s, and %(more)s more in the timeline.") % {"ids": ids, "more": more}


@transaction.atomic
def release(operation: CleanupOperation, user: str) -> list[CleanupOperation]:
    """A cleanup for each project on the list that is still gone. Raises IllegalTransition, also
    when the list is another by now."""
    hold_other_sweeps()
    listed = operation.cursor["projects"]
    operation.supersede(_("Released by %s: each project has a cleanup of its own.") % user)
    made = [each for pk in listed for each in request(pk, Evidence.DECLARED)]
    operation.record("released", operation.error, operations=[str(each.pk) for each in made])
    for each in made:
        each.record("request", _("Follows from operation %s.") % operation.pk)
    return made


@transaction.atomic
def record(project_id: str) -> bool:
    """Make the blocked operation, unless another sweep or the application was faster."""
    made = request(
        project_id,
        Evidence.VANISHED,
        status=Status.BLOCKED,
        next_attempt_at=None,
        error=_(
            "Project %s is gone, but no deletion was signalled: it was deleted with SQL or past"
            " Django. Force-delete this operation if its files are to go, or restore the project."
        )
        % project_id,
    )
    return bool(made)


def request(project_id: str, evidence: str, **values: Any) -> list[CleanupOperation]:
    """Operations for a project that is gone; none when it is not, or somebody has it."""
    # A statement that waited for the lock would still see the projects of before.
    KnownProject.objects.hold(project_id)
    now, mine = timezone.now(), KnownProject.objects.vanished().filter(pk=project_id)
    if not mine.update(deleted_at=now, evidence=evidence):
        return []
    return succession.request_cleanups(
        project_id, trigger=Trigger.VANISHED, deleted_at=now, **values
    )
