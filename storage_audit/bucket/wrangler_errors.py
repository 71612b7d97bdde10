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
    classify_error,
)
from storage_audit.redaction import redact_secrets

# How long the API answers nothing after too many requests; wrangler does not pass on what the API
# says. https://developers.cloudflare.com/fundamentals/api/reference/limits/
BLOCK_SECONDS = 300.0

ERROR_PATTERN = re.compile(r"\[ERROR\] (.*?)(?=\n\s*If you think this is a bug|\n\S|\Z)", re.S)
STATUS_PATTERN = re.compile(r"Failed to fetch \S+ - (\d{3}):")
JSON_CODE, TEXT_CODE = re.compile(r'"code": ?(\d+)'), re.compile(r"\[code: (\d+)\]")
NO_CONNECTION = re.compile(r"fetch request failed|fetch failed")
NO_LOGIN = re.compile(r"CLOUDFLARE_API_TOKEN|CLOUDFLARE_ACCOUNT_ID|Not logged in")

# The API's codes for errors that S3 has names for, and for errors of the API as a whole.
# https://developers.cloudflare.com/r2/api/error-codes/
ERROR_NAMES = {
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
        "Fix that and run `python manage.py r2_doctor`. Then choose “Retry now” on the cleanup's"
        " page. Otherwise we retry once a day. Or start another cleanup with the strategy batch,"
        " which needs no wrangler."
    )


class RunOutput(NamedTuple):
    """All that it said, without colors: it has them in spite of NO_COLOR."""

    exit_code: int
    stdout: str
    stderr: str


def failure_of(output: RunOutput) -> StoreError:
    """The error for a failed run, or for an answer that is none."""
    found = ERROR_PATTERN.search(output.stderr)
    gist = " ".join((found[1] if found else output.stderr or output.stdout).split())
    text = _("wrangler failed with exit code %(code)s: %(gist)s") % {
        "code": output.exit_code,
        "gist": shorten_output(redact_secrets(gist), 800),
    }
    answer = STATUS_PATTERN.search(gist)
    status = int(answer[1]) if answer else 0
    code = (JSON_CODE if answer else TEXT_CODE).search(gist)
    if not answer and not code:
        return unanswered_failure(gist, text)
    # A gateway that fails sends pages that are not the API's.
    number = code[1] if code and status < 500 else ""
    return answered_failure(text, ERROR_NAMES.get(number, number or str(status)), status)


def answered_failure(text: str, name: str, status: int) -> StoreError:
    kind = classify_error(name, status)
    if kind is BucketForbidden:
        return Unusable(f"{text} {_login_advice()}", name, answered=True)
    if kind is StoreError and 400 <= status < 500:
        kind = Refused
    blocked = BLOCK_SECONDS if name in ("TooManyRequests", "429") else 0
    return kind(text, name, retry_after=blocked, answered=status < 500)


def unanswered_failure(gist: str, text: str) -> StoreError:
    if NO_CONNECTION.search(gist):
        return Unavailable(text, "NoConnection")
    if NO_LOGIN.search(gist):
        return Unusable(f"{text} {_login_advice()}", "NotLoggedIn", answered=True)
    return InvalidResponse(text)


def _login_advice() -> str:
    return _(
        "Check that CLOUDFLARE_API_TOKEN is valid and may write to R2, and that"
        " R2_ACCOUNT_ID is its account."
    )


def start_failure(error: OSError) -> StoreError:
    text = _("Can't start wrangler: %s.") % error
    if error.errno in (errno.ENOENT, errno.EACCES, errno.ENOEXEC):
        return Unusable(text + " " + _("Set WRANGLER_PATH to an executable program."))
    return Unavailable(text, type(error).__name__)


def shorten_output(text: str, max_length: int) -> str:
    left_out = len(text) - max_length
    if left_out <= 0:
        return text
    note = _("[... %s characters omitted ...]") % left_out
    return f"{text[: max_length // 2]}\n{note}\n{text[-(max_length - max_length // 2) :]}"
