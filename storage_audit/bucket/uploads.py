"""Multipart uploads that were begun and not completed: no listing of objects shows them."""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from storage_audit.bucket.errors import Broken, StoreError
from storage_audit.bucket.r2 import client, decode, own_errors

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import ListMultipartUploadsOutputTypeDef


@dataclass(frozen=True, slots=True)
class Upload:
    key: str
    upload_id: str
    initiated: datetime


def unfinished(bucket: str, prefix: str) -> list[Upload] | None:
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
        following = next_markers(answer)
        if following is None:
            return found
        if following == markers:
            raise Broken("The listing of multipart uploads does not get on.")
        markers = following


def next_markers(answer: "ListMultipartUploadsOutputTypeDef") -> dict[str, Any] | None:
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
