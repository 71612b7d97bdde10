from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("storage_audit", "0012_roles"),
    ]

    operations = [
        migrations.AddField(
            model_name="cleanupoperation",
            name="summary",
            field=models.JSONField(default=dict, editable=False),
        ),
    ]
