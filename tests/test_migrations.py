"""The tables come, go and come back, and the database compares text byte by byte."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import Group, Permission, User
from django.core.management import call_command
from django.db import IntegrityError, connection
from django.db.migrations.loader import MigrationLoader
from django.utils import timezone
from django_q.models import Schedule

from storage_audit import projects, queue
from storage_audit.access import ApiToken
from storage_audit.fields import BytewiseTextField, after_prefix
from storage_audit.findings import Finding
from storage_audit.incidents import Delivery, Incident, Notice
from storage_audit.items import CleanupItem
from storage_audit.jobs import Job
from storage_audit.models import Installation, KnownProject, Project, R2Object
from storage_audit.observations import DailyFigures, Diagnosis, StoreCalls
from storage_audit.operations import CleanupOperation
from storage_audit.roles import ROLES
from storage_audit.scans import BucketScan
from tests.builders import track_keys
from tests.paths import ROOT

pytestmark = [pytest.mark.usefixtures("transactional_db"), pytest.mark.slow]
OURS = "storage_audit"
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
    assert len(before) == 20
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
    assert CleanupOperation.objects.get().project_id == "proj_1"
    assert queue.is_scheduled()


Rows = dict[str, list[dict[str, Any]]]


def content() -> Rows:
    """Each row of each of our tables as the database has it."""
    found: Rows = {}
    with connection.cursor() as cursor:
        for table in sorted(tables()):
            cursor.execute(f"SELECT * FROM {table} ORDER BY id")
            names = [column[0] for column in cursor.description or ()]
            found[table] = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    return found


def restricted(rows: Rows, columns: Rows) -> Rows:
    """Only what stands in tables and columns that are in both."""
    return {
        table: [{n: row[n] for n in set(row) & set(columns[table][0])} for row in rows[table]]
        for table in rows.keys() & columns.keys()
    }


def fill() -> None:
    """A row at least in each table, with strange values and with none."""
    for project_id in ("proj_1", "proj_2", "proj_gone"):
        Project.objects.create(pk=project_id, title="é 🦊 \n")
    track_keys(*IN_ORDER)
    Project.objects.get(pk="proj_gone").delete()
    R2Object.objects.filter(key="é").delete()
    pruned = CleanupOperation.objects.request(kind="project", bucket="b", trigger="forced")
    CleanupOperation.objects.filter(pk=pruned.pk).update(
        status="clean", finished_at=timezone.now(), next_attempt_at=None, pace={"keys": 250}
    )
    pruned.mark_pruned("a.jsonl.gz", "0" * 64)
    job = Job.objects.request(Job.Action.VERIFY, ["é \u001f"])
    CleanupOperation.objects.request(kind="verify", bucket="b", trigger="verify", job=job)
    scan = BucketScan.objects.create(bucket="b", status="complete", listed=2**40)
    scan.shards.create(prefix="a", cursor="a\u001fb")
    seen = {"first_scan": scan, "last_scan": scan}
    Finding.objects.create(bucket="b", key="\u001f", kind="orphaned", **seen)
    scan.sightings.create(bucket="b", key="\u001f", kind="missing", evidence="é")
    scan.listed_keys.create(key="é \n")
    Installation.objects.create(fingerprint="a")
    Diagnosis.objects.create(context="shell", host="é", pid=1, probes=[{"name": "\u001f"}])
    StoreCalls.objects.create(kind="ListObjectsV2", result="ok", calls=2**40)
    ApiToken.issue(name="é", user=User.objects.create_user("zoe"))
    notice = Notice.objects.create()
    Incident.objects.create(kind="blocked", operation=pruned, summary="é", begin_notice=notice)
    Incident.objects.create(kind="worker", summary="\n")
    Delivery.objects.create(notice=notice, channel="webhook")
    Job.objects.request("verify", ["proj_1", "proj_\u001f"])
    figures = ("tracked", "tracked_bytes", "left_behind", "left_behind_bytes")
    DailyFigures.objects.take(**dict.fromkeys(figures, 2**40), file_types={"\u001f": [1, 2]})


def steps() -> list[str]:
    """Our migrations, the last one first."""
    names = [name for app, name in MigrationLoader(connection).graph.nodes if app == OURS]
    return sorted(names, reverse=True)


def test_each_migration_runs_back_and_forward_and_keeps_what_has_a_column(
    migrated_again: None,
) -> None:
    fill()
    before = content()
    assert all(before.values())
    for step in steps()[1:]:
        call_command("migrate", OURS, step, verbosity=0)
        now = content()
        assert now == restricted(before, now)
        before = now
    assert "pruned_at" not in before["storage_audit_cleanupoperation"][0]
    for step in reversed(steps()[:-1]):
        call_command("migrate", OURS, step, verbosity=0)
        now = content()
        assert restricted(now, before) == before
        before = now
    added = before["storage_audit_cleanupoperation"]
    assert {(row["archive"], row["pruned_at"]) for row in added} == {("", None)}
    assert not CleanupOperation.objects.pruned().exists()


def test_of_several_open_cleanups_of_a_deletion_the_first_goes_on(migrated_again: None) -> None:
    call_command("migrate", OURS, "0019", verbosity=0)
    same = {"project_id": "proj_1", "project_deleted_at": timezone.now(), "bucket": "b"}
    first, second = (
        CleanupOperation.objects.request(kind="project", trigger=trigger, **same)
        for trigger in ("deleted", "declared")
    )
    facts = {"found_in": "both", "size": 7}
    before = MigrationLoader(connection).project_state((OURS, "0019_lost_files")).apps
    items = before.get_model(OURS, "CleanupItem").objects
    for key, tries in (("new", 0), ("sent", 1)):
        items.create(
            operation_id=second.pk,
            key=key,
            identity=key,
            tries=tries,
            outcome="planned",
            **facts,
        )
    call_command("migrate", OURS, "0020", verbosity=0)
    first.refresh_from_db()
    second.refresh_from_db()
    assert (first.status, second.status, second.next_attempt_at) == ("pending", "superseded", None)
    assert (second.found, second.protected, second.failed_bytes) == (2, 1, 7)


def test_previews_of_live_projects_lose_the_deletion_that_was_none(migrated_again: None) -> None:
    call_command("migrate", OURS, "0025", verbosity=0)
    now, before = timezone.now(), timezone.now() - timedelta(days=1)
    KnownProject.objects.create(pk="proj_2", evidence="deleted", deleted_at=now)
    plans = {
        name: CleanupOperation.objects.request(
            kind="project",
            trigger="dry_run",
            dry_run=True,
            bucket="b",
            status="planned",
            next_attempt_at=None,
            project_id=project_id,
            project_deleted_at=deleted_at,
        )
        for name, project_id, deleted_at in (
            ("live", "proj_1", now),
            ("deleted", "proj_2", now),
            ("earlier", "proj_2", before),
        )
    }
    call_command("migrate", OURS, "0026", verbosity=0)
    found = dict(CleanupOperation.objects.values_list("pk", "project_deleted_at"))
    assert {name: found[plan.pk] for name, plan in plans.items()} == {
        "live": None,
        "deleted": now,
        "earlier": before,
    }


@pytest.mark.only_on("postgresql")
def test_what_the_lists_are_planned_by_is_known_right_after_the_migration(
    migrated_again: None,
) -> None:
    fill()
    call_command("migrate", OURS, "0007", verbosity=0)
    call_command("migrate", OURS, "0008", verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_stats WHERE tablename = 'project_titled'")
        assert cursor.fetchall()
        cursor.execute(
            "SELECT relname FROM pg_class WHERE reltuples > 0 AND relname = ANY(%s)",
            [[f"storage_audit_{each}" for each in ("cleanupoperation", "finding", "project")]],
        )
        assert len(cursor.fetchall()) == 3


def test_rows_that_a_new_constraint_refuses_stop_the_migration_and_stay(
    migrated_again: None,
) -> None:
    fill()
    call_command("migrate", OURS, "0002", verbosity=0)
    wrong = CleanupOperation.objects.filter(kind="objects")
    assert wrong.update(status="clean_with_protected", found=1, failed=1) == 1
    before = content()
    with pytest.raises(IntegrityError, match="operation_protected_is_no_failure"):
        call_command("migrate", OURS, verbosity=0)
    assert content() == before
    wrong.update(status="incomplete")


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
    operation = CleanupOperation.objects.request(kind="objects", bucket="tests", trigger="deleted")
    CleanupItem.objects.bulk_create(
        CleanupItem(operation=operation, key=key, identity=key, found_in="tracked")
        for key in reversed(IN_ORDER)
    )
    assert list(operation.items.order_by("key").values_list("key", flat=True)) == IN_ORDER


def test_ids_are_compared_by_their_bytes() -> None:
    for project_id in ("proj_a", "proj_A", "proj_B", "proj_-"):
        Project.objects.create(pk=project_id)
    expected = ["proj_-", "proj_A", "proj_B", "proj_a"]
    assert list(Project.objects.order_by("pk").values_list("pk", flat=True)) == expected
    assert list(KnownProject.objects.order_by("pk").values_list("pk", flat=True)) == expected
    assert projects.alive(["proj_a", "PROJ_A"]) == {"proj_a"}


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
    end = after_prefix(key)
    assert not end or key.encode() < end.encode()
    assert not end or (key + "\U0010ffff" * 3).encode() < end.encode()
    assert after_prefix("\U0010ffff") == ""


def test_a_row_for_the_same_key_in_another_case_or_spelling_is_another_row() -> None:
    track_keys("é", "e\u0301", "É")
    assert R2Object.objects.count() == 3
    assert R2Object.objects.get(key="é").key == "é"


def test_a_database_has_one_installation() -> None:
    now = timezone.now()
    Installation.objects.bulk_create([Installation(fingerprint="a", claimed_at=now)])
    made = Installation.objects.bulk_create(
        [Installation(fingerprint="b", claimed_at=now)], ignore_conflicts=True
    )
    assert len(made) == Installation.objects.count() == 1


def test_the_field_keeps_its_name_in_migrations() -> None:
    _name, path, _args, _kwargs = BytewiseTextField().deconstruct()
    assert path == "storage_audit.fields.BytewiseTextField"
