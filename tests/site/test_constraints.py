"""What the database itself refuses, whoever writes: raw SQL, past every model and transition."""

from itertools import product

import pytest
from django.apps import apps
from django.db import IntegrityError, connection, models, transaction
from django.utils import timezone

from storage_audit.alerts.models import Delivery, Incident, Notice
from storage_audit.cleanup.models import CleanupOperation, Job
from storage_audit.doctor.models import Diagnosis
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object
from storage_audit.scan.models import BucketScan

pytestmark = pytest.mark.django_db(transaction=True)
OPERATION = "storage_audit_cleanupoperation"
INCIDENT, DELIVERY = "storage_audit_incident", "storage_audit_delivery"
CLOSED = CleanupOperation.CLOSED
ENDED = CleanupOperation.ENDED
OPEN = sorted(set(CleanupOperation.Status.values) - set(ENDED))
PARTS = ("deleted", "already_absent", "protected", "failed")
NOW = "CURRENT_TIMESTAMP"
PRUNED = f"pruned_at = {NOW}, archive = 'a.jsonl.gz', archive_digest = 'abc'"


def closed(status: str, **books: int) -> str:
    return ", ".join([f"status = '{status}'", *(f"{name} = {n}" for name, n in books.items())])


# The table, what is set, and which constraint must refuse it.
REFUSED = [
    ("storage_audit_diagnosis", "context = 'cron'", "diagnosis_context_known"),
    (OPERATION, "status = 'done'", "operation_status_is_known"),
    (OPERATION, "status = ''", "operation_status_is_known"),
    *(
        (OPERATION, closed(status, **{f"{name}{unit}": 1}), "operation_books_close")
        for status, name, unit in product(CLOSED, ("found", *PARTS), ("", "_bytes"))
    ),
    *(
        (OPERATION, closed("clean", found=1, **{name: 1}), "operation_clean_is_clean")
        for name in ("failed", "protected")
    ),
    (
        OPERATION,
        closed("clean_with_protected", found=2, protected=1, failed=1),
        "operation_protected_is_no_failure",
    ),
    *(
        (OPERATION, f"status = '{status}', lease_until = {NOW}", "operation_held_is_running")
        for status in CleanupOperation.Status.values
        if status != "running"
    ),
    (OPERATION, "kind = 'verify', deleted = 1", "operation_look_deletes_nothing"),
    (OPERATION, "dry_run = true, deleted = 1", "operation_look_deletes_nothing"),
    *(
        (OPERATION, f"status = '{status}', {PRUNED}", "operation_open_is_not_pruned")
        for status in OPEN
    ),
    (
        OPERATION,
        f"kind = 'verify', status = 'incomplete', next_attempt_at = {NOW}, {PRUNED}",
        "operation_open_is_not_pruned",
    ),
    (OPERATION, f"status = 'clean', pruned_at = {NOW}", "operation_open_is_not_pruned"),
    (
        OPERATION,
        f"status = 'clean', pruned_at = {NOW}, archive = 'a'",
        "operation_open_is_not_pruned",
    ),
    ("storage_audit_cleanupitem", "outcome = 'gone'", "item_outcome_is_known"),
    ("storage_audit_r2object", "state = 'lost'", "object_state_is_known"),
    ("storage_audit_bucketscan", "status = 'done'", "scan_status_is_known"),
    ("storage_audit_bucketscan", "purpose = 'look'", "scan_purpose_is_known"),
    ("storage_audit_finding", "state = 'closed'", "finding_state_is_known"),
    ("storage_audit_job", "action = 'erase'", "job_action_is_known"),
    (INCIDENT, "kind = 'fire'", "incident_kind_is_known"),
    (INCIDENT, "kind = 'blocked'", "incident_kind_is_known"),
    (DELIVERY, "state = 'lost'", "delivery_state_is_known"),
    (DELIVERY, "state = 'sent'", "delivery_state_is_known"),
    (DELIVERY, "next_try_at = NULL", "delivery_state_is_known"),
]
# Their neighbours that are right: a constraint that refuses everything guards nothing.
TAKEN = [
    *((OPERATION, f"status = '{status}'") for status in CleanupOperation.Status.values),
    *(
        (OPERATION, closed(status, found=1, deleted=1, found_bytes=9, deleted_bytes=9))
        for status in CLOSED
    ),
    *(
        (OPERATION, closed(status, found=1, failed=1))
        for status in ("incomplete", "failed", "superseded")
    ),
    (OPERATION, closed("clean_with_protected", found=1, protected=1)),
    (OPERATION, closed("running", found=7)),
    (OPERATION, f"status = 'running', lease_until = {NOW}"),
    (OPERATION, "kind = 'verify', already_absent = 1, failed = 1"),
    *((OPERATION, f"status = '{status}', {PRUNED}") for status in ENDED),
    (OPERATION, f"kind = 'verify', status = 'incomplete', next_attempt_at = NULL, {PRUNED}"),
    *(("storage_audit_cleanupitem", f"outcome = '{o}'") for o in ("deleting", "deleted", "failed")),
    *(("storage_audit_r2object", f"state = '{state}'") for state in R2Object.State.values),
    *(("storage_audit_bucketscan", f"status = '{status}'") for status in BucketScan.Status.values),
    *(
        ("storage_audit_bucketscan", f"purpose = '{purpose}'")
        for purpose in BucketScan.Purpose.values
    ),
    *(("storage_audit_finding", f"state = '{state}'") for state in Finding.State.values),
    *(("storage_audit_job", f"action = '{action}'") for action in Job.Action.values),
    (INCIDENT, "kind = 'findings'"),
    *((DELIVERY, f"state = '{state}', next_try_at = NULL") for state in ("sent", "given_up")),
]


@pytest.fixture(autouse=True)
def rows() -> None:
    """One of each."""
    operation = CleanupOperation.objects.request(kind="project", bucket="b", trigger="deleted")
    operation.items.create(key="a", identity="a", found_in="listed")
    R2Object.objects.create(bucket="b", key="a", source="upload", state="stored")
    scan = BucketScan.objects.create(bucket="b")
    Finding.objects.create(bucket="b", key="a", kind="orphaned", first_scan=scan, last_scan=scan)
    Diagnosis.objects.create(context="shell", host="h", pid=1)
    Job.objects.request("verify", ["proj_1"])
    Incident.objects.create(kind="worker", summary="late")
    Delivery.objects.create(notice=Notice.objects.create(), channel="webhook")


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
def test_an_object_is_one_item_of_an_operation(escaped: bool) -> None:
    operation = CleanupOperation.objects.get()
    operation.items.create(key="B", identity="b", escaped=escaped, found_in="listed")
    with pytest.raises(IntegrityError), transaction.atomic():
        operation.items.create(key="b", identity="b", escaped=escaped, found_in="listed")


def test_an_object_has_one_row_and_a_difference_one_finding() -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        R2Object.objects.create(bucket="b", key="a", source="backfill", state="stored")
    finding = Finding.objects.get()
    finding.pk, finding.last_seen_at = None, timezone.now()
    with pytest.raises(IntegrityError), transaction.atomic():
        finding.save(force_insert=True)
