"""Objects as Cloudflare's own API lists them, past S3; the only module that knows its SDK.

https://developers.cloudflare.com/api/resources/r2/subresources/buckets/subresources/objects/
"""

import os
import threading
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from django.utils.translation import gettext as _

from storage_audit.bucket import listing, request_stats
from storage_audit.bucket.errors import (
    InvalidResponse,
    Refused,
    StoreError,
    Unavailable,
    classify_error,
)
from storage_audit.bucket.listing_xml import parse_size_and_etag
from storage_audit.bucket.s3 import PAGE_SIZE, ListedObject, Page
from storage_audit.conf import Conf, conf

if TYPE_CHECKING:
    from cloudflare import APIStatusError, Cloudflare

REQUEST_NAME = "CloudflareListObjects"
# What its numbers are called over S3: https://developers.cloudflare.com/r2/api/error-codes/
# 7003 answers an id that no account can have. No token, and one that is none, are as hopeless as a
# wrong one.
ERROR_NAMES = {7003: "NoSuchAccount", 10006: "NoSuchBucket", 10042: "NotEntitled"} | dict.fromkeys(
    (6003, 9106, 9109), "Unauthorized"
)


def setup_problem() -> str:
    """Why Cloudflare's API cannot be asked, and what to do about it; nothing when it can."""
    if not conf().api_token:
        return _(
            "If the bucket is on Cloudflare, set CLOUDFLARE_API_TOKEN to a token with the"
            " permission Workers R2 Storage: Read."
        )
    if not conf().account_id:
        return _("Set CLOUDFLARE_ACCOUNT_ID to your account ID (32 letters and digits).")
    if find_spec("cloudflare") is None:
        return _("Install its SDK: pip install cloudflare.")
    return ""


# Importing the SDK takes a third of a second, which most processes need not spend.
@lru_cache(maxsize=8)
def _build_api_client(settings: Conf, process: int) -> "Cloudflare":
    from cloudflare import Cloudflare, Timeout

    client = Cloudflare(
        api_token=settings.api_token,
        base_url=settings.api_url,
        timeout=Timeout(12, connect=5),
        # It would wait as long as the answer asks for, up to a minute: longer than a lease.
        max_retries=0,
    )
    # It takes these from the environment, and prefers them to the token.
    client.api_key = client.api_email = client.user_service_key = None
    return client


_client_lock = threading.Lock()


def cloudflare_client() -> "Cloudflare":
    """The shared client: safe between threads, not between processes. Raises StoreError."""
    if reason := setup_problem():
        raise Refused(_("Can't use Cloudflare's API. %s") % reason)
    with _client_lock:
        try:
            return _build_api_client(conf(), os.getpid())
        except Exception as error:  # noqa: BLE001 - it reads the proxies of the environment
            text = _(
                "Can't create a client for Cloudflare's API (%s). Check HTTPS_PROXY, HTTP_PROXY,"
                " ALL_PROXY and NO_PROXY."
            )
            # Its own text is left out, as it quotes these, and with them passwords.
            name = type(error).__name__
            raise Unavailable(text % name, name) from None


def api_pages(bucket: str, prefix: str, after: str = "") -> Iterator[list[ListedObject]]:
    """Promises the same as `listing.object_pages`."""
    return listing.check_pages(
        prefix, after, lambda token: list_api_page(bucket, prefix, after, token)
    )


def list_api_page(
    bucket: str, prefix: str, start_after: str = "", token: str | None = None
) -> Page[list[ListedObject]]:
    """One page of a listing, as the API gives it. Raises StoreError."""
    where = {"cursor": token} if token else {"start_after": start_after} if start_after else {}
    if conf().jurisdiction:
        where["cf_r2_jurisdiction"] = conf().jurisdiction
    answer = request_page(bucket, prefix=prefix, per_page=PAGE_SIZE, **where)
    try:
        if answer["success"] is not True or answer.get("errors"):
            raise InvalidResponse(_("Cloudflare's API did not say whether the request succeeded."))
        entries, info = answer["result"], answer["result_info"]
        if not isinstance(entries, list) or len(entries) > PAGE_SIZE or info.get("delimited"):
            raise InvalidResponse(_("Cloudflare's API answered a different request."))
        return Page([parse_entry(entry) for entry in entries], next_cursor(info, len(entries)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unreadable_answer(error) from error


def request_page(bucket: str, **parameters: Any) -> Any:
    """The answer as it came: the SDK's models take any type for any other."""
    objects = cloudflare_client().r2.buckets.objects.with_raw_response
    from cloudflare import APIConnectionError, APIStatusError

    try:
        response = objects.list(bucket, account_id=conf().account_id, **parameters)
    except APIStatusError as error:
        raise translate_api_error(error) from error
    except UnicodeEncodeError as error:
        text = _("CLOUDFLARE_API_TOKEN contains invalid characters. Set it again.")
        raise Refused(text) from error
    except APIConnectionError as error:
        reason = error.__cause__ or error
        request_stats.count_request(REQUEST_NAME, type(error).__name__)
        raise Unavailable(
            _("Can't reach Cloudflare's API: %s") % reason, type(reason).__name__
        ) from error
    request_stats.count_request(REQUEST_NAME, request_stats.OK)
    try:
        return response.http_response.json()
    except ValueError as error:
        raise unreadable_answer(error) from error


def translate_api_error(error: "APIStatusError") -> StoreError:
    status, (number, message) = error.status_code, first_error(error.body)
    code = ERROR_NAMES.get(number, str(status))
    request_stats.count_request(REQUEST_NAME, request_stats.result_name(code, status))
    text = _("Cloudflare's API answered %(status)s: %(message)s (code %(number)s).")
    text %= {"status": status, "message": message.rstrip("."), "number": number}
    kind = classify_error(code, status)
    if issubclass(kind, Refused):
        text += " " + _(
            "Check that CLOUDFLARE_API_TOKEN is valid and has the permission Workers R2"
            " Storage: Read. Also check CLOUDFLARE_ACCOUNT_ID, R2_BUCKET_NAME and"
            " R2_JURISDICTION."
        )
    asked = error.response.headers.get("retry-after", "")
    return kind(
        text, code, retry_after=float(asked) if asked.isdecimal() else 0, answered=status < 500
    )


def first_error(content: object) -> tuple[int, str]:
    match content:
        case {"errors": [{"code": int(number), "message": str(message)}, *_]}:
            return number, message
    return 0, _("no reason given")


def unreadable_answer(error: Exception) -> InvalidResponse:
    return InvalidResponse(_("Can't read the answer of Cloudflare's API: %r") % error)


def parse_entry(entry: dict[str, Any]) -> ListedObject:
    key, size, etag = entry["key"], entry["size"], entry["etag"]
    if not (isinstance(key, str) and type(size) is int and isinstance(etag, str)):
        raise TypeError(f"{entry!r}")
    key.encode()  # Half a surrogate pair names nothing.
    size, etag = parse_size_and_etag(size, etag)
    return ListedObject(key, size, etag, datetime.fromisoformat(entry["last_modified"]))


def next_cursor(info: dict[str, Any], count: int) -> str | None:
    cursor = info.get("cursor")
    # Not documented, and decisive where it is given.
    more = info.get("is_truncated", bool(cursor) or count >= PAGE_SIZE)
    if not isinstance(more, bool) or not isinstance(cursor, str | None):
        raise InvalidResponse(_("The listing does not say whether it is complete."))
    if not more:
        if cursor:
            raise InvalidResponse(
                _("The listing contradicts itself: it is complete and also has a next page.")
            )
        return None
    if not cursor:
        raise InvalidResponse(_("The listing is incomplete and has no next page."))
    return cursor
