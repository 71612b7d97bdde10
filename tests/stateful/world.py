"""What happens around the application while it works: its process dies, others act in between."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import pytest
from botocore.awsrequest import AWSPreparedRequest
from botocore.httpsession import URLLib3Session
from botocore.retries.standard import ExponentialBackoff
from django.db import connection
from django.db.backends.utils import CursorWrapper

from storage_audit.cleanup import listing_pieces, worker_turn
from storage_audit.cleanup.models import lease_and_status

WRITE_STATEMENTS = ("INSERT", "UPDATE", "DELETE")
# Told whether the call that is about to be sent deletes objects.
Act = Callable[[bool], object]


class Death(BaseException):
    """The process is gone: nothing catches this, and nothing is written or sent after it."""


class World:
    """Sees each write to the database and each call to the store, before it and after."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.in_a_hurry = self.may_call_in_transaction = False
        self._passed = 0.0
        self._life: int | None = None
        self._calls = 0
        self._between: tuple[int, Act] | None = None
        self._watch_store(patch, URLLib3Session.send)
        for name in ("execute", "executemany"):
            self._watch_database(patch, name, getattr(CursorWrapper, name))
        for module in (worker_turn, listing_pieces):
            patch.setattr(module, "monotonic_seconds", self._clock)
        patch.setattr(ExponentialBackoff, "delay_amount", lambda *args: 0)
        # What is drawn at random would make of the same steps another story.
        patch.setattr(lease_and_status, "MAX_JITTER_FACTOR", 1.0)

    def _clock(self) -> float:
        """In a hurry, a worker's turn is over whenever it looks at the clock."""
        if self.in_a_hurry:
            self._passed += 1000
        return monotonic() + self._passed

    def _watch_store(self, patch: pytest.MonkeyPatch, send: Callable[..., Any]) -> None:
        def watched(session: URLLib3Session, request: AWSPreparedRequest) -> Any:
            self.spend_life()
            assert self.may_call_in_transaction or not connection.in_atomic_block
            self._others_act(request)
            answer = send(session, request)
            self.spend_life()
            return answer

        patch.setattr(URLLib3Session, "send", watched)

    def _watch_database(
        self, patch: pytest.MonkeyPatch, name: str, execute: Callable[..., Any]
    ) -> None:
        def watched(cursor: CursorWrapper, sql: Any, *args: Any) -> Any:
            if self._life == 0 or str(sql).startswith(WRITE_STATEMENTS):
                self.spend_life()
            return execute(cursor, sql, *args)

        patch.setattr(CursorWrapper, name, watched)

    def spend_life(self) -> None:
        if self._life is None:
            return
        if self._life == 0:
            raise Death
        self._life -= 1

    def _others_act(self, request: AWSPreparedRequest) -> None:
        if self._between is None:
            return
        self._calls += 1
        at, act = self._between
        if self._calls == at:
            life, self._between, self._life = self._life, None, None
            act(request.method == "DELETE" or request.url.endswith("?delete"))
            self._life = life

    @contextmanager
    def die_after(self, after: int | None) -> Iterator[None]:
        """Let the process within die after so many writes and calls; never for None."""
        self._life = after
        try:
            yield
        except Death:
            assert self._life == 0
        finally:
            self._life = None

    @contextmanager
    def interrupt_at(self, at: int, act: Act) -> Iterator[None]:
        """Let others act before the call of this number, counted from 1."""
        self._calls, self._between = 0, (at, act)
        try:
            yield
        finally:
            self._between = None

    @contextmanager
    def hurry_turns(self) -> Iterator[None]:
        self.in_a_hurry = True
        try:
            yield
        finally:
            self.in_a_hurry = False
