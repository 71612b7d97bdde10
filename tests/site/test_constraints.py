"""What the database itself refuses, whoever writes: raw SQL, past every model and transition."""

from itertools import product

import pytest
from django.apps import apps
from django.db import IntegrityError, connection, models, transaction
from django.utils import timezone

from storage_audit.alerts.models import Alert, Delivery, Notification
from storage_audit.cleanup.models import BulkJob, Cleanup
from storage_audit.doctor.models import HealthReport
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object
from storage_audit.scan.models import BucketScan

pytestmark = pytest.mark.django_db(transaction=True)
CLEANUP_TABLE = "storage_audit_cleanup"
ALERT_TABLE, DELIVERY_TABLE = "storage_audit_alert", "storage_audit_delivery"
CLOSED = Cleanup.FINISHED
ENDED = Cleanup.ENDED
OPEN = sorted(set(Cleanup.Status.values) - set(ENDED))
PARTS = ("deleted", "already_gone", "kept", "failed")
NOW = "CURRENT_TIMESTAMP"
PRUNED = f"pruned_at = {NOW}, archive = 'a.jsonl.gz', archive_digest = 'abc'"


def closed(status: str, **totals: int) -> str:
    return ", ".join([f"status = '{status}'", *(f"{name} = {n}" for name, n in totals.items())])


# Another constraint refuses these too, and may be the one that the database names.
NOT_ENDED_SO = {("clean", "kept"), ("clean", "failed"), ("clean_with_kept", "failed")}
# The table, what is set, and which constraint must refuse it.
REFUSED = [
    ("storage_audit_healthreport", "context = 'cron'", "health_report_context_known"),
    (CLEANUP_TABLE, "status = 'done'", "cleanup_status_is_known"),
    (CLEANUP_TABLE, "status = ''", "cleanup_status_is_known"),
    *(
        (CLEANUP_TABLE, closed(status, **{f"{name}{unit}": 1}), "cleanup_totals_add_up")
        for status, name, unit in product(CLOSED, ("found", *PARTS), ("", "_bytes"))
        if unit or (status, name) not in NOT_ENDED_SO
    ),
    *(
        (CLEANUP_TABLE, closed("clean", found=1, **{name: 1}), "cleanup_clean_is_clean")
        for name in ("failed", "kept")
    ),
    (
        CLEANUP_TABLE,
        closed("clean_with_kept", found=2, kept=1, failed=1),
        "cleanup_kept_is_no_failure",
    ),
    *(
        (CLEANUP_TABLE, f"status = '{status}', lease_until = {NOW}", "cleanup_leased_is_running")
        for status in Cleanup.Status.values
        if status != "running"
    ),
    (CLEANUP_TABLE, "kind = 'verify', deleted = 1", "cleanup_verification_deletes_nothing"),
    (CLEANUP_TABLE, "dry_run = true, deleted = 1", "cleanup_verification_deletes_nothing"),
    *(
        (CLEANUP_TABLE, f"status = '{status}', {PRUNED}", "cleanup_open_is_not_pruned")
        for status in OPEN
    ),
    (
        CLEANUP_TABLE,
        f"kind = 'verify', status = 'retrying', next_attempt_at = {NOW}, {PRUNED}",
        "cleanup_open_is_not_pruned",
    ),
    (CLEANUP_TABLE, f"status = 'clean', pruned_at = {NOW}", "cleanup_open_is_not_pruned"),
    (
        CLEANUP_TABLE,
        f"status = 'clean', pruned_at = {NOW}, archive = 'a'",
        "cleanup_open_is_not_pruned",
    ),
    ("storage_audit_cleanupitem", "outcome = 'gone'", "item_outcome_is_known"),
    ("storage_audit_r2object", "state = 'lost'", "object_state_is_known"),
    ("storage_audit_bucketscan", "status = 'done'", "scan_status_is_known"),
    ("storage_audit_bucketscan", "purpose = 'look'", "scan_purpose_is_known"),
    ("storage_audit_finding", "state = 'closed'", "finding_state_is_known"),
    ("storage_audit_bulkjob", "action = 'erase'", "bulk_job_action_is_known"),
    (ALERT_TABLE, "kind = 'fire'", "alert_kind_is_known"),
    (ALERT_TABLE, "kind = 'blocked'", "alert_kind_is_known"),
    (DELIVERY_TABLE, "state = 'lost'", "delivery_state_is_known"),
    (DELIVERY_TABLE, "state = 'sent'", "delivery_state_is_known"),
    (DELIVERY_TABLE, "next_attempt_at = NULL", "delivery_state_is_known"),
]
# Their neighbours that are right: a constraint that refuses everything guards nothing.
TAKEN = [
    *((CLEANUP_TABLE, f"status = '{status}'") for status in Cleanup.Status.values),
    *(
        (CLEANUP_TABLE, closed(status, found=1, deleted=1, found_bytes=9, deleted_bytes=9))
        for status in CLOSED
    ),
    *(
        (CLEANUP_TABLE, closed(status, found=1, failed=1))
        for status in ("retrying", "failed", "superseded")
    ),
    (CLEANUP_TABLE, closed("clean_with_kept", found=1, kept=1)),
    (CLEANUP_TABLE, closed("running", found=7)),
    (CLEANUP_TABLE, f"status = 'running', lease_until = {NOW}"),
    (CLEANUP_TABLE, "kind = 'verify', already_gone = 1, failed = 1"),
    *((CLEANUP_TABLE, f"status = '{status}', {PRUNED}") for status in ENDED),
    (CLEANUP_TABLE, f"kind = 'verify', status = 'differs', next_attempt_at = NULL, {PRUNED}"),
    *(("storage_audit_cleanupitem", f"outcome = '{o}'") for o in ("deleting", "deleted", "failed")),
    *(("storage_audit_r2object", f"state = '{state}'") for state in R2Object.State.values),
    *(("storage_audit_bucketscan", f"status = '{status}'") for status in BucketScan.Status.values),
    *(
        ("storage_audit_bucketscan", f"purpose = '{purpose}'")
        for purpose in BucketScan.Purpose.values
    ),
    *(("storage_audit_finding", f"state = '{state}'") for state in Finding.State.values),
    *(("storage_audit_bulkjob", f"action = '{action}'") for action in BulkJob.Action.values),
    (ALERT_TABLE, "kind = 'findings'"),
    *(
        (DELIVERY_TABLE, f"state = '{state}', next_attempt_at = NULL")
        for state in ("sent", "given_up")
    ),
]


@pytest.fixture(autouse=True)
def rows() -> None:
    """One of each."""
    cleanup = Cleanup.objects.request(kind="project", bucket="b", trigger="deleted")
    cleanup.items.create(key="a", identity="a", found_in="listed")
    R2Object.objects.create(bucket="b", key="a", source="upload", state="stored")
    scan = BucketScan.objects.create(bucket="b")
    Finding.objects.create(bucket="b", key="a", kind="orphaned", first_scan=scan, last_scan=scan)
    HealthReport.objects.create(context="shell", host="h", pid=1)
    BulkJob.objects.request("verify", ["proj_1"])
    Alert.objects.create(kind="worker", summary="late")
    Delivery.objects.create(notification=Notification.objects.create(), channel="webhook")


def update(table: str, values: str) -> int:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"UPDATE {table} SET {values}")
        return int(cursor.rowcount)


@pytest.mark.parametrize(("table", "values", "constraint"), REFUSED)
def test_the_database_refuses(table: str, values: str, constraint: str) -> None:
    with pytest.raises(IntegrityError, match=constraint):
        update(table, values)


@pytest.mark.parametrize(("table", "values"), TAKEN)
def test_the_database_takes(table: str, values: str) -> None:
    assert update(table, values) == 1


def test_each_check_constraint_of_the_models_is_tried_here() -> None:
    declared = {
        constraint.name
        for model in apps.get_app_config("storage_audit").get_models()
        for constraint in model._meta.constraints
        if isinstance(constraint, models.CheckConstraint)
    }
    assert {name for _table, _values, name in REFUSED} == declared


@pytest.mark.parametrize("escaped", [False, True])
def test_an_object_is_one_item_of_a_cleanup(escaped: bool) -> None:
    cleanup = Cleanup.objects.get()
    cleanup.items.create(key="B", identity="b", escaped=escaped, found_in="listed")
    with pytest.raises(IntegrityError), transaction.atomic():
        cleanup.items.create(key="b", identity="b", escaped=escaped, found_in="listed")


def test_an_object_has_one_row_and_one_finding_of_a_kind() -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        R2Object.objects.create(bucket="b", key="a", source="backfill", state="stored")
    finding = Finding.objects.get()
    finding.pk, finding.last_seen_at = None, timezone.now()
    with pytest.raises(IntegrityError), transaction.atomic():
        finding.save(force_insert=True)
