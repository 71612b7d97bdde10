"""Copies that the store makes by itself, and what tells that two objects have the same content."""

import hashlib

from storage_audit.bucket.s3 import client, own_errors

# What one CopyObject can copy, and the seconds that it may take.
LARGEST = 5 * 2**30
PATIENCE = 300


def copy(bucket: str, source: str, target: str, etag: str) -> str:
    """Let the store copy an object with its metadata, if it still has this ETag; that of the copy,
    which can be another. Raises StoreError; what was not answered may come to pass later."""
    with own_errors():
        answer = client(attempts=1, patience=PATIENCE).copy_object(
            Bucket=bucket,
            Key=target,
            CopySource={"Bucket": bucket, "Key": source},
            CopySourceIfMatch=f'"{etag}"',
            MetadataDirective="COPY",
        )
        return answer["CopyObjectResult"]["ETag"].strip('"')


def md5(bucket: str, key: str, etag: str) -> str:
    """Of the content of an object that has this ETag, read bit by bit. Raises StoreError."""
    sum_of_all = hashlib.md5(usedforsecurity=False)
    with own_errors():
        body = client().get_object(Bucket=bucket, Key=key, IfMatch=f'"{etag}"')["Body"]
        for piece in body.iter_chunks(2**20):
            sum_of_all.update(piece)
    return sum_of_all.hexdigest()
