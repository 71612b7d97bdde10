"""Objects with misnamed keys get keys of the current key format, and none of them is ever lost."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random
from time import sleep
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import connections
from django.utils import timezone
from pytest_django import Settings

from devtools.http_reply import Reply
from devtools.seaweedfs import SeaweedFS
from storage_audit.bucket import copies, s3
from storage_audit.bucket.errors import StoreError
from storage_audit.bucket.listing import nfc_key
from storage_audit.cleanup import runner
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.conf import conf
from storage_audit.findings import rename, rename_plan
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_connection, bucket_marker
from tests.builders import create_findings
from tests.faults.kinds import error_xml
from tests.faults.matching import is_delete_batch, is_listing, rule_for, run_before
from tests.faults.proxy import RESET_REPLY, FaultyStore, Forward, Request
from tests.findings.renamings import (
    A_NEW,
    NEW,
    OLD,
    A,
    Crash,
    assert_kept,
    create_misnamed,
    patch_before,
    raise_crash,
    rename_findings,
)
from tests.network import faulty_network
from tests.promises import (
    Status,
    check_promises,
    create_projects,
    read_outcomes,
    request_cleanup,
    run_follow_up,
    run_until_idle,
    track_key,
)
from tests.real_bucket import Bucket
from tests.run_command import run_command, run_json
from tests.strange_keys import STRANGE_KEYS

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

CONTENT = b"the one and only"


def is_copy(request: Request) -> bool:
    return request.method == "PUT" and "x-amz-copy-source" in {
        name.lower() for name in dict(request.headers)
    }


@pytest.fixture
def misnamed(bucket: Bucket) -> Finding:
    """A tracked object of a live project, under a key with the prefix twice."""
    create_projects("proj_1")
    bucket.put(A, body=CONTENT)
    track_key(bucket, A, "proj_1")
    [finding] = create_misnamed(bucket, A)
    return finding


def assert_renamed(bucket: Bucket, finding: Finding, new: str = A_NEW) -> None:
    assert bucket.keys() == {new}
    assert bucket.r2.read(new, bucket.name) == CONTENT
    row = R2Object.objects.get()
    assert (row.key, row.project_id, row.state) == (new, "proj_1", "stored")
    assert bucket.facts(new) == {new: (row.size, row.etag)}
    finding.refresh_from_db()
    assert (finding.state, finding.note) == ("resolved", f"renamed to {new}")
    check_promises(bucket)


# What becomes of it


def test_ignored_file_keeps_its_name(bucket: Bucket, misnamed: Finding) -> None:
    Finding.objects.ignore("Evidence in a law suit", "zoe")
    [one] = rename_findings(misnamed)
    assert one.objection.startswith(f"zoe ignored finding {misnamed.pk} about this file")
    assert bucket.keys() == {A}
    Finding.objects.reopen("zoe")
    rename_findings(misnamed)
    assert_renamed(bucket, misnamed)


def test_file_ignored_in_another_finding_keeps_its_name(bucket: Bucket, misnamed: Finding) -> None:
    [other] = create_findings(bucket, A, kind="changed", state="ignored")
    [one] = rename_findings(misnamed)
    assert one.objection.startswith(f"Somebody ignored finding {other.pk} about this file")
    assert bucket.keys() == {A}


def test_file_ignored_while_it_is_renamed_stays_under_its_old_name(
    bucket: Bucket, misnamed: Finding, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = rename.finish_renames

    def acknowledge_and_finish(*args: Any) -> None:
        Finding.objects.ignore("Evidence in a law suit", "zoe")
        original(*args)

    monkeypatch.setattr(rename, "finish_renames", acknowledge_and_finish)
    [one] = rename_findings(misnamed)
    assert f"zoe ignored finding {misnamed.pk} about this file" in one.objection
    assert bucket.keys() == {A, A_NEW}
    misnamed.refresh_from_db()
    assert misnamed.state == "ignored"


def test_object_gets_a_key_of_the_current_format(bucket: Bucket, misnamed: Finding) -> None:
    [one] = rename_findings(misnamed)
    assert not one.objection
    assert_renamed(bucket, misnamed)
    row = R2Object.objects.get()
    assert (row.source, row.key_format, row.scene_id, row.file_type) == (
        "upload",
        "hierarchical",
        "s1",
        "mp4",
    )
    [cleanup] = Cleanup.objects.all()
    assert (cleanup.status, cleanup.kind, cleanup.deleted) == ("clean", "objects", 1)
    assert read_outcomes(cleanup) == {A: "deleted"}


def test_untracked_object_gets_a_row_that_is_no_evidence(bucket: Bucket, misnamed: Finding) -> None:
    R2Object.objects.all().delete()
    Cleanup.objects.all().delete()
    rename_findings(misnamed)
    assert_renamed(bucket, misnamed)
    assert R2Object.objects.get().source == "backfill"


def test_row_that_was_no_evidence_does_not_become_one(bucket: Bucket, misnamed: Finding) -> None:
    """Of an upload whose key could be several projects' once."""
    R2Object.objects.update(project_id=None)
    rename_findings(misnamed)
    assert_renamed(bucket, misnamed)
    assert R2Object.objects.get().source == "backfill"


@pytest.mark.parametrize(
    "old, new",
    [
        ("proj_proj_1_s1_media.mp4", f"{NEW}media.mp4"),
        ("audio/proj_proj_1/s1/a.mp4", A_NEW),
        (A, A_NEW),
    ],
)
def test_each_doubled_key_format_has_a_key_in_the_current_one(
    bucket: Bucket, old: str, new: str
) -> None:
    create_projects("proj_1")
    bucket.put(old, body=CONTENT)
    [finding] = create_misnamed(bucket, old)
    assert [(one.old, one.new) for one in rename.plan_renames([finding])] == [(old, new)]
    rename_findings(finding)
    assert_renamed(bucket, finding, new)


def test_plan_changes_nothing(bucket: Bucket, misnamed: Finding) -> None:
    before = list(R2Object.objects.values())
    [one] = rename.plan_renames([misnamed])
    assert (one.old, one.new, one.objection) == (A, A_NEW, "")
    assert list(R2Object.objects.values()) == before
    assert not Cleanup.objects.exists()
    assert_kept(bucket, misnamed)


def test_metadata_stays(bucket: Bucket, misnamed: Finding) -> None:
    facts: dict[str, Any] = {"ContentType": "video/mp4", "Metadata": {"take": "7"}}
    client = bucket.r2.client()
    client.put_object(Bucket=bucket.name, Key=A, Body=CONTENT, **facts)
    misnamed.delete()
    [finding] = create_misnamed(bucket, A)
    rename_findings(finding)
    seen = client.head_object(Bucket=bucket.name, Key=A_NEW)
    assert {name: seen[name] for name in facts} == facts  # type: ignore[literal-required]


def test_object_uploaded_in_parts_is_renamed_though_its_etag_changes(bucket: Bucket) -> None:
    create_projects("proj_1")
    upload_in_parts(bucket, A)
    [finding] = create_misnamed(bucket, A)
    [one] = rename_findings(finding)
    assert not one.objection
    assert bucket.keys() == {A_NEW}
    row = R2Object.objects.get()
    assert row.etag != finding.etag
    assert bucket.facts(A_NEW) == {A_NEW: (row.size, row.etag)}


def upload_in_parts(bucket: Bucket, key: str) -> None:
    client, name = bucket.r2.client(), bucket.name
    upload = client.create_multipart_upload(Bucket=name, Key=key)["UploadId"]
    parts: list[CompletedPartTypeDef] = []
    for number, body in enumerate((b"x" * 5 * 2**20, b"y"), 1):
        answer = client.upload_part(
            Bucket=name, Key=key, UploadId=upload, PartNumber=number, Body=body
        )
        parts.append({"PartNumber": number, "ETag": answer["ETag"]})
    client.complete_multipart_upload(
        Bucket=name, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
    )


def test_many_are_renamed_with_one_cleanup_for_a_batch(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rename_plan, "MAX_LONE_KEYS", 4)
    create_projects("proj_1")
    keys = [f"{OLD}{n}.mp4" for n in range(10)]
    bucket.put(*keys)
    findings = create_misnamed(bucket, *keys)
    assert not any(one.objection for one in rename_findings(*findings))
    assert bucket.keys() == {f"{NEW}{n}.mp4" for n in range(10)}
    assert sorted(Cleanup.objects.values_list("deleted", flat=True)) == [2, 4, 4]
    assert not Finding.objects.unresolved().exists()


# What is not renamed, and why


def refused(finding: Finding) -> str:
    """The plan and the act object alike, and change nothing."""
    [planned], rows = rename.plan_renames([finding]), list(R2Object.objects.values())
    [one] = rename_findings(finding)
    assert one.objection == planned.objection
    assert list(R2Object.objects.values()) == rows
    return one.objection


def test_of_a_deleted_project_nothing_is_renamed(bucket: Bucket, misnamed: Finding) -> None:
    request_cleanup("proj_1")
    assert "its cleanup decides" in refused(misnamed)
    assert_kept(bucket, misnamed)


def test_changed_object_is_not_renamed(bucket: Bucket, misnamed: Finding) -> None:
    bucket.put(A, body=b"another")
    assert "changed since the scan" in refused(misnamed)
    assert_kept(bucket, misnamed)


def test_object_written_again_with_the_same_content_is_not_renamed(
    bucket: Bucket, misnamed: Finding
) -> None:
    bucket.put(A, body=CONTENT)
    assert "changed since the scan" in refused(misnamed)


def test_object_that_is_gone_is_not_renamed(bucket: Bucket, misnamed: Finding) -> None:
    bucket.r2.remove(A)
    assert "not in the bucket any more" in refused(misnamed)


def test_key_with_a_row_is_not_taken(bucket: Bucket, misnamed: Finding) -> None:
    track_key(bucket, A_NEW, "proj_1", source="backfill")
    assert "The new name is taken" in refused(misnamed)
    assert_kept(bucket, misnamed)


@pytest.mark.parametrize("body", [b"somebody else's", CONTENT])
def test_key_with_an_object_is_not_taken(bucket: Bucket, misnamed: Finding, body: bytes) -> None:
    bucket.put(A_NEW, body=body)
    assert "The new name is taken" in refused(misnamed)
    assert bucket.r2.read(A_NEW) == body
    assert_kept(bucket, misnamed, A, A_NEW)


@pytest.mark.parametrize("state", ["uploading", "deleting"])
def test_what_is_in_hand_is_not_renamed(bucket: Bucket, misnamed: Finding, state: str) -> None:
    R2Object.objects.update(state=state)
    assert "deleted or changed right now" in refused(misnamed)
    assert_kept(bucket, misnamed)


@pytest.mark.parametrize("key", [A, A_NEW])
def test_what_a_cleanup_deletes_is_not_renamed(bucket: Bucket, misnamed: Finding, key: str) -> None:
    cleanup = Cleanup.objects.create(kind="objects", bucket=bucket.name, trigger="deleted")
    CleanupItem.objects.create(cleanup=cleanup, key=key, identity=key, outcome="deleting")
    assert "A cleanup is working on" in refused(misnamed)
    assert_kept(bucket, misnamed)


def test_two_objects_do_not_get_one_key(bucket: Bucket, misnamed: Finding) -> None:
    other = "audio/proj_proj_1/s1/a.mp4"
    bucket.put(other)
    findings = [misnamed, *create_misnamed(bucket, other)]
    said = {one.old: one.objection for one in rename_findings(*findings)}
    assert other in said[A] and A in said[other]
    assert_kept(bucket, misnamed, A, other)


def test_object_of_unclear_owner_is_not_renamed(bucket: Bucket, misnamed: Finding) -> None:
    R2Object.objects.update(project_id="proj_2", source="assigned")
    assert "no longer tell whose" in refused(misnamed)
    assert_kept(bucket, misnamed)


def test_new_key_that_could_be_several_projects_is_not_taken(
    bucket: Bucket, misnamed: Finding, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"CURRENT_KEY_FORMAT": "flat"}
    old = "proj_proj_1_a_b_media.mp4"
    bucket.put(old)
    [finding] = create_misnamed(bucket, old)
    assert "would also fit project proj_1_a" in refused(finding)


def test_field_that_the_current_key_format_lacks_is_named(
    bucket: Bucket, misnamed: Finding, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"CURRENT_KEY_FORMAT": "flat"}
    assert "key format 'flat' takes ext, scene" in refused(misnamed)


def test_object_that_is_too_large_for_a_copy_is_refused(
    bucket: Bucket, misnamed: Finding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "MAX_COPY_BYTES", len(CONTENT) - 1)
    assert "5 GiB" in refused(misnamed)
    assert_kept(bucket, misnamed)


def test_finding_of_another_kind_is_refused(bucket: Bucket, misnamed: Finding) -> None:
    Finding.objects.update(kind="orphaned")
    misnamed.refresh_from_db()
    assert "Not an old name, but: leftover." in refused(misnamed)


def test_resolved_finding_is_refused(bucket: Bucket, misnamed: Finding) -> None:
    Finding.objects.all().resolve("gone")
    misnamed.refresh_from_db()
    assert "Already resolved: gone" in refused(misnamed)


def test_other_bucket_is_not_touched(bucket: Bucket, misnamed: Finding) -> None:
    bucket.r2.remove(bucket_marker.MARKER_KEY)
    with pytest.raises(bucket_marker.CannotConclude):
        rename_findings(misnamed)
    assert_kept(bucket, misnamed)


# What happens meanwhile


@pytest.fixture
def races(misnamed: Finding, store: FaultyStore) -> FaultyStore:
    return store


def test_copy_is_of_the_object_that_was_found_and_to_a_free_key(
    bucket: Bucket, races: FaultyStore, misnamed: Finding
) -> None:
    rename_findings(misnamed)
    [request] = races.find_requests(is_copy)
    headers = {name.lower(): value for name, value in dict(request.headers).items()}
    assert headers["x-amz-copy-source-if-match"] == f'"{misnamed.etag}"'
    assert headers["x-amz-metadata-directive"] == "COPY"
    assert headers["cf-copy-destination-if-none-match"] == "*"
    assert "cf-copy-destination-if-none-match" in headers["authorization"]


def test_object_that_changes_before_the_copy_stays(
    bucket: Bucket, races: FaultyStore, misnamed: Finding
) -> None:
    races.rules.append(rule_for(is_copy, run_before(lambda: bucket.put(A, body=b"new")), times=1))
    [one] = rename_findings(misnamed)
    assert "changed since the scan" in one.objection
    assert_kept(bucket, misnamed)
    assert bucket.r2.read(A) == b"new"
    assert R2Object.objects.get().key == A


def test_object_that_changes_after_the_copy_stays_and_so_does_the_copy(
    bucket: Bucket, misnamed: Finding, monkeypatch: pytest.MonkeyPatch
) -> None:
    after(monkeypatch, rename, "copy_objects", lambda: bucket.put(A, body=b"new"))
    [one] = rename_findings(misnamed)
    assert "changed since the scan" in one.objection
    assert_kept(bucket, misnamed, A, A_NEW)
    assert bucket.r2.read(A) == b"new" and bucket.r2.read(A_NEW) == CONTENT
    assert set(R2Object.objects.values_list("key", "state")) == {
        (A, "stored"),
        (A_NEW, "stored"),
    }


def test_object_that_changes_after_the_rows_stays(
    bucket: Bucket, misnamed: Finding, monkeypatch: pytest.MonkeyPatch
) -> None:
    after(monkeypatch, rename, "switch_keys", lambda: bucket.put(A, body=b"new"))
    [one] = rename_findings(misnamed)
    assert "still there" in one.objection and "overwritten" in one.objection
    assert_kept(bucket, misnamed, A, A_NEW)
    assert bucket.r2.read(A) == b"new" and bucket.r2.read(A_NEW) == CONTENT
    [one] = rename_findings(misnamed)
    assert "written to again" in one.objection
    assert_kept(bucket, misnamed, A, A_NEW)


def test_upload_that_begins_after_the_rows_is_not_lost(
    bucket: Bucket, misnamed: Finding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody uploads to such a key by the key formats; by its name somebody can."""

    def upload() -> None:
        with default_storage.open(A, "w") as file:
            file.write(b"new")

    after(monkeypatch, rename, "switch_keys", upload)
    [one] = rename_findings(misnamed)
    assert one.objection
    assert_kept(bucket, misnamed, A, A_NEW)
    assert bucket.r2.read(A) == b"new"


def test_upload_to_the_new_key_gets_another_name(
    bucket: Bucket, misnamed: Finding, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[str] = []

    def save() -> None:
        saved.append(default_storage.save(A_NEW, ContentFile(b"mine")))

    after(monkeypatch, rename, "reserve_new_key", save)
    [one] = rename_findings(misnamed)
    assert not one.objection
    assert bucket.keys() == {A_NEW, *saved} and len(saved) == 1
    assert bucket.r2.read(A_NEW) == CONTENT and bucket.r2.read(saved[0]) == b"mine"


def test_upload_that_takes_the_new_key_keeps_it(
    bucket: Bucket, misnamed: Finding, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overwrite() -> None:
        with default_storage.open(A_NEW, "w") as file:
            file.write(b"mine")

    after(monkeypatch, rename, "copy_objects", overwrite)
    [one] = rename_findings(misnamed)
    assert "The new name is taken" in one.objection
    assert_kept(bucket, misnamed, A, A_NEW)
    assert bucket.r2.read(A) == CONTENT and bucket.r2.read(A_NEW) == b"mine"


def test_object_that_comes_to_the_new_key_is_not_taken_for_the_copy(
    bucket: Bucket, misnamed: Finding, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = bytes(reversed(CONTENT))
    after(monkeypatch, rename, "copy_objects", lambda: bucket.put(A_NEW, body=other))
    [one] = rename_findings(misnamed)
    assert "The new name is taken" in one.objection
    assert_kept(bucket, misnamed, A, A_NEW)


def test_new_key_that_a_cleanup_marks_just_now_is_let_go(
    bucket: Bucket, misnamed: Finding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cleanup marks before it reads the rows."""
    cleanup = Cleanup.objects.create(kind="objects", bucket=bucket.name, trigger="deleted")

    def mark() -> None:
        names = {"key": A_NEW, "identity": A_NEW}
        CleanupItem.objects.create(cleanup=cleanup, outcome="deleting", **names)

    patch_before(monkeypatch, rename, "reserve_new_key", mark)
    [one] = rename_findings(misnamed)
    assert "A cleanup is working on the new name" in one.objection
    assert R2Object.objects.get().key == A
    assert_kept(bucket, misnamed)


def test_old_object_stays_while_the_new_one_is_another(
    bucket: Bucket, misnamed: Finding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rename, "request_deletion", lambda rows: None)
    rename_findings(misnamed)
    monkeypatch.undo()
    bucket.put(A_NEW, body=b"other")
    assert "Both files are kept" in rename_findings(misnamed)[0].objection
    bucket.r2.remove(A_NEW)
    assert "Both files are kept" in rename_findings(misnamed)[0].objection
    assert bucket.r2.read(A) == CONTENT
    assert not Cleanup.objects.exists()


def test_old_object_that_no_cleanup_has_is_deleted_later(
    bucket: Bucket, misnamed: Finding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rename, "request_deletion", lambda rows: None)
    [one] = rename_findings(misnamed)
    assert one.objection
    assert_kept(bucket, misnamed, A, A_NEW)
    monkeypatch.undo()
    rename_findings(misnamed)
    assert_renamed(bucket, misnamed)


def test_deletion_of_an_earlier_object_is_not_taken_for_that_of_this_one(
    bucket: Bucket, misnamed: Finding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rename, "request_deletion", lambda rows: None)
    rename_findings(misnamed)
    monkeypatch.undo()
    names = {"key": A, "identity": A}
    for kind, outcome in (("objects", "deleted"), ("project", "deleting")):
        cleanup = Cleanup.objects.create(
            kind=kind, bucket=bucket.name, trigger="deleted", status="running"
        )
        CleanupItem.objects.create(cleanup=cleanup, outcome=outcome, **names)
    Cleanup.objects.filter(kind="objects").update(status="clean")
    [one] = rename_findings(misnamed)
    assert "a cleanup is still working on the old file" in one.objection
    assert bucket.keys() == {A, A_NEW}
    misnamed.refresh_from_db()
    assert misnamed.state == "open"


def test_blind_listing_is_not_believed(
    bucket: Bucket, races: FaultyStore, misnamed: Finding
) -> None:
    """An empty answer for every listing but the first, which shows the marker."""
    nothing = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
    seen: list[Request] = []

    def listing(request: Request, forward: Forward) -> Reply:
        seen.append(request)
        return forward() if len(seen) == 1 else Reply(200, nothing)

    races.rules.append(rule_for(is_listing, listing))
    with pytest.raises(StoreError):
        rename_findings(misnamed)
    races.rules.clear()
    assert_kept(bucket, misnamed)


def test_row_that_changes_meanwhile_is_not_overwritten(
    bucket: Bucket, misnamed: Finding, monkeypatch: pytest.MonkeyPatch
) -> None:
    def adopt() -> None:
        R2Object.objects.filter(key=A).update(
            project_id="proj_2", source="assigned", updated_at=timezone.now()
        )

    patch_before(monkeypatch, rename, "switch_keys", adopt)
    [one] = rename_findings(misnamed)
    assert "changed right now" in one.objection
    assert R2Object.objects.get(key=A).project_id == "proj_2"
    assert_kept(bucket, misnamed, A, A_NEW)


def test_file_that_the_application_deletes_just_before_the_rows_is_not_renamed(
    bucket: Bucket, misnamed: Finding, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_over = rename.switch_keys

    def delete_meanwhile(*args: Any) -> None:
        # The renaming goes on before the call leaves.
        patch_before(monkeypatch, s3, "delete_single", lambda: change_over(*args))
        default_storage.delete(A)

    monkeypatch.setattr(rename, "switch_keys", delete_meanwhile)
    [one] = rename_findings(misnamed)
    assert (
        one.objection == f"The file is being deleted. Once it is gone, delete its copy too: {A_NEW}"
    )
    assert_kept(bucket, misnamed, A_NEW)
    default_storage.delete(A_NEW)
    assert bucket.keys() == set()


def test_copy_that_is_not_listed_is_not_believed(
    bucket: Bucket, races: FaultyStore, misnamed: Finding
) -> None:
    answer = f'<CopyObjectResult><ETag>"{misnamed.etag}"</ETag></CopyObjectResult>'
    races.rules.append(rule_for(is_copy, Reply(200, answer.encode()), times=1))
    [one] = rename_findings(misnamed)
    assert "does not show the copy" in one.objection
    assert_kept(bucket, misnamed)
    assert R2Object.objects.get().key == A
    rename_findings(misnamed)
    assert_renamed(bucket, misnamed)


@pytest.mark.parametrize("status, code", [(412, "PreconditionFailed"), (403, "AccessDenied")])
def test_copy_that_is_refused_leaves_nothing(
    bucket: Bucket, races: FaultyStore, misnamed: Finding, status: int, code: str
) -> None:
    races.rules.append(rule_for(is_copy, Reply(status, error_xml(code)), times=1))
    [one] = rename_findings(misnamed)
    assert code in one.objection
    assert_kept(bucket, misnamed)
    assert R2Object.objects.get().key == A
    rename_findings(misnamed)
    assert_renamed(bucket, misnamed)


def test_copy_whose_answer_is_lost_counts_once_it_is_seen(
    bucket: Bucket, races: FaultyStore, misnamed: Finding
) -> None:
    def lose(request: Request, forward: Forward) -> Reply:
        forward()
        return RESET_REPLY

    races.rules.append(rule_for(is_copy, lose))
    rename_findings(misnamed)
    assert len(races.find_requests(is_copy)) == 1
    assert_renamed(bucket, misnamed)


def test_copy_that_may_still_come_keeps_its_key(
    bucket: Bucket, races: FaultyStore, misnamed: Finding
) -> None:
    races.rules.append(rule_for(is_copy, RESET_REPLY, times=1))
    [one] = rename_findings(misnamed)
    assert "Try again" in one.objection
    assert R2Object.objects.get(key=A_NEW).state == "uploading"
    assert_kept(bucket, misnamed)
    rename_findings(misnamed)
    assert_renamed(bucket, misnamed)


def test_old_object_that_is_not_deleted_is_said_and_deleted_later(
    bucket: Bucket, races: FaultyStore, misnamed: Finding
) -> None:
    refusal = rule_for(is_delete_batch, Reply(503, error_xml("SlowDown")))
    races.rules.append(refusal)
    [one] = rename_findings(misnamed)
    cleanup = Cleanup.objects.get()
    assert str(cleanup.pk) in one.objection
    assert_kept(bucket, misnamed, A, A_NEW)
    races.rules.remove(refusal)
    Cleanup.objects.update(next_attempt_at=timezone.now())
    [one] = rename_findings(misnamed)
    assert not one.objection
    assert_renamed(bucket, misnamed)
    assert Cleanup.objects.count() == 1


@pytest.mark.parametrize("body", [None, b"other"], ids=["lost", "overwritten"])
def test_old_object_stays_once_its_copy_is_not_there(
    bucket: Bucket, races: FaultyStore, misnamed: Finding, body: bytes | None
) -> None:
    """The deletion may be tried again for hours."""
    refusal = rule_for(is_delete_batch, Reply(503, error_xml("SlowDown")))
    races.rules.append(refusal)
    rename_findings(misnamed)
    races.rules.remove(refusal)
    bucket.r2.remove(A_NEW) if body is None else bucket.put(A_NEW, body=body)
    Cleanup.objects.update(next_attempt_at=timezone.now())
    [one] = rename_findings(misnamed)
    assert one.objection
    cleanup = run_until_idle(Cleanup.objects.get())
    assert cleanup.status == Status.CLEAN_WITH_KEPT
    assert "the copy under the new name is not in the bucket" in cleanup.items.get().reason
    assert bucket.r2.read(A) == CONTENT


# Crashes


def after(
    patch: pytest.MonkeyPatch, module: Any, name: str, *effects: Callable[[], object]
) -> None:
    """Let these happen once, after the first call of this function."""
    original, todo = getattr(module, name), list(effects)

    def patched(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        while todo:
            todo.pop(0)()
        return result

    patch.setattr(module, name, patched)


STEPS = [
    (after, rename, "reserve_new_key"),
    (patch_before, rename, "copy_objects"),
    (after, rename, "copy_objects"),
    (patch_before, rename, "switch_keys"),
    (after, rename, "switch_keys"),
    (patch_before, runner, "run_to_end"),
    (after, runner, "handle_turn"),
    (after, runner, "run_to_end"),
]


each_step = pytest.mark.parametrize(
    "when, module, name", STEPS, ids=[f"{when.__name__}-{name}" for when, _module, name in STEPS]
)


@pytest.mark.parametrize("in_parts", [False, True], ids=["whole", "parts"])
@each_step
def test_crash_at_any_step_is_gone_on_with(
    bucket: Bucket,
    misnamed: Finding,
    monkeypatch: pytest.MonkeyPatch,
    when: Callable[..., None],
    module: Any,
    name: str,
    in_parts: bool,
) -> None:
    finding = misnamed
    if in_parts:
        upload_in_parts(bucket, A)
        finding.delete()
        [finding] = create_misnamed(bucket, A)
    content = bucket.r2.read(A)
    when(monkeypatch, module, name, raise_crash)
    with pytest.raises(Crash):
        rename_findings(finding)
    assert content in [bucket.r2.read(key) for key in sorted(bucket.keys())]
    Cleanup.objects.update(lease_until=None, next_attempt_at=timezone.now())
    [one] = rename_findings(finding)
    assert not one.objection
    assert bucket.keys() == {A_NEW}
    assert bucket.r2.read(A_NEW) == content
    row = R2Object.objects.get()
    assert (row.key, row.state, row.source) == (A_NEW, "stored", "upload")
    finding.refresh_from_db()
    assert finding.state == "resolved"
    check_promises(bucket)


@each_step
def test_cleanup_of_a_project_deleted_meanwhile_finds_both_keys(
    bucket: Bucket,
    misnamed: Finding,
    monkeypatch: pytest.MonkeyPatch,
    when: Callable[..., None],
    module: Any,
    name: str,
) -> None:
    """A copy that was still under way counts as an upload, which a follow-up check deletes."""
    when(monkeypatch, module, name, raise_crash)
    with pytest.raises(Crash):
        rename_findings(misnamed)
    Cleanup.objects.update(lease_until=None, next_attempt_at=timezone.now())
    there = bucket.keys()
    cleanup = run_until_idle(request_cleanup("proj_1"))
    assert set(read_outcomes(cleanup)) >= there
    check_promises(bucket)
    if bucket.keys():
        assert read_outcomes(cleanup)[A_NEW] == "kept"
        R2Object.objects.update(updated_at=timezone.now() - conf().upload_timeout)
        run_follow_up(cleanup)
    for open_one in Cleanup.objects.open().filter(parent=None):
        run_until_idle(open_one)
    assert not bucket.keys()
    check_promises(bucket)


def test_project_deleted_during_the_copy_is_not_outrun(
    bucket: Bucket, misnamed: Finding, monkeypatch: pytest.MonkeyPatch
) -> None:
    after(monkeypatch, rename, "copy_objects", lambda: run_until_idle(request_cleanup("proj_1")))
    [one] = rename_findings(misnamed)
    assert "its cleanup decides" in one.objection
    assert R2Object.objects.filter(project_id="proj_1", key=A_NEW, state="stored").exists()
    cleanup = Cleanup.objects.get(kind="project", parent=None)
    run_follow_up(cleanup)
    assert not bucket.keys()


def test_project_deleted_just_before_has_no_copy_made(
    bucket: Bucket, races: FaultyStore, misnamed: Finding, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_before(monkeypatch, rename, "reserve_new_key", lambda: request_cleanup("proj_1"))
    [one] = rename_findings(misnamed)
    assert "its cleanup decides" in one.objection
    assert not races.find_requests(is_copy)
    assert_kept(bucket, misnamed)


def test_project_deleted_just_before_the_rows_keeps_them(
    bucket: Bucket, misnamed: Finding, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_before(monkeypatch, rename, "switch_keys", lambda: request_cleanup("proj_1"))
    [one] = rename_findings(misnamed)
    assert "its cleanup decides" in one.objection
    assert run_until_idle(Cleanup.objects.get()).status == Status.CLEAN
    assert not bucket.keys()


@pytest.mark.parametrize("name", ["reserve_new_key", "copy_objects", "switch_keys"])
def test_two_at_once_rename_it_once(
    bucket: Bucket, misnamed: Finding, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    after(monkeypatch, rename, name, lambda: rename_findings(misnamed))
    rename_findings(misnamed)
    assert_renamed(bucket, misnamed)


def test_killed_at_random_it_finishes_with_nothing_lost(bucket: Bucket) -> None:
    """SIGKILL: the process cannot tidy up, and its leases run out."""
    create_projects("proj_1")
    contents = {f"{n}.mp4": f"content {n}".encode() for n in range(20)}
    for name, body in contents.items():
        bucket.put(OLD + name, body=body)
    create_misnamed(bucket, *(OLD + name for name in contents))
    random = Random(7)
    for _kill in range(8):
        child = in_child(lambda: list(rename.rename_each(Finding.objects.unresolved())))
        kill_after(child, random.uniform(0.05, 1.5))
        assert bodies_in(bucket) >= set(contents.values())
        due = timezone.now()
        Cleanup.objects.update(next_attempt_at=due, lease_until=None)
    list(rename.rename_each(Finding.objects.unresolved()))
    assert not Finding.objects.unresolved().exists()
    assert {key: bucket.r2.read(key) for key in sorted(bucket.keys())} == {
        NEW + name: body for name, body in contents.items()
    }
    rows = R2Object.objects.values_list("key", "state")
    assert set(rows) == {(NEW + name, "stored") for name in contents}
    check_promises(bucket)


def bodies_in(bucket: Bucket) -> set[bytes]:
    """The store may still be at what the killed one asked for last: what goes has its copy."""
    while True:
        with suppress(LookupError):
            return {bucket.r2.read(key) for key in sorted(bucket.keys())}


def in_child(work: Callable[[], object]) -> int:
    connections.close_all()
    if child := os.fork():
        return child
    try:
        work()
    finally:
        os._exit(0)


def kill_after(child: int, pause: float) -> None:
    sleep(pause)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


# Strange keys


LONG = ("é" * 100 + "/") * 4
LONG += "x" * (1024 - len((OLD + LONG).encode()))
REFUSED = {"up": "segment", "far up": "segment", "dot": "segment", "control and dots": "segment"}
REFUSED |= {"newline": "404"}


@pytest.mark.parametrize("kind", STRANGE_KEYS)
def test_strange_keys_are_renamed_unharmed_or_refused(bucket: Bucket, kind: str) -> None:
    create_projects("proj_1")
    strange = STRANGE_KEYS[kind]
    if strange.name.startswith(("projects/", "/projects/")):
        return
    name = LONG if kind == "1,024 bytes" else strange.name
    old, new, traps = OLD + name, nfc_key(NEW + name), {OLD + trap for trap in strange.traps}
    bucket.put(old, body=CONTENT)
    bucket.put(*(trap for trap in traps - {old} if len(trap.encode()) <= 1024))
    others = bucket.facts()
    del others[old]
    [finding] = create_misnamed(bucket, old)
    [one] = rename_findings(finding)
    if kind in REFUSED:
        assert REFUSED[kind] in one.objection
        assert bucket.facts() == {old: bucket.facts()[old], **others}
        assert not R2Object.objects.exists()
        return
    assert not one.objection
    assert bucket.r2.read(new) == CONTENT
    after = bucket.facts()
    del after[new]
    assert after == others
    assert R2Object.objects.get().key == new


def test_new_key_that_would_be_too_long_is_refused(bucket: Bucket) -> None:
    create_projects("proj_1")
    name = "x" * (1024 - len("proj_proj_1__media.mp4"))
    old = f"proj_proj_1_{name}_media.mp4"
    bucket.put(old)
    [finding] = create_misnamed(bucket, old)
    assert "a key may have 1024" in refused(finding)


@pytest.mark.parametrize("listed", ["NFC", "NFD"])
def test_where_spellings_are_one_object_any_is_renamed(bucket: Bucket, listed: Any) -> None:
    """As on R2. Local R2 does not fold them."""
    bucket.set_marker(folds_unicode=True)
    create_projects("proj_1")
    old, new = normalize(listed, f"{OLD}caf\u00e9"), f"{NEW}caf\u00e9"
    bucket.put(old, body=CONTENT)
    track_key(bucket, nfc_key(old), "proj_1")
    [finding] = create_misnamed(bucket, old)
    [one] = rename_findings(finding)
    assert not one.objection
    assert_renamed(bucket, finding, new)


# From the shell


def test_command_plans_and_renames(bucket: Bucket, misnamed: Finding) -> None:
    asked = ["findings", "--kind", "misnamed", "--rename"]
    assert run_command(*asked, "--dry-run") == (
        "Would act on 1 finding. Nothing was changed.\n" + f"  {A} -> {A_NEW}\n",
        "",
        0,
    )
    assert_kept(bucket, misnamed)
    assert run_command(*asked) == (f"Settled 1 finding.\n  {A} -> {A_NEW}\n", "", 0)
    assert_renamed(bucket, misnamed)
    misnamed.refresh_from_db()
    assert misnamed.decided_by


def test_command_says_what_is_not_renamed_and_why(bucket: Bucket, misnamed: Finding) -> None:
    bucket.put(A, body=b"another")
    facts, code = run_json("findings", "--kind", "misnamed", "--rename")
    assert (code, facts["done"], facts["results"]) == (1, 0, [])
    assert [left["key"] for left in facts["left"]] == [A]
    assert_kept(bucket, misnamed)


# A store that is not R2


@pytest.fixture
def tree(seaweedfs: SeaweedFS, transactional_db: None) -> Iterator[Bucket]:
    with faulty_network(seaweedfs):
        bucket = Bucket(seaweedfs)
        bucket.wipe()
        bucket_connection.connect_bucket(bucket.name)
        create_projects("proj_1")
        yield bucket


@pytest.mark.parametrize("name", ["a.mp4", " g ", "i?b#c", "f+b", "e%2Fb", "k\u00e9", "le\u0301"])
def test_another_store_renames_them_too_or_says_why(tree: Bucket, name: str) -> None:
    tree.put(OLD + name, body=CONTENT)
    [finding] = create_misnamed(tree, OLD + name)
    try:
        [one] = rename_findings(finding)
    except StoreError:
        # It lists an encoded slash where it cannot be.
        assert name == "e%2Fb"
        assert tree.keys() == {OLD + name}
        return
    assert not one.objection
    assert tree.keys() == {nfc_key(NEW + name)}
    assert tree.r2.read(nfc_key(NEW + name)) == CONTENT
