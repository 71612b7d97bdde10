"""Multipart uploads that were begun and not completed: no listing of objects shows them."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from storage_audit.bucket.errors import Broken, StoreError
from storage_audit.bucket.r2 import client, own_errors
from storage_audit.bucket.wire import decode

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import ListMultipartUploadsOutputTypeDef


# Where a listing goes on.
Markers = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Upload:
    key: str
    upload_id: str
    initiated: datetime


Page = tuple[list[Upload], Markers | None]


def unfinished(bucket: str, prefix: str) -> Iterator[list[Upload]] | None:
    """The multipart uploads under `prefix`, page by page; None where the store cannot list them.
    Only when the iteration ends without an exception these were all. Raises StoreError."""
    try:
        first = page_of(bucket, prefix, {})
    except StoreError as error:
        if error.code == "NotImplemented":
            return None
        raise
    return pages_from(first, bucket, prefix)


def pages_from(page: Page, bucket: str, prefix: str) -> Iterator[list[Upload]]:
    while True:
        found, markers = page
        yield found
        if markers is None:
            return
        page = page_of(bucket, prefix, markers)
        if page[1] == markers:
            raise Broken("The listing of multipart uploads does not get on.")


def page_of(bucket: str, prefix: str, markers: Markers) -> Page:
    with own_errors():
        answer = client().list_multipart_uploads(
            Bucket=bucket, Prefix=prefix, EncodingType="url", **markers
        )
        found = [
            Upload(decode(entry["Key"]), entry["UploadId"], entry["Initiated"])
            for entry in answer.get("Uploads", [])
        ]
    return found, next_markers(answer)


def next_markers(answer: "ListMultipartUploadsOutputTypeDef") -> Markers | None:
    if "IsTruncated" not in answer:
        raise Broken("The listing of multipart uploads does not say whether it is complete.")
    if not answer["IsTruncated"]:
        return None
    if "NextKeyMarker" not in answer or "NextUploadIdMarker" not in answer:
        raise Broken("The listing of multipart uploads is cut short and does not say how to go on.")
    return {
        "KeyMarker": decode(answer["NextKeyMarker"]),
        "UploadIdMarker": answer["NextUploadIdMarker"],
    }


def abort(bucket: str, upload: Upload) -> None:
    with own_errors():
        client().abort_multipart_upload(Bucket=bucket, Key=upload.key, UploadId=upload.upload_id)
