"""Pages of a listing that are asked for before they are wanted."""

from collections.abc import Iterator
from datetime import UTC, datetime
from threading import Event, Semaphore
from time import sleep

import pytest

from storage_audit.bucket.errors import InvalidResponse
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup.listing_pieces import PREFETCHED_PAGES, prefetch_pages

AT = datetime(2026, 1, 1, tzinfo=UTC)


def page(number: int) -> list[ListedObject]:
    return [ListedObject(f"{number}{letter}", 1, "etag", AT) for letter in "ab"]


def keys(pages: list[list[ListedObject]]) -> list[str]:
    return [each.key for page in pages for each in page]


def test_what_has_come_meanwhile_is_one_page() -> None:
    is_wanted, last_comes = Event(), Event()

    def listing() -> Iterator[list[ListedObject]]:
        yield page(1)
        assert is_wanted.wait(timeout=10)
        for number in range(2, PREFETCHED_PAGES + 1):
            yield page(number)
        last_comes.set()
        yield page(PREFETCHED_PAGES + 1)

    pages = prefetch_pages(listing())
    assert keys([next(pages)]) == keys([page(1)])
    is_wanted.set()
    assert last_comes.wait(timeout=10)
    second = next(pages)
    assert keys([second])[: 2 * (PREFETCHED_PAGES - 1)] == keys(
        [page(n) for n in range(2, PREFETCHED_PAGES + 1)]
    )
    assert keys([second, *pages]) == keys([page(n) for n in range(2, PREFETCHED_PAGES + 2)])


def test_no_more_are_asked_for_than_are_kept_and_none_when_enough_have_come() -> None:
    asked, may_come = 0, Semaphore(1)

    def listing() -> Iterator[list[ListedObject]]:
        nonlocal asked
        while asked < 1000:
            asked += 1
            may_come.acquire(timeout=2)
            yield page(asked)

    pages = prefetch_pages(listing())
    assert keys([next(pages)]) == keys([page(1)])
    may_come.release(PREFETCHED_PAGES)
    sleep(0.5)
    assert asked == 1 + PREFETCHED_PAGES
    assert keys([next(pages)]) == keys([page(n) for n in range(2, 2 + PREFETCHED_PAGES)])
    pages.close()  # type: ignore[attr-defined]
    # Only the one that was under way by then.
    assert asked <= 1 + PREFETCHED_PAGES + 1


def test_pages_before_a_failure_are_given_and_then_it_is_raised() -> None:
    def listing() -> Iterator[list[ListedObject]]:
        for number in (1, 2, 3):
            yield page(number)
        raise InvalidResponse("cut short")

    given = []
    with pytest.raises(InvalidResponse):
        for each in prefetch_pages(listing()):
            given.append(each)
    assert keys(given) == keys([page(n) for n in (1, 2, 3)])


def test_empty_listing_has_one_empty_page() -> None:
    assert list(prefetch_pages(iter([[]]))) == [[]]
