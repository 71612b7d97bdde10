"""What R2 takes for a call, in US dollars for a million: https://developers.cloudflare.com/r2/pricing/"""

from collections.abc import Iterable

PRICES_DATE = "2026-11-24"
CLASS_A_PRICE, CLASS_B_PRICE, FREE_PRICE = 4.50, 0.36, 0.0
PRICES_PER_MILLION = {
    "ListObjectsV2": CLASS_A_PRICE,
    "ListMultipartUploads": CLASS_A_PRICE,
    # In none of the published lists, so priced like the dearest, as is whatever is not here.
    "DeleteObjects": CLASS_A_PRICE,
    "GetObject": CLASS_B_PRICE,
    "HeadObject": CLASS_B_PRICE,
    "DeleteObject": FREE_PRICE,
    "AbortMultipartUpload": FREE_PRICE,
    # It deletes single objects.
    "wrangler": FREE_PRICE,
}


def cost_in_dollars(calls: Iterable[tuple[str, int]]) -> float:
    """The cost of so many calls of each kind."""
    return sum(PRICES_PER_MILLION.get(kind, CLASS_A_PRICE) * n for kind, n in calls) / 1e6
