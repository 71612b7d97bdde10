"""What a text may mean that a person pasted: a deletion, a project, keys, a file's name, a title.
Asks no database."""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import unquote, unquote_to_bytes, urlencode
from uuid import UUID

from django.contrib.admin.utils import unquote as unquote_admin_id
from django.utils.encoding import uri_to_iri
from django.utils.translation import gettext as _

from storage_audit.bucket.listing import escape_key, is_storable, key_bytes
from storage_audit.fields import unicode_spellings
from storage_audit.ownership.key_template import MAX_KEY_BYTES
from storage_audit.ownership.ownership_rule import get_key_formats
from storage_audit.redaction import FOREIGN_SECRET, REDACTED, redact_secrets

# Once it stands in an address, of which many web servers take 4,094 bytes.
MAX_ENCODED_CHARS = 3900
MAX_TITLE_LENGTH = 200
# The most characters that are read: a signed address with a long key has about 6,000.
MAX_PASTED_CHARS = 8192
# An ordinary address takes two or three. Each round undoes one layer of percent-encoding.
MAX_DECODING_ROUNDS = 10
BUCKET_URI = re.compile(r"\s*(?:r2|s3)://([^/]+)/(.*)", re.IGNORECASE | re.DOTALL)
URL_PATTERN = re.compile(r"\s*[a-z][a-z0-9+.-]+://([^/?#]*)([^?#]*)", re.IGNORECASE | re.DOTALL)
# As JSON may write it, too.
QUESTION_MARK = r"(?:\?|\\u003f)"
HOST_END = rf"(?=[/#]|{QUESTION_MARK})"
HOST = rf"(?:[\w-]+\.)+[a-z]{{2,}}(?::\d+)?{HOST_END}"
# After a password any other will do, but for what a key such as 10:30@2x/a.png has there.
ANY_HOST = rf"(?:{HOST}|(?:[a-z][\w-]*|\d+(?:\.\d+){{3}})(?::\d+)?{HOST_END})"
# Without a scheme it is an address only if it begins the text.
BARE_ADDRESS = re.compile(
    rf"""[\s"'`<(\[“‘«]*+(?://(?=[^/])|(?={HOST})|(?=[^\s/?#@:]*:[^\s/?#]*@{ANY_HOST}))""",
    re.IGNORECASE,
)
HOST_AND_PATH = re.compile(r"([^/?#]*)(/[^?#]*)", re.DOTALL)
# Where an address begins, also after other text, and percent-encoded, also more than once.
COLON, SLASH = "(?::|%(?:25)*3a)", "(?:/|%(?:25)*2f)"
URL_START = re.compile(
    rf"""(?<![^ \t\r\n"'`<(\[=“‘«])(?:[a-z][a-z0-9+.-]+{COLON}{SLASH}|(?:https?|r2|s3){COLON})"""
    rf"""{SLASH}""",
    re.IGNORECASE,
)
CLOSING_QUOTES = dict(zip("\"'`<([“‘«", "\"'`>)]”’»", strict=True))
# A colon before no port: what follows is a password, which may have a slash.
PASSWORD_PATTERN = re.compile(r"[^:\[]*:(?!\d*$)")
# Percent-encoded, also more than once, as a part of the path.
QUERY_START, PERCENT, AFTER_PATH = (
    re.compile(each, re.IGNORECASE)
    for each in (rf"{QUESTION_MARK}|%(?:25)*3f", "%(?:25)+", f"{QUESTION_MARK}|#")
)
OPENING_CHARS = " \t\r\n" + "".join(CLOSING_QUOTES)
ENCODED_CHAR = re.compile("%([2-7][0-9a-f])", re.IGNORECASE)
# What Cloudflare's image and video transformations put before the address of the file.
TRANSFORMATION = re.compile(
    r"/?cdn-cgi/(?:image|media)/[^/]*/(?:https?:/{1,2}[^/]*/|/*)", re.IGNORECASE
)
WORD_END = re.compile(r"[\s/?#&=]+")
PUNCTUATION = OPENING_CHARS + "".join(CLOSING_QUOTES.values()) + ".,;:!?"
FILE_NAME = re.compile(r"[^/\\]{1,200}\.[a-z0-9]{1,10}", re.IGNORECASE)
# Of the words of a text, so many may be ids.
MAX_IDS = 20
# As `printable_text` writes what cannot be seen.
ESCAPE_SEQUENCE = re.compile(r"\\(?:[tnr]|x[0-9a-f]{2}|u[0-9a-f]{4}|U000[0-9a-f]{5})")


class TooMuch(Exception):
    """The text is too long, or encoded too often, to name anything; the message says what to do."""


class KeyCandidate(NamedTuple):
    """A key that the text may name, and the bucket if it names that too."""

    key: str
    bucket: str = ""

    @property
    def table_key(self) -> str:
        """The key as tables have it."""
        return escape_key(self.key)

    @property
    def escaped(self) -> bool:
        """Whether tables cannot have it as it is."""
        return not is_storable(self.key)


class ParsedQuery(NamedTuple):
    deletion_id: UUID | None
    project_id: str | None
    keys: list[KeyCandidate]
    # Words of a sentence, or parts of a page's address, that may be ids of projects.
    possible_ids: Sequence[str] = ()
    file_name: str = ""
    title: str = ""


def remove_secrets(text: str) -> str:
    """The text as it may be kept and shown: the query or the password of an address may open the
    store. Idempotent. Raises TooMuch."""
    if len(text) > MAX_PASTED_CHARS:
        raise too_long_error()
    kept = redact_secrets(text)
    for _round in range(MAX_DECODING_ROUNDS):
        before, kept = kept, redact_secrets(clean_once(kept))
        if kept == before:
            break
    else:
        raise TooMuch(_("This text is percent-encoded too many times. Paste the key alone."))
    if len(urlencode({"": kept})) > MAX_ENCODED_CHARS:
        raise too_long_error()
    return str(kept)


def too_long_error() -> TooMuch:
    message = _("This is too long: a key has at most %d bytes. Paste the key alone.")
    return TooMuch(message % MAX_KEY_BYTES)


def clean_once(text: str) -> str:
    """Clean one address. The result may show another one."""
    if begin := URL_START.search(text):
        start = begin.start()
        if "%" in begin[0]:
            return text[:start] + decode_percent(text[start:])
        scheme = begin[0].rstrip("/:").lower()
        if scheme in ("r2", "s3"):
            return f"{scheme}://{remove_secret_query(remove_user(cut_after_address(text, begin)))}"
        rest = cut_at_next(cut_after_address(text, begin))
        return uri_to_iri(f"{scheme}://{remove_query(remove_user(rest))}")
    if bare := BARE_ADDRESS.match(text):
        return clean_bare_address(bare)
    # What follows a host may all be percent-encoded. If there is nothing to hide, it is a key.
    plain = decode_percent(PERCENT.sub("%", text))
    if (bare := BARE_ADDRESS.match(plain)) and (kept := clean_bare_address(bare)) != plain:
        return kept
    return remove_secret_query(text)


def clean_bare_address(bare: re.Match[str]) -> str:
    """Clean a text that begins with an address without a scheme."""
    text, rest = bare.string, cut_after_address(bare.string, bare)
    kept = remove_query(remove_user(rest))
    # Or it is a key that begins as a host does.
    is_key = kept == rest and not text[: bare.end()].strip(" \t\r\n/")
    head = text[: bare.end()].strip(OPENING_CHARS)
    if "/" in kept and not head and not BARE_ADDRESS.match(kept):
        # Without it a host that has no dot would become a part of the key.
        head = "//"
    return text if is_key else head + kept


def decode_percent(text: str) -> str:
    return ENCODED_CHAR.sub(lambda match: chr(int(match[1], 16)), text)


def cut_after_address(text: str, begin: re.Match[str]) -> str:
    """What follows, up to the closing quote, or to the next word if the address is not the first.
    Otherwise it may have blanks, as keys may."""
    rest, before = text[begin.end() :], text[: begin.start()] or begin[0].rstrip("/")
    if closing := CLOSING_QUOTES.get(before[-1:]):
        return rest.partition(closing)[0]
    if text[: begin.start()].strip():
        return re.split(r"[ \t\r\n]", rest, maxsplit=1)[0]
    return rest


def cut_at_next(rest: str) -> str:
    following = URL_START.search(rest, 1)
    return rest[: following.start()] if following else rest


def remove_user(rest: str) -> str:
    """What follows the scheme, without user:password@."""
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        return rest[authority.rindex("@") + 1 :]
    if PASSWORD_PATTERN.match(authority):
        return rest.rpartition("@")[2] if "@" in rest else rest.partition(":")[0]
    return rest


def remove_query(rest: str) -> str:
    path = AFTER_PATH.split(rest, maxsplit=1)[0]
    return remove_secret_query(path).rstrip(" \t\r\n")


def remove_secret_query(key: str) -> str:
    """A key may have a question mark itself."""
    before, *rest = QUERY_START.split(key, maxsplit=1)
    query = unquote(PERCENT.sub("%", "".join(rest)))
    names = [one.partition("=")[0] for one in re.split("[?&;#]", query) if "=" in one]
    is_secret = any(map(FOREIGN_SECRET.search, names))
    return before if is_secret or REDACTED in query else key


def parse_text(text: str, buckets: Collection[str]) -> ParsedQuery:
    """`text` is without secrets; `buckets` are those that we know."""
    stripped = text.strip()
    words = list(dict.fromkeys(find_words(stripped)))
    return ParsedQuery(
        next(filter(None, map(parse_deletion_id, [stripped, *words])), None),
        stripped if is_project_id(stripped) else None,
        list(unique_candidates(find_candidates(text, buckets))),
        list(filter(is_project_id, words))[:MAX_IDS],
        parse_file_name(stripped),
        parse_title(stripped),
    )


def is_project_id(text: str) -> bool:
    return is_storable(text) and get_key_formats().is_project_id(text)


def find_words(text: str) -> Iterator[str]:
    """The words and the parts of addresses, each also as the admin's addresses spell it."""
    for part in WORD_END.split(text):
        word = unquote(part).strip(PUNCTUATION)
        if word:
            yield word
            yield unquote_admin_id(word)


def parse_file_name(text: str) -> str:
    """Also the last part of an address, which may be that of another CDN."""
    name = unquote(text).rpartition("/")[2].strip(PUNCTUATION)
    return name if is_storable(name) and FILE_NAME.fullmatch(name) else ""


def parse_title(text: str) -> str:
    title = text.strip(PUNCTUATION)
    is_title = is_storable(title) and len(title) <= MAX_TITLE_LENGTH
    return title if is_title and not URL_PATTERN.match(text) else ""


def parse_deletion_id(text: str) -> UUID | None:
    with suppress(ValueError):
        return UUID(text)
    return None


def unique_candidates(keys: Iterator[KeyCandidate]) -> Iterator[KeyCandidate]:
    """Without those that are no key, or a spelling of one before."""
    seen: set[str] = set()
    for named in keys:
        if 0 < len(key_bytes(named.key)) <= MAX_KEY_BYTES and named.table_key not in seen:
            seen |= unicode_spellings(named.table_key)
            yield named


def find_candidates(text: str, buckets: Collection[str]) -> Iterator[KeyCandidate]:
    if in_bucket := BUCKET_URI.match(text):
        bucket, key = in_bucket.groups()
        yield from (KeyCandidate(form, bucket) for form in written_forms(key))
    elif address := URL_PATTERN.match(text):
        host, path = address.groups()
        bucket = bucket_of_host(host, buckets)
        yield from candidates_in_path(path, buckets, bucket)
        if len(words := path.split()) > 1:
            # Or the sentence goes on after the address.
            yield from candidates_in_path(words[0], buckets, bucket)
    else:
        yield from candidates_without_scheme(text, buckets)


def candidates_without_scheme(text: str, buckets: Collection[str]) -> Iterator[KeyCandidate]:
    yield from map(KeyCandidate, written_forms(text))
    yield from map(KeyCandidate, paths_in_sentence(text))
    for form in written_forms(text):
        bucket, _slash, key = form.partition("/")
        if bucket in buckets:
            yield KeyCandidate(key, bucket)
    if (bare := BARE_ADDRESS.match(text)) and (parts := HOST_AND_PATH.match(text, bare.end())):
        host, path = parts.groups()
        yield from candidates_in_path(path, buckets, bucket_of_host(host, buckets))
    elif text.startswith("/"):
        yield from candidates_in_path(text, buckets, "")


def paths_in_sentence(text: str) -> Iterator[str]:
    """What may be keys in it, unless it is a key itself."""
    words = text.split()
    if len(words) > 1 and not get_key_formats().parse_key(text.strip()):
        yield from (word.strip(PUNCTUATION) for word in words if "/" in word)


def written_forms(key: str) -> Iterator[str]:
    """The key as it was pasted, without white space around it, and with its escapes undone."""
    for form in (key, key.strip()):
        yield form
        yield ESCAPE_SEQUENCE.sub(unescape_match, form)


def unescape_match(match: re.Match[str]) -> str:
    """Undo what `printable_text` writes; other escapes stay."""
    with suppress(UnicodeError):
        char = match[0].encode().decode("unicode_escape")
        if key_bytes(char) and not char.isprintable():
            return char
    return match[0]


def candidates_in_path(path: str, buckets: Collection[str], bucket: str) -> Iterator[KeyCandidate]:
    """Keys in an address: some paths begin with the bucket, and some keys with a bucket's name."""
    if changed := TRANSFORMATION.match(path):
        yield from candidates_in_path(path[changed.end() :], buckets, bucket)
    key = unquote_to_bytes(path.removeprefix("/")).decode("utf-8", "surrogateescape")
    head, _slash, rest = key.partition("/")
    if head in buckets:
        yield KeyCandidate(rest, head)
    yield KeyCandidate(key, bucket)


def bucket_of_host(host: str, buckets: Collection[str]) -> str:
    """Such as `media` in media.ACCOUNT.r2.cloudflarestorage.com."""
    first = host.partition(".")[0]
    return first if first in buckets else ""
