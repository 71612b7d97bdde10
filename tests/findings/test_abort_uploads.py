"""Unfinished multipart uploads are found, and those that are old can be aborted; no others are."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta

import pytest
from django.utils import timezone
from pytest_django import Settings

from devtools.http_reply import Reply
from devtools.seaweedfs import SeaweedFS
from storage_audit.bucket import answer_schema, multipart, s3
from storage_audit.bucket.errors import InvalidResponse, StoreError
from storage_audit.bucket.listing import is_too_long
from storage_audit.bucket.multipart import MultipartUpload
from storage_audit.cleanup import delete_pipeline
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.open_decisions import covered_reason
from storage_audit.conf import conf
from storage_audit.findings import abort_uploads
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_connection, bucket_marker
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.scan import unfinished_uploads
from storage_audit.scan.models import BucketScan, PendingFinding
from storage_audit.scan.start import start_scan
from storage_audit.scan.worker import work_on_scan
from tests.faults.kinds import change_reply, error_xml
from tests.faults.matching import is_abort, is_listing, is_uploads_listing, rule_for
from tests.faults.pages import (
    empty_page,
    insert_first,
    other_bucket_page,
    other_prefix_page,
    with_field,
    with_text,
    without_field,
)
from tests.faults.proxy import FaultyStore, Forward, Request
from tests.network import faulty_network
from tests.promises import create_projects, record_deleted_projects, track_key
from tests.real_bucket import Bucket
from tests.run_command import run_command

KEY = "projects/proj_1/scenes/s1/media/big one?.mp4"
LATER = KEY + ".later"
AT_ONCE = timedelta(0)


@pytest.fixture
def proxy(seaweedfs: SeaweedFS) -> Iterator[FaultyStore]:
    with faulty_network(seaweedfs) as running:
        yield running


@pytest.fixture
def tree(seaweedfs: SeaweedFS, proxy: FaultyStore, transactional_db: None) -> Bucket:
    """SeaweedFS, which lists unfinished uploads as R2 does, and local R2 does not."""
    bucket = Bucket(seaweedfs)
    bucket.wipe()
    end_all(bucket)
    bucket_connection.connect_bucket(bucket.name)
    return bucket


@pytest.fixture
def old(settings: Settings) -> None:
    """Whatever is there is old."""
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"UPLOAD_TIMEOUT": AT_ONCE}


def end_all(bucket: Bucket) -> None:
    """As somebody else does it."""
    client = bucket.r2.client()
    for begun in client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", []):
        client.abort_multipart_upload(
            Bucket=bucket.name, Key=begun["Key"], UploadId=begun["UploadId"]
        )


def begin(bucket: Bucket, *keys: str) -> None:
    for key in keys:
        bucket.r2.client().create_multipart_upload(Bucket=bucket.name, Key=key)


def there(bucket: Bucket) -> list[str]:
    pages = multipart.list_unfinished_uploads(bucket.name, "")
    assert pages is not None
    return sorted(upload.key for page in pages for upload in page)


def find_uploads(
    bucket: Bucket, *prefixes: str, older_than: timedelta = AT_ONCE
) -> list[PendingFinding] | None:
    scan = BucketScan.objects.create(bucket=bucket.name)
    seen = unfinished_uploads.find_unfinished(scan, prefixes or [""], older_than)
    return None if seen is None else PendingFinding.objects.bulk_create(seen)


def findings(bucket: Bucket) -> list[Finding]:
    """What a scan makes of its sightings."""
    names = ("bucket", "key", "kind", "upload_id", "project_id", "last_modified", "evidence")
    return [
        Finding.objects.create(
            first_scan=seen.scan,
            last_scan=seen.scan,
            **{name: getattr(seen, name) for name in names},
        )
        for seen in find_uploads(bucket) or ()
    ]


def aborted(*found: Finding) -> list[str]:
    """How each is resolved, or why it is not."""
    fresh = Finding.objects.filter(pk__in=[finding.pk for finding in found]).order_by("key", "pk")
    return [one.resolution or one.objection for one in abort_uploads.abort_each(fresh)]


# Found


def test_each_unfinished_upload_is_found_with_its_owner(tree: Bucket) -> None:
    create_projects("proj_1")
    record_deleted_projects("proj_2")
    begin(tree, KEY, KEY, "projects/proj_2/scenes/s1/media/a", "stranger", ".storage_audit/own")
    seen = find_uploads(tree)
    assert seen is not None
    told = [(one.kind, one.key, one.project_id, one.evidence) for one in seen]
    assert sorted(told) == sorted(
        [
            ("unfinished", KEY, "proj_1", "name fits proj_1 by key format hierarchical"),
            ("unfinished", KEY, "proj_1", "name fits proj_1 by key format hierarchical"),
            (
                "unfinished",
                "projects/proj_2/scenes/s1/media/a",
                "proj_2",
                "name fits proj_2 by key format hierarchical; project proj_2 was deleted",
            ),
            ("unfinished", "stranger", None, "no key format matches"),
        ]
    )
    assert len({one.upload_id for one in seen}) == 4
    age = [timezone.now() - one.last_modified for one in seen if one.last_modified]
    assert len(age) == 4 and max(age) < timedelta(minutes=1)


def test_uploads_that_are_not_old_are_not_found(tree: Bucket) -> None:
    begin(tree, KEY)
    assert find_uploads(tree, older_than=conf().upload_timeout) == []


def test_only_uploads_under_the_given_prefixes_are_found(tree: Bucket) -> None:
    begin(tree, "a/1", "b/1", "c/1")
    seen = find_uploads(tree, "a/", "c/")
    assert seen is not None
    assert sorted(one.key for one in seen) == ["a/1", "c/1"]


def test_store_that_cannot_list_uploads_says_nothing_of_them(bucket: Bucket) -> None:
    """Local R2 answers NotImplemented."""
    assert find_uploads(bucket) is None


def test_memory_does_not_grow_with_the_uploads(tree: Bucket, proxy: FaultyStore) -> None:
    """Each page is asked for when the one before is done with."""
    asked: list[str] = []

    def page(request: Request, forward: Forward) -> Reply:
        number = int(request.query.get("key-marker") or 0) + 1
        asked.append(str(number))
        entry = f"<Upload><Key>{number}</Key><UploadId>u</UploadId>" + (
            "<Initiated>2026-01-01T00:00:00.000Z</Initiated></Upload>"
        )
        more = f"<IsTruncated>{'true' if number < 5 else 'false'}</IsTruncated>"
        next_one = f"<NextKeyMarker>{number}</NextKeyMarker><NextUploadIdMarker>u" + (
            "</NextUploadIdMarker>"
        )
        body = f"<ListMultipartUploadsResult>{more}{next_one}{entry}</ListMultipartUploadsResult>"
        return Reply(200, body.encode())

    answer_schema.set_expected_fields(tree.name, ())  # The pages are made by hand.
    proxy.rules.append(rule_for(is_uploads_listing, page))
    scan = BucketScan.objects.create(bucket=tree.name)
    seen = unfinished_uploads.find_unfinished(scan, [""], AT_ONCE)
    assert seen is not None
    for number in range(1, 6):
        assert next(seen).key == str(number)
        assert len(asked) == number
    assert next(seen, None) is None


def test_listing_that_does_not_get_on_is_no_listing(tree: Bucket, proxy: FaultyStore) -> None:
    body = """<ListMultipartUploadsResult><IsTruncated>true</IsTruncated><NextKeyMarker>a
</NextKeyMarker><NextUploadIdMarker>u</NextUploadIdMarker></ListMultipartUploadsResult>"""
    answer_schema.set_expected_fields(tree.name, ())
    proxy.rules.append(rule_for(is_uploads_listing, Reply(200, body.encode())))
    with pytest.raises(InvalidResponse):
        find_uploads(tree)


FOLDER = "<CommonPrefixes><Prefix>a/</Prefix></CommonPrefixes>"
FOREIGN: dict[str, Callable[[str], str]] = {
    "another bucket": other_bucket_page,
    "another prefix": other_prefix_page,
    "no bucket": lambda xml: without_field(xml, "Bucket"),
    "no prefix": lambda xml: without_field(xml, "Prefix"),
    "a later page": lambda xml: with_field(xml, "KeyMarker", "a/9"),
    "a later upload": lambda xml: with_field(xml, "UploadIdMarker", "u"),
    "folders": lambda xml: with_field(xml, "Delimiter", "/"),
    "common prefixes": lambda xml: insert_first(xml, FOLDER),
    "an end in capitals": lambda xml: with_field(xml, "IsTruncated", "FALSE"),
    "no end": lambda xml: without_field(xml, "IsTruncated"),
    "two ends": lambda xml: insert_first(xml, "<IsTruncated>true</IsTruncated>"),
    "another root": lambda xml: xml.replace("ListMultipartUploadsResult", "ListBucketResult"),
    "an upload twice": lambda xml: re.sub("(<Upload>.*</Upload>)", r"\1\1", xml),
    "an upload elsewhere": lambda xml: xml.replace("<Key>a/", "<Key>b/"),
    "an upload without an id": lambda xml: re.sub("<UploadId>.*?</UploadId>", "", xml),
    "a key longer than keys can be": lambda xml: xml.replace("</Key>", "x" * 2500 + "</Key>"),
    "an id longer than ids can be": lambda xml: with_text(xml, "UploadId", "u" * 2500),
    "an upload of two keys": lambda xml: xml.replace("</Key>", "</Key><Key>a/9</Key>"),
}


def test_page_of_another_request_is_no_listing(tree: Bucket, proxy: FaultyStore) -> None:
    begin(tree, "a/1")
    answer_schema.set_expected_fields(tree.name, bucket_marker.check_bucket(tree.name).echoes)
    believed = []
    for name, change in FOREIGN.items():
        proxy.rules[:] = [rule_for(is_uploads_listing, change_reply(change))]
        with suppress(InvalidResponse):
            find_uploads(tree, "a/")
            believed.append(name)
    assert believed == []
    proxy.rules.clear()
    assert len(find_uploads(tree, "a/") or ()) == 1


@pytest.mark.parametrize("keys", [("b", "a"), ("a", "c"), ("0", "b")])
def test_uploads_of_several_pages_are_in_order(
    tree: Bucket, proxy: FaultyStore, keys: tuple[str, str]
) -> None:
    """Between the place where the page begins and the one where the next does."""
    begun = "<Upload><Key>{}</Key><UploadId>u</UploadId><Initiated>2026-01-01T00:00:00Z</Initiated>"
    entries = "".join(f"{begun.format(key)}</Upload>" for key in keys)
    body = f"""<ListMultipartUploadsResult><Bucket>tests</Bucket><IsTruncated>true</IsTruncated>
        <EncodingType>url</EncodingType><NextKeyMarker>b</NextKeyMarker>
        <NextUploadIdMarker>u</NextUploadIdMarker>{entries}</ListMultipartUploadsResult>"""
    answer_schema.set_expected_fields(tree.name, ())
    proxy.rules.append(rule_for(is_uploads_listing, Reply(200, body.encode())))
    with pytest.raises(InvalidResponse, match="order"):
        multipart.list_upload_page("tests", "", {"KeyMarker": "a", "UploadIdMarker": "u"})


# Aborted


def test_old_upload_is_aborted_and_no_other(tree: Bucket, old: None) -> None:
    begin(tree, KEY, KEY, KEY + ".more")
    found = findings(tree)
    mine = next(finding for finding in found if finding.key == KEY)
    assert aborted(mine) == ["aborted"]
    assert there(tree) == [KEY, KEY + ".more"]
    mine.refresh_from_db()
    assert (mine.state, mine.note) == ("resolved", "aborted")
    assert sorted(aborted(*found)) == ["Already resolved: aborted", "aborted", "aborted"]
    assert not there(tree) and not Finding.objects.unresolved().exists()


def test_upload_whose_finding_is_ignored_is_not_aborted(tree: Bucket, old: None) -> None:
    begin(tree, KEY)
    [found] = findings(tree)
    Finding.objects.all().ignore("ours", "zoe")
    assert aborted(found) == ["Ignored. To abort the upload, reopen the finding first."]
    assert there(tree) == [KEY]


@pytest.mark.parametrize("part", ["listing", "abortion"])
def test_upload_that_is_ignored_meanwhile_is_not_aborted(
    tree: Bucket, old: None, proxy: FaultyStore, part: str
) -> None:
    """While its own upload is looked for, or the one before is aborted."""
    begin(tree, KEY, LATER)
    found = sorted(findings(tree), key=lambda finding: finding.key)

    def acknowledge(request: Request, forward: Forward) -> Reply:
        Finding.objects.filter(key=LATER).ignore("ours", "zoe")
        return forward()

    proxy.rules.append(
        rule_for(is_abort if part == "abortion" else is_uploads_listing, acknowledge)
    )
    told = "Ignored. To abort the upload, reopen the finding first."
    assert aborted(*found[part == "listing" :])[-1] == told
    assert LATER in there(tree)


def test_key_that_no_request_can_name_is_too_long_only_beyond_what_a_key_can_be() -> None:
    assert not is_too_long("\0" * 1024, "u" * 400)
    assert is_too_long("\0" * 1024, "u" * 500)


def test_dry_run_aborts_nothing(tree: Bucket, old: None) -> None:
    begin(tree, KEY)
    assert [one.objection for one in abort_uploads.abort_each(findings(tree), dry_run=True)] == [""]
    assert there(tree) == [KEY]
    assert Finding.objects.get().state == "open"


def test_upload_that_is_not_old_is_not_aborted(tree: Bucket) -> None:
    begin(tree, KEY)
    [told] = aborted(*findings(tree))
    assert "newer than the one that was found" in told
    assert there(tree) == [KEY]
    assert Finding.objects.get().state == "open"


def test_upload_of_another_age_is_not_aborted(tree: Bucket, old: None) -> None:
    begin(tree, KEY)
    [finding] = findings(tree)
    Finding.objects.update(last_modified=timezone.now() - timedelta(days=9))
    [told] = aborted(finding)
    assert "newer than the one that was found" in told
    assert there(tree) == [KEY]


def test_key_that_the_application_uploads_to_is_spared(
    tree: Bucket, old: None, settings: Settings
) -> None:
    begin(tree, KEY)
    row = track_key(tree, KEY, "proj_1", state="uploading")
    found = findings(tree)
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"UPLOAD_TIMEOUT": timedelta(seconds=1)}
    R2Object.objects.update(updated_at=timezone.now() + timedelta(seconds=60))
    [told] = aborted(*found)
    assert "is uploading this file" in told
    assert there(tree) == [KEY]
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"UPLOAD_TIMEOUT": AT_ONCE}
    R2Object.objects.update(updated_at=row.created_at - timedelta(seconds=60))
    assert aborted(*found) == ["aborted"]


def test_upload_to_a_file_of_an_open_cleanup_is_not_aborted(tree: Bucket, old: None) -> None:
    begin(tree, KEY)
    found = findings(tree)
    cleanup = Cleanup.objects.request(
        kind="project", project_id="proj_1", bucket=tree.name, trigger="deleted"
    )
    Cleanup.objects.update(status="blocked", next_attempt_at=None)
    cleanup.refresh_from_db()
    assert aborted(*found) == [covered_reason(cleanup)]
    assert there(tree) == [KEY]
    Cleanup.objects.update(status="clean")
    assert aborted(*found) == ["aborted"]


def test_upload_that_ended_by_itself_is_not_called_aborted(tree: Bucket, old: None) -> None:
    begin(tree, KEY)
    found = findings(tree)
    end_all(tree)
    [told] = aborted(*found)
    assert "already gone" in told
    assert Finding.objects.get().state == "resolved"


def test_upload_that_ends_just_before_is_not_called_aborted(
    tree: Bucket, old: None, proxy: FaultyStore
) -> None:
    begin(tree, KEY)
    found = findings(tree)

    def end(request: Request, forward: Forward) -> Reply:
        end_all(tree)
        return Reply(404, error_xml("NoSuchUpload"))

    proxy.rules.append(rule_for(is_abort, end))
    [told] = aborted(*found)
    assert "already gone" in told


def test_abortion_is_believed_when_it_is_seen(tree: Bucket, old: None, proxy: FaultyStore) -> None:
    begin(tree, KEY)
    found = findings(tree)
    for answer in (Reply(204), Reply(403, error_xml("AccessDenied"))):
        proxy.rules[:] = [rule_for(is_abort, answer)]
        [told] = aborted(*found)
        assert "still there" in told
        assert ("AccessDenied" in told) == (answer.status == 403)
        assert Finding.objects.get().state == "open"
    proxy.rules.clear()
    assert aborted(*found) == ["aborted"]


def test_upload_is_not_aborted_by_a_process_that_was_stopped_after_its_listing(
    tree: Bucket, old: None, proxy: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tree, KEY)
    now, abort = [0.0], multipart.abort_multipart

    def stop_and_abort(bucket: str, upload: MultipartUpload) -> None:
        now[0] += delete_pipeline.RECHECK_VALID_SECONDS + 1
        abort(bucket, upload)

    monkeypatch.setattr(multipart, "abort_multipart", stop_and_abort)
    for module in (delete_pipeline, s3):
        monkeypatch.setattr(module, "monotonic_seconds", lambda: now[0])
    [told] = aborted(*findings(tree))
    assert told.startswith("Not sent: the check before it is too old.")
    assert not proxy.find_requests(is_abort) and there(tree) == [KEY]
    assert Finding.objects.get().state == "open"


def test_listing_that_fails_resolves_nothing(tree: Bucket, old: None, proxy: FaultyStore) -> None:
    begin(tree, KEY)
    found = findings(tree)
    proxy.rules.append(rule_for(is_uploads_listing, Reply(403, error_xml("AccessDenied"))))
    with pytest.raises(StoreError):
        aborted(*found)
    assert Finding.objects.get().state == "open"
    assert not proxy.find_requests(is_abort)


def test_empty_copy_of_the_bucket_resolves_nothing(
    tree: Bucket, old: None, proxy: FaultyStore
) -> None:
    begin(tree, KEY)
    found = findings(tree)

    def show_nothing(request: Request, forward: Forward) -> Reply:
        answer = forward()
        return Reply(answer.status, empty_page(answer.text).encode(), answer.headers)

    def copy(request: Request, forward: Forward) -> Reply | None:
        if is_uploads_listing(request):
            proxy.rules[:] = [rule_for(is_listing, show_nothing)]
            return show_nothing(request, forward)
        return None

    proxy.rules.append(copy)
    with pytest.raises(InvalidResponse):
        aborted(*found)
    proxy.rules.clear()
    assert not Finding.objects.filter(state="resolved").exists()
    assert there(tree) == [KEY]


def test_nothing_is_aborted_in_another_bucket(tree: Bucket, old: None) -> None:
    begin(tree, KEY)
    found = findings(tree)
    tree.r2.remove(bucket_marker.MARKER_KEY, tree.name)
    with pytest.raises(CannotConclude):
        aborted(*found)
    assert there(tree) == [KEY]


@pytest.mark.parametrize(
    "key", ["a b", "i?b#c", "=cmd()", "<x>&amp;", "k\u00e9", "le\u0301", "e/f/g"]
)
def test_uploads_to_strange_keys_are_aborted(tree: Bucket, old: None, key: str) -> None:
    """SeaweedFS says that it encodes keys here, and does not: so no `+` and no `%`."""
    begin(tree, key, key + "x")
    found = [finding for finding in findings(tree) if finding.key == key]
    assert aborted(*found) == ["aborted"]
    assert there(tree) == [key + "x"]


def test_what_is_no_such_finding_is_refused(tree: Bucket, old: None) -> None:
    begin(tree, KEY)
    [finding] = findings(tree)
    Finding.objects.update(kind="orphaned")
    [told] = aborted(finding)
    assert told == "Not an unfinished upload, but: leftover."
    Finding.objects.update(kind="unfinished", escaped=True)
    [told] = aborted(finding)
    assert "No request can use" in told
    Finding.objects.update(escaped=False, state="resolved", note="gone")
    [told] = aborted(finding)
    assert "Already resolved: gone" in told
    assert there(tree) == [KEY]


def test_command_aborts_them(tree: Bucket, old: None) -> None:
    begin(tree, KEY)
    findings(tree)
    asked = ["findings", "--kind", "unfinished", "--abort-uploads"]
    planned = f"  {KEY} -> would be aborted\n"
    assert run_command(*asked, "--dry-run")[0].endswith(planned)
    assert there(tree) == [KEY]
    assert run_command(*asked) == (f"Settled 1 finding.\n  {KEY} -> aborted\n", "", 0)
    assert not there(tree)


def scanned() -> BucketScan:
    done = start_scan(purpose="reconcile")
    list(work_on_scan(done))
    assert done.status == BucketScan.Status.COMPLETE
    return done


def test_a_scan_ends_with_the_unfinished_uploads(tree: Bucket, old: None) -> None:
    create_projects("proj_1")
    begin(tree, KEY)
    assert (scanned().unfinished, scanned().uploads_listed) == (1, True)
    [finding] = Finding.objects.all()
    assert (finding.kind, finding.key, finding.project_id) == ("unfinished", KEY, "proj_1")
    end_all(tree)
    assert scanned().unfinished == 0
    finding.refresh_from_db()
    assert finding.state == Finding.State.RESOLVED


def test_findings_outside_the_listing_are_not_resolved(bucket: Bucket) -> None:
    seen = BucketScan.objects.create(bucket=bucket.name, started_at=timezone.now())
    Finding.objects.create(
        bucket=bucket.name, key=KEY, kind="unfinished", first_scan=seen, last_scan=seen
    )
    assert scanned().uploads_listed is False
    assert Finding.objects.get().state == Finding.State.OPEN
