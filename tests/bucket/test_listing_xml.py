"""What is read of a listing past botocore's parser is what that parser reads of it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from urllib.parse import quote_from_bytes, quote_plus

import pytest
from botocore import handlers, parsers
from hypothesis import example, given
from hypothesis import strategies as st

from devtools.http_reply import Reply
from devtools.local_r2 import LocalR2
from devtools.seaweedfs import SeaweedFS
from storage_audit.bucket import answer_schema, listing_xml, s3
from storage_audit.bucket.errors import InvalidResponse, StoreError
from storage_audit.bucket.listing import (
    ListingOutOfOrder,
    entry_pages,
    key_bytes,
    object_pages,
    unordered_pages,
)
from storage_audit.bucket.listing_xml import NO_ENTRIES, Entries, Entry
from storage_audit.bucket.s3 import ListedObject
from storage_audit.ownership import bucket_connection, bucket_marker
from storage_audit.storage import is_listed
from tests.faults.kinds import change_reply
from tests.faults.matching import is_later_page, is_listing, rule_for
from tests.faults.pages import MALFORMED_FORMS, without_field
from tests.faults.proxy import FaultyStore, Forward, Request
from tests.network import faulty_network
from tests.real_bucket import Bucket

Cut = Callable[[bytes], tuple[bytes, Entries]]

KEYS = ["a b", "a+b", "a%b", "a%2Fb", "a&b", "a<b>", "a&lt;b", "a\"b'", "é", "日本", "x\x01y"]
KEYS += ["x\x7f", "t\tb", "z\uffff", "z\U00010000", "d/e/f~!*()", "=,;:@$", "<Contents>"]

KEY, SIZE = "<Key>a%2Fb</Key>", "<Size>7</Size>"
DATE = "<LastModified>2026-01-01T00:00:00.123Z</LastModified>"
ETAG = "<ETag>&quot;9dd4e461&quot;</ETag>"
USUAL = KEY + SIZE + DATE + ETAG
LISTED = Entry("a/b", 7, "9dd4e461", "2026-01-01T00:00:00.123Z")
ECHO = "<EncodingType>url</EncodingType>"
WHOLE = "<IsTruncated>false</IsTruncated>"
ASKED = {"Prefix": "", "StartAfter": "", "EncodingType": "url"}


def page(*entries: str, end: str = ECHO + WHOLE, between: str = "") -> bytes:
    contents = between.join(f"<Contents>{entry}</Contents>" for entry in entries)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult'
        f' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>tests</Name>{contents}{end}'
        f"<KeyCount>{len(entries)}</KeyCount></ListBucketResult>"
    ).encode()


def uncut(body: bytes) -> tuple[bytes, Entries]:
    return body, NO_ENTRIES


def read(body: bytes, cut: Cut) -> list[ListedObject] | None:
    """As r2 and botocore do; None of what they refuse."""
    rest, entries = cut(body)
    if handlers._looks_like_special_case_error(200, rest):  # type: ignore[attr-defined]
        return None
    parser = parsers.create_parser("rest-xml")
    shape = s3.s3_client().meta.service_model.operation_model("ListObjectsV2").output_shape
    assert shape
    try:
        answer = parser.parse({"body": rest, "headers": {}, "status_code": 200}, shape)
        answer |= {"Entries": entries, "Frame": rest}
        return [
            s3.listed_object(entry)
            for entry in s3.parse_page(answer, "tests", ASKED, s3.PAGE_SIZE).objects
        ]
    except (
        AttributeError,
        InvalidResponse,
        KeyError,
        TypeError,
        ValueError,
        parsers.ResponseParserError,
    ):
        return None


def assert_read_alike(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put(*KEYS)
    with monkeypatch.context() as patch:
        patch.setattr(listing_xml, "convert_entry", None)  # Nothing is left to botocore.
        ours = s3.list_page(bucket.name, "")
    with monkeypatch.context() as patch:
        patch.setattr(listing_xml, "split_entries", uncut)
        assert ours == s3.list_page(bucket.name, "")
    assert {listed.key for listed in ours.objects} >= set(KEYS)


def test_pages_of_r2(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_read_alike(bucket, monkeypatch)


def test_pages_of_another_store(seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket(seaweedfs)
    bucket.wipe()
    with faulty_network(seaweedfs):
        assert_read_alike(bucket, monkeypatch)


@pytest.mark.parametrize("tags", list(permutations([KEY, SIZE, DATE, ETAG])))
def test_tags_may_come_in_any_order(tags: tuple[str, ...]) -> None:
    rest, entries = listing_xml.split_entries(page("".join(tags), "".join(tags)))
    assert list(entries) == [LISTED, LISTED]
    assert rest == page().replace(b"<KeyCount>0", b"<KeyCount>2")


@pytest.mark.parametrize(
    "entry",
    [
        USUAL + "<StorageClass>STANDARD</StorageClass>",
        USUAL + "(.*",
        USUAL + "<Owner><ID>1</ID><DisplayName></DisplayName></Owner><Owned/>",
        "<Owner><ID>a b</ID></Owner>" + USUAL,
        USUAL.replace("&quot;", "&#34;"),
        USUAL.replace("&quot;", '"'),
        USUAL.replace("&quot;", ""),
        USUAL.replace("%2F", "%2f"),
        USUAL.replace("a%2Fb", "a/b"),
        "\n  " + USUAL.replace("><", ">\n  <") + "\n",
    ],
)
def test_entries_of_any_one_shape_are_read(entry: str) -> None:
    body = page(entry, entry)
    assert list(listing_xml.split_entries(body)[1]) == [LISTED, LISTED]
    assert (
        read(body, listing_xml.split_entries) == read(body, uncut) == [s3.listed_object(LISTED)] * 2
    )


@pytest.mark.parametrize(
    "body",
    [
        page(),
        page(USUAL, USUAL, end=WHOLE),
        page(USUAL, USUAL + "<StorageClass>STANDARD</StorageClass>"),
        page(USUAL, KEY + SIZE + ETAG),
        page(KEY + SIZE + ETAG),
        page(USUAL + KEY),
        page(USUAL, USUAL, between="\n"),
        page(USUAL, USUAL, between="<CommonPrefixes></CommonPrefixes>"),
        page(USUAL, USUAL, between="<!-- -->"),
        page("--><!--".join([USUAL, USUAL]), end=f"<!--{ECHO}-->{WHOLE}"),
        page(USUAL).replace(b"<Contents>", b"<!--<Contents>").replace(b"</Name>", b"-->"),
        page(USUAL).replace(b"Contents>", b"s3:Contents>"),
        page(USUAL)
        .replace(b"<Contents>", b"<Entries><Contents>")
        .replace(b"</Contents>", b"</Contents></Entries>"),
        page(USUAL, end=f"<Name>{ECHO}</Name>{WHOLE}"),
        page(USUAL, end=ECHO + ECHO + WHOLE),
        page(USUAL, end=f"{ECHO}<EncodingType/>{WHOLE}"),
        page(USUAL + "<Owner>a&b</Owner>"),
        page(USUAL.replace("a%2Fb", "a&amp;b")),
        page(USUAL.replace("a%2Fb", "é")),
        page(USUAL.replace("a%2Fb", "<![CDATA[a]]>")),
        page(USUAL.replace("a%2Fb", "")),
        page(USUAL.replace("9dd4e461", "9dd4&amp;e461")),
        page(USUAL.replace("9dd4e461", "9dd4&quot;e461")),
        page(USUAL.replace("9dd4e461", "")),
        page(USUAL.replace("7", "many")),
        page(USUAL.replace("7", "-7")),
        page(USUAL.replace("7", "٧")),
        page(USUAL.replace("123Z", "123+02:00")),
        page(USUAL.replace("2026-01-01T00:00:00.123Z", "Thu, 01 Jan 2026 00:00:00 GMT")),
    ],
)
def test_anything_else_is_left_as_it_is(body: bytes) -> None:
    assert listing_xml.split_entries(body) == (body, NO_ENTRIES)


@pytest.mark.parametrize(
    ("body", "key"),
    [
        (page(USUAL, USUAL, end=WHOLE), "a%2Fb"),
        (page(USUAL, USUAL, between="\n"), "a/b"),
        (page(USUAL + "<a/>", USUAL), "a/b"),
    ],
)
def test_what_is_left_is_read_by_botocore(store: FaultyStore, body: bytes, key: str) -> None:
    store.rules[:] = [rule_for(is_listing, Reply(200, body))]
    expected = s3.listed_object(LISTED._replace(key=key))
    assert s3.list_page("tests", "").objects == [expected, expected]


@pytest.mark.parametrize(
    "body",
    [
        page(USUAL)[:-30],
        page(USUAL, USUAL)[: page(USUAL, USUAL).index(b"</Contents>") + 30],
        page(USUAL, end=ECHO),
        page(USUAL, end=ECHO + "<IsTruncated>true</IsTruncated>"),
        page(USUAL).replace(b"<KeyCount>1", b"<KeyCount>2"),
        page(USUAL).replace(b"ListBucketResult", b"Error").replace(b"xmlns", b"x"),
        page(USUAL.replace("2026-01-01", "2026-02-30")),
        b"<Error><Code>InternalError</Code></Error>",
    ],
)
def test_pages_are_refused_as_before(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    store.rules[:] = [rule_for(is_listing, Reply(200, body))]
    refusals = []
    for cut in (listing_xml.split_entries, uncut):
        monkeypatch.setattr(listing_xml, "split_entries", cut)
        with pytest.raises(StoreError) as refusal:
            s3.list_page("tests", "")
        refusals.append((refusal.type, refusal.value.code))
    assert refusals[0] == refusals[1]


def both_readers(test: Callable[..., None]) -> Callable[..., None]:
    readers = pytest.mark.parametrize(
        "cut", [listing_xml.split_entries, uncut], ids=["quick", "botocore"]
    )
    return readers(test)  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def unknown_store() -> None:
    """Earlier tests may have said what this one repeats, and most pages here are made by hand."""
    answer_schema.set_expected_fields("tests", ())


@pytest.fixture
def store(store: FaultyStore) -> FaultyStore:
    """The first test that uses the bucket has connected it, and so learned what the store
    repeats."""
    answer_schema.set_expected_fields("tests", ())
    return store


@pytest.fixture
def three(store: FaultyStore, bucket: Bucket) -> Iterator[Bucket]:
    """Objects in a bucket whose store is known."""
    bucket.put("a/1", "a/2", "a/3")
    answer_schema.set_expected_fields(bucket.name, bucket_marker.check_bucket(bucket.name).echoes)
    yield bucket
    answer_schema.set_expected_fields(bucket.name, ())


def read_spoiled(store: FaultyStore, form: str) -> list[ListedObject]:
    """The first page of a listing, in this form."""
    change = change_reply(MALFORMED_FORMS[form])
    spoilt = list[Reply | None]()

    def rule(request: Request, forward: Forward) -> Reply | None:
        spoilt.append(change(request, forward))
        return spoilt[-1]

    store.rules[:] = [rule_for(is_listing, rule)]
    try:
        return next(object_pages("tests", "a/", "a/0"))
    finally:
        assert all(spoilt), "it is as it was"


@both_readers
@pytest.mark.parametrize("form", MALFORMED_FORMS)
def test_page_of_another_request_or_form_is_refused(
    store: FaultyStore, three: Bucket, monkeypatch: pytest.MonkeyPatch, cut: Cut, form: str
) -> None:
    monkeypatch.setattr(listing_xml, "split_entries", cut)
    with pytest.raises(InvalidResponse):
        read_spoiled(store, form)


@both_readers
@pytest.mark.parametrize("form", ["a key twice", "a key longer than keys can be"])
def test_impossible_keys_on_a_page_in_any_order_are_refused(
    store: FaultyStore, three: Bucket, monkeypatch: pytest.MonkeyPatch, cut: Cut, form: str
) -> None:
    monkeypatch.setattr(listing_xml, "split_entries", cut)
    store.rules[:] = [rule_for(is_listing, change_reply(MALFORMED_FORMS[form]))]
    with pytest.raises(InvalidResponse):
        list(unordered_pages(three.name, "a/"))


@both_readers
def test_later_page_of_another_request_is_refused(
    store: FaultyStore, three: Bucket, monkeypatch: pytest.MonkeyPatch, cut: Cut
) -> None:
    monkeypatch.setattr(listing_xml, "split_entries", cut)
    monkeypatch.setattr(s3, "PAGE_SIZE", 2)
    store.rules[:] = [rule_for(is_later_page, change_reply(without_continuation))]
    with pytest.raises(InvalidResponse):
        list(object_pages("tests", "a/"))


def without_continuation(xml: str) -> str:
    return without_field(xml, "ContinuationToken")


@both_readers
def test_unknown_store_need_not_repeat_the_request(
    store: FaultyStore, three: Bucket, monkeypatch: pytest.MonkeyPatch, cut: Cut
) -> None:
    """A bucket that was connected before this was learned: what is sent must agree all the same."""
    monkeypatch.setattr(listing_xml, "split_entries", cut)
    answer_schema.set_expected_fields(three.name, ())
    for form in MALFORMED_FORMS:
        if form in SILENT:
            assert read_spoiled(store, form) == []
        else:
            with pytest.raises(InvalidResponse):
                read_spoiled(store, form)


SILENT = ["no bucket", "no prefix", "no count", "no size of a page", "no encoding"]


@pytest.mark.parametrize("form", SILENT)
def test_process_that_has_not_read_the_marker_knows_what_the_store_sends(
    store: FaultyStore, three: Bucket, form: str
) -> None:
    """Such as a web process, which sees the marker only in a listing, after the page."""
    answer_schema.forget_expected_fields(three.name)
    with pytest.raises(InvalidResponse, match="which this store always sends"):
        read_spoiled(store, form)
    store.rules.clear()
    assert is_listed(three.name, "a/1")


def test_bucket_whose_store_sends_less_than_before_can_be_connected_again(
    store: FaultyStore, three: Bucket
) -> None:
    store.rules[:] = [rule_for(is_listing, change_reply(without_count))]
    with pytest.raises(InvalidResponse, match="lacks ListBucketResult.KeyCount"):
        is_listed(three.name, "a/1")
    sent_before = answer_schema.expected_fields(three.name)
    assert "ListBucketResult.KeyCount" not in bucket_connection.connect_bucket(three.name).echoes
    assert is_listed(three.name, "a/1")
    answer_schema.set_expected_fields(
        three.name, sent_before
    )  # In a process that read the marker before.
    with pytest.raises(InvalidResponse):
        is_listed(three.name, "a/1")
    assert is_listed(three.name, "a/1")


def without_count(xml: str) -> str:
    return without_field(xml, "KeyCount")


@pytest.mark.parametrize(
    ("given", "asked", "same"),
    [
        ("a%20b%2F", "a b/", True),
        ("a+b/", "a b/", True),
        ("a b/", "a b/", True),
        ("a\ufffdb", "a\x01b", True),
        ("cafe\u0301", "caf\u00e9", True),
        ("caf%C3%A9", "cafe\u0301", True),
        ("", "", True),
        ("a", "", False),
        ("", "a", False),
        ("A/", "a/", False),
        ("a", "a/", False),
        ("a/ ", "a/", False),
    ],
)
def test_field_repeats_what_was_asked_encoded_or_not(given: str, asked: str, same: bool) -> None:
    assert answer_schema.is_echo_of(given, asked) is same


def test_two_stores_repeat_the_request(local_r2: LocalR2, seaweedfs: SeaweedFS) -> None:
    """Whatever is in it; SeaweedFS sends it as it is, and what XML cannot carry as U+FFFD."""
    prefix, start = "p q/%41+&<é>\x01/", "p q/%41+&<é>\x01/\uffff\U0010ffff"
    for origin in (local_r2, seaweedfs):
        bucket = Bucket(origin)
        bucket.wipe()
        with faulty_network(origin):
            answer_schema.set_expected_fields(
                "tests", bucket_connection.probe_traits("tests").echoes
            )
            assert {
                "ListBucketResult.Prefix",
                "ListBucketResult.StartAfter",
            } <= answer_schema.expected_fields("tests")
            assert list(object_pages("tests", prefix, start)) == [[]]


def test_botocore_reads_no_entry(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its handlers come after ours, which no documentation promises."""
    real, seen = handlers._looks_like_special_case_error, []  # type: ignore[attr-defined]

    def look(status: int, body: bytes) -> bool:
        seen.append(body)
        return bool(real(status, body))

    monkeypatch.setattr(handlers, "_looks_like_special_case_error", look)
    bucket.put("a")
    assert s3.list_page(bucket.name, "a").objects
    assert seen and b"<Contents>" not in seen[0]


def test_each_of_many_threads_has_its_own_page(bucket: Bucket) -> None:
    prefixes = [f"{n:02}/" for n in range(32)]
    bucket.put(*(f"{prefix}{n}" for prefix in prefixes for n in range(3)))

    def keys(prefix: str) -> list[str]:
        return [entry.key for entry in s3.list_entries(bucket.name, prefix).objects]

    with ThreadPoolExecutor(len(prefixes)) as pool:
        for prefix, found in zip(prefixes, pool.map(keys, prefixes), strict=True):
            assert found == [f"{prefix}{n}" for n in range(3)]


def test_pages_of_entries_are_those_of_objects(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PAGE_SIZE", 7)
    bucket.put(*KEYS)
    found = [
        [s3.listed_object(entry) for entry in page] for page in entry_pages(bucket.name, "a", "a b")
    ]
    assert found == list(object_pages(bucket.name, "a", "a b"))
    assert found[0] and len(s3.list_entries(bucket.name, "", max_keys=2).objects) == 2


@pytest.mark.parametrize("keys", [("b", "a"), ("a", "a"), ("%F0%90%80%80", "%80")])
def test_entries_out_of_order_break_the_listing(store: FaultyStore, keys: tuple[str, ...]) -> None:
    """By their bytes, also where these are no text."""
    body = page(*(USUAL.replace("a%2Fb", key) for key in keys))
    store.rules[:] = [rule_for(is_listing, Reply(200, body))]
    with pytest.raises(ListingOutOfOrder):
        next(entry_pages("tests", ""))


def test_keys_that_are_no_text_are_in_the_order_of_their_bytes(store: FaultyStore) -> None:
    body = page(*(USUAL.replace("a%2Fb", key) for key in ("%80", "%F0%90%80%80", "%FF")))
    store.rules[:] = [rule_for(is_listing, Reply(200, body))]
    (found,) = entry_pages("tests", "")
    assert [entry.key for entry in found] == ["\udc80", "\U00010000", "\udcff"]


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=5))
def test_any_key_comes_through(raw: list[bytes]) -> None:
    for encode in (quote_from_bytes, lambda key: quote_plus(key, safe="/")):
        body = page(*(USUAL.replace("a%2Fb", encode(key)) for key in raw))
        assert [key_bytes(entry.key) for entry in listing_xml.split_entries(body)[1]] == raw


PIECES = ["<Contents>", "</Contents>", "<Key>", "</Key>", "<!--", "-->", "<", ">", "&amp;", "&"]
PIECES += ["%", "%2", "F", "+", " ", "\n", '"', "'", "é", "\0", "0", "-", ":", "Z", USUAL, ECHO]
PIECES += ["<![CDATA[", "]]>", "<Owner/>", "<a>b</a>", "<Contents/>", SIZE, "<?", "?>", "&quot;"]
BODY = page(USUAL, USUAL.replace("a%2Fb", "b%2Bc"), USUAL.replace("a%2Fb", "d+e")).decode()
PLACE = st.integers(0, len(BODY))


@given(st.lists(st.tuples(PLACE, st.integers(0, 12), st.sampled_from(["", *PIECES])), max_size=3))
@example([])
def test_damage_is_read_as_botocore_reads_it_or_not_at_all(
    damage: list[tuple[int, int, str]],
) -> None:
    body = BODY
    for place, length, piece in damage:
        body = body[:place] + piece + body[place + length :]
    assert read(body.encode(), listing_xml.split_entries) == read(body.encode(), uncut)
