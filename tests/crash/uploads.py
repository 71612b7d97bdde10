"""Saves files as the application does, one after the other, into these projects in turn.

Prints each key before it is tried and after it is saved, with its ETag: who kills it knows what
may be in the bucket, and what must be.
"""

import sys
from itertools import cycle, islice
from uuid import uuid4

import django


def main(ids: list[str]) -> None:
    django.setup()
    from botocore.exceptions import BotoCoreError, ClientError
    from django.core.files.base import ContentFile
    from django.core.files.storage import default_storage
    from django.db import DatabaseError

    from storage_audit.bucket.errors import StoreError
    from storage_audit.models import R2Object
    from storage_audit.storage import key_for

    broken = (BotoCoreError, ClientError, DatabaseError, OSError, StoreError)
    for id in islice(cycle(ids), 60):
        key = key_for(id, scene="s9", filename=f"{uuid4().hex}.mp4")
        print("try", key, flush=True)
        try:
            saved = default_storage.save(key, ContentFile(uuid4().bytes * 64))
            etag = R2Object.objects.get(key=saved).etag
        except broken as error:
            print("failed", key, type(error).__name__, flush=True)
        else:
            print("saved", saved, etag.strip('"'), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
