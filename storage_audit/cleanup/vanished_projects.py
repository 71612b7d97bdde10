"""Projects that went without a signal: raw SQL, `_raw_delete`, a cascade in the database.

Each gets a blocked cleanup, as nobody asked for the deletion. When many go at once the table is
probably wrong: they get one blocked cleanup together, and count as alive until their rows are back
or a person decides.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from django.db import transaction
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit import project_model
from storage_audit.cleanup import make_cleanups
from storage_audit.cleanup.models import Cleanup
from storage_audit.conf import conf
from storage_audit.models import KnownProject

Evidence = KnownProject.Evidence
Kind = Cleanup.Kind
Status, Trigger = Cleanup.Status, Cleanup.Trigger
IDS_SHOWN = 20


def check_vanished_projects() -> int:
    """Record new ids, and make blocked cleanups for those that are gone without a signal.

    Returns the number of projects newly found gone.
    """
    record_living_projects()
    if not vanished_ids() and not Cleanup.objects.disappearances().exists():
        return 0
    with transaction.atomic():
        hold_other_sweeps()
        gone, many = vanished_ids(), Cleanup.objects.disappearances().first()
        if many:
            return update_mass_decision(many, gone)
        if is_mass_disappearance(gone):
            return request_mass_decision(gone)
    return sum(block_vanished_project(project_id) for project_id in gone)


def vanished_ids() -> list[str]:
    return sorted(KnownProject.objects.vanished().values_list("pk", flat=True))


def record_living_projects() -> None:
    unknown = project_model.annotated_rows().exclude(
        storage_audit_id__in=KnownProject.objects.values("pk")
    )
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
        # A statement that waited for a lock still sees the earlier projects: query again under it.
        locked = list(back.order_by("pk").select_for_update().values_list("pk", flat=True))
        back.filter(pk__any_of=locked).clear_deletion()


def hold_other_sweeps() -> None:
    """Make other sweeps wait until this transaction ends: a row that is written is locked."""
    first = KnownProject.objects.order_by("pk").values("pk")[:1]
    KnownProject.objects.filter(pk__in=first).update(first_seen_at=F("first_seen_at"))


def is_mass_disappearance(gone: Sequence[str]) -> bool:
    """Whether they are more than the limit, or all projects and more than one."""
    return len(gone) > conf().limit_vanished or (
        len(gone) > 1 and not project_model.annotated_rows().exists()
    )


def request_mass_decision(gone: list[str]) -> int:
    cleanup = Cleanup.objects.request(
        kind=Kind.VANISHED,
        bucket=conf().bucket,
        trigger=Trigger.VANISHED,
        status=Status.BLOCKED,
        next_attempt_at=None,
        **decision_values(gone),
    )
    cleanup.record("vanished", cleanup.message, projects=gone)
    return len(gone)


def update_mass_decision(cleanup: Cleanup, gone: list[str]) -> int:
    """Bring the cleanup's list up to date; with nothing left on it, nothing is to be decided."""
    before = cleanup.vanished_ids
    new, back = sorted(set(gone) - set(before)), sorted(set(before) - set(gone))
    if not gone:
        cleanup.supersede(_("All of these projects are back, or a person decided about them."))
    elif new or back:
        cleanup.change_if(Q(status=Status.BLOCKED), **decision_values(gone))
    if new or back:
        cleanup.record("vanished", cleanup.message, gone=new, back=back)
    return len(new)


def decision_values(gone: list[str]) -> dict[str, Any]:
    """The cleanup's values about these projects, and its message to the person who decides."""
    text = _(
        "%(gone)s projects are missing from the database, %(left)s are still there, and no deletion"
        " was reported. Their files are kept. If the table was emptied or restored by accident,"
        " restore the rows; this cleanup then ends. To delete the files, approve this cleanup. The"
        " missing projects: %(ids)s"
    ) % {"gone": len(gone), "left": project_model.annotated_rows().count(), "ids": join_ids(gone)}
    digest = hashlib.sha256("\n".join(gone).encode()).hexdigest()
    return {"vanished_ids": gone, "plan_digest": digest, "message": text}


def join_ids(gone: list[str]) -> str:
    ids, more = ", ".join(gone[:IDS_SHOWN]), len(gone) - IDS_SHOWN
    if more <= 0:
        return f"{ids}."
    return _("%(ids)s, and %(more)s more in the timeline.") % {"ids": ids, "more": more}


@transaction.atomic
def approve_mass_deletion(cleanup: Cleanup, user: str) -> list[Cleanup]:
    """A cleanup for each project on the list that is still gone. Raises IllegalTransition, also
    when the list has changed."""
    hold_other_sweeps()
    listed = cleanup.vanished_ids
    cleanup.supersede(_("Approved by %s. Each project has its own cleanup.") % user)
    made = [each for pk in listed for each in request_vanished_cleanups(pk, Evidence.DECLARED)]
    cleanup.record("approved", cleanup.message, cleanups=[str(each.pk) for each in made])
    for each in made:
        each.record("request", _("Follows from cleanup %s.") % cleanup.pk)
    return made


@transaction.atomic
def block_vanished_project(project_id: str) -> bool:
    """Make the blocked cleanup, unless another sweep or the application was faster."""
    made = request_vanished_cleanups(
        project_id,
        Evidence.VANISHED,
        status=Status.BLOCKED,
        next_attempt_at=None,
        message=_(
            "Project %s is missing from the database, and no deletion was reported. Its files are"
            " kept. To delete them, approve this cleanup. To keep them, restore the project."
        )
        % project_id,
    )
    return bool(made)


def request_vanished_cleanups(project_id: str, evidence: str, **values: Any) -> list[Cleanup]:
    """Cleanups for a project that is gone; none when it is not, or another transaction was
    faster."""
    # A statement that waited for the lock would still see the earlier projects.
    KnownProject.objects.lock_id(project_id)
    now, mine = timezone.now(), KnownProject.objects.vanished().filter(pk=project_id)
    if not mine.update(deleted_at=now, evidence=evidence):
        return []
    return make_cleanups.request_cleanups(
        project_id, trigger=Trigger.VANISHED, deleted_at=now, **values
    )
