import uuid

import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("storage_audit", "0009_jobs"),
    ]

    operations = [
        migrations.CreateModel(
            name="Notice",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=uuid.uuid4, editable=False, primary_key=True, serialize=False
                    ),
                ),
                (
                    "made_at",
                    models.DateTimeField(default=django.utils.timezone.now, verbose_name="made"),
                ),
            ],
            options={
                "verbose_name": "notice",
                "verbose_name_plural": "notices",
            },
        ),
        migrations.CreateModel(
            name="Incident",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("blocked", "blocked"),
                            ("failed", "failed"),
                            ("overdue", "overdue"),
                            ("worker", "worker gone"),
                            ("findings", "many findings"),
                        ],
                        max_length=10,
                        verbose_name="kind",
                    ),
                ),
                ("summary", models.TextField(verbose_name="what was seen")),
                (
                    "began_at",
                    models.DateTimeField(
                        db_index=True, default=django.utils.timezone.now, verbose_name="began"
                    ),
                ),
                ("ended_at", models.DateTimeField(null=True, verbose_name="over")),
                (
                    "operation",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="incidents",
                        to="storage_audit.cleanupoperation",
                        verbose_name="operation",
                    ),
                ),
                (
                    "begin_notice",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="began",
                        to="storage_audit.notice",
                    ),
                ),
                (
                    "end_notice",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="ended",
                        to="storage_audit.notice",
                    ),
                ),
            ],
            options={
                "verbose_name": "incident",
                "verbose_name_plural": "incidents",
                "permissions": [("test_notices", "Can send a test message")],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(
                                ("kind__in", ["blocked", "failed", "overdue"]),
                                ("operation__isnull", False),
                            ),
                            models.Q(("kind__in", ["worker", "findings"]), ("operation", None)),
                            _connector="OR",
                        ),
                        name="incident_kind_is_known",
                    ),
                    models.UniqueConstraint(
                        condition=models.Q(("ended_at", None)),
                        fields=("kind", "operation"),
                        name="one_open_incident_of_an_operation",
                    ),
                    models.UniqueConstraint(
                        condition=models.Q(("ended_at", None), ("operation", None)),
                        fields=("kind",),
                        name="one_open_incident_of_its_kind",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Delivery",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "channel",
                    models.CharField(
                        choices=[("email", "e-mail"), ("webhook", "webhook")],
                        max_length=10,
                        verbose_name="channel",
                    ),
                ),
                ("recipient", models.TextField(blank=True, verbose_name="recipient")),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("waiting", "waiting"),
                            ("sent", "sent"),
                            ("given_up", "given up"),
                        ],
                        default="waiting",
                        max_length=10,
                        verbose_name="state",
                    ),
                ),
                ("tries", models.PositiveIntegerField(default=0, verbose_name="tries")),
                (
                    "next_try_at",
                    models.DateTimeField(
                        default=django.utils.timezone.now, null=True, verbose_name="next try"
                    ),
                ),
                ("sent_at", models.DateTimeField(null=True, verbose_name="sent")),
                ("error", models.TextField(blank=True, verbose_name="error")),
                (
                    "notice",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="deliveries",
                        to="storage_audit.notice",
                    ),
                ),
            ],
            options={
                "verbose_name": "delivery",
                "verbose_name_plural": "deliveries",
                "indexes": [
                    models.Index(
                        condition=models.Q(("state", "waiting")),
                        fields=["next_try_at"],
                        name="delivery_due",
                    )
                ],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("notice", "channel", "recipient"), name="one_delivery_to_each"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("next_try_at__isnull", False), ("state", "waiting")),
                            models.Q(("next_try_at", None), ("state__in", ["sent", "given_up"])),
                            _connector="OR",
                        ),
                        name="delivery_state_is_known",
                    ),
                ],
            },
        ),
    ]
