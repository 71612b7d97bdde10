from typing import Any

from django.db import migrations, models
from django.db.models.functions import Upper

import storage_audit.fields

INDEXES = {
    "bucketscan": [models.Index(fields=["started_at"], name="scan_started")],
    "cleanupoperation": [
        models.Index(fields=["created_at"], name="operation_created"),
        models.Index(fields=["project_id", "created_at"], name="operation_project"),
        models.Index(fields=["status", "created_at"], name="operation_status"),
        models.Index(fields=["trigger", "created_at"], name="operation_trigger"),
        models.Index(fields=["status", "trigger", "created_at"], name="operation_status_trigger"),
    ],
    "finding": [
        models.Index(fields=["bucket", "state", "key"], name="finding_state"),
        models.Index(fields=["bucket", "state", "kind", "key"], name="finding_state_kind"),
    ],
    "knownproject": [models.Index(fields=["evidence", "id"], name="known_by_evidence")],
    "project": [
        models.Index(fields=["created_at"], name="project_created"),
        models.Index(storage_audit.fields.Bytewise(Upper("title")), name="project_titled"),
    ],
    "r2object": [
        models.Index(fields=["project_id", "key"], name="keys_of_a_project"),
        models.Index(
            fields=["bucket", "key"],
            condition=~models.Q(state="stored"),
            name="objects_not_at_rest",
        ),
    ],
}

# Some pairs are as rare as each of the two is common. Where PostgreSQL takes them for common, it
# looks for the first of them through the whole table.
# https://www.postgresql.org/docs/current/planner-stats.html#PLANNER-STATS-EXTENDED
STATISTICS = {
    "operation_filters": "status, trigger FROM storage_audit_cleanupoperation",
    "finding_filters": "state, kind FROM storage_audit_finding",
}


def add_statistics(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "postgresql":
        for name, pair in STATISTICS.items():
            schema_editor.execute(f"CREATE STATISTICS {name} (mcv) ON {pair}")
        # They are empty until then, as those of the titles' index are, and autovacuum looks at no
        # table in which little changes.
        for name in ("CleanupOperation", "Finding", "Project"):
            options = apps.get_model("storage_audit", name)._meta
            # Where an adopter's own model owns the objects, there is no table of projects.
            if not options.swapped:
                schema_editor.execute(f"ANALYZE {options.db_table}")


def drop_statistics(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "postgresql":
        for name in STATISTICS:
            schema_editor.execute(f"DROP STATISTICS {name}")


class Migration(migrations.Migration):
    dependencies = [
        ("storage_audit", "0007_one_index_for_projects"),
    ]

    operations = [
        *(
            migrations.AddIndex(model_name=model, index=index)
            for model, indexes in INDEXES.items()
            for index in indexes
        ),
        migrations.RunPython(add_statistics, drop_statistics),
        # Last, as to drop an index shuts out readers for the rest of the transaction.
        migrations.RemoveIndex(model_name="r2object", name="objects_of_a_project"),
        migrations.AlterField(
            model_name="cleanupoperation",
            name="project_id",
            field=storage_audit.fields.BytewiseTextField(
                blank=True, null=True, verbose_name="project"
            ),
        ),
        migrations.AlterField(
            model_name="cleanupoperation",
            name="status",
            field=models.CharField(
                choices=[
                    ("planned", "planned"),
                    ("pending", "pending"),
                    ("running", "running"),
                    ("clean", "clean"),
                    ("clean_with_protected", "clean, some protected"),
                    ("incomplete", "incomplete"),
                    ("failed", "failed"),
                    ("blocked", "blocked"),
                    ("superseded", "superseded"),
                ],
                default="pending",
                max_length=20,
                verbose_name="status",
            ),
        ),
    ]
