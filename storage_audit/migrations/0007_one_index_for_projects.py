from django.db import migrations, models

import storage_audit.fields


class Migration(migrations.Migration):
    dependencies = [
        ("storage_audit", "0006_room_for_new_versions"),
    ]

    operations = [
        # First, as to drop one shuts out readers for the rest of the transaction.
        migrations.AddIndex(
            model_name="r2object",
            index=models.Index(fields=["project_id"], name="objects_of_a_project"),
        ),
        migrations.AlterField(
            model_name="r2object",
            name="project_id",
            field=storage_audit.fields.BytewiseTextField(
                blank=True, null=True, verbose_name="project"
            ),
        ),
    ]
