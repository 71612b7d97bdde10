from typing import Any

from django.db import migrations, models
from django.db.models import Count, Q, Sum
from django.db.models.functions import Coalesce
from django.utils import timezone

OPEN = ["pending", "running", "incomplete", "failed", "blocked"]
WHOLE = Q(kind="project", dry_run=False, parent=None, status__in=OPEN)
SAME = ("project_id", "bucket", "project_deleted_at")
REASON = "Another cleanup of this deletion was open already, and has the files."


def end_second_ones(apps: Any, editor: Any) -> None:
    """Of several open cleanups of one deletion, only the first goes on."""
    operations = apps.get_model("storage_audit", "CleanupOperation").objects.using(
        editor.connection.alias
    )
    first = set[tuple[Any, ...]]()
    for operation in operations.filter(WHOLE).order_by("created_at", "pk"):
        deletion = tuple(getattr(operation, name) for name in SAME)
        if deletion in first:
            end(operation)
        elif operation.project_deleted_at:
            first.add(deletion)


def end(operation: Any) -> None:
    still_open = operation.items.filter(outcome__in=["planned", "deleting"])
    still_open.filter(tries=0).update(outcome="protected", reason=REASON)
    still_open.update(outcome="failed", reason=REASON)
    groups = operation.items.order_by().values("outcome")
    sums = groups.annotate(n=Count("pk"), size=Coalesce(Sum("size"), 0))
    by_outcome = {each["outcome"]: each for each in sums}
    operation.found = operation.found_bytes = 0
    for outcome in ("deleted", "already_absent", "protected", "failed"):
        count, size = (by_outcome.get(outcome, {}).get(name, 0) for name in ("n", "size"))
        setattr(operation, outcome, count)
        setattr(operation, f"{outcome}_bytes", size)
        operation.found += count
        operation.found_bytes += size
    operation.status, operation.error, operation.finished_at = "superseded", REASON, timezone.now()
    operation.lease_token = operation.lease_until = operation.next_attempt_at = None
    operation.save()


class Migration(migrations.Migration):
    dependencies = [
        ("storage_audit", "0019_lost_files"),
    ]

    operations = [
        migrations.RunPython(end_second_ones, migrations.RunPython.noop),
        migrations.AddConstraint(
            model_name="cleanupoperation",
            constraint=models.UniqueConstraint(
                condition=Q(dry_run=False, kind="project", parent=None, status__in=OPEN),
                fields=("project_id", "bucket", "project_deleted_at"),
                name="one_open_cleanup_per_deletion",
            ),
        ),
    ]
