"""What stands around the entries of an answer: does it answer the request that we sent?

A store, or a cache before it, may answer with a page of another bucket, prefix or place. botocore
takes the first of two elements, `TRUE` for false, and skips what it does not know, so every answer
is also read here, strictly, whatever reads its entries.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from threading import RLock
from typing import NamedTuple
from unicodedata import normalize
from xml.etree import ElementTree

from storage_audit.bucket.errors import InvalidResponse
from storage_audit.bucket.listing_xml import decode_key
from storage_audit.conf import conf


class AnswerSchema(NamedTuple):
    """The root element of an answer, and its entries: each has these elements exactly once."""

    root: str
    entries: Mapping[str, tuple[str, ...]]


OBJECT_LISTING = AnswerSchema(
    "ListBucketResult", {"Contents": ("Key", "Size", "ETag", "LastModified")}
)
UPLOAD_LISTING = AnswerSchema(
    "ListMultipartUploadsResult", {"Upload": ("Key", "UploadId", "Initiated")}
)
DELETE_ANSWER = AnswerSchema("DeleteResult", {"Deleted": ("Key",), "Error": ("Key",)})

Fields = Mapping[str, str]
# The only element of an entry that may be repeated.
REPEATABLE_ELEMENT = "ChecksumAlgorithm"
NUMBER_PATTERN = re.compile(r"\d{1,9}", re.ASCII)
# What XML cannot carry; Go's encoder, for one, sends U+FFFD instead.
NOT_IN_XML = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def read_frame(body: bytes, schema: AnswerSchema) -> Fields:
    """The text of each element around the entries. Raises InvalidResponse for any other form."""
    try:
        root = ElementTree.fromstring(body, ElementTree.XMLParser(encoding="utf-8"))
    except ElementTree.ParseError as error:
        raise InvalidResponse(f"Can't read the store's answer: {error}") from error
    if local_name(root) != schema.root:
        raise InvalidResponse(f"The store's answer is not a {schema.root}.")
    space = root.tag.removesuffix(schema.root)
    fields: dict[str, str] = {}
    around = [root.text, *(element.tail for element in root)]
    if any(text and not text.isspace() for text in around):
        raise InvalidResponse("The store's answer is invalid: text between its elements.")
    for element in root:
        name = local_name(element)[:100]
        if element.tag != space + name:
            raise InvalidResponse(f"The store's answer is invalid: {name} is in another namespace.")
        if name in schema.entries:
            check_entry(element, schema.entries[name])
        elif name in fields or len(element):
            raise InvalidResponse(
                f"The store's answer has more than one {name}, or elements in it."
            )
        else:
            fields[name] = element.text or ""
    return fields


def local_name(element: ElementTree.Element) -> str:
    """Its name without the namespace, as botocore reads it."""
    return element.tag.rpartition("}")[2]


def check_entry(entry: ElementTree.Element, needed: Iterable[str]) -> None:
    """Raises InvalidResponse unless it has these elements exactly once, and no other more than
    once."""
    parts = [part for part in entry if local_name(part) != REPEATABLE_ELEMENT]
    by_name = {local_name(part): part for part in parts}
    leaves = {name for name, part in by_name.items() if not len(part)}
    if len(by_name) < len(parts) or not leaves.issuperset(needed):
        raise InvalidResponse(
            "The store's answer is invalid: an entry lacks an element or repeats it."
        )


def check_frame(
    schema: AnswerSchema,
    bucket: str,
    fields: Fields,
    asked: Mapping[str, str],
    numbers: Mapping[str, range],
) -> None:
    """Raises InvalidResponse unless the fields repeat what was asked, and the numbers are in their
    ranges.

    A field that is missing says nothing, unless the store is known to send it. Stores need not
    repeat what is empty.
    """
    for name, value in asked.items():
        if name in fields and not is_echo_of(fields[name], value):
            raise InvalidResponse(
                f"The store answered a different request: its {name} is not ours."
            )
    for name, fitting in numbers.items():
        given = fields.get(name, str(fitting.start))
        if not NUMBER_PATTERN.fullmatch(given) or int(given) not in fitting:
            raise InvalidResponse(
                f"The store's answer is invalid: {name} does not match its entries."
            )
    # Stores need not repeat on later pages where the first one began.
    optional = {"StartAfter"} if asked.get("ContinuationToken") else set()
    wanted = [name for name, value in asked.items() if value and name not in optional]
    wanted += numbers
    sent = {f"{schema.root}.{name}": name in fields for name in wanted}
    if (notes := _notes.get()) is not None:
        notes.append(sent)  # What the store sends by now is just being learned.
    elif missing := [name for name in expected_fields(bucket) if not sent.get(name, True)]:
        forget_expected_fields(bucket)  # The bucket may have been connected again since.
        raise InvalidResponse(
            f"The store's answer lacks {missing[0]}, which this store always sends."
        )


def is_echo_of(given: str, asked: str) -> bool:
    """Stores encode these fields as they do keys, or not at all, and may spell them as keys."""
    texts = {normalize("NFC", text) for text in (given, decode_key(given))}
    return not texts.isdisjoint({normalize("NFC", asked), NOT_IN_XML.sub("\ufffd", asked)})


def is_truncated(fields: Fields) -> bool:
    said = fields.get("IsTruncated")
    if said not in ("true", "false"):
        raise InvalidResponse("The listing does not say whether it is complete.")
    return said == "true"


def next_token(fields: Fields) -> str | None:
    token = fields.get("NextContinuationToken") or None
    if is_truncated(fields):
        if not token:
            raise InvalidResponse("The listing is incomplete and has no next page.")
    elif token:
        raise InvalidResponse(
            "The listing contradicts itself: it is complete and also has a next page."
        )
    return token


# Which fields a store sends, by its address and the bucket: `connect_bucket` learns it, and the
# marker keeps it. Each process reads it before it believes its first page of a bucket.
_expected: dict[tuple[str, str], frozenset[str]] = {}
_loaders: list[Callable[[str], object]] = []
# Held by the thread that reads a marker to learn them.
loading = RLock()
_notes: ContextVar[list[Mapping[str, bool]] | None] = ContextVar("notes", default=None)


def register_loader(loader: Callable[[str], object]) -> None:
    """Register a function that reads the marker of a bucket and calls `set_expected_fields`. It may
    run in any thread, so it asks the store only, and raises StoreError without an answer."""
    _loaders[:] = [loader]


def set_expected_fields(bucket: str, names: Iterable[str]) -> None:
    _expected[conf().endpoint_url, bucket] = frozenset(names)


def expected_fields(bucket: str) -> frozenset[str]:
    place = conf().endpoint_url, bucket
    if place not in _expected:
        with loading:  # Whoever waited here finds what the other has read.
            for load in _loaders if place not in _expected else ():
                load(bucket)
    return _expected.get(place, frozenset())


def forget_expected_fields(bucket: str) -> None:
    """Have the next page read the marker again."""
    _expected.pop((conf().endpoint_url, bucket), None)


@contextmanager
def learn_fields() -> Iterator[Callable[[], list[str]]]:
    """Record the answers within this block. The function returns the fields that were in every
    answer that could have them."""
    notes: list[Mapping[str, bool]] = []
    before = _notes.set(notes)
    try:
        yield lambda: sorted(
            name for name in set().union(*notes) if all(note.get(name, True) for note in notes)
        )
    finally:
        _notes.reset(before)
