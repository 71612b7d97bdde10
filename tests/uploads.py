"""Rows of files that were just uploaded, against the files themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from devtools.local_r2 import LocalR2
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.models import R2Object
from tests.real_bucket import Bucket

State = R2Object.State
NAME = "projects/proj_1/scenes/s1/media/take.mp4"


def read_row(key: str = NAME) -> R2Object:
    return R2Object.objects.get(key=key)


client = cache(LocalR2.client)


def read_last_modified(bucket: Bucket, key: str = NAME) -> Any:
    return client(bucket.r2).head_object(Bucket=bucket.name, Key=key)["LastModified"]


def assert_row_matches_object(bucket: Bucket, key: str) -> None:
    found = read_row(key)
    assert found.state == State.STORED
    assert (found.size, found.etag) == bucket.facts()[key]
    assert found.last_modified == read_last_modified(bucket, key)


@contextmanager
def mark_as_being_deleted(key: str = NAME, bucket: str = "tests") -> Iterator[None]:
    """A worker is between its mark and its proof."""
    cleanup = Cleanup.objects.request(kind="objects", bucket=bucket, trigger="deleted")
    CleanupItem.objects.create(
        cleanup=cleanup, key=key, identity=key, found_in="both", outcome="deleting"
    )
    yield
    cleanup.items.update(outcome="deleted")
