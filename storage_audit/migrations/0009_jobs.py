import uuid

import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("storage_audit", "0008_lists"),
    ]

    operations = [
        migrations.CreateModel(
            name="Job",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=uuid.uuid4,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                        verbose_name="job id",
                    ),
                ),
                (
                    "action",
                    models.CharField(
                        choices=[("dry_run", "dry run"), ("verify", "verification")],
                        max_length=10,
                        verbose_name="what is done",
                    ),
                ),
                ("project_ids", models.JSONField(editable=False)),
                ("projects", models.PositiveIntegerField(verbose_name="projects")),
                ("position", models.PositiveIntegerField(default=0, verbose_name="taken up")),
                ("requested_by", models.TextField(blank=True, verbose_name="requested by")),
                ("origin", models.TextField(blank=True, verbose_name="requested from")),
                (
                    "created_at",
                    models.DateTimeField(
                        default=django.utils.timezone.now, verbose_name="requested"
                    ),
                ),
                ("enqueued_at", models.DateTimeField(editable=False, null=True)),
                (
                    "finished_at",
                    models.DateTimeField(blank=True, null=True, verbose_name="all taken up"),
                ),
            ],
            options={
                "verbose_name": "job",
                "verbose_name_plural": "jobs",
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("action__in", ["dry_run", "verify"])),
                        name="job_action_is_known",
                    )
                ],
            },
        ),
        migrations.AddField(
            model_name="cleanupoperation",
            name="job",
            field=models.ForeignKey(
                db_index=False,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="operations",
                to="storage_audit.job",
                verbose_name="job",
            ),
        ),
        migrations.AddIndex(
            model_name="cleanupoperation",
            index=models.Index(
                condition=models.Q(("job__isnull", False)),
                fields=["job", "status"],
                name="operation_of_job",
            ),
        ),
    ]
