"""What is done with many objects at once goes to the database in one piece."""

from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import DataError, connection
from django.test.utils import CaptureQueriesContext

from storage_audit.cleanup import delete_batches, kind_policies
from storage_audit.cleanup.delete_pipeline import RecheckedBatch
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.fields import insert_new_rows
from storage_audit.models import R2Object
from tests.promises import (
    create_projects,
    fill_project,
    read_outcomes,
    request_cleanup,
    run_until_idle,
    track_key,
)
from tests.real_bucket import Bucket

STRANGE = ["", "a'b", 'a"b', "a\\b", "{a,b}", "NULL", "%s", "a\nb", "é", "e\u0301", "\U0010ffff"]


def test_number_of_queries_does_not_grow_with_the_objects(bucket: Bucket) -> None:
    """A field that is asked for apart, for each item, would show here."""
    counts = list[int]()
    # The first one supersedes no follow-up checks.
    for count in (1, 2, 30):
        for key in fill_project(bucket, count):
            track_key(bucket, key, "proj_1", source="backfill")
        cleanup = request_cleanup("proj_1")
        with CaptureQueriesContext(connection) as queries:
            assert run_until_idle(cleanup).deleted == count
        counts.append(len(queries))
    assert counts[1] == counts[2]


def item(key: str, cleanup: Cleanup, **values: object) -> CleanupItem:
    return CleanupItem(cleanup=cleanup, key=key, identity=key, found_in="both", **values)


@pytest.fixture
def cleanup(bucket: Bucket) -> Cleanup:
    create_projects("proj_1")
    return request_cleanup("proj_1")


@pytest.mark.parametrize("text", STRANGE)
def test_rows_inserted_at_once_are_those_that_a_save_makes(cleanup: Cleanup, text: str) -> None:
    at = datetime(2026, 3, 29, 1, 59, 59, 999999, tzinfo=UTC)
    facts: dict[str, Any] = {
        "size": 2**62,
        "etag": text,
        "last_modified": at,
        "owner_evidence": text,
        "reason": text,
        "project_id": None,
        "escaped": True,
        "range_index": 3,
    }
    given = item(f"k{text}", cleanup, **facts)
    insert_new_rows([given])
    found = cleanup.items.get()
    saved = item(f"other{text}", cleanup, **facts)
    saved.save()
    saved.refresh_from_db()
    names = [f.attname for f in CleanupItem._meta.concrete_fields if not f.primary_key]
    for name in names:
        assert getattr(found, name) == getattr(given, name)
        if name not in ("key", "identity", "changed_at"):
            assert getattr(found, name) == getattr(saved, name)
    other = item(f"z{text}", cleanup, **{**facts, "escaped": False, "range_index": None, "size": 1})
    other.etag, other.owner_evidence, other.project_id = "other", "other", text
    insert_new_rows([other, item(f"y{text}", cleanup, **facts)])  # Hardly a column has one value.
    assert cleanup.items.filter(key=f"y{text}", etag=text, project_id=None, range_index=3).exists()
    found = cleanup.items.get(key=other.key)
    for name in names:
        assert getattr(found, name) == getattr(other, name)
    same = [item(f"{name}{text}", cleanup, etag=name[0]) for name in ("p1", "q", "p2")]
    insert_new_rows(same)  # The first and the last alone are alike.
    made = cleanup.items.filter(key__in=[each.key for each in same])
    assert list(made.order_by("key").values_list("etag", flat=True)) == ["p", "p", "q"]
    cleanup.items.exclude(key=given.key).exclude(key=saved.key).delete()
    assert cleanup.items.filter(last_modified=at).count() == 2
    assert cleanup.items.filter(cleanup_id=cleanup.pk, size=2**62).count() == 2


def test_what_is_no_value_of_a_column_is_refused(cleanup: Cleanup) -> None:
    with pytest.raises(TypeError, match="cannot be inserted so"):
        insert_new_rows([item("a", cleanup, owner_evidence=["a"])])


def test_rows_that_are_there_already_stay_as_they_are(cleanup: Cleanup) -> None:
    insert_new_rows([item("a", cleanup, etag="first")])
    insert_new_rows([item("a", cleanup, etag="second"), item("b", cleanup)])
    assert dict(cleanup.items.values_list("key", "etag")) == {"a": "first", "b": ""}
    insert_new_rows([])


@pytest.mark.only_on("postgresql")
def test_what_is_too_long_is_refused_and_not_cut_off(cleanup: Cleanup) -> None:
    with pytest.raises(DataError):
        insert_new_rows([item("a", cleanup, etag="x" * 201)])


def test_any_of_many_texts_or_numbers(cleanup: Cleanup) -> None:
    insert_new_rows([item(text, cleanup) for text in STRANGE])
    rows = cleanup.items
    for text in STRANGE:
        assert rows.get(key__any_of=[text, "absent"]).key == text
        assert not rows.filter(key__any_of=[f"{text}x", f"x{text}"]).exists()
    assert set(rows.filter(key__any_of=set(STRANGE))) == set(rows.all())
    first = list(rows.values_list("pk", flat=True)[:2])
    assert list(rows.filter(pk__any_of=first).values_list("pk", flat=True)) == first
    assert not rows.filter(pk__any_of=[]).exists()
    assert not rows.filter(key__any_of=[]).exists()
    insert_new_rows([item("None", cleanup)])
    assert not rows.filter(key__any_of=[None]).exists()


@pytest.mark.only_on("postgresql")
def test_items_have_room_for_new_versions(cleanup: Cleanup) -> None:
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
    cleanup, real = request_cleanup("proj_1"), kind_policies.WholeProject.require_project_gone
    states = list[str]()

    def write_row(policy: kind_policies.WholeProject, cleanup: Cleanup) -> None:
        real(policy, cleanup)
        if cleanup.step == "delete" and not R2Object.objects.exists():
            track_key(bucket, key, "proj_1", source="backfill")

    def send(cleanup: Cleanup, proof: RecheckedBatch) -> None:
        states.extend(R2Object.objects.values_list("state", flat=True))
        recorded(cleanup, proof)

    recorded = delete_batches.record_recheck
    monkeypatch.setattr(kind_policies.WholeProject, "require_project_gone", write_row)
    monkeypatch.setattr(delete_batches, "record_recheck", send)
    assert read_outcomes(run_until_idle(cleanup)) == {key: "deleted"}
    assert states == ["deleting"]
    assert not R2Object.objects.exists()
