"""Keys that strangers wrote: each is tracked, shown and deleted as what it is, and never is another
object touched, such as the one that some normalisation would have made of it (its *traps*)."""

import gzip
import json
from collections.abc import Iterator
from datetime import timedelta
from html import escape as html
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from django.core.exceptions import SuspiciousOperation
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.utils import timezone

from devtools.seaweedfs import SeaweedFS
from storage_audit.bucket.listing import escape
from storage_audit.cleanup import retention
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.redaction import visible
from tests.admin_client import page, superuser
from tests.faults.kinds import changed
from tests.faults.matching import is_listing, on
from tests.network import faulty_network
from tests.promises import (
    again,
    alive,
    check,
    delete,
    give,
    list_facts,
    outcomes,
    reason,
    run,
    track,
)
from tests.real_bucket import Bucket
from tests.run_command import run_command, run_json
from tests.strange_keys import KEYS, STRANGE, TRAPS, UNDER, complete_key, select_remaining


@pytest.fixture
def full(bucket: Bucket) -> Bucket:
    """All of them, in a bucket of local R2."""
    alive("proj_1", "proj_2")
    bucket.put(*KEYS, *TRAPS)
    return bucket


def test_rows_of_strange_keys_delete_these_very_objects(full: Bucket) -> None:
    before, facts = full.facts(), list_facts(full)
    for key in (*KEYS, *TRAPS):
        track(full, key, "proj_1", **facts[key])
    R2Object.objects.filter(key__in=KEYS).delete()
    assert outcomes(run(CleanupOperation.objects.get())) == KEYS
    assert full.facts() == select_remaining(before)
    assert set(R2Object.objects.values_list("key", flat=True)) == TRAPS
    check(full)


@pytest.mark.parametrize("tracked", [True, False])
def test_a_cleanup_deletes_strange_keys_and_no_object_of_another_project(
    full: Bucket, tracked: bool
) -> None:
    before = full.facts()
    for key in TRAPS:
        track(full, key, "proj_2")
    for key in KEYS:
        # What no layout reads is a project's only if a row says so.
        if tracked or not key.startswith(UNDER):
            track(full, key, "proj_1")
    assert outcomes(delete("proj_1")) == KEYS
    assert full.facts() == select_remaining(before)
    assert set(R2Object.objects.filter(project_id="proj_2").values_list("key", flat=True)) == TRAPS
    check(full)


# SeaweedFS is a tree of folders. There is no object of these keys there,
ABSENT = {"up", "far up", "dot", "leading slash of all", "trailing slash", "backslash"}
ABSENT |= {"control and dots"}
# these are listed beside or in the place of another, and nothing is done on such a listing.
DOUBTED = {"empty folder", "leading slash", "control", "percent"}


@pytest.fixture
def tree(seaweedfs: SeaweedFS, transactional_db: None) -> Iterator[Bucket]:
    with faulty_network(seaweedfs):
        bucket = Bucket(seaweedfs)
        bucket.wipe()
        bucket_marker.claim(bucket.name)
        alive("proj_1", "proj_2")
        yield bucket


@pytest.mark.parametrize("kind", STRANGE)
def test_a_store_that_is_a_tree_of_folders_loses_no_other_object(tree: Bucket, kind: str) -> None:
    key, traps = (
        complete_key(STRANGE[kind].name),
        {complete_key(trap) for trap in STRANGE[kind].traps},
    )
    if kind not in {*ABSENT, "empty folder", "leading slash"}:
        tree.put(key)
    tree.put(*traps)
    before = tree.facts()
    track(tree, key, "proj_1")
    for trap in traps:
        track(tree, trap, "proj_2")
    operation = delete("proj_1")
    if kind in DOUBTED:
        assert operation.status == CleanupOperation.Status.INCOMPLETE
        assert "where it cannot be" in operation.error
        assert tree.facts() == before
        return
    assert outcomes(operation) == {key: "already_absent" if kind in ABSENT else "deleted"}
    assert tree.facts() == {name: facts for name, facts in before.items() if name != key}
    check(tree)


# No row and no request can name these.


def test_a_key_with_a_nul_is_left_and_said_and_is_no_other(bucket: Bucket) -> None:
    alive("proj_1", "proj_2")
    key, trap = f"{UNDER}a\0b", f"{UNDER}a\\x00b"
    bucket.put(key, trap, f"{UNDER}ab")
    for name in (trap, f"{UNDER}ab"):
        give(bucket, name, "proj_2")
    before = bucket.facts()
    assert_nameless(bucket, escape(key))
    assert bucket.facts() == before


def test_a_key_that_is_no_utf_8_is_left_and_said_and_is_no_other(bucket: Bucket) -> None:
    """R2 has no such keys, so a listing is made up; the store has an object behind it."""
    alive("proj_1", "proj_2")
    bucket.put(f"{UNDER}bad\u00e9", trap := f"{UNDER}bad\ufffd")
    give(bucket, trap, "proj_2")
    before = bucket.facts()
    with faulty_network(bucket.r2) as store:
        store.rules[:] = [on(is_listing, changed(lambda xml: xml.replace("bad%C3%A9", "bad%C3")))]
        assert_nameless(bucket, escape(f"{UNDER}bad\udcc3"))
    assert bucket.facts() == before


def test_a_key_with_a_nul_and_the_one_that_it_is_shown_as_are_two(bucket: Bucket) -> None:
    alive("proj_1")
    key, trap = f"{UNDER}a\0b", f"{UNDER}a\\x00b"
    bucket.put(key, trap)
    track(bucket, trap, "proj_1")
    operation = delete("proj_1")
    assert operation.items.get(escaped=False).outcome == "deleted"
    assert operation.items.get(escaped=True).outcome == "failed"


def test_a_key_with_a_nul_is_gone_though_the_one_that_it_is_shown_as_stays(bucket: Bucket) -> None:
    alive("proj_1", "proj_2")
    key, trap = f"{UNDER}a\0b", f"{UNDER}a\\x00b"
    bucket.put(key, trap)
    track(bucket, trap, "proj_2", "backfill")
    operation = delete("proj_1")
    bucket.r2.remove(key)
    assert again(operation).status == "clean_with_protected"
    assert operation.items.get(escaped=True).outcome == "already_absent"


def assert_nameless(bucket: Bucket, shown: str) -> None:
    """A backfill and a cleanup tell of the key, and leave it."""
    out, _err, _code = run_command("backfill_r2")
    assert visible(shown) in out
    assert Finding.objects.get().key == shown
    assert not R2Object.objects.exclude(project_id="proj_2").exists()
    operation = delete("proj_1")
    assert outcomes(operation) == {shown: "failed"}
    assert "No request can name this key" in reason(operation, shown)
    page_of_it = page("cleanupoperation", "change", operation.pk)
    assert html(visible(shown)) in superuser().get(page_of_it).content.decode()


# Uploaded, shown and exported


@pytest.mark.parametrize("kind", STRANGE)
def test_an_upload_goes_where_its_row_says_or_is_refused(bucket: Bucket, kind: str) -> None:
    bucket.put(*(complete_key(trap) for trap in STRANGE[kind].traps), body=b"trap")
    before = bucket.facts()
    try:
        name = default_storage.save(complete_key(STRANGE[kind].name), ContentFile(b"new"))
    except (SuspiciousOperation, ValueError, ClientError) as refusal:
        assert str(refusal)
        assert bucket.facts() == before
        return
    row = R2Object.objects.get(state="stored")
    after = bucket.facts()
    assert {row.key, name} == after.keys() - before.keys()
    assert before.items() <= after.items()


def is_plain(text: str) -> bool:
    """Nothing in it that a terminal obeys."""
    return all(char.isprintable() or char == "\n" for char in text)


def test_strange_keys_are_shown_as_text_and_nothing_else(full: Bucket) -> None:
    for trap in TRAPS:
        track(full, trap, "proj_2")
    out, err, _code = run_command("backfill_r2")
    assert is_plain(out + err)
    client, told = superuser(), set[str]()
    for model in (R2Object, Finding):
        for pk, key in model._base_manager.values_list("pk", "key"):
            told.add(key)
            shown = client.get(page(model.__name__.lower(), "change", pk)).content.decode()
            assert html(visible(key)) in shown
            assert "<script>alert" not in shown
    assert told >= KEYS.keys()
    operation = delete("proj_1")
    shown = client.get(page("cleanupoperation", "change", operation.pk)).content.decode()
    assert "<script>alert" not in shown
    for key in outcomes(operation):
        assert html(visible(key)) in shown
    for asked in (["verify_cleanup", "proj_1"], ["cleanup_project", "proj_1", "--dry-run"]):
        out, err, _code = run_command(*asked)
        assert is_plain(out + err)
    facts, _code = run_json("verify_cleanup", str(operation.pk))
    left = {key for key, outcome in KEYS.items() if outcome == "failed"}
    assert {item["key"] for check in facts["checks"] for item in check["staying"]} == left


def test_strange_keys_are_exported_as_they_are_and_as_no_formula(
    full: Bucket, tmp_path: Path
) -> None:
    for trap in TRAPS:
        track(full, trap, "proj_2")
    for key in KEYS:
        track(full, key, "proj_1")
    operation = delete("proj_1")
    for key, outcome in KEYS.items():
        if outcome == "failed":
            full.r2.remove(key)
    assert again(operation).status == CleanupOperation.Status.CLEAN
    operation.children.all().delete()
    assert list(retention.prune(tmp_path, timezone.now() + timedelta(days=1))) == [operation]
    (archive,) = tmp_path.glob("*.gz")
    with gzip.open(archive, "rt") as lines:
        rows = [json.loads(line) for line in lines if line.startswith("{") and is_plain(line)]
    exported = {row["fields"]["key"] for row in rows if row["model"].endswith("cleanupitem")}
    assert exported == KEYS.keys()
