"""The tables come, go and come back, and the database compares text byte by byte."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from django.apps import apps
from django.contrib.auth.models import Group, Permission
from django.core.management import call_command
from django.db import connection
from django.utils import timezone
from django_q.models import Schedule

from storage_audit import project_model, queue
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.fields import BytewiseTextField, prefix_end
from storage_audit.models import DatabaseIdentity, KnownProject, Project, R2Object
from storage_audit.roles import ROLES
from tests.builders import track_keys
from tests.paths import ROOT

pytestmark = [pytest.mark.usefixtures("transactional_db"), pytest.mark.slow]
# In the order of their UTF-8 bytes. A locale's order would be a, B, é, ~ or the like.
IN_ORDER = ["A", "B", "a", "a-b", "a/b", "ab", "z", "~", "e\u0301", "é", "ｚ", "😀"]
IN_ORDER.sort(key=str.encode)


@pytest.fixture
def migrated_again() -> Iterator[None]:
    yield
    call_command("migrate", verbosity=0)


def tables() -> set[str]:
    return {name for name in connection.introspection.table_names() if "storage_audit" in name}


def test_the_migrations_say_all_that_the_models_say() -> None:
    command = [sys.executable, "manage.py", "makemigrations", "--check", "--dry-run"]
    settings = "--settings=devtools.check_settings"
    done = subprocess.run([*command, settings], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_tables_go_and_come_back(migrated_again: None) -> None:
    before = tables()
    assert len(before) == 26
    Project.objects.create(pk="proj_1").delete()
    call_command("migrate", "storage_audit", "zero", verbosity=0)
    assert tables() == set()
    # As in a new database, which has neither when the groups are made.
    Group.objects.all().delete()
    Permission.objects.all().delete()
    call_command("migrate", "storage_audit", verbosity=0)
    assert tables() == before
    for name, held in ROLES.items():
        given = Group.objects.get(name=name).permissions.values_list("codename", flat=True)
        assert set(given) == held
    Project.objects.create(pk="proj_1").delete()
    assert Cleanup.objects.get().project_id == "proj_1"
    assert queue.is_sweep_scheduled()


@pytest.mark.only_on("postgresql")
def test_postgresql_counts_the_pairs_of_values_that_the_lists_filter_by() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_get_statisticsobjdef(oid) FROM pg_statistic_ext ORDER BY stxname")
        assert [definition for (definition,) in cursor.fetchall()] == [
            "CREATE STATISTICS public.cleanup_filters (mcv) ON status, trigger"
            " FROM storage_audit_cleanup",
            "CREATE STATISTICS public.finding_filters (mcv) ON kind, state"
            " FROM storage_audit_finding",
        ]


def test_migrate_works_before_the_queue_has_its_tables(migrated_again: None) -> None:
    call_command("migrate", "django_q", "zero", verbosity=0)
    call_command("migrate", "storage_audit", "zero", verbosity=0)
    call_command("migrate", "storage_audit", verbosity=0)
    call_command("migrate", verbosity=0)
    assert set(Schedule.objects.values_list("func", flat=True)) == {
        queue.SWEEP,
        queue.RECONCILE,
    }


def test_every_column_of_keys_buckets_and_ids_has_the_bytewise_collation() -> None:
    expected = {
        (model._meta.db_table, column)
        for model in apps.get_app_config("storage_audit").get_models()
        for field in model._meta.get_fields()
        if (column := getattr(field, "column", None))
        and (column in ("key", "identity", "bucket", "project_id") or column.endswith("prefix"))
    } | {("storage_audit_project", "id"), ("storage_audit_knownproject", "id")}
    assert len(expected) > 12
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT table_name, column_name, collation_name FROM information_schema.columns"
                " WHERE table_schema = current_schema()"
            )
            found = {(table, column): collation for table, column, collation in cursor.fetchall()}
        else:
            found = {
                (table, column.name): column.collation
                for table in {table for table, _column in expected}
                for column in connection.introspection.get_table_description(cursor, table)
            }
    # SQLite's own default is BINARY, and its introspection then says None.
    right = ("C",) if connection.vendor == "postgresql" else ("BINARY", None)
    assert {place for place in expected if found[place] not in right} == set()


def test_keys_are_sorted_by_their_bytes() -> None:
    track_keys(*reversed(IN_ORDER))
    assert list(R2Object.objects.order_by("key").values_list("key", flat=True)) == IN_ORDER
    cleanup = Cleanup.objects.request(kind="objects", bucket="tests", trigger="deleted")
    CleanupItem.objects.bulk_create(
        CleanupItem(cleanup=cleanup, key=key, identity=key, found_in="tracked")
        for key in reversed(IN_ORDER)
    )
    assert list(cleanup.items.order_by("key").values_list("key", flat=True)) == IN_ORDER


def test_ids_are_compared_by_their_bytes() -> None:
    for project_id in ("proj_a", "proj_A", "proj_B", "proj_-"):
        Project.objects.create(pk=project_id)
    expected = ["proj_-", "proj_A", "proj_B", "proj_a"]
    assert list(Project.objects.order_by("pk").values_list("pk", flat=True)) == expected
    assert list(KnownProject.objects.order_by("pk").values_list("pk", flat=True)) == expected
    assert project_model.living_ids(["proj_a", "PROJ_A"]) == {"proj_a"}


@pytest.mark.parametrize("prefix", ["", "a", "A", "a-", "é", "😀", "\U0010ffff", "a\ud7ff", "e"])
def test_under_a_prefix_is_what_starts_with_it(prefix: str) -> None:
    keys = [*IN_ORDER, "a\ud7ff!", "a\ue000", "\U0010ffff\U0010ffff", "b\U0010ffff"]
    track_keys(*keys)
    found = R2Object.objects.under(prefix).values_list("key", flat=True)
    assert set(found) == {key for key in keys if key.startswith(prefix)}


def test_outside_of_prefixes_is_what_starts_with_none_of_them() -> None:
    track_keys(*IN_ORDER)
    left = R2Object.objects.outside(["a", "é"]).values_list("key", flat=True)
    assert set(left) == {key for key in IN_ORDER if not key.startswith(("a", "é"))}
    assert R2Object.objects.outside([]).count() == len(IN_ORDER)


@pytest.mark.parametrize("key", ["a", "proj_1/", "é", "\ud7ff", "\U0010ffff", "a\U0010ffff"])
def test_after_prefix_is_the_least_text_behind_all_that_start_with_it(key: str) -> None:
    end = prefix_end(key)
    assert not end or key.encode() < end.encode()
    assert not end or (key + "\U0010ffff" * 3).encode() < end.encode()
    assert prefix_end("\U0010ffff") == ""


def test_a_row_for_the_same_key_in_another_case_or_spelling_is_another_row() -> None:
    track_keys("é", "e\u0301", "É")
    assert R2Object.objects.count() == 3
    assert R2Object.objects.get(key="é").key == "é"


def test_a_database_has_one_identity() -> None:
    now = timezone.now()
    DatabaseIdentity.objects.bulk_create([DatabaseIdentity(fingerprint="a", connected_at=now)])
    made = DatabaseIdentity.objects.bulk_create(
        [DatabaseIdentity(fingerprint="b", connected_at=now)], ignore_conflicts=True
    )
    assert len(made) == DatabaseIdentity.objects.count() == 1


def test_the_field_keeps_its_name_in_migrations() -> None:
    _name, path, _args, _kwargs = BytewiseTextField().deconstruct()
    assert path == "storage_audit.fields.BytewiseTextField"
