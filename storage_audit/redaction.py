"""Keeps secrets out of what is stored and shown."""

import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from django.conf import settings
from django.utils.encoding import force_str
from django.utils.functional import Promise

from storage_audit.conf import MIN_SECRET_LENGTH, SECRET_PREFIX, conf

REDACTED = "[redacted]"
# A value with such a name is secret, whatever it looks like. In our own code a key is an object's.
OUR_SECRET = re.compile("auth|cookie|credential|passw|pwd|secret|signature|token", re.IGNORECASE)
FOREIGN_SECRET = re.compile(f"{OUR_SECRET.pattern}|database_url|key|pass|sig|verify", re.IGNORECASE)
CREDENTIAL_NAME = (
    r"(?:signature|credential|token|password|access[_-]?key(?:[_-]?id)?"
    r"|secret(?:[_-]?access)?(?:[_-]?key)?)"
)
# Before a colon, where errors such as InvalidAccessKeyId stand too.
SECRET_NAME = r"(?:password|access[ _-]?key|secret(?:[ _-]?access)?(?:[ _-]?key)?)"
OPTIONAL_QUOTE = r"""(?:\\?["'])?"""
CREDENTIAL_VALUE = r"""(?:"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|[^&,\s]+)"""
CREDENTIAL_PATTERNS = [
    # Tokens of our own API.
    re.compile(r"()(?<![\w-])sa_[\w-]{43}(?![\w-])"),
    # From the beginning of a word only, or a long one would be tried from each of its letters.
    re.compile(rf"(?i)(?<![\w-])([\w-]*{CREDENTIAL_NAME}=){CREDENTIAL_VALUE}"),
    # As in files of settings and in JSON; in a key's path a name may be followed by anything.
    re.compile(
        rf"(?i)(?<![\w/-])([\w-]*{CREDENTIAL_NAME}{OPTIONAL_QUOTE}\s*=\s*){CREDENTIAL_VALUE}"
    ),
    re.compile(rf"(?i)(?<![\w/-])([\w-]*{SECRET_NAME}{OPTIONAL_QUOTE}\s*:\s*){CREDENTIAL_VALUE}"),
    re.compile(r"""(?i)(authorization["']?\s*[:=]\s*["']?)[^\n"']+"""),
    # As it is pasted without its header. A word of a sentence is mostly shorter.
    re.compile(r"(?i)(?<![\w/-])(bearer\s+)[\w.~+/%=-]{8,}"),
    # Up to the last @, as a password may have some; a name alone may be a token.
    re.compile(r"(://)[^/\s]+(?=@)"),
    # A proxy may have no scheme. Only with a port, or keys such as 10:30@2x.png would be hidden.
    re.compile(r"(?<![^\s/])()[^/\s:]+:[^/\s]*(?=@[^/\s@]+:\d)"),
]
PROXY_USER = re.compile(r"^(\w+://)?(.*)@", re.DOTALL)
PROXY_VARIABLES = (
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
)
# Where a parser may cut a password in which they are not escaped.
URL_DELIMITER = re.compile(r"[/?#:@\\\[\]\s]")


def redact_secrets(value: Any) -> Any:
    """The same text, list or dict without the store's credentials, the webhook's address and
    secret, SECRET_KEY, the passwords of proxies, mail and databases, and what looks like a
    credential."""
    if isinstance(value, dict):
        return {redact_secrets(key): redact_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_secrets(item) for item in value]
    if not isinstance(value, str | Promise):
        return value
    text = str(value)
    for secret in known_secrets():
        text = text.replace(secret, REDACTED)
    text = hide_credentials(text)
    # An answer from outside may hold what cannot be stored: NUL, and bytes that are not UTF-8.
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def redact_proxy_url(url: str) -> str:
    """The address of a proxy without its user: the password may have a slash, which elsewhere ends
    the host."""
    return PROXY_USER.sub(rf"\1{REDACTED}@", url)


def hide_credentials(text: str) -> str:
    """The text without what looks like a credential, whatever the settings are."""
    for credential in CREDENTIAL_PATTERNS:
        text = credential.sub(rf"\1{REDACTED}", text)
    return text


def known_secrets() -> list[str]:
    """Each form of the secrets that are long enough: hiding a short one would garble ordinary
    words. The longest comes first, as others may be parts of it."""
    keys = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]
    ours = (conf().secret_access_key, conf().access_key_id, conf().api_token)
    # Many a webhook asks for no more than that its address is known.
    webhook = (conf().notify_webhook_url, conf().notify_webhook_secret.removeprefix(SECRET_PREFIX))
    others = (*proxy_secrets(), *mail_secrets(), *database_secrets())
    found = {force_str(key) for key in (*ours, *webhook, *keys, *others) if key}
    long = (key for key in found if len(key) >= MIN_SECRET_LENGTH)
    return sorted({form for key in long for form in secret_forms(key)}, key=len, reverse=True)


def secret_forms(secret: str) -> Iterator[str]:
    """As it is, in an address, and in an error that quotes it; `repr` escapes an apostrophe only if
    the text has the other quote too."""
    yield from (secret, quote(secret, safe="", errors="surrogateescape"))
    yield from (repr(secret)[1:-1], repr(f'"{secret}')[2:-1])


def proxy_secrets() -> Iterator[str]:
    """Passwords, and the parts that errors quote when a parser of addresses cut them. A name alone
    may be an ordinary word."""
    for name in PROXY_VARIABLES:
        found = PROXY_USER.match(os.environ.get(name, ""))
        if found and URL_DELIMITER.search(user := found[2]):
            start = user.find(":") + 1
            yield from (user, user[start:], *URL_DELIMITER.split(user[start:]))
            yield from (user[: mark.start()] for mark in URL_DELIMITER.finditer(user, start))


def mail_secrets() -> Iterator[Any]:
    """From Django 6.1 on MAILERS has them, and reading the older setting warns."""
    for mailer in getattr(settings, "MAILERS", {}).values():
        yield (mailer.get("OPTIONS") or {}).get("password")
    if settings.is_overridden("EMAIL_HOST_PASSWORD"):  # type: ignore[misc]
        yield settings.EMAIL_HOST_PASSWORD


def database_secrets() -> Iterator[Any]:
    """But for those that are names, such as postgres, which other words would hold."""
    for database in settings.DATABASES.values():
        password = database.get("PASSWORD")
        if password not in (database.get("USER"), database.get("NAME")):
            yield password


def printable_text(text: str) -> str:
    """The text with what cannot be seen, or what a terminal would obey, written out: \\x01."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
