"""Simple solutions to compare with, each in its own process: `python -m benchmarks.naive NAME`.

The store and the database are those of the environment. Each imports only what it needs, so that
none pays for another.
"""

import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from storage_audit.models import R2Object

BUCKET = os.environ.get("R2_BUCKET_NAME", "")
CHANGEABLE_FIELDS = ["project_id", "size", "etag", "last_modified", "source", "state"]
NEXT_TOKEN = b"<NextContinuationToken>"


def make_client() -> "S3Client":
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=os.environ["R2_ENDPOINT_URL"],
        aws_access_key_id=os.environ["R2_ACCESS_KEY_ID"],
        aws_secret_access_key=os.environ["R2_SECRET_ACCESS_KEY"],
        region_name="auto",
    )


def list_pages() -> Iterator[list[Any]]:
    for page in make_client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        yield page.get("Contents", [])


def list_with_paginator() -> None:
    """boto3's paginator, which lists and does nothing else."""
    print(sum(len(page) for page in list_pages()))


def fetch_pages() -> None:
    """Fetches the same pages one after the other, and reads only where the next one begins."""
    from http.client import HTTPConnection
    from urllib.parse import quote, urlsplit

    address = urlsplit(os.environ["R2_ENDPOINT_URL"])
    connection = HTTPConnection(address.hostname or "", address.port)
    first = f"/{BUCKET}?list-type=2&encoding-type=url"
    target = first
    while target:
        connection.request("GET", target)
        _page, found, rest = connection.getresponse().read().rpartition(NEXT_TOKEN)
        token = quote(rest.partition(b"<")[0], safe="")
        target = f"{first}&continuation-token={token}" if found else ""


def delete_all() -> None:
    """boto3's `bucket.objects.delete()`."""
    import boto3

    # The resource makes its client itself, from the same variables as the other programs.
    bucket = boto3.resource("s3").Bucket(BUCKET)
    bucket.objects.filter(Prefix="projects/").delete()


def delete_one_by_one() -> None:
    s3 = make_client()
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="projects/"):
        for listed in page.get("Contents", []):
            s3.delete_object(Bucket=BUCKET, Key=listed["Key"])


def small_project(number: int) -> str:
    return f"proj_small{number:03}"


def delete_small_projects() -> None:
    """One after the other."""
    s3 = make_client()
    for number in range(int(os.environ["SMALL_PROJECTS"])):
        delete_project(s3, small_project(number))


def delete_project(s3: "S3Client", project: str) -> None:
    """Lists what may be a project's, prefix by prefix, and deletes all of it in one call."""
    folders = [f"{kind}/" for kind in ("audio", "captions", "images", "thumbnails", "video")]
    heads = [f"{folder}{doubled}{project}/" for folder in folders for doubled in ("", "proj_")]
    heads += [f"projects/{doubled}{project}/scenes/" for doubled in ("", "proj_")]
    heads += [f"{doubled}{project}_" for doubled in ("", "proj_")]
    pages = (s3.list_objects_v2(Bucket=BUCKET, Prefix=head) for head in heads)
    keys = [listed["Key"] for page in pages for listed in page.get("Contents", [])]
    s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": key} for key in keys]})


def row_values(listed: Any) -> dict[str, Any]:
    found = re.match("projects/(proj_[^/]+)/", listed["Key"])
    return {
        "project_id": found[1] if found else None,
        "size": listed["Size"],
        "etag": listed["ETag"].strip('"'),
        "last_modified": listed["LastModified"],
        "source": "backfill",
        "state": "stored",
    }


def row_table() -> "type[R2Object]":
    import django

    django.setup()
    from storage_audit.models import R2Object

    return R2Object


def update_or_create() -> None:
    """A loop over the paginator that asks the database for each key."""
    table = row_table()
    for page in list_pages():
        for listed in page:
            table.objects.update_or_create(
                bucket=BUCKET, key=listed["Key"], defaults=row_values(listed)
            )


def bulk_create() -> None:
    """A page of the paginator is one upsert."""
    table = row_table()
    for page in list_pages():
        table.objects.bulk_create(
            [table(bucket=BUCKET, key=listed["Key"], **row_values(listed)) for listed in page],
            update_conflicts=True,
            unique_fields=["bucket", "key"],
            update_fields=CHANGEABLE_FIELDS,
        )


SCRIPTS = {
    script.__name__: script
    for script in (
        list_with_paginator,
        fetch_pages,
        delete_all,
        delete_one_by_one,
        delete_small_projects,
        update_or_create,
        bulk_create,
    )
}

if __name__ == "__main__":
    SCRIPTS[sys.argv[1]]()
