"""How often one person may ask, with all tokens."""

import time

from django.core.cache import cache
from django.http import HttpRequest
from ninja.throttling import BaseThrottle

from storage_audit.api.auth import READING
from storage_audit.conf import conf

WINDOW = 60  # seconds


class Rate(BaseThrottle):
    """So many requests in each minute of the clock. What is `heavy`, as it asks the store or starts
    a program, counts as a write.

    Django's cache counts: by default each process has its own. Ninja's own throttle keeps what it
    is at in itself, where the next thread overwrites it, and counts in two steps.
    """

    def __init__(self, *, heavy: bool = False) -> None:
        self.heavy = heavy

    def allow_request(self, request: HttpRequest) -> bool:
        writes = self.heavy or request.method not in READING
        rate = "api_rate_write" if writes else "api_rate_read"
        minute = int(time.time() // WINDOW)
        key = f"storage_audit:{rate}:{request.user.pk}:{minute}"
        allowed: int = getattr(conf(), rate)
        return count(key) <= allowed

    def wait(self) -> float:
        """Seconds until the next minute begins."""
        return WINDOW - time.time() % WINDOW


def count(key: str) -> int:
    """How often this key was counted, this time included."""
    cache.add(key, 0, timeout=2 * WINDOW)
    try:
        return cache.incr(key)
    except ValueError:
        return 1  # The cache was full and dropped it just now.
