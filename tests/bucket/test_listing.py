"""The look at the bucket that everything rests on, in pages of seven keys."""

from collections.abc import Iterator
from itertools import combinations
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_audit.bucket import s3
from storage_audit.bucket.errors import InvalidResponse
from storage_audit.bucket.listing import (
    KeyIdentity,
    common_spelling_start,
    escape_key,
    exact_key,
    find_keys,
    is_storable,
    key_bytes,
    nfc_key,
    object_pages,
    start_before,
    unescape_key,
)
from storage_audit.bucket.listing_xml import Entries, Entry
from storage_audit.bucket.s3 import Page
from tests.real_bucket import Bucket

LONGEST = "long/" + "é" * 509 + "x"
KEYS = [
    "\x01first",
    " space",
    "a",
    "a/",
    "a//b",
    "a/\x02",
    "a/\x1f\x7f",
    "a/b",
    "a/b/c",
    "a-b",
    "aa",
    *(f"m/{n:02}" for n in range(16)),
    "z\ud7ff",
    "z\ue000",
    "z\uffff",
    "z\U00010000",
    LONGEST,
    "\U0010ffff",
]
MISSING_KEYS = [
    "\x01",
    "a/b/",
    "a/a",
    "m/",
    "m/001",
    "m/5",
    "m/99",
    "z",
    "z\ud7fe",
    "\U0010fffe",
    "é",
]


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PAGE_SIZE", 7)


@pytest.fixture
def filled(bucket: Bucket, small_pages: None) -> Iterator[Bucket]:
    assert len(key_bytes(LONGEST)) == s3.MAX_KEY_BYTES
    bucket.put(*KEYS)
    yield bucket


def found(bucket: Bucket, keys: list[str], identity: KeyIdentity = exact_key) -> set[str]:
    return {listed.key for listed in find_keys(bucket.name, keys, identity).values()}


def test_pages_give_every_key_once_in_the_order_of_its_bytes(filled: Bucket) -> None:
    listed = [o.key for page in object_pages(filled.name, "a/") for o in page]
    assert listed == sorted((k for k in KEYS if k.startswith("a/")), key=key_bytes)
    everything = [o.key for page in object_pages(filled.name, "m/") for o in page]
    assert everything == sorted(k for k in KEYS if k.startswith("m/"))


def test_pages_go_on_after_a_key(filled: Bucket) -> None:
    listed = [o.key for page in object_pages(filled.name, "m/", "m/08") for o in page]
    assert listed == [f"m/{n:02}" for n in range(9, 16)]


def test_pages_go_on_after_any_key(bucket: Bucket, small_pages: None) -> None:
    """They begin a little earlier, where more than a page of others may be."""
    crowd = [f"p/a\U0010ffff{letter}" for letter in "ghijklmnopq"]
    keys = sorted([*crowd, "p/a", "p/b", "p/b ", "p/b/", "p/b/c", "p/b!", LONGEST], key=key_bytes)
    bucket.put(*keys)
    for n, after in enumerate(keys):
        assert [o.key for page in object_pages(bucket.name, "", after) for o in page] == keys[
            n + 1 :
        ]


@pytest.mark.parametrize(("prefix", "after"), [("m/", ""), ("m/", "m/08"), ("", "m/08")])
def test_no_two_listings_begin_at_the_same_place(
    filled: Bucket, monkeypatch: pytest.MonkeyPatch, prefix: str, after: str
) -> None:
    """So a page that answers an earlier request says that it begins elsewhere, and is refused."""
    starts = counting(monkeypatch)
    once, twice = (list(object_pages(filled.name, prefix, after)) for _look in range(2))
    assert once == twice
    assert {key_bytes(start) < key_bytes(after or prefix) for _prefix, start in starts} == {True}
    assert len(set(starts)) == 2 and len(starts) == 2 * len(once)


def test_each_key_is_found_alone_and_brings_no_other(filled: Bucket) -> None:
    for key in KEYS:
        assert found(filled, [key]) == {key}
    for key in MISSING_KEYS:
        assert found(filled, [key]) == set()


def test_all_keys_are_found_among_missing_ones(filled: Bucket) -> None:
    for identity in (exact_key, nfc_key):
        assert found(filled, [*KEYS, *MISSING_KEYS], identity) == set(KEYS)
        assert found(filled, MISSING_KEYS, identity) == set()
        assert find_keys(filled.name, [], identity) == {}


def test_pairs_from_both_sides_of_a_page_boundary_are_found(filled: Bucket) -> None:
    chosen = ["\x01first", "m/05", "m/06", "m/13", "m/99", "\U0010ffff"]
    for pair in combinations(chosen, 2):
        assert found(filled, list(pair)) == set(pair) & set(KEYS)


def test_neighbours_cost_one_page_and_lonely_keys_one_each(
    filled: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = counting(monkeypatch)
    find_keys(filled.name, [f"m/{n:02}" for n in range(6)], exact_key)
    assert len(asked) == 1
    find_keys(filled.name, ["\x01first", "m/00", "\U0010ffff"], exact_key)
    assert len(asked) == 1 + 3


def counting(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The prefixes and starts of the pages that are asked for from now on."""
    asked: list[tuple[str, str]] = []
    original = s3.list_entries

    def counted(
        bucket: str, prefix: str, start_after: str = "", token: str | None = None
    ) -> Page[Entries]:
        asked.append((prefix, start_after))
        return original(bucket, prefix, start_after, token)

    monkeypatch.setattr("storage_audit.bucket.listing.list_entries", counted)
    return asked


def test_nothing_is_found_in_an_empty_bucket(bucket: Bucket) -> None:
    assert found(bucket, KEYS) == set()
    assert list(object_pages(bucket.name, "a")) == [[]]


@pytest.mark.parametrize(
    "asked, listed",
    [
        ("x/caf\u00e9", "x/cafe\u0301"),
        ("x/cafe\u0301", "x/caf\u00e9"),
        ("\u00e9", "e\u0301"),
        ("e\u0301", "\u00e9"),
        ("x/\u212b", "x/A\u030a"),
        ("x/A\u030a", "x/\u212b"),
        ("\u212a", "K"),
        ("x/K;`", "x/\u212a\u037e\u1fef"),
        ("x/KKKKK.mp4", "x/KK\u212aK\u212a.mp4"),
        ("x/Ke\u0301", "x/\u212a\u00e9"),
        ("x/q\u0323\u0307", "x/q\u0307\u0323"),
        ("x/\ud55c", normalize("NFD", "x/\ud55c")),
    ],
)
def test_any_spelling_finds_the_object_where_spellings_are_one(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, asked: str, listed: str
) -> None:
    bucket.put("x/K", "x/KKL", "x/KKM", "x/cafd", "x/cafz", listed)
    monkeypatch.setattr(s3, "PAGE_SIZE", 2)
    assert found(bucket, [asked], nfc_key) == {listed}
    assert found(bucket, [asked], exact_key) == set()


def test_present_keys_in_foreign_letters_cost_no_look_of_their_own(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"x/фильм{n}" for n in range(9)]
    bucket.put(*names)
    asked = counting(monkeypatch)
    assert found(bucket, names, nfc_key) == set(names)
    assert len(asked) == 1


def test_keys_that_are_no_text_hide_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some stores take any bytes for a key; Cloudflare's does not."""
    stored = sorted((raw.decode("utf-8", "surrogateescape") for raw in RAW), key=key_bytes)

    def list_entries(
        bucket: str, prefix: str, start_after: str = "", token: str | None = None
    ) -> Page[Entries]:
        last = key_bytes(token or start_after)
        rest = [key for key in stored if key_bytes(key) > last][:2]
        more = bool(rest) and rest[-1] != stored[-1]
        return Page(Entries.from_entries(map(entry, rest)), rest[-1] if more else None)

    monkeypatch.setattr("storage_audit.bucket.listing.list_entries", list_entries)
    for key in ("a", "é", "\ue000", "\U0010ffff"):
        assert set(find_keys("tests", [key], exact_key)) == {key}
    assert set(find_keys("tests", ["a", "b", "é", "\ue000"], exact_key)) == {"a", "é", "\ue000"}


RAW = [b"a", b"\x80", b"\x80\x81", b"\x80\x82", b"\xc3\xa9", b"\xee\x80\x80", b"\xf4\x8f\xbf\xbf"]


def entry(key: str) -> Entry:
    return Entry(key, 1, "etag", "2026-01-01T00:00:00.000Z")


def test_key_out_of_order_breaks_the_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [["b", "a"], ["a", "a"], ["p/a", "q"]]
    for keys, prefix in zip(given, ["", "", "p/"], strict=True):
        page = Page(Entries.from_entries(map(entry, keys)), None)
        monkeypatch.setattr("storage_audit.bucket.listing.list_entries", lambda *a, page=page: page)
        with pytest.raises(InvalidResponse):
            list(object_pages("tests", prefix))


def test_page_that_begins_before_the_end_of_the_last_one_breaks_the_listing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def list_entries(
        bucket: str, prefix: str, start_after: str = "", token: str | None = None
    ) -> Page[Entries]:
        keys = ["a", "b"] if token else ["b", "c"]
        return Page(Entries.from_entries(map(entry, keys)), None if token else "more")

    monkeypatch.setattr("storage_audit.bucket.listing.list_entries", list_entries)
    with pytest.raises(InvalidResponse):
        list(object_pages("tests", ""))


KEY = st.text(min_size=1, max_size=30).filter(is_storable)


@given(KEY)
def test_listing_that_starts_before_a_key_reaches_it(key: str) -> None:
    assert key_bytes(start_before(key)) < key_bytes(key)


@given(KEY)
def test_all_spellings_start_alike(key: str) -> None:
    start = common_spelling_start(key)
    spellings = {normalize(form, key) for form in ("NFC", "NFD")} | {key}
    assert all(spelling.startswith(start) for spelling in spellings)


RAW_KEY = st.binary(max_size=12).map(lambda raw: raw.decode("utf-8", "surrogateescape"))


@given(RAW_KEY, RAW_KEY)
def test_different_keys_that_cannot_be_stored_never_look_alike(one: str, other: str) -> None:
    if one != other and is_storable(one) == is_storable(other):
        assert escape_key(one) != escape_key(other)
    assert is_storable(escape_key(one))


@given(RAW_KEY.filter(lambda key: not is_storable(key)))
def test_what_is_shown_escaped_can_be_read_again(key: str) -> None:
    assert unescape_key(escape_key(key)) == key
    assert unescape_key(f"{escape_key(key)}\\") is None


def test_backslashes_tell_escaped_keys_apart() -> None:
    assert escape_key("\\x00\0") != escape_key("\0\\x00")
