from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("storage_audit", "0013_plan_summary"),
    ]

    operations = [
        migrations.AddField(
            model_name="cleanupoperation",
            name="headway",
            field=models.JSONField(default=dict, editable=False),
        ),
    ]
