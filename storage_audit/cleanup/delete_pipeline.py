"""Batches on their way: each is sent once, and what the store answered is written down.

While the store keeps up, the next batch is proved meanwhile; the database is left to one thread.
"""

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict
from datetime import datetime
from itertools import groupby
from threading import Event
from types import TracebackType
from typing import NamedTuple, Self

from django.db import transaction
from django.db.models import F, Value
from django.db.models.functions import Coalesce, Greatest
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit import logs
from storage_audit.bucket import deleters
from storage_audit.bucket.deleters import Answers, Sent
from storage_audit.bucket.errors import BucketForbidden, StoreError
from storage_audit.bucket.s3 import DELETED
from storage_audit.bucket.wrangler import Command
from storage_audit.cleanup import adaptive_batch, progress
from storage_audit.cleanup.adaptive_batch import Pace
from storage_audit.cleanup.models import CleanupItem, CleanupItemQuerySet, CleanupOperation
from storage_audit.cleanup.turn import OwnerChanging, TurnOver, Work
from storage_audit.clocks import mark_of
from storage_audit.conf import conf
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
    copied_to: str | None


class Proof(NamedTuple):
    """What may be sent, what is absent already, and what must stay, with the reason."""

    may_go: list[Planned]
    gone: list[Planned]
    stay: list[tuple[Planned, str]]

    @property
    def size(self) -> int:
        return len(self.may_go) + len(self.gone) + len(self.stay)


class Landed(NamedTuple):
    """How many objects were in a batch, and what trouble the store had with it."""

    size: int
    troubles: list[StoreError]


class Flight:
    """The batches that are on their way, in the order in which they left: two while the store keeps
    up, so that it never waits for us. Left only when their answers are written down, unless the
    process is to end, or the lease is lost: then they count as not given."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._under_way = deque[tuple[Proof, Future[Sent]]]()
        self._landed = list[Landed]()
        self._senders = ThreadPoolExecutor(2, initializer=logs.carried())
        self._stop = Event()
        self._open_lanes()

    def _open_lanes(self) -> None:
        self._calls = Pace.of(self.work.operation).calls
        self._lanes = ThreadPoolExecutor(self._calls, initializer=logs.carried())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lanes, self._senders:  # Which wait for the calls that have left.
            try:
                if error is None or isinstance(error, TurnOver):
                    self.land()
                elif isinstance(error, Exception):
                    self._end_early(error)
            finally:
                self._stop.set()

    def must_land_before(self, batch: list[Planned]) -> bool:
        """Whether a look at these is in vain: they are on their way, or trouble holds them back."""
        under_way = {item.pk for proof, _sent in self._under_way for item in proof.may_go}
        held_back = bool(self._under_way) and self._stop.is_set()
        return held_back or any(item.pk in under_way for item in batch)

    def depart(self, proof: Proof, *, until: float) -> None:
        """Send what may go, behind what is on its way, and wait for the answers to that."""
        operation, now = self.work.operation, Pace.of(self.work.operation)
        if now.calls != self._calls:  # As all have landed: the pace changes with nothing under way.
            self._lanes.shutdown()
            self._open_lanes()
        keys, how = [item.key for item in proof.may_go], (now.keys, until, self._lanes, self._stop)
        self._under_way.append((proof, self._senders.submit(send, operation, keys, *how)))
        self.land(all_but=1 if adaptive_batch.keeps_up(operation) else 0)

    def land(self, all_but: int = 0) -> None:
        """Wait for the answers to all but so many batches, or to all of them after trouble, and
        adapt the pace. Raises the trouble when this turn is too short for it, and LeaseLost."""
        while len(self._under_way) > all_but:
            self._end()
            if self._landed[0].troubles:
                self._end_all()
                self._stop = Event()
            adaptive_batch.adapt(self.work, *self._worst())

    def _end_early(self, error: Exception) -> None:
        """No further call leaves: the look behind it may be wrong by now, or the operation another
        worker's. Raises the store's trouble if that weighs more than the error."""
        self._stop.set()
        self._end_all()
        size, trouble = self._worst()
        if trouble:
            adaptive_batch.give_way(self.work.operation, size, trouble)
            longer = trouble.retry_after > getattr(error, "retry_after", 0)
            if isinstance(error, StoreError | OwnerChanging) and (
                longer or isinstance(trouble, BucketForbidden)
            ):
                raise trouble from error

    def _end_all(self) -> None:
        while self._under_way:
            self._end()

    def _end(self) -> None:
        proof, ended = self._under_way.popleft()
        sent = ended.result()
        self._landed.append(Landed(proof.size, sent.troubles))
        record_answers(self.work.operation, proof, sent)

    def _worst(self) -> tuple[int, StoreError | None]:
        """The worst trouble since it was last asked for, with the size of the batch that had it."""
        landed, self._landed = self._landed, []
        of_all = [(trouble, one.size) for one in landed for trouble in one.troubles]
        if not of_all:
            return 0, None
        trouble, size = max(of_all, key=lambda each: adaptive_batch.severity(each[0]))
        return size, trouble


def send(
    operation: CleanupOperation,
    keys: list[str],
    size: int,
    until: float,
    pool: Executor,
    stop: Event,
) -> Sent:
    """In a thread of its own: it does not ask the database."""
    return deleters.delete(
        operation.strategy,
        operation.bucket,
        keys,
        until=until,
        size=size,
        pool=pool,
        stop=stop,
    )


def record_answers(operation: CleanupOperation, proof: Proof, sent: Sent) -> None:
    log_keys(proof.may_go, sent.answers)
    asked = len(proof.may_go) - len(sent.unasked)
    answered = [item for item in proof.may_go if item.key in sent.answers]
    with transaction.atomic():
        operation.renew(headway=progress.moved(operation, deleting=answered))
        write_answers(proof.may_go, sent)
        record_commands(operation, sent.commands)
        if (
            asked or sent.answers or proof.gone or proof.stay
        ):  # Not so where trouble held all of it back.
            operation.record(
                "delete",
                _("Batch of %s objects sent.") % asked,
                sent=asked,
                absent=len(proof.gone),
                protected=len(proof.stay),
                refused=sum(answer != DELETED for answer in sent.answers.values()),
                unanswered=len(proof.may_go) - len({*sent.answers, *sent.unasked}),
            )


def write_answers(items: list[Planned], sent: Sent) -> None:
    def answer_of(item: Planned) -> str:
        return str(sent.answers[item.key])

    answered = [item for item in items if item.key in sent.answers]
    answered.sort(key=answer_of)
    for answer, group in groupby(answered, key=answer_of):
        # The verification would forget when it was seen, at the price of another look at the row.
        among(group).update(answer=answer, present_at=None)
    if unanswered := list(find_unanswered(items, sent)):
        # Another worker's clock may have been ahead as it marked an earlier call.
        now, earlier = Value(timezone.now()), mark_of("unanswered_at", conf().deletion_timeout)
        mark = Greatest(now, Coalesce(earlier, now))
        among(unanswered).update(unanswered_at=mark)
    if names := set(sent.unasked):
        unasked = [item for item in items if item.key in names]
        # What was in no call does not count as deleted when it is gone.
        among(unasked).update(calls=F("calls") - 1)
        untried = [item for item in unasked if item.key not in sent.answers]
        among(untried).update(tries=F("tries") - 1)


def find_unanswered(items: list[Planned], sent: Sent) -> Iterator[Planned]:
    """Those of which nobody knows whether the store is still at it."""
    for item in items:
        answer = sent.answers.get(item.key)
        if answer.is_open if answer else item.key not in sent.unasked:
            yield item


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
