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
from storage_audit.bucket.listing import escape_key
from storage_audit.cleanup import retention
from storage_audit.cleanup.models import Cleanup
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_connection
from storage_audit.redaction import printable_text
from tests.admin_client import admin_url, superuser_client
from tests.faults.kinds import change_reply
from tests.faults.matching import is_listing, rule_for
from tests.network import faulty_network
from tests.promises import (
    assign_object,
    check_promises,
    clean_up_project,
    create_projects,
    list_facts,
    read_outcomes,
    read_reason,
    run_again,
    run_until_idle,
    track_key,
)
from tests.real_bucket import Bucket
from tests.run_command import run_command, run_json
from tests.strange_keys import KEY_PREFIX, KEYS, STRANGE_KEYS, TRAPS, complete_key, select_kept


@pytest.fixture
def full(bucket: Bucket) -> Bucket:
    """All of them, in a bucket of local R2."""
    create_projects("proj_1", "proj_2")
    bucket.put(*KEYS, *TRAPS)
    return bucket


def test_rows_of_strange_keys_delete_these_very_objects(full: Bucket) -> None:
    before, facts = full.facts(), list_facts(full)
    for key in (*KEYS, *TRAPS):
        track_key(full, key, "proj_1", **facts[key])
    R2Object.objects.filter(key__in=KEYS).delete()
    assert read_outcomes(run_until_idle(Cleanup.objects.get())) == KEYS
    assert full.facts() == select_kept(before)
    assert set(R2Object.objects.values_list("key", flat=True)) == TRAPS
    check_promises(full)


@pytest.mark.parametrize("tracked", [True, False])
def test_a_cleanup_deletes_strange_keys_and_no_object_of_another_project(
    full: Bucket, tracked: bool
) -> None:
    before = full.facts()
    for key in TRAPS:
        track_key(full, key, "proj_2")
    for key in KEYS:
        # What no key format reads is a project's only if a row says so.
        if tracked or not key.startswith(KEY_PREFIX):
            track_key(full, key, "proj_1")
    assert read_outcomes(clean_up_project("proj_1")) == KEYS
    assert full.facts() == select_kept(before)
    assert set(R2Object.objects.filter(project_id="proj_2").values_list("key", flat=True)) == TRAPS
    check_promises(full)


# SeaweedFS is a tree of folders. There is no object of these keys there,
NOT_LISTED = {"up", "far up", "dot", "leading slash of all", "trailing slash", "backslash"}
NOT_LISTED |= {"control and dots"}
# these are listed beside or in the place of another, and nothing is done on such a listing.
DOUBTED = {"empty folder", "leading slash", "control", "percent"}


@pytest.fixture
def tree(seaweedfs: SeaweedFS, transactional_db: None) -> Iterator[Bucket]:
    with faulty_network(seaweedfs):
        bucket = Bucket(seaweedfs)
        bucket.wipe()
        bucket_connection.connect_bucket(bucket.name)
        create_projects("proj_1", "proj_2")
        yield bucket


@pytest.mark.parametrize("kind", STRANGE_KEYS)
def test_a_store_that_is_a_tree_of_folders_loses_no_other_object(tree: Bucket, kind: str) -> None:
    key, traps = (
        complete_key(STRANGE_KEYS[kind].name),
        {complete_key(trap) for trap in STRANGE_KEYS[kind].traps},
    )
    if kind not in {*NOT_LISTED, "empty folder", "leading slash"}:
        tree.put(key)
    tree.put(*traps)
    before = tree.facts()
    track_key(tree, key, "proj_1")
    for trap in traps:
        track_key(tree, trap, "proj_2")
    cleanup = clean_up_project("proj_1")
    if kind in DOUBTED:
        assert cleanup.status == Cleanup.Status.RETRYING
        assert "out of order" in cleanup.message
        assert tree.facts() == before
        return
    assert read_outcomes(cleanup) == {key: "already_gone" if kind in NOT_LISTED else "deleted"}
    assert tree.facts() == {name: facts for name, facts in before.items() if name != key}
    check_promises(tree)


# No row and no request can name these.


def test_a_key_with_a_nul_is_left_and_said_and_is_no_other(bucket: Bucket) -> None:
    create_projects("proj_1", "proj_2")
    key, trap = f"{KEY_PREFIX}a\0b", f"{KEY_PREFIX}a\\x00b"
    bucket.put(key, trap, f"{KEY_PREFIX}ab")
    for name in (trap, f"{KEY_PREFIX}ab"):
        assign_object(bucket, name, "proj_2")
    before = bucket.facts()
    assert_nameless(bucket, escape_key(key))
    assert bucket.facts() == before


def test_a_key_that_is_no_utf_8_is_left_and_said_and_is_no_other(bucket: Bucket) -> None:
    """R2 has no such keys, so a listing is made up; the store has an object behind it."""
    create_projects("proj_1", "proj_2")
    bucket.put(f"{KEY_PREFIX}bad\u00e9", trap := f"{KEY_PREFIX}bad\ufffd")
    assign_object(bucket, trap, "proj_2")
    before = bucket.facts()
    with faulty_network(bucket.r2) as store:
        store.rules[:] = [
            rule_for(is_listing, change_reply(lambda xml: xml.replace("bad%C3%A9", "bad%C3")))
        ]
        assert_nameless(bucket, escape_key(f"{KEY_PREFIX}bad\udcc3"))
    assert bucket.facts() == before


def test_a_key_with_a_nul_and_the_one_that_it_is_shown_as_are_two(bucket: Bucket) -> None:
    create_projects("proj_1")
    key, trap = f"{KEY_PREFIX}a\0b", f"{KEY_PREFIX}a\\x00b"
    bucket.put(key, trap)
    track_key(bucket, trap, "proj_1")
    cleanup = clean_up_project("proj_1")
    assert cleanup.items.get(escaped=False).outcome == "deleted"
    assert cleanup.items.get(escaped=True).outcome == "failed"


def test_a_key_with_a_nul_is_gone_though_the_one_that_it_is_shown_as_stays(bucket: Bucket) -> None:
    create_projects("proj_1", "proj_2")
    key, trap = f"{KEY_PREFIX}a\0b", f"{KEY_PREFIX}a\\x00b"
    bucket.put(key, trap)
    track_key(bucket, trap, "proj_2", "backfill")
    cleanup = clean_up_project("proj_1")
    bucket.r2.remove(key)
    assert run_again(cleanup).status == "clean_with_kept"
    assert cleanup.items.get(escaped=True).outcome == "already_gone"


def assert_nameless(bucket: Bucket, shown: str) -> None:
    """A backfill and a cleanup tell of the key, and leave it."""
    out, _err, _code = run_command("backfill_r2")
    assert printable_text(shown) in out
    assert Finding.objects.get().key == shown
    assert not R2Object.objects.exclude(project_id="proj_2").exists()
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == {shown: "failed"}
    assert "No request can name this key" in read_reason(cleanup, shown)
    page_of_it = admin_url("cleanup", "change", cleanup.pk)
    assert html(printable_text(shown)) in superuser_client().get(page_of_it).content.decode()


# Uploaded, shown and exported


@pytest.mark.parametrize("kind", STRANGE_KEYS)
def test_an_upload_goes_where_its_row_says_or_is_refused(bucket: Bucket, kind: str) -> None:
    bucket.put(*(complete_key(trap) for trap in STRANGE_KEYS[kind].traps), body=b"trap")
    before = bucket.facts()
    try:
        name = default_storage.save(complete_key(STRANGE_KEYS[kind].name), ContentFile(b"new"))
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
        track_key(full, trap, "proj_2")
    out, err, _code = run_command("backfill_r2")
    assert is_plain(out + err)
    client, told = superuser_client(), set[str]()
    for model in (R2Object, Finding):
        for pk, key in model._base_manager.values_list("pk", "key"):
            told.add(key)
            shown = client.get(admin_url(model.__name__.lower(), "change", pk)).content.decode()
            assert html(printable_text(key)) in shown
            assert "<script>alert" not in shown
    assert told >= KEYS.keys()
    cleanup = clean_up_project("proj_1")
    shown = client.get(admin_url("cleanup", "change", cleanup.pk)).content.decode()
    assert "<script>alert" not in shown
    shown = shown.replace("/<wbr>", "/")
    for key in read_outcomes(cleanup):
        assert html(printable_text(key)) in shown
    for asked in (["verify_cleanup", "proj_1"], ["cleanup_project", "proj_1", "--dry-run"]):
        out, err, _code = run_command(*asked)
        assert is_plain(out + err)
    facts, _code = run_json("verify_cleanup", str(cleanup.pk))
    left = {key for key, outcome in KEYS.items() if outcome == "failed"}
    assert {item["key"] for check in facts["checks"] for item in check["staying"]} == left


def test_strange_keys_are_exported_as_they_are_and_as_no_formula(
    full: Bucket, tmp_path: Path
) -> None:
    for trap in TRAPS:
        track_key(full, trap, "proj_2")
    for key in KEYS:
        track_key(full, key, "proj_1")
    cleanup = clean_up_project("proj_1")
    for key, outcome in KEYS.items():
        if outcome == "failed":
            full.r2.remove(key)
    assert run_again(cleanup).status == Cleanup.Status.CLEAN
    cleanup.children.all().delete()
    assert list(retention.prune_cleanups(tmp_path, timezone.now() + timedelta(days=1))) == [cleanup]
    (archive,) = tmp_path.glob("*.gz")
    with gzip.open(archive, "rt") as lines:
        rows = [json.loads(line) for line in lines if line.startswith("{") and is_plain(line)]
    exported = {row["fields"]["key"] for row in rows if row["model"].endswith("cleanupitem")}
    assert exported == KEYS.keys()
