"""Copies made inside the store, and how to tell that two objects have the same content."""

import hashlib

from storage_audit.bucket.s3 import s3_client, translate_errors

# What one CopyObject can copy, and the seconds that it may take.
MAX_COPY_BYTES = 5 * 2**30
COPY_TIMEOUT_SECONDS = 300


def copy_object(bucket: str, source: str, target: str, etag: str) -> str:
    """Have the store copy an object with its metadata, if it still has this ETag. Returns the ETag
    of the copy, which can differ. Raises StoreError; a call without an answer may still succeed."""
    with translate_errors():
        answer = s3_client(attempts=1, timeout_seconds=COPY_TIMEOUT_SECONDS).copy_object(
            Bucket=bucket,
            Key=target,
            CopySource={"Bucket": bucket, "Key": source},
            CopySourceIfMatch=f'"{etag}"',
            MetadataDirective="COPY",
        )
        return answer["CopyObjectResult"]["ETag"].strip('"')


def content_md5(bucket: str, key: str, etag: str) -> str:
    """The MD5 of an object that has this ETag, read piece by piece. Raises StoreError."""
    sum_of_all = hashlib.md5(usedforsecurity=False)
    with translate_errors():
        body = s3_client().get_object(Bucket=bucket, Key=key, IfMatch=f'"{etag}"')["Body"]
        for piece in body.iter_chunks(2**20):
            sum_of_all.update(piece)
    return sum_of_all.hexdigest()
