"""What R2 takes for a call, in US dollars for a million: https://developers.cloudflare.com/r2/pricing/"""

from collections.abc import Iterable

PRICES_OF = "2026-11-24"
CLASS_A, CLASS_B, FREE = 4.50, 0.36, 0.0
PRICES = {
    "ListObjectsV2": CLASS_A,
    "ListMultipartUploads": CLASS_A,
    # In none of the published lists; taken for the dearest, as is whatever is not here.
    "DeleteObjects": CLASS_A,
    "GetObject": CLASS_B,
    "HeadObject": CLASS_B,
    "DeleteObject": FREE,
    "AbortMultipartUpload": FREE,
    # It deletes single objects.
    "wrangler": FREE,
}


def dollars(calls: Iterable[tuple[str, int]]) -> float:
    """Of so many calls of each kind."""
    return sum(PRICES.get(kind, CLASS_A) * n for kind, n in calls) / 1e6
