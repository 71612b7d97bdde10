"""A batch on its way: sent once, and what the store answered written down.

While the store keeps up, the next batch is proved meanwhile; the database is left to one thread.
"""

import logging
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from datetime import datetime
from itertools import groupby
from threading import Event
from types import TracebackType
from typing import NamedTuple, Self

from django.db import transaction
from django.db.models import F
from django.utils.translation import gettext as _

from storage_audit import logs
from storage_audit.audit import pace
from storage_audit.audit.pace import Pace
from storage_audit.audit.work import OutOfTime, Undecided, Work
from storage_audit.bucket import deleters
from storage_audit.bucket.deleters import Answers, Sent
from storage_audit.bucket.errors import Barred, StoreError
from storage_audit.bucket.r2 import DELETED
from storage_audit.bucket.wrangler import Command
from storage_audit.models import CleanupItem, CleanupOperation
from storage_audit.querysets import CleanupItemQuerySet
from storage_audit.redaction import visible


class Planned(NamedTuple):
    """Of an item: what its proof needs. A tenth of what the whole item takes."""

    pk: int
    key: str
    identity: str
    size: int | None
    etag: str
    last_modified: datetime | None
    found_in: str
    span: int | None


class Proof(NamedTuple):
    """What may be sent, what is absent already, and what must stay, with the reason."""

    may_go: list[Planned]
    gone: list[Planned]
    stay: list[tuple[Planned, str]]

    @property
    def size(self) -> int:
        return len(self.may_go) + len(self.gone) + len(self.stay)


class Flight:
    """The batch that is on its way, if one is. Left only when its answers are written down, unless
    the process is to end, or the lease is lost: then they count as not given."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._broken_off = Event()
        self._pool = ThreadPoolExecutor(1, initializer=logs.carried())
        self._sent: Future[Sent] | None = None
        self._proof = Proof([], [], [])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._pool:  # Which waits for the calls that have left.
            try:
                if error is None or isinstance(error, OutOfTime):
                    self.land()
                elif isinstance(error, Exception):
                    self._end_early(error)
            finally:
                self._broken_off.set()

    def carries(self, batch: list[Planned]) -> bool:
        under_way = {item.pk for item in self._proof.may_go} if self._sent else set()
        return any(item.pk in under_way for item in batch)

    def depart(self, proof: Proof, *, until: float) -> None:
        """Send what may go. The one before must have landed."""
        assert self._sent is None
        operation, self._proof = self.work.operation, proof
        keys, stop = [item.key for item in proof.may_go], self._broken_off
        if pace.keeps_up(operation):
            self._sent = self._pool.submit(send, operation, keys, until=until, broken_off=stop)
        else:
            sent = send(operation, keys, until=until, broken_off=stop)
            self._sent = Future()
            self._sent.set_result(sent)
            self.land()

    def land(self) -> StoreError | None:
        """Wait for the answers and adapt the pace to them; the trouble that the store had. Raises
        it when this turn is too short for it, and LeaseLost."""
        if self._sent is None:
            return None
        trouble = self._end()
        pace.adapt(self.work, self._proof.size, trouble)
        return trouble

    def _end_early(self, error: Exception) -> None:
        """No further call leaves: the look behind it may be wrong by now, or the operation another
        worker's. Raises the store's trouble if that weighs more than the error."""
        self._broken_off.set()
        if trouble := self._end():
            pace.give_way(self.work.operation, self._proof.size, trouble)
            longer = trouble.retry_after > getattr(error, "retry_after", 0)
            if isinstance(error, StoreError | Undecided) and (
                longer or isinstance(trouble, Barred)
            ):
                raise trouble from error

    def _end(self) -> StoreError | None:
        if self._sent is None:
            return None
        ended, self._sent = self._sent, None
        record_answers(self.work.operation, self._proof, sent := ended.result())
        return pace.trouble_in(sent)


def send(
    operation: CleanupOperation,
    keys: list[str],
    *,
    until: float,
    broken_off: Event,
) -> Sent:
    """In a thread of its own, perhaps: it does not ask the database."""
    now = Pace.of(operation)
    return deleters.delete(
        operation.strategy,
        operation.bucket,
        keys,
        until=until,
        size=now.keys,
        calls=now.calls,
        broken_off=broken_off,
    )


def record_answers(operation: CleanupOperation, proof: Proof, sent: Sent) -> None:
    log_keys(proof.may_go, sent.answers)
    asked = len(proof.may_go) - len(sent.unasked)
    with transaction.atomic():
        operation.renew()
        write_answers(proof.may_go, sent)
        record_commands(operation, sent.commands)
        operation.record(
            "delete",
            _("Batch of %s objects sent.") % asked,
            absent=len(proof.gone),
            protected=len(proof.stay),
            refused=sum(answer != DELETED for answer in sent.answers.values()),
            unanswered=asked - len(sent.answers),
        )


def write_answers(items: list[Planned], sent: Sent) -> None:
    def answer_of(item: Planned) -> str:
        return str(sent.answers[item.key])

    answered = [item for item in items if item.key in sent.answers]
    answered.sort(key=answer_of)
    for answer, group in groupby(answered, key=answer_of):
        # The verification would forget when it was seen, at the price of another look at the row.
        among(group).update(answer=answer, present_at=None)
    # What was in no call does not count as sent when it is gone.
    if unasked := set(sent.unasked):
        among([item for item in items if item.key in unasked]).update(tries=F("tries") - 1)


def record_commands(operation: CleanupOperation, commands: Iterable[Command]) -> None:
    for command in commands:
        operation.record("command", command.summary, **asdict(command))


def log_keys(items: list[Planned], answers: Answers) -> None:
    if logs.keys.isEnabledFor(logging.DEBUG):
        for item in items:
            answer = str(answers.get(item.key, "no answer"))
            logs.keys.debug("%s: %s", visible(item.key), visible(answer))


def among(items: Iterable[Planned]) -> CleanupItemQuerySet:
    # The operation, named as well, would lead PostgreSQL to an index that fits less.
    return CleanupItem.objects.filter(pk__any_of=[item.pk for item in items])
