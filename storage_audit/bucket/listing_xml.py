"""Listings as they come over the wire, read without an XML parser.

botocore takes 80 µs for each entry of a page, most of them for its date, and this takes one or two.
What is not exactly as expected is left for botocore to read, or to refuse.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, NamedTuple, Self, overload
from urllib.parse import unquote_to_bytes

from storage_audit.fields import MAX_ETAG_LENGTH

# What our columns hold: R2 has no object of 10 TB.
MAX_SIZE_DIGITS = 18  # digits
# Of the printable ASCII characters all that XML gives no meaning, and no quotes in ETags.
FIELD_PATTERNS = {
    "Key": "([!-%'-;=?-~]+)",
    "Size": rf"(\d{{1,{MAX_SIZE_DIGITS}}})",
    "ETag": f'(?:&quot;|&#34;|")?([!#-%\'-;=?-~]{{1,{MAX_ETAG_LENGTH}}})(?:&quot;|&#34;|")?',
    "LastModified": r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z)",
}
OTHER_PATTERN = "[ -%'-;=?-~]*"
LEAF_ELEMENT = re.compile(r"<(\w+)>[^<]*</\1>")
ENTRY_START, ENTRY_END = b"<Contents>", b"</Contents>"
URL_ENCODING = b"<EncodingType>url</EncodingType>"
# The entries stand where an empty one does here: in no other tag, and in no comment.
FRAME_PATTERN = re.compile(
    rb"(?:<\?xml[^<>]*\?>)?\s*<ListBucketResult[^<>]*>"
    rb"(?:<(\w+)>[^<]*</\1>|<\w+ ?/>)*</ListBucketResult>\s*"
)


class Entry(NamedTuple):
    """An object as a listing shows it; `etag` without quotes, bytes that are not UTF-8 in `key`
    as lone surrogates. `last_modified` is ISO 8601 with its zone, `Z` or `+00:00`."""

    key: str
    size: int
    etag: str
    last_modified: str


@dataclass(frozen=True, slots=True)
class Entries(Sequence[Entry]):
    """The entries of a page by columns, which take a third of the time; sizes as text."""

    keys: list[str]
    sizes: list[str]
    etags: list[str]
    times: list[str]

    @classmethod
    def from_entries(cls, entries: Iterable[Entry]) -> Self:
        each = list(entries)
        return cls(
            [entry.key for entry in each],
            [str(entry.size) for entry in each],
            [entry.etag for entry in each],
            [entry.last_modified for entry in each],
        )

    @property
    def columns(self) -> tuple[list[str], ...]:
        return self.keys, self.sizes, self.etags, self.times

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, at: int) -> Entry: ...
    @overload
    def __getitem__(self, at: slice) -> Self: ...
    def __getitem__(self, at: int | slice) -> Entry | Self:
        if isinstance(at, slice):
            return type(self)(*(column[at] for column in self.columns))
        return Entry(self.keys[at], int(self.sizes[at]), self.etags[at], self.times[at])

    def __iter__(self) -> Iterator[Entry]:
        sizes = map(int, self.sizes)
        return map(Entry, self.keys, sizes, self.etags, self.times)

    def __add__(self, more: Self) -> Self:
        pairs = zip(self.columns, more.columns, strict=True)
        return type(self)(*(one + other for one, other in pairs))

    def select(self, which: Sequence[bool]) -> Self:
        return type(self)(*(list(compress(column, which)) for column in self.columns))


NO_ENTRIES = Entries([], [], [], [])


def split_entries(body: bytes) -> tuple[bytes, Entries]:
    """The page without its entries, and the entries; or else the page as it is, and none."""
    start, end = body.find(ENTRY_START), body.rfind(ENTRY_END) + len(ENTRY_END)
    before, after = body[:start], body[end:]
    rest = before + after
    known = FRAME_PATTERN.fullmatch(before + b"<Contents/>" + after)
    if not known or not rest.count(b"<EncodingType") == rest.count(URL_ENCODING) == 1:
        return body, NO_ENTRIES
    entries = parse_entries(body[start:end].decode("latin-1"))
    return (rest, entries) if entries else (body, NO_ENTRIES)


def parse_entries(text: str) -> Entries:
    """The entries that make up the text; none unless all have the tags of the first one."""
    first = text[: text.find("</Contents>")]
    fields = [tag for tag in LEAF_ELEMENT.findall(first) if tag in FIELD_PATTERNS]
    if sorted(fields) != sorted(FIELD_PATTERNS):
        return NO_ENTRIES
    parts = re.split(LEAF_ELEMENT.sub(leaf_pattern, re.escape(first)) + "</Contents>", text)
    between, *columns = (parts[n :: len(fields) + 1] for n in range(len(fields) + 1))
    if any(between):
        return NO_ENTRIES
    column = dict(zip(fields, columns, strict=True))
    keys = decode_keys(column["Key"])
    return Entries(keys, column["Size"], column["ETag"], column["LastModified"])


def leaf_pattern(leaf: re.Match[str]) -> str:
    """What matches the same tag in other entries."""
    tag = leaf[1]
    return f"<{tag}>{FIELD_PATTERNS.get(tag, OTHER_PATTERN)}</{tag}>"


def convert_entry(entry: Mapping[str, Any], encoded: bool) -> Entry:
    """An entry that botocore has read. Raises ValueError as `parse_size_and_etag` does."""
    size, etag = parse_size_and_etag(entry["Size"], entry["ETag"])
    return Entry(
        key=decode_key(entry["Key"]) if encoded else entry["Key"],
        size=size,
        etag=etag,
        last_modified=entry["LastModified"].isoformat(),
    )


def parse_size_and_etag(size: int, quoted_etag: str) -> tuple[int, str]:
    """A size and an ETag without quotes. Raises ValueError for a size that is negative or too
    large for our columns, and for what is no ETag by RFC 9110 or too long for them."""
    if not 0 <= size < 10**MAX_SIZE_DIGITS:
        raise ValueError(f"a size below zero or of more than {MAX_SIZE_DIGITS} digits")
    etag = quoted_etag.strip('"')
    if re.search(r"[\s\0-\x1f\x7f]", etag):
        raise ValueError("an ETag with a space or a control character")
    if len(etag) > MAX_ETAG_LENGTH:
        raise ValueError(f"an ETag of more than {MAX_ETAG_LENGTH} characters")
    return size, etag


def decode_keys(keys: list[str]) -> list[str]:
    # R2 encodes slashes, so that each key would have to be decoded for them alone.
    text = "\n".join(keys).replace("%2F", "/")
    slashed = text.split("\n")
    if "%" not in text and "+" not in text:
        return slashed
    return [decode_key(key) if "%" in key or "+" in key else key for key in slashed]


def decode_key(encoded: str) -> str:
    return unquote_to_bytes(encoded.replace("+", " ")).decode("utf-8", "surrogateescape")
