from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [
        ("storage_audit", "0008_lists"),
    ]

    operations = []
