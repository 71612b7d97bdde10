from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("storage_audit", "0014_progress"),
    ]

    operations = [
        migrations.AddIndex(
            model_name="cleanupitem",
            index=models.Index(fields=["identity"], name="item_identity"),
        ),
        # The other serves as well, and this one was written at each change of an outcome.
        migrations.RemoveIndex(model_name="cleanupitem", name="item_being_deleted"),
    ]
