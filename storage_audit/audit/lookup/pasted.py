"""What a text may mean that a person pasted: a deletion, a project, keys. Asks no database."""

import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import unquote_to_bytes, urlencode
from uuid import UUID

from django.utils.encoding import uri_to_iri
from django.utils.translation import gettext as _

from storage_audit.audit.layouts import MAX_KEY_BYTES
from storage_audit.audit.ownership import layouts
from storage_audit.bucket.listing import as_bytes, escape, storable
from storage_audit.fields import spellings

# Once it stands in an address, of which many web servers take 4,094 bytes.
LONGEST = 3900
ADDRESS = re.compile(r"\s*(https?)://([^/?#]*)([^?#]*)", re.IGNORECASE | re.DOTALL)
IN_BUCKET = re.compile(r"\s*(?:r2|s3)://([^/]+)/(.*)", re.IGNORECASE | re.DOTALL)
# As `visible` writes what cannot be seen.
ESCAPES = re.compile(r"\\(?:[tnr]|x[0-9a-f]{2}|u[0-9a-f]{4}|U000[0-9a-f]{5})")


class TooLong(Exception):
    """Nothing that we could know is so long; the message says what to do."""


class Named(NamedTuple):
    """A key that the text may name, and the bucket if it names that too."""

    key: str
    bucket: str = ""

    @property
    def shown(self) -> str:
        """The key as tables have it."""
        return escape(self.key)


class Understood(NamedTuple):
    operation_id: UUID | None
    project_id: str | None
    keys: list[Named]


def without_secrets(text: str) -> str:
    """What may be kept and shown of it: who has the query of an address, or the password in it,
    may have a key to the store. Raises TooLong."""
    if address := ADDRESS.match(text):
        scheme, host, path = address.groups()
        kept = uri_to_iri(f"{scheme.lower()}://{host.rpartition('@')[2]}{path.rstrip()}")
    else:
        before, _mark, query = text.partition("?")
        kept = before if "signature=" in query.lower() else text
    if len(urlencode({"": kept})) > LONGEST:
        message = _("This is too long: a key has at most %d bytes. Paste the key alone.")
        raise TooLong(message % MAX_KEY_BYTES)
    return kept


def understand(text: str, buckets: Collection[str]) -> Understood:
    """`text` is without secrets; `buckets` are those that we know."""
    stripped = text.strip()
    is_id = storable(stripped) and layouts().is_project_id(stripped)
    return Understood(
        deletion_id(stripped),
        stripped if is_id else None,
        list(each_object_once(keys_in(text, buckets))),
    )


def deletion_id(text: str) -> UUID | None:
    with suppress(ValueError):
        return UUID(text)
    return None


def each_object_once(keys: Iterator[Named]) -> Iterator[Named]:
    """Without those that are no key, or a spelling of one before."""
    seen: set[str] = set()
    for named in keys:
        if 0 < len(as_bytes(named.key)) <= MAX_KEY_BYTES and named.shown not in seen:
            seen |= spellings(named.shown)
            yield named


def keys_in(text: str, buckets: Collection[str]) -> Iterator[Named]:
    if address := ADDRESS.match(text):
        host, path = address[2], address[3]
        yield from keys_in_path(path, buckets, bucket_of_host(host, buckets))
    elif in_bucket := IN_BUCKET.match(text):
        bucket, key = in_bucket.groups()
        yield from (Named(form, bucket) for form in as_written(key))
    else:
        yield from map(Named, as_written(text))
        if text.startswith("/"):
            yield from keys_in_path(text, buckets, "")


def as_written(key: str) -> Iterator[str]:
    """As it was pasted, without the white space around it, and as it was before it was shown."""
    for form in (key, key.strip()):
        yield form
        yield ESCAPES.sub(unescaped, form)


def unescaped(match: re.Match[str]) -> str:
    """What `visible` writes so; what it would not have written out stays."""
    with suppress(UnicodeError):
        char = match[0].encode().decode("unicode_escape")
        if as_bytes(char) and not char.isprintable():
            return char
    return match[0]


def keys_in_path(path: str, buckets: Collection[str], bucket: str) -> Iterator[Named]:
    """Of an address: some begin with the bucket, and some keys begin as a bucket is called."""
    key = unquote_to_bytes(path.removeprefix("/")).decode("utf-8", "surrogateescape")
    head, _slash, rest = key.partition("/")
    if head in buckets:
        yield Named(rest, head)
    yield Named(key, bucket)


def bucket_of_host(host: str, buckets: Collection[str]) -> str:
    """Such as `media` in media.ACCOUNT.r2.cloudflarestorage.com."""
    first = host.partition(".")[0]
    return first if first in buckets else ""
