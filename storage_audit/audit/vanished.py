"""Projects that went without a signal: raw SQL, `_raw_delete`, a cascade in the database."""

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit import projects
from storage_audit.models import CleanupOperation, KnownProject

Evidence = KnownProject.Evidence


def notice() -> int:
    """Learn of new ids, and make a blocked operation for each id that is gone without a signal.

    Blocked, as nobody asked for the deletion: the table may have been emptied by accident.
    Returns the number of projects found gone.
    """
    remember_alive()
    gone = list(KnownProject.objects.vanished().values_list("pk", flat=True))
    return sum(record(project_id) for project_id in gone)


def remember_alive() -> None:
    unknown = projects.rows().exclude(storage_audit_id__in=KnownProject.objects.values("pk"))
    KnownProject.objects.bulk_create(
        [
            KnownProject(pk=project_id, evidence=Evidence.SEEN)
            for project_id in unknown.values_list("storage_audit_id", flat=True)
        ],
        ignore_conflicts=True,
        batch_size=1000,
    )
    KnownProject.objects.reappeared().update(deleted_at=None, evidence=Evidence.SEEN)


@transaction.atomic
def record(project_id: str) -> bool:
    """Make the blocked operation, unless another sweep or the application was faster."""
    now = timezone.now()
    mine = KnownProject.objects.vanished().filter(pk=project_id)
    if not mine.update(deleted_at=now, evidence=Evidence.VANISHED):
        return False
    CleanupOperation.objects.request_for_project(
        project_id,
        trigger=CleanupOperation.Trigger.VANISHED,
        deleted_at=now,
        status=CleanupOperation.Status.BLOCKED,
        next_attempt_at=None,
        error=_(
            "Project %s is gone, but no deletion was signalled: it was deleted with SQL or past"
            " Django. Release this operation if its files are to go, or restore the project."
        )
        % project_id,
    )
    return True
