"""Complete, ordered, checked listings: the only evidence that an object exists or is gone."""

import os.path
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise, product
from operator import lt
from secrets import token_hex

from storage_audit.bucket.errors import InvalidResponse
from storage_audit.bucket.listing_xml import Entries
from storage_audit.bucket.s3 import ListedObject, ObjectsT, Page, list_entries, listed_object

KeyIdentity = Callable[[str], str]
SURROGATE = re.compile("[\ud800-\udfff]")
ESCAPE_SEQUENCE = re.compile(rb"\\(?:\\|x([0-9a-f]{2}))")
# Whose NFC is ASCII, by what that is: the Kelvin sign, the Greek question mark and varia.
ASCII_TWINS = {"K": "\u212a", ";": "\u037e", "`": "\u1fef"}
# So many of these letters in one key at most, as each doubles the spellings to look for.
MAX_TWINS = 3
NAMELESS_FOLDER = re.compile("^/|//")


# An entry of an index has at most 2,704 bytes in PostgreSQL, and a key in it is not alone. Keys of
# S3 have at most 1,024.
MAX_INDEXED_KEY_BYTES = 2500


class ListingOutOfOrder(InvalidResponse):
    """A key is listed where it cannot be."""


def exact_key(key: str) -> str:
    return key


def nfc_key(key: str) -> str:
    """R2 takes all spellings of a key for one object and lists the last one used.
    https://developers.cloudflare.com/r2/reference/unicode-interoperability/"""
    return key if key.isascii() else unicodedata.normalize("NFC", key)


def key_bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def object_pages(bucket: str, prefix: str, after: str = "") -> Iterator[list[ListedObject]]:
    """The objects under `prefix` later than `after`, page by page, each page checked.

    When the iteration ends without an exception the listing was complete. Raises StoreError,
    InvalidResponse among them when a key is out of order, repeated or not under the prefix.
    """
    for page in entry_pages(bucket, prefix, after):
        yield [listed_object(entry) for entry in page]


def entry_pages(bucket: str, prefix: str, after: str = "") -> Iterator[Entries]:
    """Promises the same as `object_pages`, for callers that do not need dates.

    It begins at a place before the first key, and no other listing begins there. So an answer to
    an earlier request is refused, as stores repeat the place.
    """
    start = start_before((after or prefix).rstrip("/"))
    for page in entry_pages_from(bucket, prefix, start):
        count = bisect_right(page.keys, key_bytes(after), key=key_bytes) if after else 0
        after = "" if count < len(page) else after
        yield page[count:] if count else page


def entry_pages_from(bucket: str, prefix: str, start: str) -> Iterator[Entries]:
    """The same, with all keys later than `start`, a text from `start_before`."""
    return check_pages(prefix, start, lambda token: list_entries(bucket, prefix, start, token))


def check_pages(
    prefix: str, after: str, page_at: Callable[[str | None], Page[ObjectsT]]
) -> Iterator[ObjectsT]:
    """The pages of such a listing, from its first one to the one that names no next."""
    token: str | None = None
    while True:
        page: Page[ObjectsT] = page_at(token)
        refuse_long_keys(page.keys)
        keys = [after, *page.keys]
        if not is_in_order(keys, prefix):
            other = escape_key(first_misplaced_key(keys, prefix))
            raise ListingOutOfOrder(f"The listing shows {other!r} out of order.")
        after = keys[-1]
        yield page.objects
        if page.next_token is None:
            return
        if page.next_token == token or not page.objects:
            raise InvalidResponse("The listing makes no progress.")
        token = page.next_token
        del page, keys  # They would be kept as long as the next page takes.


def refuse_long_keys(keys: Collection[str]) -> None:
    """Raises InvalidResponse for a key that no index can hold."""
    if max(map(len, keys), default=0) * 8 <= MAX_INDEXED_KEY_BYTES:
        return  # As on most pages, where this takes a fraction of the time.
    if long := next(filter(is_too_long, keys), ""):
        shown = escape_key(long)[:100]
        raise InvalidResponse(
            f"The listing shows a key of more than {MAX_INDEXED_KEY_BYTES} bytes: {shown!r}..."
        )


def is_too_long(key: str, upload_id: str = "") -> bool:
    size = len(key_bytes(key))
    # PostgreSQL compresses an escaped key, to about twice the bytes that it stands for.
    return (size if is_storable(key) else 2 * size) + len(
        key_bytes(upload_id)
    ) > MAX_INDEXED_KEY_BYTES


def is_in_order(keys: Sequence[str], prefix: str) -> bool:
    """Whether the first one is before the others, and these are in order and have the prefix."""
    texts: Sequence[str | bytes] = keys if "".join(keys).isascii() else list(map(key_bytes, keys))
    # What is between two keys with a prefix has it too.
    ends = (keys[1], keys[-1]) if len(keys) > 1 else ()
    return all(map(lt, texts, texts[1:])) and all(key.startswith(prefix) for key in ends)


def first_misplaced_key(keys: Sequence[str], prefix: str) -> str:
    """The first of the keys for which that is not so."""
    pairs = pairwise(keys)
    return next(
        key
        for before, key in pairs
        if key_bytes(key) <= key_bytes(before) or not key.startswith(prefix)
    )


def unordered_pages(bucket: str, prefix: str, after: str = "") -> Iterator[Entries]:
    """Of a store that lists in an order of its own, in which `after` counts too. Complete when the
    iteration ends without an exception, if no key is on two pages; callers have to see to that."""
    token = None
    start = after or start_before(prefix.rstrip("/"))
    while True:
        page = list_entries(bucket, prefix, start, token)
        refuse_long_keys(page.keys)
        if len(set(page.keys)) < len(page.keys):
            raise InvalidResponse("The listing shows a key twice.")
        for key in page.keys:
            if not key.startswith(prefix):
                raise InvalidResponse(f"The listing shows {escape_key(key)!r} outside its prefix.")
        yield page.objects
        if page.next_token is None:
            return
        if page.next_token == token or not page.objects:
            raise InvalidResponse("The listing makes no progress.")
        token = page.next_token


def find_keys(
    bucket: str,
    keys: Sequence[str],
    identity: KeyIdentity,
    after_page: Callable[[], None] = lambda: None,
    find_alike: Callable[[Sequence[str]], dict[str, ListedObject]] | None = None,
) -> dict[str, ListedObject]:
    """The objects of these keys that are there, by identity; complete for every key asked.

    Each key's place is listed, so that a missing object is seen and not inferred from an error.
    Costs a page for each 1,000 keys that are neighbours and for each that is alone. Where spellings
    are one object, a missing key that is not ASCII costs a listing of all keys that start alike,
    and one with a letter of ASCII_TWINS a page for each other spelling. `after_page` is called
    after each page. `find_alike` lists all that start alike instead, which may take long.
    """
    found = find_at_places(bucket, keys, identity, after_page)
    if identity is nfc_key:
        unseen = {key for key in keys if nfc_key(key) not in found}
        rest = sorted(key for key in unseen if common_spelling_start(key) != key)
        places = {form for key in unseen.difference(rest) for form in ascii_spellings(key)}
        found |= find_at_places(bucket, places.difference(unseen), nfc_key, after_page)
        if rest and find_alike:
            found |= find_alike(rest)
        elif rest:
            found |= find_spellings(bucket, rest, after_page)
    check_nameless_folders(bucket, found, after_page)
    return found


def find_at_places(
    bucket: str, keys: Iterable[str], identity: KeyIdentity, after_page: Callable[[], None]
) -> dict[str, ListedObject]:
    """Those that are listed as they are spelled here, and others that were on the same pages."""
    todo = sorted(set(keys), key=key_bytes)
    wanted = set(map(identity, todo))
    found: dict[str, ListedObject] = {}
    while todo:
        reached = None
        for page in entry_pages_from(bucket, "", start_before(todo[0])):
            after_page()
            names = enumerate(map(identity, page.keys))
            found |= {name: listed_object(page[n]) for n, name in names if name in wanted}
            if page and key_bytes(page.keys[-1]) >= key_bytes(todo[0]):
                reached = key_bytes(page.keys[-1])
                break
        todo = [key for key in todo[1:] if reached is not None and key_bytes(key) > reached]
    return found


def check_nameless_folders(
    bucket: str, found: Mapping[str, ListedObject], after_page: Callable[[], None]
) -> None:
    """See `check_folder_listed`, for the folders of these objects."""
    for folder in nameless_folders(each.key for each in found.values()):
        check_folder_listed(bucket, folder)
        after_page()


def nameless_folders(keys: Iterable[str]) -> set[str]:
    """Up to the first slash that has nothing before it: `a//` of `a//b`, and `/` of `/a`."""
    return {key[: match.end()] for key in keys if (match := NAMELESS_FOLDER.search(key))}


def check_folder_listed(bucket: str, folder: str) -> None:
    """Stores that are trees of folders take `a//b` for `a/b`, and list it as `a//b` when asked for
    that. A listing of the folder `a//` alone shows nothing there. Raises StoreError,
    InvalidResponse among them."""
    if not next(object_pages(bucket, folder)):
        raise InvalidResponse(f"The listing shows {escape_key(folder)!r} only sometimes.")


def find_spellings(
    bucket: str, keys: Sequence[str], after_page: Callable[[], None]
) -> dict[str, ListedObject]:
    """Where spellings are one object, any of them may be listed: list all that start alike."""
    found: dict[str, ListedObject] = {}
    for page in spelling_pages(bucket, keys):
        after_page()
        found |= match_spellings(page, keys)
    return found


def spelling_pages(
    bucket: str, keys: Iterable[str], after: str = ""
) -> Iterator[list[ListedObject]]:
    """All objects later than `after` that start as one of the keys does in one of its spellings.
    Complete when the iteration ends without an exception."""
    listed_under: str | None = None
    for start in sorted({start for key in keys for start in spelling_starts(key)}):
        if listed_under is not None and start.startswith(listed_under):
            continue
        listed_under = start
        if after.startswith(start):
            yield from object_pages(bucket, start, after)
        elif start > after:
            yield from object_pages(bucket, start)


def match_spellings(page: Iterable[ListedObject], keys: Iterable[str]) -> dict[str, ListedObject]:
    """By their NFC, those of the page that have one of the keys in some spelling."""
    wanted = set(map(nfc_key, keys))
    return {name: each for each in page if (name := nfc_key(each.key)) in wanted}


def common_spelling_start(key: str) -> str:
    """Up to the first letter that is not ASCII, or that becomes so: "e" may be half of an "é"; or
    up to where `ascii_spellings` would be too many. As these spell it."""
    length = next((i for i, char in enumerate(key) if not char.isascii()), len(key))
    start = os.path.commonprefix([key[:length], nfc_key(key)])
    twins = [i for i, char in enumerate(start) if char in ASCII_TWINS]
    return start[: twins[MAX_TWINS]] if len(twins) > MAX_TWINS else start


def spelling_starts(key: str) -> set[str]:
    """Each spelling of the key starts with one of these."""
    return ascii_spellings(common_spelling_start(key))


def can_show_all_spellings(prefixes: tuple[str, ...], key: str) -> bool:
    """Whether listings of these prefixes show an object of this key however it is spelled."""
    return all(start.startswith(prefixes) for start in spelling_starts(key))


def ascii_spellings(text: str) -> set[str]:
    """All texts whose NFC this ASCII text is."""
    return set(map("".join, product(*(char + ASCII_TWINS.get(char, "") for char in text))))


def tracked_spellings(key: str, identity: KeyIdentity) -> set[str]:
    """What a tracking row may call the same object."""
    return (
        {key} if identity is exact_key else {key, nfc_key(key), unicodedata.normalize("NFD", key)}
    )


def start_before(key: str) -> str:
    """A text that sorts before `key`, mostly with next to nothing in between, different each
    time. Empty where there is none."""
    head, last = key[:-1], ord(key[-1:] or "\0")
    if last <= 0x20 or len(key_bytes(key)) > 1000:
        return start_before(head) if head else ""
    return head + chr(0xD7FF if last == 0xE000 else last - 1) + "\U0010ffff" + token_hex(8)


def is_storable(key: str) -> bool:
    """Whether the database and an XML request can carry the key as it is."""
    return "\0" not in key and (key.isascii() or not SURROGATE.search(key))


def storable_part(key: str) -> str:
    """The key up to where it stops being storable: a place to go on from, at or before it."""
    return key[: next((i for i, char in enumerate(key) if not is_storable(char)), len(key))]


def escape_key(key: str) -> str:
    """The key as text that can be stored, shown and searched, whatever its bytes."""
    if is_storable(key):
        return key
    text = key_bytes(escape_backslashes(key)).decode("utf-8", "backslashreplace")
    return text.replace("\0", "\\x00")


def escape_backslashes(text: str) -> str:
    """As `escape_key` does, so that two keys never look the same. A key that it changes starts with
    a storable text when the escaped key starts with that text as this function escapes it."""
    return text.replace("\\", "\\\\")


def unescape_key(text: str) -> str | None:
    """The key that `escape_key` shows so because it cannot be stored; None if there is none."""
    raw = ESCAPE_SEQUENCE.sub(lambda match: bytes([int(match[1] or b"5c", 16)]), text.encode())
    key = raw.decode("utf-8", "surrogateescape")
    return key if not is_storable(key) and escape_key(key) == text else None
