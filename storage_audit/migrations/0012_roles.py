from typing import Any

from django.db import migrations

from storage_audit.roles import make_groups


def forwards(apps: Any, schema_editor: Any) -> None:
    make_groups(apps, schema_editor.connection.alias)


class Migration(migrations.Migration):
    dependencies = [
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
        ("storage_audit", "0011_daily_figures"),
    ]

    operations = [
        # Groups may have members by the time that this is taken back.
        migrations.RunPython(forwards, migrations.RunPython.noop),
    ]
