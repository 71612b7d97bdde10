"""Builders of rows, findings, scans and cleanups. Those that take a bucket look into it."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.utils import timezone

from storage_audit.bucket.s3 import list_page
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.conf import conf
from storage_audit.findings.models import Finding
from storage_audit.models import Project, R2Object
from storage_audit.scan.models import BucketScan
from tests.real_bucket import Bucket

LONG_AGO = timedelta(days=3)


def create_row(key: str, **values: object) -> R2Object:
    given = {"bucket": "tests", "source": "upload", "state": "stored", "size": 1, **values}
    return R2Object.objects.create(key=key, **given)


def track_keys(*keys: str, project: str | None = "proj_1", bucket: str = "tests") -> list[R2Object]:
    """Rows of stored objects, which exist in no bucket."""
    return R2Object.objects.bulk_create(
        [
            R2Object(
                bucket=bucket,
                key=key,
                project_id=project,
                size=3,
                etag="etag",
                source=R2Object.Source.UPLOAD,
                state=R2Object.State.STORED,
            )
            for key in keys
        ],
        batch_size=5000,
    )


def track_files(project_id: str, count: int, size: int = 1000) -> None:
    """So many rows of a project, which is made when it is not there."""
    Project.objects.get_or_create(pk=project_id)
    R2Object.objects.bulk_create(
        [
            R2Object(
                bucket=conf().bucket,
                key=f"projects/{project_id}/scenes/s1/media/{n}.mp4",
                project_id=project_id,
                size=size,
                source="upload",
                state="stored",
            )
            for n in range(count)
        ],
        batch_size=5000,
    )


def create_scan(**values: object) -> BucketScan:
    """A complete one of the whole configured bucket, unless told otherwise."""
    given = {"bucket": conf().bucket, "purpose": "reconcile", "status": "complete"}
    return BucketScan.objects.create(**{**given, "finished_at": timezone.now(), **values})


def create_finding(
    key: str, kind: str = "orphaned", *, scan: BucketScan | None = None, **values: Any
) -> Finding:
    """What this scan found, or the first that there is."""
    seen = scan or BucketScan.objects.first() or create_scan()
    given = {"bucket": "tests", "size": 10, "first_scan": seen, "last_scan": seen, **values}
    return Finding.objects.create(key=key, kind=kind, **given)


def create_findings(
    bucket: Bucket, *keys: str, kind: str = "orphaned", **values: Any
) -> list[Finding]:
    """Findings of what the bucket shows of these keys, as two complete scans would have them."""
    scan = BucketScan.objects.create(bucket=bucket.name, status="complete")
    seen = {o.key: o for o in list_page(bucket.name, "").objects}
    now = timezone.now()
    facts = {"kind": kind, "first_scan": scan, "last_scan": scan, "project_id": "proj_9"}
    facts |= {"first_seen_at": now - LONG_AGO, "last_seen_at": now, "evidence": "hierarchical"}
    found = []
    for key in keys:
        shown = seen.get(key)
        of_object = {n: getattr(shown, n) for n in ("size", "etag", "last_modified") if shown}
        given = {**facts, **of_object, **values}
        found.append(Finding.objects.create(bucket=bucket.name, key=key, **given))
    return found


def create_unlisted_findings(*keys: str, **values: Any) -> list[Finding]:
    """Findings of which nobody looks into a bucket."""
    scan = BucketScan.objects.create(bucket="tests", status="complete")
    facts = {"bucket": "tests", "kind": "orphaned", "first_scan": scan, "last_scan": scan}
    return [Finding.objects.create(key=key, **facts | values) for key in keys]


def create_orphans(bucket: Bucket, *keys: str, **values: Any) -> list[Finding]:
    """Put these files there, and make findings of them."""
    bucket.put(*keys)
    return create_findings(bucket, *keys, **values)


def list_ids(found: Iterable[Finding]) -> list[int]:
    return [finding.pk for finding in found]


def read_states() -> dict[str, str]:
    """The state of each finding, by its key."""
    return dict(Finding.objects.values_list("key", "state"))


def create_cleanup(status: str = "pending", **values: Any) -> Cleanup:
    given = {"kind": "project", "project_id": "proj_gone", "bucket": "tests", **values}
    return Cleanup.objects.request(trigger="deleted", status=status, **given)


def create_lost_cleanup(**values: Any) -> Cleanup:
    """One that is due, as if its task was lost long ago."""
    long_ago = timezone.now() - timedelta(hours=1)
    return Cleanup.objects.request(
        **{
            "kind": Cleanup.Kind.OBJECTS,
            "bucket": "tests",
            "trigger": Cleanup.Trigger.DELETED,
            "next_attempt_at": long_ago,
            "enqueued_at": long_ago,
            **values,
        }
    )


def add_item(cleanup: Cleanup, key: str, outcome: str = "failed", **values: Any) -> None:
    facts = {"identity": key, "size": 10, "found_in": "both", **values}
    CleanupItem.objects.create(cleanup=cleanup, key=key, outcome=outcome, **facts)


def add_items(cleanup: Cleanup, count: int, **facts: Any) -> None:
    """So many planned ones."""
    start = cleanup.items.count()
    CleanupItem.objects.bulk_create(
        CleanupItem(
            cleanup=cleanup,
            **{"key": f"k{n:04}", "identity": f"k{n:04}", "size": 10, "found_in": "both", **facts},
        )
        for n in range(start, start + count)
    )
