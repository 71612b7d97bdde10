"""The object store over S3, and the only module that knows boto3."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as NoConnection
from botocore.handlers import add_expect_header
from botocore.parsers import ResponseParserError

from storage_audit.conf import Conf, conf
from storage_audit.redaction import redact

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef

PAGE = 1000
MAX_KEY_BYTES = 1024


class StoreError(Exception):
    """The store did not do what it was asked, or we cannot tell whether it did.

    `code` is the store's own, such as SlowDown, or the name of the error below it.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(redact(message))
        self.code = code


class Unavailable(StoreError):
    """It may work later: no connection, overload, an internal error."""


class Refused(StoreError):
    """It will not work until somebody changes something: credentials, permissions, the bucket."""


class Broken(StoreError):
    """The answer cannot be understood or contradicts itself; nothing follows from it."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as a listing shows it; `etag` without quotes, bytes that are not UTF-8 in `key`
    as lone surrogates."""

    key: str
    size: int
    etag: str
    last_modified: datetime


@dataclass(frozen=True, slots=True)
class Page:
    objects: list[Listed]
    next_token: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the store said of one key of a delete call. No evidence that the object is gone."""

    code: str
    message: str = ""

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" if self.message else self.code


DELETED = Answer("Deleted")
UNANSWERED = Answer("Unanswered", "the store's answer does not mention this key")


def client_config(attempts: int) -> Config:
    """How to talk to R2. Checksums only where required, as R2 rejects aws-chunked trailers.
    https://developers.cloudflare.com/r2/examples/aws/boto3/"""
    return Config(
        region_name=conf().region,
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        retries={"mode": "standard", "total_max_attempts": attempts},
        # Three tries end before the lease of the operation they are for.
        connect_timeout=5,
        read_timeout=12,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )


def prepare(client: Any) -> None:
    """R2 never answers `Expect: 100-continue`, and botocore waits a second for it on each PUT."""
    client.meta.events.unregister("before-call.s3", add_expect_header)


@cache
def _client(settings: Conf, attempts: int, process: int) -> "S3Client":
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=settings.endpoint_url,
        aws_access_key_id=settings.access_key_id,
        aws_secret_access_key=settings.secret_access_key,
        config=client_config(attempts),
    )
    prepare(client)
    return client


_creating = threading.Lock()


def client(attempts: int = 3) -> "S3Client":
    """The shared client: safe between threads, not between processes."""
    with _creating:
        return _client(conf(), attempts, os.getpid())


REFUSALS = {
    "Unauthorized",
    "AccessDenied",
    "InvalidAccessKeyId",
    "NoSuchBucket",
    "ObjectLockedByBucketPolicy",
    "SignatureDoesNotMatch",
}
PASSING = {"ClientDisconnect", "RequestTimeout", "TooManyRequests", "SlowDown"}


def translate(error: ClientError) -> StoreError:
    """https://developers.cloudflare.com/r2/api/error-codes/"""
    details = error.response.get("Error", {})
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = str(details.get("Code", status))
    text = f"{error.operation_name} failed: {code} {details.get('Message', '')}".strip()
    if code in REFUSALS or status in (401, 403):
        return Refused(text, code)
    if code in PASSING or status in (408, 429) or status >= 500:
        return Unavailable(text, code)
    return StoreError(text, code)


@contextmanager
def own_errors() -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        raise translate(error) from error
    except (NoConnection, HTTPClientError) as error:
        raise Unavailable(f"The store cannot be reached: {error}", type(error).__name__) from error
    except (BotoCoreError, ResponseParserError, KeyError, ValueError) as error:
        raise Broken(f"The store's answer is unreadable: {error}", type(error).__name__) from error


def list_page(bucket: str, prefix: str, start_after: str = "", token: str | None = None) -> Page:
    """One page of a listing, as the store gives it. Raises StoreError.

    Keys are decoded here: botocore would replace bytes that are not UTF-8, and so name another key.
    """
    where = {"ContinuationToken": token} if token else {"StartAfter": start_after}
    with own_errors():
        answer = client().list_objects_v2(
            Bucket=bucket,
            Prefix=prefix,
            MaxKeys=PAGE,
            EncodingType="url",
            **where,  # type: ignore[arg-type]
        )
        encoded = answer.get("EncodingType") == "url"
        objects = [
            Listed(
                key=decode(entry["Key"]) if encoded else entry["Key"],
                size=entry["Size"],
                etag=entry["ETag"].strip('"'),
                last_modified=entry["LastModified"],
            )
            for entry in answer.get("Contents", [])
        ]
    return Page(objects, next_token(answer, len(objects)))


def next_token(answer: "ListObjectsV2OutputTypeDef", count: int) -> str | None:
    if "IsTruncated" not in answer:
        raise Broken("The listing does not say whether it is complete.")
    if answer.get("KeyCount", count) != count:
        raise Broken(f"The listing announces {answer['KeyCount']} keys and holds {count}.")
    if not answer["IsTruncated"]:
        return None
    if not (token := answer.get("NextContinuationToken")):
        raise Broken("The listing is cut short and does not say how to go on.")
    return token


def decode(encoded: str) -> str:
    return unquote_to_bytes(encoded.replace("+", " ")).decode("utf-8", "surrogateescape")


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
    return Listed(key, answer["ContentLength"], answer["ETag"].strip('"'), answer["LastModified"])


def delete_batch(bucket: str, keys: list[str]) -> dict[str, Answer]:
    """Ask once for the deletion of up to 1,000 keys; the answer for each. Raises StoreError.

    Sent exactly once, as sending it again needs a new proof that the objects may go.
    `Quiet` stays off: with it, silence would be the sign of success and of failure.
    """
    with own_errors():
        answer = client(attempts=1).delete_objects(
            Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": False}
        )
    answers = dict.fromkeys(keys, UNANSWERED)
    for entry in answer.get("Deleted", []):
        if entry.get("Key") in answers:
            answers[entry["Key"]] = DELETED
    for failure in answer.get("Errors", []):
        if failure.get("Key") in answers:
            answers[failure["Key"]] = Answer(
                failure.get("Code", "Error"), redact(failure.get("Message", ""))
            )
    return answers


def delete_single(bucket: str, key: str) -> Answer:
    """Ask once for the deletion of one key. Raises StoreError."""
    with own_errors():
        client(attempts=1).delete_object(Bucket=bucket, Key=key)
    return DELETED


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload under way: no listing of objects shows it."""

    key: str
    upload_id: str
    initiated: datetime


def unfinished_uploads(bucket: str, prefix: str) -> list[Upload] | None:
    """The multipart uploads under `prefix`; None where the store cannot list them."""
    found: list[Upload] = []
    markers: dict[str, Any] = {}
    while True:
        try:
            with own_errors():
                answer = client().list_multipart_uploads(
                    Bucket=bucket, Prefix=prefix, EncodingType="url", **markers
                )
        except StoreError as error:
            if error.code == "NotImplemented":
                return None
            raise
        for entry in answer.get("Uploads", []):
            found.append(Upload(decode(entry["Key"]), entry["UploadId"], entry["Initiated"]))
        if not answer.get("IsTruncated"):
            return found
        markers = {
            "KeyMarker": decode(answer["NextKeyMarker"]),
            "UploadIdMarker": answer["NextUploadIdMarker"],
        }


def abort_upload(bucket: str, upload: Upload) -> None:
    with own_errors():
        client().abort_multipart_upload(Bucket=bucket, Key=upload.key, UploadId=upload.upload_id)
