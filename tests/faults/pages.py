"""Pages of listings that say something else than the store did; text in, text out."""

import re
from collections.abc import Callable
from zlib import crc32

Change = Callable[[str], str]

ROOT_TAG = re.compile("<List[A-Za-z]+Result[^<>]*>")
FOLDER_XML = "<CommonPrefixes><Prefix>a/</Prefix></CommonPrefixes>"
NEXT_TOKEN = re.compile("<Next.*?>.*?</Next.*?>")


def find_entries(xml: str) -> list[str]:
    return re.findall("<Contents>.*?</Contents>", xml, re.S)


def with_entries(xml: str, entries: list[str]) -> str:
    """The same page of a listing with these entries."""
    empty = re.sub("<KeyCount>.*?</KeyCount>", f"<KeyCount>{len(entries)}</KeyCount>", xml)
    for entry in find_entries(xml):
        empty = empty.replace(entry, "", 1)
    return empty.replace("</ListBucketResult>", "".join(entries) + "</ListBucketResult>")


def reverse_entries(xml: str) -> str:
    return with_entries(xml, find_entries(xml)[::-1])


def mark_truncated(xml: str) -> str:
    return re.sub("<IsTruncated>false<", "<IsTruncated>true<", xml)


def without_token(xml: str) -> str:
    """Says that more follows, and not how to get it."""
    return NEXT_TOKEN.sub("", mark_truncated(xml))


def with_token(xml: str, token: str) -> str:
    end = f"<NextContinuationToken>{token}</NextContinuationToken></ListBucketResult>"
    return without_token(xml).replace("</ListBucketResult>", end)


def empty_page(xml: str) -> str:
    """All that there is, and that is nothing."""
    nothing = re.sub("<(Contents|Upload)>.*?</\\1>", "", with_entries(xml, []), flags=re.S)
    return with_field(NEXT_TOKEN.sub("", nothing), "IsTruncated", "false")


def without_field(xml: str, name: str) -> str:
    return re.sub(f"<{name}>.*?</{name}>|<{name} ?/>", "", xml, flags=re.S)


def with_field(xml: str, name: str, text: str) -> str:
    return insert_first(without_field(xml, name), f"<{name}>{text}</{name}>")


def with_text(xml: str, name: str, text: str) -> str:
    """With this text in each element of the name."""
    return re.sub(f"<{name}>.*?</{name}>", f"<{name}>{text}</{name}>", xml)


def insert_first(xml: str, element: str) -> str:
    """With the element before all others."""
    return ROOT_TAG.sub(lambda root: root[0] + element, xml, count=1)


def other_bucket_page(xml: str) -> str:
    """An empty one."""
    return with_field(with_field(empty_page(xml), "Name", "other"), "Bucket", "other")


def copied_bucket_page(xml: str) -> str:
    """What a copy of the bucket lists that holds nothing but the marker, copied as well."""
    markers = [entry for entry in find_entries(xml) if "installation.json" in entry]
    time = "<LastModified>2026-01-01T00:00:00.000Z<"
    return with_entries(xml, [re.sub("<LastModified>.*?<", time, entry) for entry in markers])


def other_prefix_page(xml: str) -> str:
    """With nothing under it."""
    return with_field(empty_page(xml), "Prefix", "elsewhere/")


# Each is what a store could say of another request, or what a lenient reader would take for the end
# of an empty listing.
MALFORMED_FORMS: dict[str, Change] = {
    "a copy of the bucket": lambda xml: with_field(xml, "Name", "other"),
    "a bucket whose name starts alike": lambda xml: re.sub("<Name>.*?<", "<Name>tests-2<", xml),
    "another prefix with these keys": lambda xml: with_field(xml, "Prefix", "elsewhere/"),
    "the whole bucket": lambda xml: with_field(empty_page(xml), "Prefix", ""),
    "another start": lambda xml: with_field(empty_page(xml), "StartAfter", "zzz"),
    "a later page": lambda xml: with_field(empty_page(xml), "ContinuationToken", "bW9yZQ=="),
    "version 1": lambda xml: with_field(empty_page(xml), "Marker", "zzz"),
    "folders": lambda xml: with_field(empty_page(xml), "Delimiter", "/"),
    "common prefixes": lambda xml: insert_first(
        empty_page(xml), "<CommonPrefixes><Prefix>a/</Prefix></CommonPrefixes>"
    ),
    "no bucket": lambda xml: without_field(empty_page(xml), "Name"),
    "two buckets": lambda xml: insert_first(empty_page(xml), "<Name>other</Name>"),
    "no prefix": lambda xml: without_field(empty_page(xml), "Prefix"),
    "two prefixes": lambda xml: insert_first(empty_page(xml), "<Prefix>elsewhere/</Prefix>"),
    "no count": lambda xml: without_field(empty_page(xml), "KeyCount"),
    "another count": lambda xml: with_field(empty_page(xml), "KeyCount", "7"),
    "a count that is none": lambda xml: with_field(empty_page(xml), "KeyCount", "+0"),
    "no size of a page": lambda xml: without_field(empty_page(xml), "MaxKeys"),
    "a larger page": lambda xml: with_field(empty_page(xml), "MaxKeys", "1001"),
    "no page at all": lambda xml: with_field(xml, "MaxKeys", "0"),
    "another encoding": lambda xml: with_field(empty_page(xml), "EncodingType", "base64"),
    "no encoding": lambda xml: without_field(empty_page(xml), "EncodingType"),
    "no end": lambda xml: without_field(empty_page(xml), "IsTruncated"),
    "an end without a word": lambda xml: with_field(empty_page(xml), "IsTruncated", ""),
    "an end in capitals": lambda xml: with_field(empty_page(xml), "IsTruncated", "FALSE"),
    "more in capitals": lambda xml: with_field(empty_page(xml), "IsTruncated", "TRUE"),
    "an end in other words": lambda xml: with_field(empty_page(xml), "IsTruncated", "no"),
    "an end in digits": lambda xml: with_field(empty_page(xml), "IsTruncated", "0"),
    "an end with spaces": lambda xml: with_field(empty_page(xml), "IsTruncated", " false "),
    "two ends": lambda xml: insert_first(empty_page(xml), "<IsTruncated>true</IsTruncated>"),
    "an end inside": lambda xml: with_field(empty_page(xml), "IsTruncated", "false<a/>"),
    "more, and no token": lambda xml: without_token(empty_page(xml)),
    "more, and an empty token": lambda xml: with_token(empty_page(xml), ""),
    "a token at the end": lambda xml: insert_first(
        empty_page(xml), "<NextContinuationToken>bW9yZQ==</NextContinuationToken>"
    ),
    "two tokens": lambda xml: insert_first(
        with_token(empty_page(xml), "bW9yZQ=="),
        "<NextContinuationToken>bQ==</NextContinuationToken>",
    ),
    "another root": lambda xml: empty_page(xml).replace("ListBucketResult", "ListVersionsResult"),
    "a namespace inside": lambda xml: empty_page(xml).replace(
        "<IsTruncated>", '<IsTruncated xmlns="a">'
    ),
    "a word between": lambda xml: insert_first(empty_page(xml), "and"),
    "entries inside another element": lambda xml: insert_first(
        without_field(empty_page(xml), "KeyCount"),
        "<Page>" + "".join(find_entries(xml)) + "</Page>",
    ),
    "a key twice": lambda xml: with_entries(xml, find_entries(xml)[:1] * 2),
    "an entry of two keys": lambda xml: xml.replace("</Key>", "</Key><Key>a/9</Key>"),
    "an entry without a key": lambda xml: re.sub("<Key>.*?</Key>", "", xml),
    "a key with an element": lambda xml: xml.replace("</Key>", "<a/>b</Key>"),
    "more keys than asked for": lambda xml: with_entries(xml, 1001 * find_entries(xml)[:1]),
    "a key longer than keys can be": lambda xml: xml.replace("</Key>", "x" * 2500 + "</Key>", 1),
    "an ETag longer than ETags can be": lambda xml: with_text(xml, "ETag", "e" * 201),
    "an ETag with a control character": lambda xml: with_text(xml, "ETag", "a&#x7F;b"),
    "a size below zero": lambda xml: with_text(xml, "Size", "-1"),
    "a size of more than 18 digits": lambda xml: with_text(xml, "Size", "1" * 19),
}


def malformed_change(seed: str) -> Change:
    """One of these forms, always the same for the same text."""
    names = list(MALFORMED_FORMS)
    at = crc32(seed.encode())

    def change(xml: str) -> str:
        turns = (MALFORMED_FORMS[names[(at + n) % len(names)]](xml) for n in range(len(names)))
        return next((text for text in turns if text != xml), xml)

    return change
