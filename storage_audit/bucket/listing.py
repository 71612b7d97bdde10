"""Complete, ordered, checked listings: the only evidence that an object is there or gone."""

import unicodedata
from collections.abc import Callable, Iterator, Sequence

from storage_audit.bucket.r2 import Broken, Listed, list_page

Identity = Callable[[str], str]


def exact(key: str) -> str:
    return key


def nfc(key: str) -> str:
    """R2 takes all spellings of a key for one object and lists the last one used.
    https://developers.cloudflare.com/r2/reference/unicode-interoperability/"""
    return unicodedata.normalize("NFC", key)


def as_bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def pages(bucket: str, prefix: str, after: str = "") -> Iterator[list[Listed]]:
    """The objects under `prefix` later than `after`, page by page, each page checked.

    When the iteration ends without an exception the listing was complete. Raises StoreError,
    Broken among them when a key is out of order, repeated or not under the prefix.
    """
    last, token = as_bytes(after), None
    while True:
        page = list_page(bucket, prefix, after, token)
        for listed in page.objects:
            key = as_bytes(listed.key)
            if key <= last or not listed.key.startswith(prefix):
                raise Broken(f"The listing shows {escape(listed.key)!r} where it cannot be.")
            last = key
        yield page.objects
        if page.next_token is None:
            return
        if page.next_token == token or not page.objects:
            raise Broken("The listing does not get on.")
        token = page.next_token


def find(bucket: str, keys: Sequence[str], identity: Identity) -> dict[str, Listed]:
    """The objects of these keys that are there, by identity; complete for every key asked.

    Each key's place is looked at in a listing, so that absence is seen and not inferred from an
    error. Costs a page for each 1,000 keys that are neighbours and for each that is alone.
    """
    found: dict[str, Listed] = {}
    todo = sorted(set(keys))
    while todo:
        first = todo[0]
        if identity(first) != first or (identity is nfc and not first.isascii()):
            found |= find_spellings(bucket, first, identity)
            todo = todo[1:]
            continue
        reached = None
        for page in pages(bucket, "", after=before(first)):
            found |= {identity(listed.key): listed for listed in page}
            if page and page[-1].key >= first:
                reached = page[-1].key
                break
        todo = [key for key in todo[1:] if reached is not None and key > reached]
    wanted = {identity(key) for key in keys}
    return {key: listed for key, listed in found.items() if key in wanted}


def find_spellings(bucket: str, key: str, identity: Identity) -> dict[str, Listed]:
    """Where spellings are one object any of them may be listed: look at all that start alike."""
    plain = key[: next(i for i, char in enumerate(key) if not char.isascii())]
    return {
        identity(listed.key): listed
        for page in pages(bucket, plain)
        for listed in page
        if identity(listed.key) == identity(key)
    }


def before(key: str) -> str:
    """A text that sorts before `key` with next to nothing in between."""
    head, last = key[:-1], ord(key[-1])
    if last <= 0x20 or len(as_bytes(key)) > 1000:
        return head
    return head + chr(0xD7FF if last == 0xE000 else last - 1) + "\U0010ffff"


def storable(key: str) -> bool:
    """Whether the database and an XML request can carry the key as it is."""
    return "\0" not in key and not any("\ud800" <= char <= "\udfff" for char in key)


def escape(key: str) -> str:
    """The key as text that can be stored, shown and searched, whatever its bytes."""
    if storable(key):
        return key
    return as_bytes(key).decode("utf-8", "backslashreplace").replace("\0", "\\x00")
