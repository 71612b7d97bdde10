from typing import Any

from django.db import migrations, models
from django.db.models import F


def distrust_positions(apps: Any, schema_editor: Any) -> None:
    """No marker vouches for what was written before: such a scan starts again when it goes on."""
    scans = apps.get_model("storage_audit", "BucketScan").objects
    scans.exclude(status="complete").update(marker_seen_at=F("started_at"))


class Migration(migrations.Migration):
    dependencies = [
        ("storage_audit", "0017_recorded_markers"),
    ]

    operations = [
        migrations.AddField(
            model_name="bucketscan",
            name="marker",
            field=models.TextField(blank=True, editable=False),
        ),
        migrations.AddField(
            model_name="bucketscan",
            name="marker_seen_at",
            field=models.DateTimeField(editable=False, null=True),
        ),
        migrations.RunPython(distrust_positions, migrations.RunPython.noop),
    ]
