"""What a text may mean that a person pasted: a deletion, a project, keys. Asks no database."""

import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import unquote, unquote_to_bytes, urlencode
from uuid import UUID

from django.utils.encoding import uri_to_iri
from django.utils.translation import gettext as _

from storage_audit.bucket.listing import as_bytes, escape, storable
from storage_audit.fields import spellings
from storage_audit.ownership.key_format import MAX_KEY_BYTES
from storage_audit.ownership.owner import layouts
from storage_audit.redaction import HIDDEN, redact

# Once it stands in an address, of which many web servers take 4,094 bytes.
LONGEST = 3900
# The most characters that are read: a signed address with a long key has about 6,000.
MOST = 8192
# An ordinary address takes two or three. Each round undoes one layer of percent-encoding.
MOST_ROUNDS = 10
IN_BUCKET = re.compile(r"\s*(?:r2|s3)://([^/]+)/(.*)", re.IGNORECASE | re.DOTALL)
ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]+://([^/?#]*)([^?#]*)", re.IGNORECASE | re.DOTALL)
# As JSON may write it, too.
QUESTION = r"(?:\?|\\u003f)"
END = rf"(?=[/#]|{QUESTION})"
HOST = rf"(?:[\w-]+\.)+[a-z]{{2,}}(?::\d+)?{END}"
# After a password any other will do, but for what a key such as 10:30@2x/a.png has there.
ANY_HOST = rf"(?:{HOST}|(?:[a-z][\w-]*|\d+(?:\.\d+){{3}})(?::\d+)?{END})"
# Without a scheme it is an address only if it begins the text.
BARE = re.compile(
    rf"""[\s"'`<(\[“‘«]*+(?://(?=[^/])|(?={HOST})|(?=[^\s/?#@:]*:[^\s/?#]*@{ANY_HOST}))""",
    re.IGNORECASE,
)
HOST_AND_PATH = re.compile(r"([^/?#]*)(/[^?#]*)", re.DOTALL)
# Where an address begins, also after other text, and percent-encoded, also more than once.
COLON, SLASH = "(?::|%(?:25)*3a)", "(?:/|%(?:25)*2f)"
BEGINS = re.compile(
    rf"""(?<![^ \t\r\n"'`<(\[=“‘«])(?:[a-z][a-z0-9+.-]+{COLON}{SLASH}|(?:https?|r2|s3){COLON})"""
    rf"""{SLASH}""",
    re.IGNORECASE,
)
CLOSING = dict(zip("\"'`<([“‘«", "\"'`>)]”’»", strict=True))
# A colon before no port: what follows is a password, which may have a slash.
PASSWORD = re.compile(r"[^:\[]*:(?!\d*$)")
# Percent-encoded, also more than once, as a part of the path.
QUERY, PERCENT, AFTER_PATH = (
    re.compile(each, re.IGNORECASE)
    for each in (rf"{QUESTION}|%(?:25)*3f", "%(?:25)+", f"{QUESTION}|#")
)
SECRET_NAMES = ("sig", "token", "key", "secret", "credential", "passw", "auth", "verify")
OPENING = " \t\r\n" + "".join(CLOSING)
ENCODED = re.compile("%([2-7][0-9a-f])", re.IGNORECASE)
# As `visible` writes what cannot be seen.
ESCAPES = re.compile(r"\\(?:[tnr]|x[0-9a-f]{2}|u[0-9a-f]{4}|U000[0-9a-f]{5})")


class TooMuch(Exception):
    """The text is too long, or encoded too often, to name anything; the message says what to do."""


class Named(NamedTuple):
    """A key that the text may name, and the bucket if it names that too."""

    key: str
    bucket: str = ""

    @property
    def shown(self) -> str:
        """The key as tables have it."""
        return escape(self.key)

    @property
    def escaped(self) -> bool:
        """Whether tables cannot have it as it is."""
        return not storable(self.key)


class Understood(NamedTuple):
    operation_id: UUID | None
    project_id: str | None
    keys: list[Named]


def without_secrets(text: str) -> str:
    """What may be kept and shown of it: who has the query of an address, or the password in it,
    may have a key to the store. Of what it gives it gives the same. Raises TooMuch."""
    if len(text) > MOST:
        raise too_long()
    kept = redact(text)
    for _round in range(MOST_ROUNDS):
        before, kept = kept, redact(cleaned(kept))
        if kept == before:
            break
    else:
        raise TooMuch(_("This text is percent-encoded too many times. Paste the key alone."))
    if len(urlencode({"": kept})) > LONGEST:
        raise too_long()
    return str(kept)


def too_long() -> TooMuch:
    message = _("This is too long: a key has at most %d bytes. Paste the key alone.")
    return TooMuch(message % MAX_KEY_BYTES)


def cleaned(text: str) -> str:
    """One step: what this makes of the text may show another address."""
    if begin := BEGINS.search(text):
        start = begin.start()
        if "%" in begin[0]:
            return text[:start] + decoded(text[start:])
        scheme = begin[0].rstrip("/:").lower()
        if scheme in ("r2", "s3"):
            return f"{scheme}://{without_secret_query(without_user(alone(text, begin)))}"
        rest = up_to_the_next(alone(text, begin))
        return uri_to_iri(f"{scheme}://{without_query(without_user(rest))}")
    if bare := BARE.match(text):
        return cleaned_after(bare)
    # What follows a host may all be percent-encoded. If there is nothing to hide, it is a key.
    plain = decoded(PERCENT.sub("%", text))
    if (bare := BARE.match(plain)) and (kept := cleaned_after(bare)) != plain:
        return kept
    return without_secret_query(text)


def cleaned_after(bare: re.Match[str]) -> str:
    """The same of a text that begins with an address without a scheme."""
    text, rest = bare.string, alone(bare.string, bare)
    kept = without_query(without_user(rest))
    # Or it is a key that begins as a host does.
    is_key = kept == rest and not text[: bare.end()].strip(" \t\r\n/")
    head = text[: bare.end()].strip(OPENING)
    if "/" in kept and not head and not BARE.match(kept):
        # Without it a host that has no dot would become a part of the key.
        head = "//"
    return text if is_key else head + kept


def decoded(text: str) -> str:
    return ENCODED.sub(lambda match: chr(int(match[1], 16)), text)


def alone(text: str, begin: re.Match[str]) -> str:
    """What follows, up to the quote that closes, or the next word if the text begins with another.
    It may have blanks otherwise, as many a key has."""
    rest, before = text[begin.end() :], text[: begin.start()] or begin[0].rstrip("/")
    if closing := CLOSING.get(before[-1:]):
        return rest.partition(closing)[0]
    if text[: begin.start()].strip():
        return re.split(r"[ \t\r\n]", rest, maxsplit=1)[0]
    return rest


def up_to_the_next(rest: str) -> str:
    following = BEGINS.search(rest, 1)
    return rest[: following.start()] if following else rest


def without_user(rest: str) -> str:
    """What follows the scheme, without user:password@."""
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        return rest[authority.rindex("@") + 1 :]
    if PASSWORD.match(authority):
        return rest.rpartition("@")[2] if "@" in rest else rest.partition(":")[0]
    return rest


def without_query(rest: str) -> str:
    path = AFTER_PATH.split(rest, maxsplit=1)[0]
    return without_secret_query(path).rstrip(" \t\r\n")


def without_secret_query(key: str) -> str:
    """A key may have a question mark itself."""
    before, *rest = QUERY.split(key, maxsplit=1)
    query = unquote(PERCENT.sub("%", "".join(rest)))
    names = [one.partition("=")[0].lower() for one in re.split("[?&;#]", query) if "=" in one]
    is_secret = any(part in name for name in names for part in SECRET_NAMES)
    return before if is_secret or HIDDEN in query else key


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
    if in_bucket := IN_BUCKET.match(text):
        bucket, key = in_bucket.groups()
        yield from (Named(form, bucket) for form in as_written(key))
    elif address := ADDRESS.match(text):
        host, path = address.groups()
        yield from keys_in_path(path, buckets, bucket_of_host(host, buckets))
    else:
        yield from keys_without_scheme(text, buckets)


def keys_without_scheme(text: str, buckets: Collection[str]) -> Iterator[Named]:
    yield from map(Named, as_written(text))
    for form in as_written(text):
        bucket, _slash, key = form.partition("/")
        if bucket in buckets:
            yield Named(key, bucket)
    if (bare := BARE.match(text)) and (parts := HOST_AND_PATH.match(text, bare.end())):
        host, path = parts.groups()
        yield from keys_in_path(path, buckets, bucket_of_host(host, buckets))
    elif text.startswith("/"):
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
