"""What is done with many objects at once goes to the database in one piece."""

from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import DataError, connection
from django.test.utils import CaptureQueriesContext

from storage_audit.cleanup import delete_batches
from storage_audit.cleanup.delete_pipeline import Proof
from storage_audit.cleanup.models import CleanupItem, CleanupOperation
from storage_audit.fields import insert_new
from storage_audit.models import R2Object
from tests.promises import alive, fill_project, outcomes, requested, run, track
from tests.real_bucket import Bucket

STRANGE = ["", "a'b", 'a"b', "a\\b", "{a,b}", "NULL", "%s", "a\nb", "é", "e\u0301", "\U0010ffff"]


def test_number_of_queries_does_not_grow_with_the_objects(bucket: Bucket) -> None:
    """A field that is asked for apart, for each item, would show here."""
    counts = list[int]()
    # The first one supersedes no follow-up checks.
    for count in (1, 2, 30):
        for key in fill_project(bucket, count):
            track(bucket, key, "proj_1", source="backfill")
        operation = requested("proj_1")
        with CaptureQueriesContext(connection) as queries:
            assert run(operation).deleted == count
        counts.append(len(queries))
    assert counts[1] == counts[2]


def item(key: str, operation: CleanupOperation, **values: object) -> CleanupItem:
    return CleanupItem(operation=operation, key=key, identity=key, found_in="both", **values)


@pytest.fixture
def operation(bucket: Bucket) -> CleanupOperation:
    alive("proj_1")
    return requested("proj_1")


@pytest.mark.parametrize("text", STRANGE)
def test_rows_inserted_at_once_are_those_that_a_save_makes(
    operation: CleanupOperation, text: str
) -> None:
    at = datetime(2026, 3, 29, 1, 59, 59, 999999, tzinfo=UTC)
    facts: dict[str, Any] = {
        "size": 2**62,
        "etag": text,
        "last_modified": at,
        "evidence": text,
        "reason": text,
        "project_id": None,
        "escaped": True,
        "span": 3,
    }
    given = item(f"k{text}", operation, **facts)
    insert_new([given])
    found = operation.items.get()
    saved = item(f"other{text}", operation, **facts)
    saved.save()
    saved.refresh_from_db()
    names = [f.attname for f in CleanupItem._meta.concrete_fields if not f.primary_key]
    for name in names:
        assert getattr(found, name) == getattr(given, name)
        if name not in ("key", "identity", "changed_at"):
            assert getattr(found, name) == getattr(saved, name)
    other = item(f"z{text}", operation, **{**facts, "escaped": False, "span": None, "size": 1})
    other.etag, other.evidence, other.project_id = "other", "other", text
    insert_new([other, item(f"y{text}", operation, **facts)])  # Hardly a column has one value.
    assert operation.items.filter(key=f"y{text}", etag=text, project_id=None, span=3).exists()
    found = operation.items.get(key=other.key)
    for name in names:
        assert getattr(found, name) == getattr(other, name)
    same = [item(f"{name}{text}", operation, etag=name[0]) for name in ("p1", "q", "p2")]
    insert_new(same)  # The first and the last alone are alike.
    made = operation.items.filter(key__in=[each.key for each in same])
    assert list(made.order_by("key").values_list("etag", flat=True)) == ["p", "p", "q"]
    operation.items.exclude(key=given.key).exclude(key=saved.key).delete()
    assert operation.items.filter(last_modified=at).count() == 2
    assert operation.items.filter(operation_id=operation.pk, size=2**62).count() == 2


def test_what_is_no_value_of_a_column_is_refused(operation: CleanupOperation) -> None:
    with pytest.raises(TypeError, match="cannot be inserted so"):
        insert_new([item("a", operation, evidence=["a"])])


def test_rows_that_are_there_already_stay_as_they_are(operation: CleanupOperation) -> None:
    insert_new([item("a", operation, etag="first")])
    insert_new([item("a", operation, etag="second"), item("b", operation)])
    assert dict(operation.items.values_list("key", "etag")) == {"a": "first", "b": ""}
    insert_new([])


@pytest.mark.only_on("postgresql")
def test_what_is_too_long_is_refused_and_not_cut_off(operation: CleanupOperation) -> None:
    with pytest.raises(DataError):
        insert_new([item("a", operation, etag="x" * 201)])


def test_any_of_many_texts_or_numbers(operation: CleanupOperation) -> None:
    insert_new([item(text, operation) for text in STRANGE])
    rows = operation.items
    for text in STRANGE:
        assert rows.get(key__any_of=[text, "absent"]).key == text
        assert not rows.filter(key__any_of=[f"{text}x", f"x{text}"]).exists()
    assert set(rows.filter(key__any_of=set(STRANGE))) == set(rows.all())
    first = list(rows.values_list("pk", flat=True)[:2])
    assert list(rows.filter(pk__any_of=first).values_list("pk", flat=True)) == first
    assert not rows.filter(pk__any_of=[]).exists()
    assert not rows.filter(key__any_of=[]).exists()
    insert_new([item("None", operation)])
    assert not rows.filter(key__any_of=[None]).exists()


@pytest.mark.only_on("postgresql")
def test_items_have_room_for_new_versions(operation: CleanupOperation) -> None:
    """Else each of the writes of an item is one to all of its indexes, too."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT reloptions FROM pg_class WHERE relname = %s", [CleanupItem._meta.db_table]
        )
        assert cursor.fetchone() == (["fillfactor=50"],)


def test_row_that_a_backfill_writes_after_the_mark_is_barred_and_forgotten(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    [key] = fill_project(bucket, 1)
    operation, real = requested("proj_1"), delete_batches.refuse_reborn
    states = list[str]()

    def write_row(operation: CleanupOperation) -> None:
        real(operation)
        if operation.step == "delete" and not R2Object.objects.exists():
            track(bucket, key, "proj_1", source="backfill")

    def send(operation: CleanupOperation, proof: Proof) -> None:
        states.extend(R2Object.objects.values_list("state", flat=True))
        recorded(operation, proof)

    recorded = delete_batches.record_proof
    monkeypatch.setattr(delete_batches, "refuse_reborn", write_row)
    monkeypatch.setattr(delete_batches, "record_proof", send)
    assert outcomes(run(operation)) == {key: "deleted"}
    assert states == ["deleting"]
    assert not R2Object.objects.exists()
