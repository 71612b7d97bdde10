"""Multipart uploads that were begun and not completed: no listing of objects shows them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from storage_audit.bucket import frame
from storage_audit.bucket.errors import InvalidResponse, StoreError
from storage_audit.bucket.listing import as_bytes, is_too_long
from storage_audit.bucket.listing_xml import decode
from storage_audit.bucket.s3 import client, own_errors

# Where a listing goes on.
Markers = dict[str, Any]
NOT_ASKED = dict.fromkeys(("KeyMarker", "UploadIdMarker", "Delimiter", "CommonPrefixes"), "")


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
            raise InvalidResponse("The listing of multipart uploads does not get on.")


def page_of(bucket: str, prefix: str, markers: Markers) -> Page:
    with own_errors():
        answer: Mapping[str, Any] = client().list_multipart_uploads(
            Bucket=bucket, Prefix=prefix, EncodingType="url", **markers
        )
        fields = frame.read(answer["Frame"], frame.UPLOADS)
        decoded = decode if fields.get("EncodingType") == "url" else str
        found = [
            Upload(decoded(entry["Key"]), entry["UploadId"], entry["Initiated"])
            for entry in answer.get("Uploads", [])
        ]
    asked = NOT_ASKED | {"Bucket": bucket, "Prefix": prefix, "EncodingType": "url"}
    frame.check(frame.UPLOADS, bucket, fields, asked | markers, {})
    following = next_markers(fields, decoded)
    refuse_strays(found, prefix, markers, following)
    return found, following


def next_markers(fields: frame.Fields, decoded: Callable[[str], str]) -> Markers | None:
    if not frame.is_truncated(fields):
        return None
    key, upload_id = fields.get("NextKeyMarker"), fields.get("NextUploadIdMarker")
    if not key or not upload_id:
        raise InvalidResponse(
            "The listing of multipart uploads is cut short and does not say how to go on."
        )
    return {"KeyMarker": decoded(key), "UploadIdMarker": upload_id}


def refuse_strays(
    found: Sequence[Upload], prefix: str, markers: Markers, following: Markers | None
) -> None:
    """Raises InvalidResponse for uploads that cannot be where they are listed. Only where there is
    more than one page has the store to keep an order."""
    keys = [markers.get("KeyMarker", ""), *(upload.key for upload in found)]
    keys += [following["KeyMarker"]] if following else []
    if (markers or following) and keys != sorted(keys, key=as_bytes):
        raise InvalidResponse("The listing of multipart uploads is out of order.")
    if len({(upload.key, upload.upload_id) for upload in found}) < len(found):
        raise InvalidResponse("The listing of multipart uploads shows one twice.")
    if any(is_too_long(upload.key, upload.upload_id) for upload in found):
        raise InvalidResponse(
            "The listing of multipart uploads shows one whose key and ID are too long."
        )
    if not all(upload.key.startswith(prefix) for upload in found):
        raise InvalidResponse("The listing of multipart uploads shows one outside its prefix.")


def abort(bucket: str, upload: Upload) -> None:
    with own_errors():
        client().abort_multipart_upload(Bucket=bucket, Key=upload.key, UploadId=upload.upload_id)
