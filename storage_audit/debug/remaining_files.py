"""What a cleanup of a project would still find: over S3, and over Cloudflare's own API."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from django.utils.translation import gettext as _

from storage_audit.bucket.errors import DeadlinePassed, StoreError
from storage_audit.cleanup import cloudflare_crosscheck
from storage_audit.debug import discovery_comparison
from storage_audit.debug.comparison_result import DiscoveryMethod, KeySample
from storage_audit.ownership.bucket_marker import CannotConclude


@dataclass(frozen=True, slots=True)
class RemainingKeys:
    """The keys in all buckets, or None, and then `reason` says why."""

    keys: KeySample | None
    reason: str = ""

    @property
    def is_clean(self) -> bool | None:
        return None if self.keys is None else not self.keys.count


@dataclass(frozen=True, slots=True)
class RemainingFiles:
    buckets: list[str]
    s3: RemainingKeys
    api: RemainingKeys


def find_remaining_files(project_id: str, *, seconds: float) -> RemainingFiles:
    """In each bucket that may have objects of the project. After so many seconds neither way sends
    another request; the last one may take up to 17 seconds."""
    ends = monotonic() + seconds

    def left() -> float:
        return ends - monotonic()

    def by_s3(bucket: str) -> KeySample:
        found = discovery_comparison.compare_bucket(project_id, bucket, seconds=left())
        return found.keys_by_method[DiscoveryMethod.LISTED]

    def by_api(bucket: str) -> KeySample:
        keys = KeySample()
        for key in cloudflare_crosscheck.list_project_keys(project_id, bucket, seconds=left()):
            keys.add(key)
        return keys

    def look(into: Callable[[str], KeySample]) -> RemainingKeys:
        found = KeySample()
        for bucket in buckets:
            try:
                found += into(bucket)
            except DeadlinePassed:
                return RemainingKeys(None, _("It took longer than %s seconds.") % seconds)
            except (StoreError, CannotConclude) as error:
                return RemainingKeys(
                    None, _("Bucket %(bucket)s: %(error)s") % {"bucket": bucket, "error": error}
                )
        return RemainingKeys(found)

    buckets = discovery_comparison.possible_buckets(project_id)
    return RemainingFiles(buckets, look(by_s3), look(by_api))
