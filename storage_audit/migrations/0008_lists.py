from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [
        ("storage_audit", "0007_one_index_for_projects"),
    ]

    operations = []
