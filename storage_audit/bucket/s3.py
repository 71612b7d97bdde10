"""The object store over S3, and the only module that knows botocore, which is all of boto3 but the
transfer of files: that takes two megabytes in each process, and django-storages does it."""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
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

from storage_audit.bucket import answers, frame, listing_xml, request_stats
from storage_audit.bucket.errors import (
    LOCKED,
    UNANSWERED,
    BucketForbidden,
    DeadlinePassed,
    InvalidResponse,
    Refused,
    StoreError,
    Unavailable,
    classify,
    leaves_open,
)
from storage_audit.bucket.listing_xml import Entries, Entry
from storage_audit.clocks import monotonic
from storage_audit.conf import Conf, conf
from storage_audit.redaction import redact

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PAGE = 1000
MAX_KEY_BYTES = 1024
# What answers to other questions say: of a place further on, of folders, or by version 1.
NOT_ASKED = dict.fromkeys(
    ("StartAfter", "ContinuationToken", "Delimiter", "CommonPrefixes", "Marker", "NextMarker"), ""
)


class Listed(NamedTuple):
    """An object as a listing shows it; `etag` without quotes, bytes that are not UTF-8 in `key`
    as lone surrogates."""

    key: str
    size: int
    etag: str
    last_modified: datetime


Shown = TypeVar("Shown", list[Listed], Entries)


@dataclass(frozen=True, slots=True)
class Page(Generic[Shown]):
    objects: Shown
    next_token: str | None

    @property
    def keys(self) -> list[str]:
        shown = self.objects
        return shown.keys if isinstance(shown, Entries) else [each.key for each in shown]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the store said of one key of a delete call. No evidence that the object is gone."""

    code: str
    message: str = ""
    # The store may still obey the call.
    is_open: bool = False

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" if self.message else self.code


DELETED = Answer("Deleted")
SILENCE = Answer(UNANSWERED, "the store's answer does not mention this key", is_open=True)
FOREIGN = Answer(UNANSWERED, "the store answered a request for other keys", is_open=True)


def client_config(attempts: int, patience: int = 12) -> Config:
    """How to talk to R2. Checksums only where required, as R2 rejects aws-chunked trailers.
    https://developers.cloudflare.com/r2/examples/aws/boto3/"""
    return Config(
        region_name=conf().region,
        # botocore puts its own together anew for each request, a tenth of a millisecond each time.
        user_agent="storage-audit",
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        retries={"mode": "standard", "total_max_attempts": attempts},
        # Three tries end before the lease of the operation they are for.
        connect_timeout=5,
        read_timeout=patience,
        # As many threads may list at once, each over a connection that it finds again.
        max_pool_connections=32,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )


def prepare(client: Any) -> None:
    """R2 never answers `Expect: 100-continue`, and botocore waits a second for it on each PUT."""
    client.meta.events.unregister("before-call.s3", add_expect_header)
    # Handlers of `*.ListObjectsV2` go before those of `s3.*`, one of which reads the whole page.
    client.meta.events.register("before-parse.*.ListObjectsV2", cut_entries)
    client.meta.events.register("before-parse.*.DeleteObjects", answers.cut_keys)
    for call in ("ListObjectsV2", "ListMultipartUploads", "DeleteObjects"):
        client.meta.events.register(f"before-parse.*.{call}", keep_frame)
    client.meta.events.register("before-parameter-build.s3.DeleteObjects", answers.leave_one)
    client.meta.events.register("before-call.s3.DeleteObjects", answers.ask_for_all)
    client.meta.events.register("before-call.s3", keep_region)
    client.meta.events.register("response-received.s3", count_attempt)
    client.meta.events.register("after-call-error.s3", count_failure)


def keep_region(context: dict[str, Any], **kwargs: Any) -> None:
    """Follow no redirect. botocore would send the call again whatever `attempts` says, and each
    later call to the region that the answer named, until the process ends."""
    context["s3_redirect"]["redirected"] = True


def cut_entries(
    response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **kwargs: Any
) -> None:
    """Leave to botocore what is around the entries of a page, or all that is not understood."""
    with _reading:  # In turns, as two pages at once take twice the memory, and no less time.
        response_dict["body"], customized_response_dict["Entries"] = listing_xml.cut(
            response_dict["body"]
        )


_reading = threading.Lock()


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
        result = request_stats.named(str(answer["Error"].get("Code", "")), status)
    else:
        result = request_stats.OK
    if not isinstance(error, DeadlinePassed):  # which was not sent
        request_stats.count(event_name.rpartition(".")[2], result)


def count_failure(
    event_name: str, context: dict[str, Any], exception: Exception, **kwargs: Any
) -> None:
    """The last attempt, when its answer was cut short or unreadable: botocore tells of it only
    once the call has failed."""
    if context.get("counted") is not exception:
        request_stats.count(event_name.rpartition(".")[2], type(exception).__name__)


_send_until: ContextVar[float] = ContextVar("send_until", default=inf)


@contextmanager
def sent_until(moment: float) -> Iterator[None]:
    """Within, a request that would leave after this time of our clock raises DeadlinePassed
    instead.

    Looked at when the request is built and signed, and only its connection may be still to make:
    a process that is stopped in this last moment can send it late. Then the store refuses it as
    soon as its signature is 15 minutes old.
    """
    before = _send_until.set(moment)
    try:
        yield
    finally:
        _send_until.reset(before)


def check_the_clock(**kwargs: Any) -> None:
    if monotonic() > _send_until.get():
        raise DeadlinePassed(_("Not sent: the look before it is too old by now."))


def spare_the_target(params: dict[str, Any], **kwargs: Any) -> None:
    """R2 then copies to no key that has an object. Other stores, local R2 among them, ignore it.
    https://developers.cloudflare.com/r2/api/s3/extensions/"""
    params["headers"]["cf-copy-destination-if-none-match"] = "*"


@cache
def _session() -> botocore.session.Session:
    """One for all clients: each reads its model of S3 anew, which takes a tenth of a second."""
    return botocore.session.Session()


# A client has megabytes, and tests change the settings again and again.
@lru_cache(maxsize=8)
def _client(settings: Conf, attempts: int, patience: int, process: int) -> "S3Client":
    client = _session().create_client(
        "s3",
        endpoint_url=settings.endpoint_url,
        aws_access_key_id=settings.access_key_id,
        aws_secret_access_key=settings.secret_access_key,
        config=client_config(attempts, patience),
    )
    prepare(client)
    client.meta.events.register("before-send.s3", check_the_clock)
    client.meta.events.register("before-call.s3.CopyObject", spare_the_target)
    return cast("S3Client", client)


_creating = threading.Lock()


def client(attempts: int = 3, settings: Conf | None = None, patience: int = 12) -> "S3Client":
    """The shared client: safe between threads, not between processes. `patience` is how many
    seconds it waits for an answer."""
    with _creating:
        return _client(settings or conf(), attempts, patience, os.getpid())


def forget_connections() -> None:
    """Send what follows over new connections; what is under way keeps its own."""
    with _creating:
        _client.cache_clear()


def translate(error: ClientError) -> StoreError:
    details = error.response.get("Error", {})
    metadata = error.response.get("ResponseMetadata", {})
    status = metadata.get("HTTPStatusCode", 0)
    code = str(details.get("Code", status))
    text = f"{error.operation_name} failed: {code} {details.get('Message', '')}".strip()
    asked = metadata.get("HTTPHeaders", {}).get("retry-after", "")
    return classify(code, status)(
        text,
        code,
        # A date is legal too, and would ask for a clock that agrees with ours.
        retry_after=float(asked) if asked.isdecimal() else 0,
        # Where there is no S3 error to read, botocore takes the status for the code.
        answered=status < 500 or not code.isdecimal(),
    )


def bars(bucket: str, error: StoreError) -> bool:
    """Whether the bucket as a whole refuses us, and not only the request that met this error."""
    if not isinstance(error, Refused) or isinstance(error, BucketForbidden):
        return isinstance(error, BucketForbidden)
    try:
        with own_errors():
            client(attempts=1).list_objects_v2(Bucket=bucket, MaxKeys=1)
    except Refused:
        return True
    except StoreError:
        return False  # No answer is no refusal.
    return False


NO_ADDRESS = (
    "The store cannot be reached: an address cannot be read ({}). Check R2_ENDPOINT_URL,"
    " HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY."
)
# botocore's parser has no error of its own for an element that comes twice or has others in it.
UNREADABLE = (
    BotoCoreError,
    ResponseParserError,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
)


@contextmanager
def own_errors() -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        raise translate(error) from error
    except (NoConnection, HTTPClientError) as error:
        if isinstance(cause := error.kwargs.get("error"), ValueError):
            # Its own text is left out, as it quotes parts of the address, and so of passwords.
            name = type(cause).__name__
            raise Unavailable(NO_ADDRESS.format(name), name) from None
        raise Unavailable(f"The store cannot be reached: {error}", type(error).__name__) from error
    except UNREADABLE as error:
        raise InvalidResponse(
            f"The store's answer is unreadable: {error}", type(error).__name__
        ) from error


def list_page(
    bucket: str, prefix: str, start_after: str = "", token: str | None = None
) -> Page[list[Listed]]:
    """One page of a listing, as the store gives it. Raises StoreError."""
    page = list_entries(bucket, prefix, start_after, token)
    return Page([listed(entry) for entry in page.objects], page.next_token)


def list_entries(
    bucket: str,
    prefix: str,
    start_after: str = "",
    token: str | None = None,
    *,
    max_keys: int | None = None,
) -> Page[Entries]:
    """The same page in a fraction of the time, with dates as text. `max_keys` is PAGE if not given.

    Keys are decoded here: botocore would replace bytes that are not UTF-8, and so name another key.
    """
    asked = {"Prefix": prefix, "EncodingType": "url", "StartAfter": start_after}
    if token:
        asked["ContinuationToken"] = token
    most = max_keys or PAGE
    with own_errors():
        answer: Mapping[str, Any] = client().list_objects_v2(
            Bucket=bucket,
            MaxKeys=most,
            **asked,  # type: ignore[arg-type]
        )
        return page_in(answer, bucket, asked, most)


def page_in(
    answer: Mapping[str, Any], bucket: str, asked: Mapping[str, str], most: int
) -> Page[Entries]:
    """What the answer holds, if it is one to this request. Raises InvalidResponse and what
    `own_errors` translates."""
    fields = frame.read(answer["Frame"], frame.OBJECTS)
    encoded = fields.get("EncodingType") == "url"
    left = [listing_xml.parsed(entry, encoded) for entry in answer.get("Contents", [])]
    entries = answer["Entries"] + Entries.of(left)
    count = len(entries)
    numbers = {"KeyCount": range(count, count + 1), "MaxKeys": range(count, most + 1)}
    frame.check(frame.OBJECTS, bucket, fields, {**NOT_ASKED, "Name": bucket, **asked}, numbers)
    return Page(entries, frame.next_token(fields))


def listed(entry: Entry) -> Listed:
    """Raises InvalidResponse if there is no such date."""
    try:
        moment = datetime.fromisoformat(entry.last_modified)
    except ValueError as error:
        raise InvalidResponse(
            f"The store's answer is unreadable: {error}", type(error).__name__
        ) from error
    return Listed(entry.key, entry.size, entry.etag, moment)


def read(bucket: str, key: str) -> bytes | None:
    """An object's content, or None if the store says that there is no such key."""
    try:
        with own_errors():
            return client().get_object(Bucket=bucket, Key=key)["Body"].read()
    except StoreError as error:
        if error.code == "NoSuchKey":
            return None
        raise


def write(bucket: str, key: str, body: bytes) -> None:
    with own_errors():
        client().put_object(Bucket=bucket, Key=key, Body=body)


def head(bucket: str, key: str) -> Listed:
    """Size, ETag and time of an object. Raises StoreError; an error is no evidence of absence."""
    with own_errors():
        answer = client().head_object(Bucket=bucket, Key=key)
        size, etag = listing_xml.parse_facts(answer["ContentLength"], answer["ETag"])
        return Listed(key, size, etag, answer["LastModified"])


def delete_batch(bucket: str, keys: list[str]) -> dict[str, Answer]:
    """Ask once for the deletion of up to 1,000 keys; the answer for each. Raises StoreError.

    Sent exactly once, as sending it again needs a new proof that the objects may go.
    `Quiet` stays off: with it, silence would be the sign of success and of failure.
    """
    with own_errors():
        answer: Mapping[str, Any] = client(attempts=1).delete_objects(
            Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": False}
        )
        frame.read(answer["Frame"], frame.DELETIONS)
    gone, failures = answer.get("Deleted", []), answer.get("Errors", [])
    named = [*answer["Cut"], *(entry["Key"] for entry in (*gone, *failures))]
    if len(set(named)) < len(named) or not set(keys).issuperset(named):
        return dict.fromkeys(keys, FOREIGN)
    told = dict.fromkeys(keys, SILENCE) | dict.fromkeys(named, DELETED)
    for failure in failures:
        code, message = failure.get("Code", ""), failure.get("Message", "")
        told[failure["Key"]] = refusal(code, message, classify(code))
    return told


def refusal(code: str, message: str, kind: type[StoreError]) -> Answer:
    """The answer for a key that the store would not delete, with what to do where we know it."""
    if code == LOCKED:
        message = _(
            "a lock rule of the bucket keeps this object. Remove or shorten the rule, or wait"
            " until its time is over; then try again. The store says: %s"
        ) % (message or code)
    # Without any text it would count as no answer, and the key would be sent again and again.
    return Answer(code or "Error", redact(message), leaves_open(kind))


def delete_single(bucket: str, key: str) -> Answer:
    """Ask once for the deletion of one key. Raises StoreError."""
    with own_errors():
        client(attempts=1).delete_object(Bucket=bucket, Key=key)
    return DELETED
