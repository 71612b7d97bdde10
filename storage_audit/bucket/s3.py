"""The object store over S3, and the only module that knows botocore. It does not need boto3, which
adds the transfer of files, takes two megabytes in each process, and is used by django-storages."""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cache, lru_cache
from math import inf
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as NoConnection
from botocore.handlers import add_expect_header
from botocore.parsers import ResponseParserError
from django.utils.translation import gettext as _

from storage_audit.bucket import (
    answer_schema,
    concurrent_requests,
    delete_answers,
    listing_xml,
    request_stats,
)
from storage_audit.bucket.connections import number_connections
from storage_audit.bucket.errors import (
    LOCKED,
    UNANSWERED,
    BucketForbidden,
    DeadlinePassed,
    InvalidResponse,
    Refused,
    StoreError,
    Unavailable,
    classify_error,
    may_still_delete,
)
from storage_audit.bucket.listing_xml import Entries, Entry
from storage_audit.clocks import monotonic_seconds
from storage_audit.conf import Conf, conf
from storage_audit.redaction import redact_secrets

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PAGE_SIZE = 1000
MAX_KEY_BYTES = 1024
# What answers to other questions say: of a place further on, of folders, or by version 1.
UNREQUESTED_FIELDS = dict.fromkeys(
    ("StartAfter", "ContinuationToken", "Delimiter", "CommonPrefixes", "Marker", "NextMarker"), ""
)


class ListedObject(NamedTuple):
    """An object as a listing shows it; `etag` without quotes, bytes that are not UTF-8 in `key`
    as lone surrogates."""

    key: str
    size: int
    etag: str
    last_modified: datetime


ObjectsT = TypeVar("ObjectsT", list[ListedObject], Entries)


@dataclass(frozen=True, slots=True)
class Page(Generic[ObjectsT]):
    objects: ObjectsT
    next_token: str | None

    @property
    def keys(self) -> list[str]:
        shown = self.objects
        return shown.keys if isinstance(shown, Entries) else [each.key for each in shown]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the store said about one key of a delete call. No evidence that the object is gone."""

    code: str
    message: str = ""
    # The store may still obey the call.
    is_open: bool = False

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" if self.message else self.code


DELETED = Answer("Deleted")
NOT_MENTIONED = Answer(UNANSWERED, "the store's answer does not mention this key", is_open=True)
WRONG_KEYS = Answer(UNANSWERED, "the store answered a request for different keys", is_open=True)


def client_config(attempts: int, timeout_seconds: int = 12) -> Config:
    """How to talk to R2. Checksums only where required, as R2 rejects aws-chunked trailers.
    https://developers.cloudflare.com/r2/examples/aws/boto3/"""
    return Config(
        region_name=conf().region,
        # botocore puts its own together anew for each request, a tenth of a millisecond each time.
        user_agent="storage-audit",
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        retries={"mode": "standard", "total_max_attempts": attempts},
        # Three attempts end before the lease of the cleanup they are for.
        connect_timeout=5,
        read_timeout=timeout_seconds,
        # As many threads may list at once, each over a connection that it finds again.
        max_pool_connections=32,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )


def prepare_client(client: Any) -> None:
    """R2 never answers `Expect: 100-continue`, and botocore waits a second for it on each PUT."""
    client.meta.events.unregister("before-call.s3", add_expect_header)
    # Handlers of `*.ListObjectsV2` go before those of `s3.*`, one of which reads the whole page.
    client.meta.events.register("before-parse.*.ListObjectsV2", take_entries)
    client.meta.events.register("before-parse.*.DeleteObjects", delete_answers.take_deleted_keys)
    for call in ("ListObjectsV2", "ListMultipartUploads", "DeleteObjects"):
        client.meta.events.register(f"before-parse.*.{call}", keep_frame)
    client.meta.events.register(
        "before-parameter-build.s3.DeleteObjects", delete_answers.keep_first_key
    )
    client.meta.events.register("before-call.s3.DeleteObjects", delete_answers.write_all_keys)
    client.meta.events.register("before-call.s3", refuse_redirect)
    client.meta.events.register("response-received.s3", note_pause)
    client.meta.events.register("response-received.s3", count_attempt)
    client.meta.events.register("after-call-error.s3", count_failure)
    number_connections(client)


def refuse_redirect(context: dict[str, Any], **kwargs: Any) -> None:
    """Follow no redirect. botocore would send the call again whatever `attempts` says, and each
    later call to the region that the answer named, until the process ends."""
    context["s3_redirect"]["redirected"] = True


def take_entries(
    response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **kwargs: Any
) -> None:
    """Leave to botocore what is around the entries of a page, or all that is not understood."""
    with _parse_lock:  # In turns, as two pages at once take twice the memory, and no less time.
        response_dict["body"], customized_response_dict["Entries"] = listing_xml.split_entries(
            response_dict["body"]
        )


_parse_lock = threading.Lock()


def keep_frame(
    response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **kwargs: Any
) -> None:
    """What botocore reads, for `frame` to read too."""
    customized_response_dict["Frame"] = response_dict["body"]


def count_attempt(event_name: str, context: dict[str, Any], **kwargs: Any) -> None:
    """Each attempt counts, also those that botocore makes by itself after a failure."""
    answer, error = kwargs["parsed_response"], kwargs["exception"]
    if error:
        context["counted"] = error
        result = type(error).__name__
    elif "Error" in answer:
        status = answer["ResponseMetadata"]["HTTPStatusCode"]
        result = request_stats.result_name(str(answer["Error"].get("Code", "")), status)
    else:
        result = request_stats.OK
    if not isinstance(error, StoreError):  # which stands for a request that was not sent
        request_stats.count_request(event_name.rpartition(".")[2], result)


def note_pause(parsed_response: dict[str, Any] | None, **kwargs: Any) -> None:
    """When the store asks for a pause, the requests beside this one wait too."""
    answer = (parsed_response or {}).get("ResponseMetadata", {})
    if answer.get("HTTPStatusCode") in (429, 503) and (seconds := retry_after(answer)):
        concurrent_requests.note_pause(seconds)


def retry_after(answer: Mapping[str, Any]) -> float:
    """The seconds that the store asks us to wait. A date is legal too, and would ask for a clock
    that agrees with ours."""
    asked = answer.get("HTTPHeaders", {}).get("retry-after", "")
    return float(asked) if asked.isdecimal() else 0


def count_failure(
    event_name: str, context: dict[str, Any], exception: Exception, **kwargs: Any
) -> None:
    """The last attempt, when its answer was cut short or unreadable: botocore tells of it only
    once the call has failed."""
    if context.get("counted") is not exception:
        request_stats.count_request(event_name.rpartition(".")[2], type(exception).__name__)


_send_until: ContextVar[float] = ContextVar("send_until", default=inf)


@contextmanager
def send_deadline(moment: float) -> Iterator[None]:
    """Within this block, a request that would leave after this time of our clock raises
    DeadlinePassed instead.

    The clock is read when the request is built and signed, so a process that is stopped between
    that and the sending can send it late. The store refuses it once its signature is 15 minutes
    old.
    """
    before = _send_until.set(moment)
    try:
        yield
    finally:
        _send_until.reset(before)


def check_send_deadline(**kwargs: Any) -> None:
    if monotonic_seconds() > _send_until.get():
        raise DeadlinePassed(_("Not sent: the check before it is too old."))


def forbid_overwrite(params: dict[str, Any], **kwargs: Any) -> None:
    """R2 then copies to no key that has an object. Other stores, local R2 among them, ignore it.
    https://developers.cloudflare.com/r2/api/s3/extensions/"""
    params["headers"]["cf-copy-destination-if-none-match"] = "*"


@cache
def _shared_session() -> botocore.session.Session:
    """One for all clients: each reads its model of S3 anew, which takes a tenth of a second."""
    return botocore.session.Session()


# A client has megabytes, and tests change the settings again and again.
@lru_cache(maxsize=8)
def _build_s3_client(
    settings: Conf, attempts: int, timeout_seconds: int, process: int
) -> "S3Client":
    client = _shared_session().create_client(
        "s3",
        endpoint_url=settings.endpoint_url,
        aws_access_key_id=settings.access_key_id,
        aws_secret_access_key=settings.secret_access_key,
        config=client_config(attempts, timeout_seconds),
    )
    prepare_client(client)
    client.meta.events.register("before-send.s3", check_send_deadline)
    client.meta.events.register("before-send.s3", concurrent_requests.hold_back)
    client.meta.events.register("before-call.s3.CopyObject", forbid_overwrite)
    return cast("S3Client", client)


_client_lock = threading.Lock()


def s3_client(
    attempts: int = 3, settings: Conf | None = None, timeout_seconds: int = 12
) -> "S3Client":
    """The shared client: safe between threads, not between processes. It waits
    `timeout_seconds` for an answer."""
    with _client_lock:
        return _build_s3_client(settings or conf(), attempts, timeout_seconds, os.getpid())


def drop_connections() -> None:
    """Send what follows over new connections; what is under way keeps its own."""
    with _client_lock:
        _build_s3_client.cache_clear()


def translate_client_error(error: ClientError) -> StoreError:
    details = error.response.get("Error", {})
    metadata = error.response.get("ResponseMetadata", {})
    status = metadata.get("HTTPStatusCode", 0)
    code = str(details.get("Code", status))
    text = f"{error.operation_name} failed: {code} {details.get('Message', '')}".strip()
    return classify_error(code, status)(
        text,
        code,
        retry_after=retry_after(metadata),
        # Where there is no S3 error to read, botocore takes the status for the code.
        answered=status < 500 or not code.isdecimal(),
    )


def is_bucket_forbidden(bucket: str, error: StoreError) -> bool:
    """Whether the bucket as a whole refuses us, and not only the request that met this error."""
    if not isinstance(error, Refused) or isinstance(error, BucketForbidden):
        return isinstance(error, BucketForbidden)
    try:
        with translate_errors():
            s3_client(attempts=1).list_objects_v2(Bucket=bucket, MaxKeys=1)
    except Refused:
        return True
    except StoreError:
        return False  # No answer is no refusal.
    return False


BAD_ADDRESS_MESSAGE = (
    "Can't reach the store: invalid address ({}). Check R2_ENDPOINT_URL, HTTPS_PROXY,"
    " HTTP_PROXY, ALL_PROXY and NO_PROXY."
)
# botocore's parser has no error of its own for an element that comes twice or has others in it.
UNREADABLE_ERRORS = (
    BotoCoreError,
    ResponseParserError,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
)


@contextmanager
def translate_errors() -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        raise translate_client_error(error) from error
    except (NoConnection, HTTPClientError) as error:
        if isinstance(cause := error.kwargs.get("error"), ValueError):
            # Its own text is left out, as it quotes parts of the address, and so of passwords.
            name = type(cause).__name__
            raise Unavailable(BAD_ADDRESS_MESSAGE.format(name), name) from None
        raise Unavailable(f"Can't reach the store: {error}", type(error).__name__) from error
    except UNREADABLE_ERRORS as error:
        raise InvalidResponse(
            f"Can't read the store's answer: {error}", type(error).__name__
        ) from error


def list_page(
    bucket: str, prefix: str, start_after: str = "", token: str | None = None
) -> Page[list[ListedObject]]:
    """One page of a listing, as the store gives it. Raises StoreError."""
    page = list_entries(bucket, prefix, start_after, token)
    return Page([listed_object(entry) for entry in page.objects], page.next_token)


def list_entries(
    bucket: str,
    prefix: str,
    start_after: str = "",
    token: str | None = None,
    *,
    max_keys: int | None = None,
) -> Page[Entries]:
    """The same page in a fraction of the time, dates as text. `max_keys` defaults to PAGE_SIZE.

    Keys are decoded here: botocore would replace bytes that are not UTF-8, and so name another key.
    """
    asked = {"Prefix": prefix, "EncodingType": "url", "StartAfter": start_after}
    if token:
        asked["ContinuationToken"] = token
    most = max_keys or PAGE_SIZE
    with translate_errors():
        answer: Mapping[str, Any] = s3_client().list_objects_v2(
            Bucket=bucket,
            MaxKeys=most,
            **asked,  # type: ignore[arg-type]
        )
        return parse_page(answer, bucket, asked, most)


def parse_page(
    answer: Mapping[str, Any], bucket: str, asked: Mapping[str, str], most: int
) -> Page[Entries]:
    """What the answer holds, if it answers this request. Raises InvalidResponse and what
    `translate_errors` translates."""
    fields = answer_schema.read_frame(answer["Frame"], answer_schema.OBJECT_LISTING)
    encoded = fields.get("EncodingType") == "url"
    left = [listing_xml.convert_entry(entry, encoded) for entry in answer.get("Contents", [])]
    entries = answer["Entries"] + Entries.from_entries(left)
    count = len(entries)
    numbers = {"KeyCount": range(count, count + 1), "MaxKeys": range(count, most + 1)}
    answer_schema.check_frame(
        answer_schema.OBJECT_LISTING,
        bucket,
        fields,
        {**UNREQUESTED_FIELDS, "Name": bucket, **asked},
        numbers,
    )
    return Page(entries, answer_schema.next_token(fields))


def listed_object(entry: Entry) -> ListedObject:
    """Raises InvalidResponse if there is no such date."""
    try:
        moment = datetime.fromisoformat(entry.last_modified)
    except ValueError as error:
        raise InvalidResponse(
            f"Can't read the store's answer: {error}", type(error).__name__
        ) from error
    return ListedObject(entry.key, entry.size, entry.etag, moment)


def read_object(bucket: str, key: str) -> bytes | None:
    """An object's content, or None if the store says that there is no such key."""
    try:
        with translate_errors():
            return s3_client().get_object(Bucket=bucket, Key=key)["Body"].read()
    except StoreError as error:
        if error.code == "NoSuchKey":
            return None
        raise


def write_object(bucket: str, key: str, body: bytes) -> None:
    with translate_errors():
        s3_client().put_object(Bucket=bucket, Key=key, Body=body)


def head_object(bucket: str, key: str) -> ListedObject:
    """Size, ETag and time of an object. Raises StoreError, which never shows that it is gone."""
    with translate_errors():
        answer = s3_client().head_object(Bucket=bucket, Key=key)
        size, etag = listing_xml.parse_size_and_etag(answer["ContentLength"], answer["ETag"])
        return ListedObject(key, size, etag, answer["LastModified"])


def read_answer_time(bucket: str, key: str) -> datetime | None:
    """When the store answers that it has this object, by its own clock; None where it dates no
    answers, as Cloudflare's local R2. Raises StoreError."""
    with translate_errors():
        answer = s3_client().head_object(Bucket=bucket, Key=key)
    headers = answer["ResponseMetadata"].get("HTTPHeaders", {})
    try:
        return parsedate_to_datetime(headers["date"]) if "date" in headers else None
    except ValueError as error:
        raise InvalidResponse("The store's answer has no valid date.") from error


def delete_batch(bucket: str, keys: list[str]) -> dict[str, Answer]:
    """Ask once for the deletion of up to 1,000 keys; the answer for each. Raises StoreError.

    Sent exactly once, as the objects must be checked again before it is sent again.
    `Quiet` stays off: with it, silence would be the sign of success and of failure.
    """
    with translate_errors():
        answer: Mapping[str, Any] = s3_client(attempts=1).delete_objects(
            Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": False}
        )
        answer_schema.read_frame(answer["Frame"], answer_schema.DELETE_ANSWER)
    gone, failures = answer.get("Deleted", []), answer.get("Errors", [])
    named = [*answer["Cut"], *(entry["Key"] for entry in (*gone, *failures))]
    if len(set(named)) < len(named) or not set(keys).issuperset(named):
        return dict.fromkeys(keys, WRONG_KEYS)
    told = dict.fromkeys(keys, NOT_MENTIONED) | dict.fromkeys(named, DELETED)
    for failure in failures:
        code, message = failure.get("Code", ""), failure.get("Message", "")
        told[failure["Key"]] = refused_answer(code, message, classify_error(code))
    return told


def refused_answer(code: str, message: str, kind: type[StoreError]) -> Answer:
    """The answer for a key that the store would not delete, with what to do where we know it."""
    if code == LOCKED:
        message = _(
            "a lock rule of the bucket protects this file. Remove or shorten the rule, or"
            " wait until it expires; then try again. The store says: %s"
        ) % (message or code)
    # Without any text it would count as no answer, and the key would be sent again and again.
    return Answer(code or "Error", redact_secrets(message), may_still_delete(kind))


def delete_single(bucket: str, key: str) -> Answer:
    """Ask once for the deletion of one key. Raises StoreError."""
    with translate_errors():
        s3_client(attempts=1).delete_object(Bucket=bucket, Key=key)
    return DELETED
