"""Complete, ordered, checked listings: the only evidence that an object is there or gone."""

import os.path
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import pairwise, product
from operator import lt
from secrets import token_hex

from storage_audit.bucket.errors import InvalidResponse
from storage_audit.bucket.listing_xml import Entries
from storage_audit.bucket.s3 import Listed, Page, Shown, list_entries, listed

Identity = Callable[[str], str]
SURROGATE = re.compile("[\ud800-\udfff]")
ESCAPED = re.compile(rb"\\(?:\\|x([0-9a-f]{2}))")
# Whose NFC is ASCII, by what that is: the Kelvin sign, the Greek question mark and varia.
TWINS = {"K": "\u212a", ";": "\u037e", "`": "\u1fef"}
# In one key, that are looked for each at its place.
MOST_TWINS = 3
NAMELESS_FOLDER = re.compile("^/|//")


# An entry of an index has at most 2,704 bytes in PostgreSQL, and a key in it is not alone. Keys of
# S3 have at most 1,024.
LONGEST_KEY = 2500


class ListingOutOfOrder(InvalidResponse):
    """A key is listed where it cannot be."""


def exact(key: str) -> str:
    return key


def nfc(key: str) -> str:
    """R2 takes all spellings of a key for one object and lists the last one used.
    https://developers.cloudflare.com/r2/reference/unicode-interoperability/"""
    return key if key.isascii() else unicodedata.normalize("NFC", key)


def as_bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def pages(bucket: str, prefix: str, after: str = "") -> Iterator[list[Listed]]:
    """The objects under `prefix` later than `after`, page by page, each page checked.

    When the iteration ends without an exception the listing was complete. Raises StoreError,
    InvalidResponse among them when a key is out of order, repeated or not under the prefix.
    """
    for page in entry_pages(bucket, prefix, after):
        yield [listed(entry) for entry in page]


def entry_pages(bucket: str, prefix: str, after: str = "") -> Iterator[Entries]:
    """The same promise as that of `pages`, for those who have no use for dates.

    It begins at a place before the first key, and no other listing begins there. So an answer to
    an earlier request is refused, as stores repeat the place.
    """
    start = before((after or prefix).rstrip("/"))
    for page in entry_pages_from(bucket, prefix, start):
        count = bisect_right(page.keys, as_bytes(after), key=as_bytes) if after else 0
        after = "" if count < len(page) else after
        yield page[count:] if count else page


def entry_pages_from(bucket: str, prefix: str, start: str) -> Iterator[Entries]:
    """The same, with all keys later than `start`, a text that `before` gave."""
    return checked(prefix, start, lambda token: list_entries(bucket, prefix, start, token))


def checked(
    prefix: str, after: str, page_at: Callable[[str | None], Page[Shown]]
) -> Iterator[Shown]:
    """The pages of such a listing, from its first one to the one that names no next."""
    token: str | None = None
    while True:
        page: Page[Shown] = page_at(token)
        refuse_long(page.keys)
        keys = [after, *page.keys]
        if not is_in_order(keys, prefix):
            other = escape(stray(keys, prefix))
            raise ListingOutOfOrder(f"The listing shows {other!r} where it cannot be.")
        after = keys[-1]
        yield page.objects
        if page.next_token is None:
            return
        if page.next_token == token or not page.objects:
            raise InvalidResponse("The listing does not get on.")
        token = page.next_token
        del page, keys  # They would be kept as long as the next page takes.


def refuse_long(keys: Collection[str]) -> None:
    """Raises InvalidResponse for a key that no index can hold."""
    if max(map(len, keys), default=0) * 8 <= LONGEST_KEY:
        return  # As on most pages, where this takes a fraction of the time.
    if long := next(filter(is_too_long, keys), ""):
        shown = escape(long)[:100]
        raise InvalidResponse(
            f"The listing shows a key of more than {LONGEST_KEY} bytes: {shown!r}..."
        )


def is_too_long(key: str, upload_id: str = "") -> bool:
    size = len(as_bytes(key))
    # PostgreSQL compresses an escaped key, to about twice the bytes that it stands for.
    return (size if storable(key) else 2 * size) + len(as_bytes(upload_id)) > LONGEST_KEY


def is_in_order(keys: Sequence[str], prefix: str) -> bool:
    """Whether the first one is before the others, and these are in order and have the prefix."""
    texts: Sequence[str | bytes] = keys if "".join(keys).isascii() else list(map(as_bytes, keys))
    # What is between two keys with a prefix has it too.
    ends = (keys[1], keys[-1]) if len(keys) > 1 else ()
    return all(map(lt, texts, texts[1:])) and all(key.startswith(prefix) for key in ends)


def stray(keys: Sequence[str], prefix: str) -> str:
    """The first of the keys for which that is not so."""
    pairs = pairwise(keys)
    return next(
        key
        for before, key in pairs
        if as_bytes(key) <= as_bytes(before) or not key.startswith(prefix)
    )


def pages_in_any_order(bucket: str, prefix: str, after: str = "") -> Iterator[Entries]:
    """Of a store that lists in an order of its own, in which `after` counts too. Complete when the
    iteration ends without an exception, if no key is on two pages; callers have to see to that."""
    token = None
    start = after or before(prefix.rstrip("/"))
    while True:
        page = list_entries(bucket, prefix, start, token)
        refuse_long(page.keys)
        if len(set(page.keys)) < len(page.keys):
            raise InvalidResponse("The listing shows a key twice.")
        for key in page.keys:
            if not key.startswith(prefix):
                raise InvalidResponse(f"The listing shows {escape(key)!r} where it cannot be.")
        yield page.objects
        if page.next_token is None:
            return
        if page.next_token == token or not page.objects:
            raise InvalidResponse("The listing does not get on.")
        token = page.next_token


def find(
    bucket: str,
    keys: Sequence[str],
    identity: Identity,
    after_page: Callable[[], None] = lambda: None,
    find_alike: Callable[[Sequence[str]], dict[str, Listed]] | None = None,
) -> dict[str, Listed]:
    """The objects of these keys that are there, by identity; complete for every key asked.

    Each key's place is looked at in a listing, so that absence is seen and not inferred from an
    error. Costs a page for each 1,000 keys that are neighbours and for each that is alone; where
    spellings are one object, an absent key that is not ASCII costs a look at all that start alike,
    and one with a letter of TWINS a look at the places of its other spellings.
    `after_page` is called after each. `find_alike` takes the look at all that start alike, which
    may be long.
    """
    found = find_at_places(bucket, keys, identity, after_page)
    if identity is nfc:
        unseen = {key for key in keys if nfc(key) not in found}
        rest = sorted(key for key in unseen if start_of_all_spellings(key) != key)
        places = {form for key in unseen.difference(rest) for form in ascii_spellings(key)}
        found |= find_at_places(bucket, places.difference(unseen), nfc, after_page)
        if rest and find_alike:
            found |= find_alike(rest)
        elif rest:
            found |= find_spellings(bucket, rest, after_page)
    for folder in nameless_folders(each.key for each in found.values()):
        see_in(bucket, folder)
        after_page()
    return found


def find_at_places(
    bucket: str, keys: Iterable[str], identity: Identity, after_page: Callable[[], None]
) -> dict[str, Listed]:
    """Those that are listed as they are spelled here, and others that were on the same pages."""
    todo = sorted(set(keys), key=as_bytes)
    wanted = set(map(identity, todo))
    found: dict[str, Listed] = {}
    while todo:
        reached = None
        for page in entry_pages_from(bucket, "", before(todo[0])):
            after_page()
            names = enumerate(map(identity, page.keys))
            found |= {name: listed(page[n]) for n, name in names if name in wanted}
            if page and as_bytes(page.keys[-1]) >= as_bytes(todo[0]):
                reached = as_bytes(page.keys[-1])
                break
        todo = [key for key in todo[1:] if reached is not None and as_bytes(key) > reached]
    return found


def nameless_folders(keys: Iterable[str]) -> set[str]:
    """Up to the first slash that has nothing before it: `a//` of `a//b`, and `/` of `/a`."""
    return {key[: match.end()] for key in keys if (match := NAMELESS_FOLDER.search(key))}


def see_in(bucket: str, folder: str) -> None:
    """Stores that are trees of folders take `a//b` for `a/b`, and list that as it was asked for;
    asked for the folder alone, they betray themselves. Raises StoreError, InvalidResponse among
    them."""
    if not next(pages(bucket, folder)):
        raise InvalidResponse(f"The listing shows {escape(folder)!r} now and then.")


def find_spellings(
    bucket: str, keys: Sequence[str], after_page: Callable[[], None]
) -> dict[str, Listed]:
    """Where spellings are one object any of them may be listed: look at all that start alike."""
    found: dict[str, Listed] = {}
    for page in pages_alike(bucket, keys):
        after_page()
        found |= spelled_as(page, keys)
    return found


def pages_alike(bucket: str, keys: Iterable[str], after: str = "") -> Iterator[list[Listed]]:
    """All objects later than `after` that start as one of the keys does in one of its spellings.
    Complete when the iteration ends without an exception."""
    listed_under: str | None = None
    for start in sorted({start for key in keys for start in starts_of_spellings(key)}):
        if listed_under is not None and start.startswith(listed_under):
            continue
        listed_under = start
        if after.startswith(start):
            yield from pages(bucket, start, after)
        elif start > after:
            yield from pages(bucket, start)


def spelled_as(page: Iterable[Listed], keys: Iterable[str]) -> dict[str, Listed]:
    """By their NFC, those of the page that have one of the keys in some spelling."""
    wanted = set(map(nfc, keys))
    return {name: each for each in page if (name := nfc(each.key)) in wanted}


def start_of_all_spellings(key: str) -> str:
    """Up to the first letter that is not ASCII, or that becomes so: "e" may be half of an "é"; or
    up to where `ascii_spellings` would be too many. As these spell it."""
    length = next((i for i, char in enumerate(key) if not char.isascii()), len(key))
    start = os.path.commonprefix([key[:length], nfc(key)])
    twins = [i for i, char in enumerate(start) if char in TWINS]
    return start[: twins[MOST_TWINS]] if len(twins) > MOST_TWINS else start


def starts_of_spellings(key: str) -> set[str]:
    """Each spelling of the key starts with one of these."""
    return ascii_spellings(start_of_all_spellings(key))


def show_all_spellings(prefixes: tuple[str, ...], key: str) -> bool:
    """Whether listings of these prefixes show an object of this key however it is spelled."""
    return all(start.startswith(prefixes) for start in starts_of_spellings(key))


def ascii_spellings(text: str) -> set[str]:
    """All texts whose NFC this ASCII text is."""
    return set(map("".join, product(*(char + TWINS.get(char, "") for char in text))))


def spellings(key: str, identity: Identity) -> set[str]:
    """What a tracking row may call the same object."""
    return {key} if identity is exact else {key, nfc(key), unicodedata.normalize("NFD", key)}


def before(key: str) -> str:
    """A text that sorts before `key`, mostly with next to nothing in between, different each
    time. Empty where there is none."""
    head, last = key[:-1], ord(key[-1:] or "\0")
    if last <= 0x20 or len(as_bytes(key)) > 1000:
        return before(head) if head else ""
    return head + chr(0xD7FF if last == 0xE000 else last - 1) + "\U0010ffff" + token_hex(8)


def storable(key: str) -> bool:
    """Whether the database and an XML request can carry the key as it is."""
    return "\0" not in key and (key.isascii() or not SURROGATE.search(key))


def storable_part(key: str) -> str:
    """The key up to where it stops being storable: a place to go on from, at or before it."""
    return key[: next((i for i, char in enumerate(key) if not storable(char)), len(key))]


def escape(key: str) -> str:
    """The key as text that can be stored, shown and searched, whatever its bytes."""
    if storable(key):
        return key
    text = as_bytes(escape_backslashes(key)).decode("utf-8", "backslashreplace")
    return text.replace("\0", "\\x00")


def escape_backslashes(text: str) -> str:
    """As `escape` does, so that two keys never look the same: a key that it changes starts with a
    storable text when what it shows starts with this."""
    return text.replace("\\", "\\\\")


def unescape(text: str) -> str | None:
    """The key that `escape` shows so because it cannot be stored; None if there is none."""
    raw = ESCAPED.sub(lambda match: bytes([int(match[1] or b"5c", 16)]), text.encode())
    key = raw.decode("utf-8", "surrogateescape")
    return key if not storable(key) and escape(key) == text else None
