from datetime import timedelta
from typing import Any

from django.db import migrations
from django.db.models import Exists, F, OuterRef


def forget_made_up_deletions(apps: Any, editor: Any) -> None:
    """A dry run of a live project had its own time as that of the deletion, and would be taken for
    the plan of an earlier one. Plans of real deletions keep theirs."""
    database = editor.connection.alias
    operations = apps.get_model("storage_audit", "CleanupOperation").objects.using(database)
    known = apps.get_model("storage_audit", "KnownProject").objects.using(database)
    deletion = known.filter(pk=OuterRef("project_id"), deleted_at=OuterRef("project_deleted_at"))
    previews = operations.filter(
        ~Exists(deletion),
        kind="project",
        dry_run=True,
        project_deleted_at__gt=F("created_at") - timedelta(seconds=1),
    )
    previews.update(project_deleted_at=None)


class Migration(migrations.Migration):
    dependencies = [
        ("storage_audit", "0025_calls_of_items"),
    ]

    operations = [
        migrations.RunPython(forget_made_up_deletions, migrations.RunPython.noop),
    ]
