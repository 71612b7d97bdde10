"""What follows from a failure of wrangler: its words, translated for the policy of errors.py."""

import errno
import re
from typing import NamedTuple

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.bucket.errors import (
    LOCKED,
    BucketForbidden,
    InvalidResponse,
    Refused,
    StoreError,
    Unavailable,
    classify,
)
from storage_audit.redaction import redact

# So long nothing is answered to who asked too much, in seconds: wrangler does not hand on what the
# API says. https://developers.cloudflare.com/fundamentals/api/reference/limits/
BLOCKED = 300.0

ERROR = re.compile(r"\[ERROR\] (.*?)(?=\n\s*If you think this is a bug|\n\S|\Z)", re.S)
STATUS = re.compile(r"Failed to fetch \S+ - (\d{3}):")
JSON_CODE, TEXT_CODE = re.compile(r'"code": ?(\d+)'), re.compile(r"\[code: (\d+)\]")
NO_CONNECTION = re.compile(r"fetch request failed|fetch failed")
NO_LOGIN = re.compile(r"CLOUDFLARE_API_TOKEN|CLOUDFLARE_ACCOUNT_ID|Not logged in")

# What the API calls what S3 has names for, and of the API as a whole.
# https://developers.cloudflare.com/r2/api/error-codes/
NAMES = {
    "10001": "InternalError",
    "10002": "Unauthorized",
    "10003": "AccessDenied",
    "10042": "NotEntitled",
    "10043": "ServiceUnavailable",
    "10054": "ClientDisconnect",
    "10058": "TooManyRequests",
    "10069": LOCKED,
    "971": "TooManyRequests",
} | dict.fromkeys(("1000", "6003", "6111", "9106", "9109", "10000"), "Unauthorized")


class Unusable(BucketForbidden):
    """No call of wrangler will work until somebody changes something."""

    advice = gettext_lazy(
        "Mend that, and look with `python manage.py r2_doctor`; then force-delete this operation,"
        " which tries again at once; by itself it is tried daily. Or ask for another cleanup with"
        " the strategy batch, which needs no wrangler: this operation then sees that all is gone."
    )


class Said(NamedTuple):
    """All that it said, without colors: it has them in spite of NO_COLOR."""

    exit_code: int
    stdout: str
    stderr: str


def trouble(said: Said) -> StoreError:
    """What follows from a failure, or from an answer that is none."""
    found = ERROR.search(said.stderr)
    gist = " ".join((found[1] if found else said.stderr or said.stdout).split())
    text = _("wrangler failed with exit code %(code)s: %(gist)s") % {
        "code": said.exit_code,
        "gist": shorten(redact(gist), 800),
    }
    answer = STATUS.search(gist)
    status = int(answer[1]) if answer else 0
    code = (JSON_CODE if answer else TEXT_CODE).search(gist)
    if not answer and not code:
        return unanswered(gist, text)
    # A gateway that fails sends pages that are not the API's.
    number = code[1] if code and status < 500 else ""
    return answered(text, NAMES.get(number, number or str(status)), status)


def answered(text: str, name: str, status: int) -> StoreError:
    kind = classify(name, status)
    if kind is BucketForbidden:
        return Unusable(f"{text} {_no_entry()}", name, answered=True)
    if kind is StoreError and 400 <= status < 500:
        kind = Refused
    blocked = BLOCKED if name in ("TooManyRequests", "429") else 0
    return kind(text, name, retry_after=blocked, answered=status < 500)


def unanswered(gist: str, text: str) -> StoreError:
    if NO_CONNECTION.search(gist):
        return Unavailable(text, "NoConnection")
    if NO_LOGIN.search(gist):
        return Unusable(f"{text} {_no_entry()}", "NotLoggedIn", answered=True)
    return InvalidResponse(text)


def _no_entry() -> str:
    return _(
        "Look at CLOUDFLARE_API_TOKEN: whether it was revoked, is out of date, or may not write to"
        " R2; and whether R2_ACCOUNT_ID is its account."
    )


def not_started(error: OSError) -> StoreError:
    text = _("wrangler cannot be started: %s.") % error
    if error.errno in (errno.ENOENT, errno.EACCES, errno.ENOEXEC):
        return Unusable(text + " " + _("Set WRANGLER_PATH to a program that runs."))
    return Unavailable(text, type(error).__name__)


def shorten(text: str, most: int) -> str:
    left_out = len(text) - most
    if left_out <= 0:
        return text
    note = _("[... %s characters left out ...]") % left_out
    return f"{text[: most // 2]}\n{note}\n{text[-(most - most // 2) :]}"
