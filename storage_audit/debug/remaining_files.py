"""What a cleanup of a project would still find: over S3, and over Cloudflare's own API."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from django.utils.translation import gettext as _

from storage_audit.bucket.errors import DeadlinePassed, StoreError
from storage_audit.cleanup import cloudflare_crosscheck
from storage_audit.debug import discovery_comparison
from storage_audit.debug.discovery_comparison import Keys, Way
from storage_audit.ownership.bucket_marker import CannotConclude


@dataclass(frozen=True, slots=True)
class Look:
    """Into all buckets, or `keys` is None and `reason` says why."""

    keys: Keys | None
    reason: str = ""

    @property
    def is_clean(self) -> bool | None:
        return None if self.keys is None else not self.keys.count


@dataclass(frozen=True, slots=True)
class Remains:
    buckets: list[str]
    s3: Look
    api: Look


def look_for_remains(project_id: str, *, seconds: float) -> Remains:
    """In each bucket that may have objects of the project. After so many seconds neither look asks
    for more; what was asked for last may take up to 17."""
    ends = monotonic() + seconds

    def left() -> float:
        return ends - monotonic()

    def by_s3(bucket: str) -> Keys:
        found = discovery_comparison.compare(project_id, bucket, seconds=left())
        return found.found[Way.LISTED]

    def by_api(bucket: str) -> Keys:
        keys = Keys()
        for key in cloudflare_crosscheck.remaining(project_id, bucket, seconds=left()):
            keys.add(key)
        return keys

    def look(into: Callable[[str], Keys]) -> Look:
        found = Keys()
        for bucket in buckets:
            try:
                found += into(bucket)
            except DeadlinePassed:
                return Look(None, _("It took longer than %s seconds.") % seconds)
            except (StoreError, CannotConclude) as error:
                return Look(
                    None, _("Bucket %(bucket)s: %(error)s") % {"bucket": bucket, "error": error}
                )
        return Look(found)

    buckets = discovery_comparison.buckets_of(project_id)
    return Remains(buckets, look(by_s3), look(by_api))
