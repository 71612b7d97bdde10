"""A bucket that is only listed, in memory, and what tests of scans do again and again."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import md5
from typing import Any
from uuid import UUID

import pytest
from django.utils import timezone

from storage_audit.bucket import multipart
from storage_audit.bucket.listing import exact_key, key_bytes
from storage_audit.bucket.listing_xml import Entries, Entry
from storage_audit.bucket.s3 import ListedObject, Page
from storage_audit.conf import conf
from storage_audit.findings.models import Finding
from storage_audit.models import Project, R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import StoreTraits, name_marker
from storage_audit.ownership.ownership_rule import get_key_formats, unambiguous_version
from storage_audit.scan import compare, fetchers, worker
from storage_audit.scan.fetchers import Stretch
from storage_audit.scan.marker_check import MarkerWatcher
from storage_audit.scan.models import BucketScan, ScanShard
from storage_audit.scan.start import start_scan
from storage_audit.scan.worker import work_on_scan
from tests.real_bucket import Bucket

MODIFIED_AT = datetime(2026, 1, 1, tzinfo=UTC)
MARKER = ListedObject(bucket_marker.MARKER_KEY, 7, "etag", MODIFIED_AT)
# Rows are as old as that, unless a test says otherwise.
LONG_AGO = datetime(2026, 1, 2, tzinfo=UTC)


def make_entry(key: str, size: int = 7) -> Entry:
    etag = md5(key_bytes(key), usedforsecurity=False).hexdigest()
    return Entry(key, size, etag, MODIFIED_AT.strftime("%Y-%m-%dT%H:%M:%S.000Z"))


def nth_key(n: int, project: str = "proj_1", name: str = "media") -> str:
    """The n-th of some keys of a project, in order."""
    return f"projects/{project}/scenes/s1/{name}/{n:05}.mp4"


class Listing:
    """Lists these keys by pages of so many, in the order of their bytes or another one, in which
    `start-after` counts too. `before_page` is called with the number of the page, from 1."""

    def __init__(self, *keys: str, page: int = 4) -> None:
        self.entries = {key: make_entry(key) for key in keys}
        self.size = page
        self.order: Callable[[str], Any] = key_bytes
        self.asked_pages: list[tuple[str, str]] = []
        self.before_page: Callable[[int], object] = lambda number: None

    def add(self, *keys: str) -> None:
        self.entries |= {key: make_entry(key) for key in keys}

    def remove(self, *keys: str) -> None:
        for key in keys:
            del self.entries[key]

    def list_page(
        self,
        bucket: str,
        prefix: str,
        start_after: str = "",
        token: str | None = None,
        *,
        max_keys: int | None = None,
    ) -> Page[Entries]:
        self.asked_pages.append((prefix, token or start_after))
        self.before_page(len(self.asked_pages))
        after = token or start_after
        # A copy, as others may add keys meanwhile.
        found = [one for key, one in list(self.entries.items()) if key.startswith(prefix)]
        found = [one for one in found if not after or self.order(one.key) > self.order(after)]
        found.sort(key=lambda one: self.order(one.key))
        shown = found[: max_keys or self.size]
        more = len(found) > len(shown)
        return Page(Entries.from_entries(shown), shown[-1].key if more else None)

    def use(self, patch: pytest.MonkeyPatch, traits: StoreTraits | None = None) -> None:
        """Instead of the store; the bucket is connected."""
        for place in ("bucket.s3", "bucket.listing", "scan.shards"):
            patch.setattr(f"storage_audit.{place}.list_entries", self.list_page)
        for place in ("bucket.s3", "scan.shards"):
            patch.setattr(f"storage_audit.{place}.PAGE_SIZE", self.size)
        known = traits or StoreTraits(folds_unicode=False, lists_in_key_order=True)
        patch.setattr(bucket_marker, "identify_bucket", lambda bucket: known)
        patch.setattr(bucket_marker, "find_marker", lambda bucket: MARKER)
        patch.setattr(bucket_marker, "require_marker", lambda bucket: name_marker(MARKER))
        patch.setattr(multipart, "list_unfinished_uploads", lambda bucket, prefix: iter([]))


def remove_pauses(patch: pytest.MonkeyPatch) -> None:
    """No pauses, of those that there are between tries and looks."""
    patch.setattr(fetchers, "RETRY_PAUSES_SECONDS", (0.0, 0.0, 0.0))
    patch.setattr(worker, "LONGEST_WAIT_SECONDS", 0.01)


def build_row(key: str, project_id: str | None = "proj_1", **values: Any) -> R2Object:
    """The row of an object as it is listed, unless told otherwise."""
    one = make_entry(key)
    parsed_keys = get_key_formats().parse_key(key)
    names = {parsed_key.project for parsed_key in parsed_keys}
    facts: dict[str, Any] = {
        "bucket": conf().bucket,
        "project_id": project_id,
        "size": one.size,
        "etag": one.etag,
        "last_modified": MODIFIED_AT,
        "source": R2Object.Source.UPLOAD,
        "state": R2Object.State.STORED,
        "unambiguous_under": unambiguous_version(names, parsed_keys[0]) if parsed_keys else None,
        "created_at": LONG_AGO,
        "updated_at": LONG_AGO,
    }
    return R2Object(key=key, **facts | values)


def track_listed(*keys: str, **values: Any) -> None:
    R2Object.objects.bulk_create(build_row(key, **values) for key in keys)


def add_projects(*ids: str) -> None:
    """Projects, without what follows from it that they are new."""
    Project.objects.bulk_create(Project(pk=project_id) for project_id in ids)


def start_reconcile(prefix: str = "", **scope: Any) -> BucketScan:
    return start_scan(prefix, **{"purpose": BucketScan.Purpose.RECONCILE, **scope})


def run_scan(found: BucketScan) -> BucketScan:
    for _batch in work_on_scan(found):
        pass
    found.refresh_from_db()
    return found


def run_reconcile(prefix: str = "", **scope: Any) -> BucketScan:
    return run_scan(start_reconcile(prefix, **scope))


def complete_reconcile(prefix: str = "", **scope: Any) -> BucketScan:
    found = run_reconcile(prefix, **scope)
    assert found.status == BucketScan.Status.COMPLETE, found.message
    return found


def run_backfill(prefix: str = "", **scope: Any) -> BucketScan:
    return run_scan(start_scan(prefix, **scope))


def resume_scan(found: BucketScan) -> BucketScan:
    found.resume()
    return run_scan(found)


class TrustingWitness(MarkerWatcher):
    """Without asking any store."""

    def __init__(self) -> None:
        self.marker = name_marker(MARKER)

    def start(self) -> None:
        pass

    def wait(self) -> str:
        return self.marker


def record_stretches(found: BucketScan, token: UUID, stretches: Sequence[Stretch]) -> None:
    compare.record_batch(found, token, stretches, exact_key, TrustingWitness())


def age_scans(found: BucketScan, by: timedelta) -> None:
    """Let so much time pass since all that the scans and their findings tell of."""
    for each in BucketScan.objects.all():
        each.started_at -= by
        if each.finished_at:
            each.finished_at -= by
        each.save()
    for finding in Finding.objects.all():
        finding.first_seen_at -= by
        finding.last_seen_at -= by
        if finding.decided_at:
            finding.decided_at -= by
        finding.save()


def read_findings(*, state: str = "open") -> set[tuple[str, str]]:
    return set(Finding.objects.filter(state=state).values_list("kind", "key"))


def dump_findings() -> list[dict[str, Any]]:
    return [dict(each) for each in Finding.objects.order_by("kind", "key", "upload_id").values()]


def count_kinds(kinds: Iterable[str], found: BucketScan) -> dict[str, int]:
    return {kind: getattr(found, kind) for kind in kinds}


def current_time() -> datetime:
    return timezone.now()


def set_page_size(patch: pytest.MonkeyPatch, size: int) -> None:
    """Of a real store."""
    for place in ("bucket.s3", "scan.shards", "scan.start"):
        patch.setattr(f"storage_audit.{place}.PAGE_SIZE", size)


def list_open_findings() -> set[tuple[str, str]]:
    return set(Finding.objects.filter(state="open").values_list("key", "kind"))


def start_four_parts(bucket: Bucket, **how: Any) -> BucketScan:
    """A scan of four parts, with an object that no row tracks in each."""
    bucket.put(*(letter * 3 for letter in "adpz"))
    begun = start_scan(purpose="reconcile", **how)
    begun.shards.all().delete()
    bounds = ["", "c", "f", "x", None]
    for after, until in zip(bounds, bounds[1:], strict=False):
        ScanShard.objects.create(scan=begun, after=after or "", until=until)
    return begun


def tree_order(key: str) -> list[bytes]:
    return key_bytes(key).split(b"/")
