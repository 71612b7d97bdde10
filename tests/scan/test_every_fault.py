"""Every fault, at each page of a scan's listing: nothing is called missing or orphaned that is not,
what was found before stays, and once the fault is gone the same scan ends as any other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest
from botocore.retries.standard import ExponentialBackoff

from devtools.http_reply import Reply
from storage_audit.bucket import s3
from storage_audit.conf import conf
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.scan.models import BucketScan, PendingFinding
from tests.faults import kinds
from tests.faults.kinds import FAULT_KINDS
from tests.faults.matching import is_listing_under
from tests.faults.proxy import FaultyStore, Forward, Request
from tests.real_bucket import Bucket
from tests.scan import listing_in_memory
from tests.scan.listing_in_memory import (
    add_projects,
    complete_reconcile,
    dump_findings,
    nth_key,
    read_findings,
    resume_scan,
    run_backfill,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = pytest.mark.only_on("postgresql")  # about the store

# Two and a half pages of four, before which the application's own marker is listed.
KEYS = [nth_key(n) for n in range(8)]
GONE, NEW, STRANGE, ORPHAN = nth_key(20), nth_key(30), "zzz", nth_key(1, "proj_9")
PAGES = {"first": 1, "second": 2, "last": 3}
FIRST, LATER = "/b?list-type=2&prefix=", "/b?list-type=2&prefix=&continuation-token=t"
is_page = is_listing_under("")


def faults(page: int) -> list[str]:
    request = Request("GET", FIRST if page == 1 else LATER, {}, b"")
    # What the store said in the past is no fault while it says the same.
    return [
        name
        for name in FAULT_KINDS
        if FAULT_KINDS[name].fits(request) and name != "page-of-the-past"
    ]


class Struck:
    """The fault strikes this page, so many times or always."""

    def __init__(self, name: str, page: int, times: int = 1000) -> None:
        self.count = self.answered = 0
        self._fault, self._page, self._times = FAULT_KINDS[name], page, times

    def __call__(self, request: Request, forward: Forward) -> Reply | None:
        if not is_page(request):
            return None
        if self.answered == self._page - 1 and self.count < self._times:
            self.count += 1  # Before the answer, which may be late.
            if self._fault.fits(request) and (reply := self._fault.answer(request, forward)):
                return reply
            self.count -= 1
            if not self._fault.fits(request):
                # After trouble the page is asked for by the key before it, and not by a token.
                return Reply(503)
        self.answered += 1
        return None


@pytest.fixture(scope="module")
def impatient(proxy: FaultyStore) -> "S3Client":
    """The application's, which waits for an answer for a second, and tries once."""
    return s3._build_s3_client.__wrapped__(conf(), 1, 1.0, os.getpid())


@pytest.fixture
def lateness(monkeypatch: pytest.MonkeyPatch) -> Iterator[Event]:
    comes = Event()
    monkeypatch.setattr(kinds, "sleep", lambda seconds: comes.wait(60))
    yield comes
    comes.set()


@pytest.fixture
def changed(bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """After a complete scan an object went, one is new, and a finding is none any more."""
    listing_in_memory.remove_pauses(monkeypatch)
    listing_in_memory.set_page_size(monkeypatch, 4)
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: 0)
    add_projects("proj_1")
    bucket.put(*KEYS, GONE, STRANGE, ORPHAN)
    assert run_backfill().status == "complete"
    R2Object.objects.update(updated_at=listing_in_memory.LONG_AGO)
    for key in (GONE, STRANGE):
        bucket.r2.remove(key, bucket.name)
    R2Object.objects.filter(key=STRANGE).delete_without_signals()
    bucket.put(NEW)
    assert read_findings() == {("unrecognised", STRANGE), ("orphaned", ORPHAN)}
    return bucket


UNDISTURBED = {("missing", GONE), ("untracked", NEW), ("orphaned", ORPHAN)}


@contextmanager
def struck_by(
    struck: Struck, name: str, store: FaultyStore, lateness: Event, impatient: "S3Client"
) -> Iterator[None]:
    store.rules.append(struck)
    lateness.clear()
    with pytest.MonkeyPatch.context() as patch:
        if name.startswith("late-"):
            patch.setattr(s3, "_build_s3_client", lambda *options: impatient)
        yield
    store.rules.clear()
    lateness.set()
    assert struck.count, f"{name} struck nothing"


def restore(before: list[dict[str, Any]]) -> None:
    Finding.objects.all().delete()
    Finding.objects.bulk_create(Finding(**values) for values in before)
    BucketScan.objects.filter(purpose="reconcile").delete()


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_a_page_under_each_fault_says_nothing_and_the_scan_goes_on(
    changed: Bucket, store: FaultyStore, lateness: Event, impatient: "S3Client", page: int
) -> None:
    before = dump_findings()
    for name in faults(page):
        struck = Struck(name, page)
        with struck_by(struck, name, store, lateness, impatient):
            found = listing_in_memory.run_reconcile()
        assert found.status == "failed", name
        assert found.message, name
        assert dump_findings() == before, name
        assert not found.shards.get().complete, name
        assert resume_scan(found).status == "complete", name
        assert read_findings() == UNDISTURBED, name
        assert (found.listed, found.missing) == (len(KEYS) + 2, 1), name
        assert not PendingFinding.objects.exists()
        restore(before)


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_a_page_under_a_fault_that_passes_is_listed_again_or_fails_the_scan(
    changed: Bucket, store: FaultyStore, lateness: Event, impatient: "S3Client", page: int
) -> None:
    before, ended = dump_findings(), set()
    for name in faults(page):
        with struck_by(Struck(name, page, times=1), name, store, lateness, impatient):
            found = listing_in_memory.run_reconcile()
        ended.add(found.status)
        if found.status == "complete":
            assert read_findings() == UNDISTURBED, name
            assert found.listed == len(KEYS) + 2, name
        else:
            assert (found.status, dump_findings()) == ("failed", before), name
        restore(before)
    assert ended == {"complete", "failed"}


def test_each_fault_at_the_last_marker_check_proves_nothing(
    changed: Bucket, store: FaultyStore, lateness: Event, impatient: "S3Client"
) -> None:
    """All was listed by then, and is not believed."""
    before, is_canary = dump_findings(), is_listing_under(bucket_marker.MARKER_PREFIX)
    # A page of one key is the same backwards.
    for name in set(faults(1)) - {"page-backwards"}:
        struck, mark = 0, len(store.requests)

        def last_look(
            request: Request, forward: Forward, name: str = name, mark: int = mark
        ) -> Reply | None:
            nonlocal struck
            if not is_canary(request) or not any(map(is_page, list(store.requests)[mark:])):
                return None
            struck += 1  # Before the answer, which may be late.
            reply = FAULT_KINDS[name].answer(request, forward)
            struck -= reply is None
            return reply

        store.rules.append(last_look)
        lateness.clear()
        with pytest.MonkeyPatch.context() as patch:
            if name.startswith("late-"):
                patch.setattr(s3, "_build_s3_client", lambda *options: impatient)
            found = listing_in_memory.run_reconcile()
        store.rules.clear()
        lateness.set()
        assert struck, f"{name} struck nothing"
        assert found.status == "failed", name
        assert dump_findings() == before, name
        restore(before)
    assert complete_reconcile().listed == len(KEYS) + 2
