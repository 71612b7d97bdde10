"""What was asked for of many projects at once becomes operations, some at a time."""

from collections.abc import Callable

from django.db import transaction

from storage_audit.audit import requests
from storage_audit.models import CleanupOperation, Job
from storage_audit.origin import Origin, acting_as

# Projects in one transaction, which on SQLite all others who write wait for.
SLICE = 100
MAKE: dict[str, Callable[[str], list[CleanupOperation]]] = {
    Job.Action.DRY_RUN: requests.dry_run,
    Job.Action.VERIFY: requests.verify_project,
}


@transaction.atomic
def take_up(job: Job) -> list[CleanupOperation]:
    """The operations of the next projects, made in the transaction that says how far the job is:
    whoever dies at it or does the same, each is made once. None where another was quicker."""
    project_ids = job.project_ids[job.position : job.position + SLICE]
    if not job.advance(len(project_ids)):
        return []
    with acting_as(Origin(job.requested_by, job.origin)):
        made = [each for project_id in project_ids for each in MAKE[job.action](project_id)]
    CleanupOperation.objects.filter(pk__in=[each.pk for each in made]).update(job=job)
    return made
