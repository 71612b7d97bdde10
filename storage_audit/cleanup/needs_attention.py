"""Which cleanups need a person, kept files, or have leftover files."""

from datetime import timedelta

from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone

from storage_audit import project_model
from storage_audit.cleanup.models import Cleanup, CleanupQuerySet
from storage_audit.clocks import time_after_outer
from storage_audit.models import KnownProject

Kind, Status = Cleanup.Kind, Cleanup.Status
KEPT_FILES_PERIOD = timedelta(days=30)


def select_waiting_for_person(cleanups: CleanupQuerySet) -> CleanupQuerySet:
    """Blocked, or failed for hours: a person must decide or act. A blocked verification no longer
    counts once it was repeated, as nobody can approve it."""
    same = Q(project_id=OuterRef("project_id")) | Q(parent=OuterRef("parent"))
    repeated = Cleanup.objects.filter(
        same | Q(parent=OuterRef("pk")),
        time_after_outer("created_at", "created_at"),
        kind=Kind.VERIFY,
        bucket=OuterRef("bucket"),
    )
    return cleanups.filter(
        Q(status=Status.FAILED)
        | Q(status=Status.BLOCKED) & (~Q(kind=Kind.VERIFY) | ~Exists(repeated))
    )


def select_keeping_files(cleanups: CleanupQuerySet) -> CleanupQuerySet:
    """Cleanups of the last weeks that kept objects, and that no later cleanup or verification
    followed. Objects that stay for longer become findings."""
    later = Cleanup.objects.filter(
        time_after_outer("finished_at", "finished_at"),
        bucket=OuterRef("bucket"),
        project_id=OuterRef("project_id"),
        status__in=Cleanup.ENDED,
    ).exclude(Cleanup.DONE_AT_ONCE)
    lately = timezone.now() - KEPT_FILES_PERIOD
    found = cleanups.filter(~Exists(later), status=Status.CLEAN_WITH_KEPT, finished_at__gte=lately)
    return found.exclude(Exists(kept_projects()))


def kept_projects() -> QuerySet[KnownProject]:
    """That of the outer query, if a person cancelled its cleanup: nobody has to decide any more."""
    cancelled = KnownProject.objects.filter(kept_for=KnownProject.KeptFor.CANCELLED)
    return cancelled.filter(pk=OuterRef("project_id"))


def find_verifications_with_leftovers() -> CleanupQuerySet:
    """Verifications that found objects of a deleted project, and that no later complete check of
    the project followed."""
    of_project = {"bucket": OuterRef("bucket"), "project_id": OuterRef("project_id")}
    looked = Q(status__in=[Status.CLEAN, Status.CLEAN_WITH_KEPT, Status.DIFFERS])
    later = Cleanup.objects.of_whole_projects().filter(
        looked, time_after_outer("finished_at", "finished_at"), **of_project
    )
    # A difference with a live project is no leftover, though the project may be deleted since.
    deleted_since = KnownProject.objects.filter(
        time_after_outer("deleted_at", "finished_at"), pk=OuterRef("project_id")
    )
    alive = project_model.annotated_rows().filter(storage_audit_id=OuterRef("project_id"))
    found = Cleanup.objects.differing().exclude(project_id=None)
    return found.filter(
        ~Exists(later), ~Exists(deleted_since), ~Exists(alive), ~Exists(kept_projects())
    )


def find_verifications_without_cleanup() -> CleanupQuerySet:
    """Those verifications whose files no open cleanup covers."""
    of_project = {"bucket": OuterRef("bucket"), "project_id": OuterRef("project_id")}
    covering = Cleanup.objects.covering().of_projects().filter(**of_project)
    return find_verifications_with_leftovers().filter(~Exists(covering))
