"""How many requests one person may send, with all tokens."""

import time

from django.core.cache import cache
from django.http import HttpRequest
from ninja.throttling import BaseThrottle

from storage_audit.api.auth import SAFE_METHODS
from storage_audit.conf import conf

WINDOW_SECONDS = 60  # seconds


class RateLimit(BaseThrottle):
    """Limits requests per minute of the clock. A `heavy` request, which asks the store or starts a
    program, counts as a write.

    Django's cache counts: by default each process has its own. Ninja's own throttle is not safe for
    threads, and counts in two steps.
    """

    def __init__(self, *, heavy: bool = False) -> None:
        self.heavy = heavy

    def allow_request(self, request: HttpRequest) -> bool:
        writes = self.heavy or request.method not in SAFE_METHODS
        rate = "api_rate_write" if writes else "api_rate_read"
        minute = int(time.time() // WINDOW_SECONDS)
        key = f"storage_audit:{rate}:{request.user.pk}:{minute}"
        allowed: int = getattr(conf(), rate)
        return increment_count(key) <= allowed

    def wait(self) -> float:
        """Seconds until the next minute begins."""
        return WINDOW_SECONDS - time.time() % WINDOW_SECONDS


def increment_count(key: str) -> int:
    """How often this key was counted, this time included."""
    cache.add(key, 0, timeout=2 * WINDOW_SECONDS)
    try:
        return cache.incr(key)
    except ValueError:
        return 1  # The cache was full and dropped it just now.
