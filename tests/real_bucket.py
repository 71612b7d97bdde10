"""The bucket as something outside the application sees and fills it."""

import json
from concurrent.futures import ThreadPoolExecutor

from django.core.files.base import ContentFile
from django.core.files.storage import default_storage

from devtools.store import Store
from storage_audit.models import Project
from storage_audit.ownership import bucket_connection, bucket_marker
from storage_audit.storage import key_for

BUCKETS = ["tests", "other", "empty"]


class Bucket:
    """The bucket as something outside the application sees and fills it."""

    def __init__(self, r2: Store, name: str = BUCKETS[0]) -> None:
        self.r2, self.name = r2, name

    def put(self, *keys: str, body: bytes = b"content") -> None:
        for key in keys:
            self.r2.put(key, body, self.name)

    def keys(self) -> set[str]:
        """All but the application's own."""
        mine = (bucket_marker.MARKER_PREFIX, bucket_marker.CLOCK_KEY)
        return {key for key in self.r2.keys(self.name) if not key.startswith(mine)}

    def facts(self, start: str = "") -> dict[str, tuple[int, str]]:
        """Size and etag of what starts so."""
        return {k: v for k, v in self.r2.keys(self.name).items() if k.startswith(start)}

    def wipe(self) -> None:
        for key in self.r2.keys(self.name):
            self.r2.remove(key, self.name)

    def set_marker(self, **changes: object) -> None:
        """Claim the bucket with a marker that has these fields."""
        content = json.loads(self.r2.read(bucket_marker.MARKER_KEY, self.name))
        self.put(bucket_marker.MARKER_KEY, body=json.dumps({**content, **changes}).encode())
        bucket_connection.record_marker(self.name)

    def upload(self, project_id: str, filename: str = "take.mp4", body: bytes = b"take") -> str:
        """Save a file as the application does; the project is made when it is not there."""
        Project.objects.get_or_create(pk=project_id)
        key = key_for(project_id, scene="s1", filename=filename)
        return default_storage.save(key, ContentFile(body))


def put_files(bucket: Bucket, count: int) -> list[str]:
    keys = [f"projects/proj_1/scenes/s1/media/{n:04}.mp4" for n in range(count)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(bucket.put, keys))
    return keys


def fold_unicode(bucket: Bucket) -> None:
    """Have the marker say that the store takes all spellings for one object, as R2 does."""
    bucket.set_marker(folds_unicode=True)
