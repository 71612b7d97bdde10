from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("storage_audit", "0010_incidents"),
    ]

    operations = [
        migrations.CreateModel(
            name="DailyFigures",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("day", models.DateField(unique=True, verbose_name="day")),
                ("taken_at", models.DateTimeField(verbose_name="taken")),
                ("tracked", models.PositiveBigIntegerField(verbose_name="tracked objects")),
                ("tracked_bytes", models.PositiveBigIntegerField(verbose_name="tracked bytes")),
                ("left_behind", models.PositiveBigIntegerField(verbose_name="left behind")),
                (
                    "left_behind_bytes",
                    models.PositiveBigIntegerField(verbose_name="bytes left behind"),
                ),
                ("file_types", models.JSONField(default=dict, verbose_name="file types")),
            ],
            options={
                "verbose_name": "daily figures",
                "verbose_name_plural": "daily figures",
            },
        ),
        migrations.AddIndex(
            model_name="cleanupoperation",
            index=models.Index(
                condition=models.Q(("finished_at__isnull", False)),
                fields=["finished_at"],
                name="operation_finished",
            ),
        ),
    ]
