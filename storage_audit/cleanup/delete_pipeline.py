"""Batches on their way: each is sent once, and the store's answers are recorded.

While the store keeps up, the next batch is rechecked meanwhile; only one thread uses the database.
"""

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from datetime import datetime
from itertools import groupby
from threading import Event
from types import TracebackType
from typing import NamedTuple, Self

from django.db import DatabaseError, transaction
from django.db.models import F, Value
from django.db.models.functions import Coalesce, Greatest
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit import logs
from storage_audit.bucket import deleters
from storage_audit.bucket.deleters import Answers, SendResult
from storage_audit.bucket.errors import BucketForbidden, StoreError
from storage_audit.bucket.s3 import DELETED
from storage_audit.bucket.wrangler_process import Command
from storage_audit.cleanup import adaptive_batch, progress
from storage_audit.cleanup.adaptive_batch import BatchSize
from storage_audit.cleanup.models import Cleanup, CleanupItem, CleanupItemQuerySet
from storage_audit.cleanup.models.lease_and_status import DeletionsPaused
from storage_audit.cleanup.worker_turn import OwnerChanging, Turn, TurnOver
from storage_audit.clocks import mark_or_now, monotonic_seconds
from storage_audit.conf import conf
from storage_audit.redaction import printable_text

logger = logging.getLogger(__name__)
RECHECK_VALID_SECONDS = 30.0  # seconds
PAUSE_CHECK_SECONDS = 1.0  # seconds


class PlannedItem(NamedTuple):
    """The fields of an item that its recheck needs: a tenth of the size of a whole item."""

    pk: int
    key: str
    identity: str
    size: int | None
    etag: str
    last_modified: datetime | None
    found_in: str
    range_index: int | None
    copied_to: str | None


class RecheckedBatch(NamedTuple):
    """Which items may be sent, which are already gone, and which are kept, with the reason."""

    deletable: list[PlannedItem]
    already_gone: list[PlannedItem]
    kept: list[tuple[PlannedItem, str]]

    @property
    def size(self) -> int:
        return len(self.deletable) + len(self.already_gone) + len(self.kept)


class BatchResult(NamedTuple):
    """How many objects were in a batch, and the store's errors."""

    size: int
    errors: list[StoreError]


def recheck_deadline() -> float:
    """Until when, by our clock, a request may leave whose recheck begins now."""
    return monotonic_seconds() + min(RECHECK_VALID_SECONDS, conf().lease_time.total_seconds())


class DeletePipeline:
    """The batches that are on their way, in the order in which they were sent: two while the store
    keeps up, so that it never waits for us. The block ends only when their answers are recorded,
    unless the process is to end or the lease is lost: then they count as unanswered."""

    def __init__(self, work: Turn) -> None:
        self.work = work
        self._in_flight = deque[tuple[RecheckedBatch, Future[SendResult]]]()
        self._results = list[BatchResult]()
        self._senders = ThreadPoolExecutor(2, initializer=logs.context_initializer())
        self._stop = Event()
        self._is_paused = False
        self._open_lanes()

    def _open_lanes(self) -> None:
        self._calls = BatchSize.of(self.work.cleanup).calls
        self._lanes = ThreadPoolExecutor(self._calls, initializer=logs.context_initializer())

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
                    self.collect()
                elif isinstance(error, Exception):
                    self._collect_after_error(error)
            finally:
                self._stop.set()

    def must_collect_before(self, batch: list[PlannedItem]) -> bool:
        """Whether a recheck of these would be in vain: they are in flight, or an error holds them
        back."""
        under_way = {item.pk for proof, _sent in self._in_flight for item in proof.deletable}
        held_back = bool(self._in_flight) and self._stop.is_set()
        return held_back or any(item.pk in under_way for item in batch)

    def submit(self, proof: RecheckedBatch, *, until: float) -> None:
        """Send what may go, behind what is on its way, and wait for the answers to that."""
        cleanup, now = self.work.cleanup, BatchSize.of(self.work.cleanup)
        if now.calls != self._calls:  # It changes only when all are collected.
            self._lanes.shutdown()
            self._open_lanes()
        keys, how = (
            [item.key for item in proof.deletable],
            (now.keys, until, self._lanes, self._stop),
        )
        self._in_flight.append((proof, self._senders.submit(send_batch, cleanup, keys, *how)))
        self.collect(all_but=1 if adaptive_batch.is_at_full_speed(cleanup) else 0)

    def collect(self, all_but: int = 0) -> None:
        """Wait for the answers to all but `all_but` batches, or to all of them after an error, and
        adapt the batch size. Raises the error when this turn is too short to wait, LeaseLost and
        DeletionsPaused.
        """
        while len(self._in_flight) > all_but:
            self._collect_oldest()
            if self._is_paused:
                raise DeletionsPaused(_("Deletions are paused."))
            if self._results[0].errors:
                self._collect_all()
                self._stop = Event()
            adaptive_batch.adapt_batch_size(self.work, *self._take_worst_error())

    def _collect_after_error(self, error: Exception) -> None:
        """Send nothing more: the recheck may be wrong by now, or another worker may have the
        cleanup. Raises the store's error instead if that one weighs more."""
        self._stop.set()
        self._collect_all()
        size, trouble = self._take_worst_error()
        if trouble:
            adaptive_batch.reduce_batch_size(self.work.cleanup, size, trouble)
            longer = trouble.retry_after > getattr(error, "retry_after", 0)
            if isinstance(error, StoreError | OwnerChanging) and (
                longer or isinstance(trouble, BucketForbidden)
            ):
                raise trouble from error

    def _collect_all(self) -> None:
        while self._in_flight:
            self._collect_oldest()

    def _collect_oldest(self) -> None:
        proof, ended = self._in_flight.popleft()
        while wait([ended], PAUSE_CHECK_SECONDS).not_done:
            self._stop_if_paused()
        sent = ended.result()
        self._results.append(BatchResult(proof.size, sent.errors))
        record_answers(self.work.cleanup, proof, sent)

    def _stop_if_paused(self) -> None:
        """Let no further call leave while deletions are paused, or where that cannot be read."""
        if not self._is_paused:
            try:
                self._is_paused = self.work.cleanup.find_pause() is not None
            except DatabaseError:
                logger.warning("No further call is sent: the pauses can't be read.")
                self._is_paused = True
            if self._is_paused:
                self._stop.set()

    def _take_worst_error(self) -> tuple[int, StoreError | None]:
        """The worst error since the last time, with the size of the batch that had it."""
        landed, self._results = self._results, []
        of_all = [(trouble, one.size) for one in landed for trouble in one.errors]
        if not of_all:
            return 0, None
        trouble, size = max(of_all, key=lambda each: adaptive_batch.error_severity(each[0]))
        return size, trouble


def send_batch(
    cleanup: Cleanup,
    keys: list[str],
    size: int,
    until: float,
    pool: Executor,
    stop: Event,
) -> SendResult:
    """Runs in a thread of its own, so it does not use the database."""
    return deleters.send_deletions(
        cleanup.strategy,
        cleanup.bucket,
        keys,
        until=until,
        size=size,
        pool=pool,
        stop=stop,
    )


def record_answers(cleanup: Cleanup, proof: RecheckedBatch, sent: SendResult) -> None:
    log_keys(proof.deletable, sent.answers)
    asked = len(proof.deletable) - len(sent.unsent)
    answered = [item for item in proof.deletable if item.key in sent.answers]
    with transaction.atomic():
        cleanup.renew(progress=progress.count_moved(cleanup, deleting=answered))
        save_answers(proof.deletable, sent)
        record_commands(cleanup, sent.commands)
        if (
            asked or sent.answers or proof.already_gone or proof.kept
        ):  # Not so where an error held all of it back.
            cleanup.record(
                "delete",
                _("Sent a batch of %s files.") % asked,
                sent=asked,
                absent=len(proof.already_gone),
                kept=len(proof.kept),
                refused=sum(answer != DELETED for answer in sent.answers.values()),
                unanswered=len(proof.deletable) - len({*sent.answers, *sent.unsent}),
            )


def save_answers(items: list[PlannedItem], sent: SendResult) -> None:
    def answer_of(item: PlannedItem) -> str:
        return str(sent.answers[item.key])

    answered = [item for item in items if item.key in sent.answers]
    answered.sort(key=answer_of)
    for answer, group in groupby(answered, key=answer_of):
        # The verification would clear `last_seen_at` too, at the price of another update.
        items_of(group).update(store_answer=answer, last_seen_at=None)
    if unanswered := list(find_unanswered(items, sent)):
        # Another worker's clock may have been ahead as it marked an earlier call.
        now, earlier = Value(timezone.now()), mark_or_now("unanswered_at", conf().deletion_timeout)
        mark = Greatest(now, Coalesce(earlier, now))
        items_of(unanswered).update(unanswered_at=mark)
    if names := set(sent.unsent):
        unasked = [item for item in items if item.key in names]
        # What was in no call does not count as deleted once it is gone.
        items_of(unasked).update(calls=F("calls") - 1)
        untried = [item for item in unasked if item.key not in sent.answers]
        items_of(untried).update(attempts=F("attempts") - 1)


def find_unanswered(items: list[PlannedItem], sent: SendResult) -> Iterator[PlannedItem]:
    """The items that the store may still delete."""
    for item in items:
        answer = sent.answers.get(item.key)
        if answer.is_open if answer else item.key not in sent.unsent:
            yield item


def record_commands(cleanup: Cleanup, commands: Iterable[Command]) -> None:
    for command in commands:
        cleanup.record("command", command.summary, **asdict(command))


def log_keys(items: list[PlannedItem], answers: Answers) -> None:
    if logs.key_logger.isEnabledFor(logging.DEBUG):
        for item in items:
            answer = str(answers.get(item.key, "no answer"))
            logs.key_logger.debug("%s: %s", printable_text(item.key), printable_text(answer))


def items_of(items: Iterable[PlannedItem]) -> CleanupItemQuerySet:
    # The cleanup, named as well, would lead PostgreSQL to an index that fits less.
    return CleanupItem.objects.filter(pk__any_of=[item.pk for item in items])
