"""Multipart uploads that were begun and not completed: no listing of objects shows them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from storage_audit.bucket import answer_schema
from storage_audit.bucket.errors import InvalidResponse, StoreError
from storage_audit.bucket.listing import is_too_long, key_bytes
from storage_audit.bucket.listing_xml import decode_key
from storage_audit.bucket.s3 import s3_client, translate_errors
from storage_audit.clocks import monotonic_seconds

# Where a listing goes on.
Markers = dict[str, Any]
UNREQUESTED_FIELDS = dict.fromkeys(
    ("KeyMarker", "UploadIdMarker", "Delimiter", "CommonPrefixes"), ""
)


@dataclass(frozen=True, slots=True)
class MultipartUpload:
    key: str
    upload_id: str
    initiated: datetime


UploadPage = tuple[list[MultipartUpload], Markers | None]


def list_unfinished_uploads(bucket: str, prefix: str) -> Iterator[list[MultipartUpload]] | None:
    """The multipart uploads under `prefix`, page by page; None where the store cannot list them.
    Only when the iteration ends without an exception these were all. Raises StoreError."""
    try:
        first = list_upload_page(bucket, prefix, {})
    except StoreError as error:
        if error.code == "NotImplemented":
            return None
        raise
    return upload_pages(first, bucket, prefix)


class UploadAnswer(NamedTuple):
    """What the store said, and when by our monotonic clock, when it was asked for all unfinished
    uploads of a bucket: the uploads if one page shows all of them, or an error."""

    asked_at: float
    uploads: list[MultipartUpload] | None = None
    error: StoreError | None = None


def ask_for_uploads(bucket: str) -> UploadAnswer:
    now = monotonic_seconds()
    try:
        found, following = list_upload_page(bucket, "", {})
    except StoreError as error:
        return UploadAnswer(now, error=error)
    return UploadAnswer(now, found if following is None else None)


def upload_pages(page: UploadPage, bucket: str, prefix: str) -> Iterator[list[MultipartUpload]]:
    while True:
        found, markers = page
        yield found
        if markers is None:
            return
        page = list_upload_page(bucket, prefix, markers)
        if page[1] == markers:
            raise InvalidResponse("The listing of unfinished uploads makes no progress.")


def list_upload_page(bucket: str, prefix: str, markers: Markers) -> UploadPage:
    with translate_errors():
        answer: Mapping[str, Any] = s3_client().list_multipart_uploads(
            Bucket=bucket, Prefix=prefix, EncodingType="url", **markers
        )
        fields = answer_schema.read_frame(answer["Frame"], answer_schema.UPLOAD_LISTING)
        decoded = decode_key if fields.get("EncodingType") == "url" else str
        found = [
            MultipartUpload(decoded(entry["Key"]), entry["UploadId"], entry["Initiated"])
            for entry in answer.get("Uploads", [])
        ]
    asked = UNREQUESTED_FIELDS | {"Bucket": bucket, "Prefix": prefix, "EncodingType": "url"}
    answer_schema.check_frame(answer_schema.UPLOAD_LISTING, bucket, fields, asked | markers, {})
    following = next_markers(fields, decoded)
    refuse_misplaced_uploads(found, prefix, markers, following)
    return found, following


def next_markers(fields: answer_schema.Fields, decoded: Callable[[str], str]) -> Markers | None:
    if not answer_schema.is_truncated(fields):
        return None
    key, upload_id = fields.get("NextKeyMarker"), fields.get("NextUploadIdMarker")
    if not key or not upload_id:
        raise InvalidResponse(
            "The listing of unfinished uploads is incomplete and has no next page."
        )
    return {"KeyMarker": decoded(key), "UploadIdMarker": upload_id}


def refuse_misplaced_uploads(
    found: Sequence[MultipartUpload], prefix: str, markers: Markers, following: Markers | None
) -> None:
    """Raises InvalidResponse for uploads that cannot be where they are listed. Only where there is
    more than one page has the store to keep an order."""
    keys = [markers.get("KeyMarker", ""), *(upload.key for upload in found)]
    keys += [following["KeyMarker"]] if following else []
    if (markers or following) and keys != sorted(keys, key=key_bytes):
        raise InvalidResponse("The listing of unfinished uploads is out of order.")
    if len({(upload.key, upload.upload_id) for upload in found}) < len(found):
        raise InvalidResponse("The listing of unfinished uploads shows an upload twice.")
    if any(is_too_long(upload.key, upload.upload_id) for upload in found):
        raise InvalidResponse(
            "The listing of unfinished uploads shows a key and ID that are too long."
        )
    if not all(upload.key.startswith(prefix) for upload in found):
        raise InvalidResponse(
            "The listing of unfinished uploads shows an upload outside its prefix."
        )


def abort_multipart(bucket: str, upload: MultipartUpload) -> None:
    with translate_errors():
        s3_client().abort_multipart_upload(Bucket=bucket, Key=upload.key, UploadId=upload.upload_id)
