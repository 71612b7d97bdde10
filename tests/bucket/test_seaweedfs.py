"""A store that lists in an order of its own is noticed, and never trusted."""

from collections.abc import Iterator

import pytest

from devtools.seaweedfs import SeaweedFS
from storage_audit.bucket import s3
from storage_audit.bucket.errors import InvalidResponse
from storage_audit.bucket.listing import exact_key, find_keys, key_bytes, object_pages
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_connection
from tests.faults.matching import is_delete_batch
from tests.faults.proxy import FaultyStore
from tests.network import faulty_network
from tests.promises import (
    Status,
    check_promises,
    clean_up_project,
    create_projects,
    read_outcomes,
    run_again,
    track_key,
)
from tests.real_bucket import Bucket

PREFIX = "projects/proj_1/scenes/"
IN_BOTH_ORDERS = [f"{PREFIX}s1/media/{n}.mp4" for n in range(5)]
# `-` comes before `/`, and SeaweedFS lists the folder first.
ONLY_IN_ITS_OWN = [f"{PREFIX}s1/media/a.mp4", f"{PREFIX}s1-b/media/a.mp4"]


@pytest.fixture(scope="module")
def proxy(seaweedfs: SeaweedFS) -> Iterator[FaultyStore]:
    with faulty_network(seaweedfs) as running:
        yield running


@pytest.fixture
def bucket(seaweedfs: SeaweedFS, proxy: FaultyStore, transactional_db: None) -> Bucket:
    found = Bucket(seaweedfs)
    found.wipe()
    bucket_connection.connect_bucket(found.name)
    proxy.requests.clear()
    return found


def test_it_has_an_order_of_its_own(bucket: Bucket) -> None:
    bucket.put(*ONLY_IN_ITS_OWN)
    listed = list(bucket.facts(PREFIX))
    assert listed == ONLY_IN_ITS_OWN
    assert listed != sorted(listed, key=key_bytes)


def test_its_order_breaks_a_listing(bucket: Bucket) -> None:
    bucket.put(*ONLY_IN_ITS_OWN)
    with pytest.raises(InvalidResponse):
        list(object_pages(bucket.name, PREFIX))


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_keys_are_found_in_its_order_or_not_at_all(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """Broken is no answer, and absence is never said of what is there."""
    monkeypatch.setattr(s3, "PAGE_SIZE", page)
    keys = ["a-b", "a.b", "a/0", "a/b", "a/b-c/d", "a/b.c", "a0", "b/c/d", "b/c-d/e", "b/c0"]
    bucket.put(*keys)
    for asked in [*([key] for key in keys), keys[:2], keys[3:6], keys]:
        try:
            assert set(find_keys(bucket.name, asked, exact_key)) == set(asked)
        except InvalidResponse:
            continue


def test_project_in_the_order_of_all_stores_is_cleaned(bucket: Bucket) -> None:
    create_projects("proj_1")
    bucket.put(*IN_BOTH_ORDERS)
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN, cleanup.message
    assert read_outcomes(cleanup) == dict.fromkeys(IN_BOTH_ORDERS, "deleted")
    assert not bucket.keys()
    check_promises(bucket)


def test_project_out_of_order_keeps_all_and_says_why(bucket: Bucket, proxy: FaultyStore) -> None:
    create_projects("proj_1")
    bucket.put(*ONLY_IN_ITS_OWN)
    for key in ONLY_IN_ITS_OWN:
        track_key(bucket, key, "proj_1")
    cleanup = clean_up_project("proj_1")
    for _attempt in range(2):
        assert cleanup.status == Status.RETRYING
        assert "out of order" in cleanup.message
        assert bucket.keys() == set(ONLY_IN_ITS_OWN)
        assert not proxy.find_requests(is_delete_batch)
        assert R2Object.objects.count() == len(ONLY_IN_ITS_OWN)
        check_promises(bucket)
        cleanup = run_again(cleanup)
