"""Faults at random, the same ones for the same seed and the same requests."""

from collections import Counter
from collections.abc import Mapping
from random import Random
from threading import Lock

from devtools.http_reply import Reply
from tests.faults.kinds import FAULT_KINDS
from tests.faults.proxy import Forward, Request


class SeededFaults:
    """A rule that spoils requests: each with at most one fault of those that fit it, of each kind
    with its rate (0 to 1). One number is drawn for a request, whatever it is.

    `counts` says how often each kind struck, and `enabled` may be switched off and on. Raises
    ValueError for a kind that does not exist, and for rates that are none or exceed 1 in all.
    """

    def __init__(self, seed: int, rates: Mapping[str, float]) -> None:
        if unknown := sorted(rates.keys() - FAULT_KINDS):
            raise ValueError(f"no such fault: {', '.join(unknown)}")
        if min(rates.values(), default=0) < 0 or sum(rates.values()) > 1:
            raise ValueError("rates are 0 or more, and 1 or less in all")
        self.rates = dict(rates)
        self.counts: Counter[str] = Counter()
        self.enabled = True
        self._random = Random(seed)
        self._lock = Lock()

    def __call__(self, request: Request, forward: Forward) -> Reply | None:
        name = self._choose_fault(request) if self.enabled else None
        if name is None:
            return None
        reply = FAULT_KINDS[name].answer(request, forward)
        if reply is not None:
            with self._lock:
                self.counts[name] += 1
        return reply

    def _choose_fault(self, request: Request) -> str | None:
        with self._lock:
            drawn = self._random.random()
        for name, rate in self.rates.items():
            if FAULT_KINDS[name].fits(request):
                drawn -= rate
                if drawn < 0:
                    return name
        return None
