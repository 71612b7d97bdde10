"""Which cleanups need a person, kept files, or left some behind."""

from datetime import timedelta

from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from storage_audit import project_model
from storage_audit.cleanup.models import CleanupOperation, CleanupOperationQuerySet
from storage_audit.clocks import after_outer
from storage_audit.models import KnownProject

Kind, Status = CleanupOperation.Kind, CleanupOperation.Status
KEPT_LATELY = timedelta(days=30)


def select_waiting_for_person(operations: CleanupOperationQuerySet) -> CleanupOperationQuerySet:
    """Blocked, or failed for hours: a person must decide, or look. A look that was blocked is
    done with once it was repeated, as nobody can release it."""
    same = Q(project_id=OuterRef("project_id")) | Q(parent=OuterRef("parent"))
    repeated = CleanupOperation.objects.filter(
        same | Q(parent=OuterRef("pk")),
        after_outer("created_at", "created_at"),
        kind=Kind.VERIFY,
        bucket=OuterRef("bucket"),
    )
    return operations.filter(
        Q(status=Status.FAILED)
        | Q(status=Status.BLOCKED) & (~Q(kind=Kind.VERIFY) | ~Exists(repeated))
    )


def select_keeping_files(operations: CleanupOperationQuerySet) -> CleanupOperationQuerySet:
    """Those of the last weeks that kept protected objects, and after which nobody looked again. Of
    what stays for longer the findings tell."""
    later = CleanupOperation.objects.filter(
        after_outer("finished_at", "finished_at"),
        bucket=OuterRef("bucket"),
        project_id=OuterRef("project_id"),
        status__in=CleanupOperation.ENDED,
    ).exclude(CleanupOperation.DONE_AT_ONCE)
    lately = timezone.now() - KEPT_LATELY
    return operations.filter(
        ~Exists(later), status=Status.CLEAN_WITH_PROTECTED, finished_at__gte=lately
    )


def find_verifications_with_leftovers() -> CleanupOperationQuerySet:
    """Verifications that found objects of a deleted project, all of which nobody looked for again
    to the end."""
    of_project = {"bucket": OuterRef("bucket"), "project_id": OuterRef("project_id")}
    clean = Q(status__in=[Status.CLEAN, Status.CLEAN_WITH_PROTECTED])
    looked = clean | CleanupOperation.OVER & Q(status=Status.INCOMPLETE)
    later = CleanupOperation.objects.of_whole_projects().filter(
        looked, after_outer("finished_at", "finished_at"), **of_project
    )
    # A difference with a live project is no leftover, though the project may be deleted since.
    deleted_since = KnownProject.objects.filter(
        after_outer("deleted_at", "finished_at"), pk=OuterRef("project_id")
    )
    alive = project_model.rows().filter(storage_audit_id=OuterRef("project_id"))
    found = CleanupOperation.objects.finding_differences().exclude(project_id=None)
    return found.filter(~Exists(later), ~Exists(deleted_since), ~Exists(alive))


def find_verifications_with_uncovered_leftovers() -> CleanupOperationQuerySet:
    """Those of them whose files no open cleanup covers."""
    of_project = {"bucket": OuterRef("bucket"), "project_id": OuterRef("project_id")}
    covering = CleanupOperation.objects.covering().of_projects().filter(**of_project)
    return find_verifications_with_leftovers().filter(~Exists(covering))
