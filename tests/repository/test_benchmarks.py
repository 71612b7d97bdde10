"""The canned store of the benchmarks shows the application exactly the objects that it should, and
their database is one of today's."""

from collections.abc import Iterator

import pytest
from django.db import connection
from pytest_django import Settings

from benchmarks import naive, rivals
from benchmarks.keys import etag_at, key_at, size_at
from benchmarks.plenty import DELETION_ID, Size, fill_tables
from benchmarks.stores import BUCKET, CannedStore, run_canned_store
from devtools.processes import stop_on_signals
from storage_audit.bucket import s3
from storage_audit.bucket.listing import object_pages
from storage_audit.cleanup.models import Cleanup
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_connection, bucket_marker

COUNT = 2345
KEYS = [key_at(n) for n in range(COUNT)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CannedStore]:
    with stop_on_signals(), run_canned_store(COUNT, tmp_path_factory.mktemp("canned")) as store:
        yield store


@pytest.fixture(autouse=True)
def used(store: CannedStore, settings: Settings) -> None:
    where = {"ENDPOINT_URL": store.address, "BUCKET": BUCKET}
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | where


def listed(prefix: str = "", after: str = "") -> list[str]:
    return [one.key for page in object_pages(BUCKET, prefix, after) for one in page]


def test_its_keys_are_in_the_order_of_their_bytes() -> None:
    assert sorted(key.encode() for key in KEYS) == [key.encode() for key in KEYS]


@pytest.mark.parametrize("index", [0, 1, 999, 1000, 1344, 1345, 2343, 2344])
def test_lists_what_comes_after_a_key(index: int) -> None:
    assert listed(after=KEYS[index]) == KEYS[index + 1 :]
    assert listed(after=KEYS[index][:-1]) == KEYS[index:]


def test_lists_what_starts_with_a_prefix() -> None:
    prefix = "projects/proj_000012/"
    assert listed(prefix) == KEYS[1200:1300]
    assert listed(prefix, KEYS[1234]) == KEYS[1235:1300]
    assert listed(prefix, KEYS[1300]) == listed("projects/proj_000012x") == []


def test_says_of_each_object_what_the_formula_says() -> None:
    found = [one for page in object_pages(BUCKET, "") for one in page]
    assert [one.key for one in found] == KEYS
    assert [(one.size, one.etag) for one in found] == [
        (size_at(n), etag_at(n)) for n in range(COUNT)
    ]


def test_a_page_of_one(store: CannedStore) -> None:
    page = store.get(f"/{BUCKET}?list-type=2&max-keys=1&start-after={KEYS[5]}").decode()
    assert page.count("<Contents>") == 1
    assert f"<Key>{KEYS[6]}</Key>" in page
    assert "<IsTruncated>true</IsTruncated>" in page


@pytest.mark.django_db(transaction=True)
def test_can_be_connected() -> None:
    assert bucket_connection.connect_bucket(BUCKET).folds_unicode
    bucket_marker.check_bucket(BUCKET)
    assert listed() == [bucket_marker.MARKER_KEY, *KEYS]
    s3.delete_single(BUCKET, bucket_marker.MARKER_KEY)


@pytest.mark.only_on("postgresql")
def test_a_database_full_of_rows_is_one_that_the_application_has(transactional_db: None) -> None:
    with connection.cursor() as cursor:
        fill_tables(cursor, size := Size.of(10_000))
    assert R2Object.objects.count() == size.objects
    assert Cleanup.objects.count() == Finding.objects.count() == size.many
    deletion = Cleanup.objects.get(pk=DELETION_ID)
    assert deletion.found == deletion.items.count() == size.many
    assert deletion.kept == deletion.items.filter(outcome="kept").count()


def test_each_simple_solution_that_a_rival_starts_exists() -> None:
    started = [command[3] for command in rivals.COMMANDS.values() if command[:3] == rivals.NAIVE]
    assert sorted(started) == sorted(naive.SCRIPTS)
