"""The lease and the status of a cleanup, and who may change them when."""

import uuid
from datetime import datetime, timedelta
from random import uniform
from typing import Any

from django.db import models
from django.db.models import Expression, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from storage_audit.cleanup.models.pause import DeletionPause
from storage_audit.cleanup.models.position import Position
from storage_audit.clocks import DatabaseNow, has_lease
from storage_audit.conf import conf

MAX_JITTER_FACTOR = 1.25  # times the pause, at most


class IllegalTransition(Exception):
    """The cleanup is not in a state that allows this; the message says which it is in."""


class MayNotSend(Exception):
    """The hold is not over, or a person has ended the cleanup: nothing may be sent."""


class DeletionsPaused(Exception):
    """A person has paused this deletion, or all: nothing may be sent until they are resumed."""


class LeaseLost(Exception):
    """Another worker may have the cleanup now: the caller must stop and write nothing."""


class CleanupStates(models.Model):
    """The states of a cleanup and the ways between them.

    pending -> running -> planned | clean | clean_with_kept | differs | retrying | failed | blocked
    | superseded;  planned, blocked -> pending (by a person);  retrying, failed -> running;
    any open one -> superseded, or pending to be superseded, when no worker has it;
    any open one -> undone, as long as nothing was sent; blocked, pending, retrying, failed ->
    cancelled, or pending to verify what was sent and then be cancelled (by a person);
    pending -> clean, when `storage.delete` has deleted the file.

    Each transition is one compare-and-set in the database, so that of two who try, one succeeds;
    those of a worker also demand that its lease is the current one and still runs.
    """

    class Status(models.TextChoices):
        PLANNED = "planned", _("preview")
        PENDING = "pending", _("waiting")
        RUNNING = "running", _("running")
        CLEAN = "clean", _("clean")
        CLEAN_WITH_KEPT = "clean_with_kept", _("clean, some kept")
        RETRYING = "retrying", _("retrying")
        DIFFERS = "differs", _("differs")
        FAILED = "failed", _("failed")
        BLOCKED = "blocked", _("needs approval")
        SUPERSEDED = "superseded", _("superseded")
        UNDONE = "undone", _("undone")
        CANCELLED = "cancelled", _("cancelled")

    class Kind(models.TextChoices):
        PROJECT = "project", _("project cleanup")
        OBJECTS = "objects", _("deletion of files")
        ORPHANS = "orphans", _("deletion of leftover files")
        VERIFY = "verify", _("verification")
        VANISHED = "vanished", _("disappearance of many projects")

    class Trigger(models.TextChoices):
        DELETED = "deleted", _("deletion")
        FORCED = "forced", _("force-deletion")
        ORPHANED = "orphaned", _("deletion of leftover files")
        DECLARED = "declared", _("declared deleted")
        VANISHED = "vanished", _("missing, not reported")
        DRY_RUN = "dry_run", _("dry run")
        VERIFY = "verify", _("verification")
        FOLLOW_UP = "follow_up", _("follow-up check")
        BENCHMARK = "benchmark", _("benchmark of a strategy")

    class Step(models.TextChoices):
        PLAN = "plan", _("finding the files")
        # Planned for its figures and limits. When the hold is over, it is planned again.
        HELD = "held", _("held")
        DELETE = "delete", _("deleting")
        VERIFY = "verify", _("verifying")

    # Ended without its work being done here.
    GIVEN_UP = (Status.SUPERSEDED, Status.UNDONE, Status.CANCELLED)
    ENDED = (Status.CLEAN, Status.CLEAN_WITH_KEPT, *GIVEN_UP)
    FINISHED = (*ENDED, Status.DIFFERS, Status.RETRYING, Status.FAILED)
    # Nothing more is done, by itself or for a person: a verification is not tried again.
    OVER = Q(status__in=ENDED) | Q(kind=Kind.VERIFY, status=Status.DIFFERS)
    WORKABLE = (Status.PENDING, Status.RUNNING, Status.RETRYING, Status.FAILED)
    HOLD_OVER = Q(held_until=None) | Q(held_until__lte=DatabaseNow())
    # What a pause keeps from workers: plans and verifications go on.
    WOULD_DELETE = Q(step=Step.DELETE)
    # `storage.delete` did it in one call, without a worker.
    DONE_AT_ONCE = Q(status=Status.CLEAN, step=Step.VERIFY, started_at=None)

    status = models.CharField(_("status"), max_length=20, choices=Status, default=Status.PENDING)
    # Until then nothing is sent, and a person can undo the deletion. Only Undo, Cancel and Erase
    # now change it.
    held_until = models.DateTimeField(_("held until"), null=True, blank=True)
    # Set before the first request that deletes leaves. From then on nothing can be undone.
    first_request_at = models.DateTimeField(_("first request"), null=True, blank=True)
    # Who undid or cancelled the deletion, or erased its files at once, and why.
    decided_by = models.TextField(_("decided by"), blank=True)
    decision_reason = models.TextField(_("reason given"), blank=True)
    decided_at = models.DateTimeField(_("decided"), null=True, blank=True)
    # From then on nothing is sent. What was sent before is verified.
    cancelled_at = models.DateTimeField(_("cancelled"), null=True, blank=True)
    limits_waived_by = models.TextField(_("limits lifted by"), blank=True)
    # An approval within the hold covers a later plan up to these figures. Without them it covers
    # the plan that the person was shown.
    approved_objects = models.PositiveBigIntegerField(_("approved objects"), null=True, blank=True)
    approved_bytes = models.PositiveBigIntegerField(_("approved bytes"), null=True, blank=True)
    dry_run = models.BooleanField(_("dry run"), default=False)
    message = models.TextField(_("message"), blank=True)
    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    takeovers = models.PositiveIntegerField(default=0, editable=False)
    lease_token = models.UUIDField(null=True, editable=False)
    lease_until = models.DateTimeField(null=True, editable=False)
    next_attempt_at = models.DateTimeField(_("next attempt"), null=True, default=timezone.now)
    enqueued_at = models.DateTimeField(null=True, editable=False)
    failing_since = models.DateTimeField(_("in trouble since"), null=True, blank=True)
    started_at = models.DateTimeField(_("started"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished"), null=True, blank=True)

    class Meta:
        abstract = True

    # Of the table that has these states.
    objects: Any
    bucket: str
    project_id: str | None
    project_deleted_at: datetime | None
    parent_id: uuid.UUID | None
    kind: str
    plan_digest: str
    step: str
    trigger: str

    def change_if(self, allowed: Q, **values: Any) -> bool:
        changed: bool = type(self).objects.filter(allowed, pk=self.pk).update(**values) == 1
        if changed:
            for name, value in values.items():
                setattr(self, name, value)
            self.defer_times()
        return changed

    def defer_times(self) -> None:
        """Reload times that the database's clock has set only when they are read, which is rare."""
        for name in ("lease_until", "next_attempt_at", "held_until", "first_request_at"):
            if isinstance(vars(self).get(name), Expression):
                delattr(self, name)

    def change_with_lease(self, **values: Any) -> None:
        """Write as the worker that holds the lease, or raise LeaseLost and write nothing."""
        if self.lease_token is None or not self.change_if(self._is_leased_to_me(), **values):
            raise LeaseLost(f"Cleanup {self.pk} is no longer leased to this worker.")

    def _is_leased_to_me(self) -> Q:
        return Q(status=self.Status.RUNNING, lease_token=self.lease_token) & has_lease()

    def begin_sending(self, **values: Any) -> None:
        """Renew the lease, and note that requests that delete are about to leave: commit this
        before the first one does. Raises LeaseLost, DeletionsPaused and MayNotSend.

        Undo reads the same column of the same row, so of the two one sees the other.
        """
        if self.first_request_at is None:
            values["first_request_at"] = DatabaseNow()
        self._renew_unless_paused(self.HOLD_OVER & Q(cancelled_at=None), **values)

    def begin_batch(self, **values: Any) -> None:
        """Renew the lease before files are marked for a request. Raises LeaseLost and
        DeletionsPaused."""
        self._renew_unless_paused(Q(), **values)

    def _renew_unless_paused(self, allowed: Q, **values: Any) -> None:
        # Read in the UPDATE itself: a pause that is committed by then holds it back.
        unpaused = self._is_leased_to_me() & ~DeletionPause.objects.covering_outer()
        values |= {"lease_until": DatabaseNow(conf().lease_time)}
        if self.lease_token is None or not self.change_if(allowed & unpaused, **values):
            self.renew()
            if type(self).objects.filter(allowed, pk=self.pk).exists():
                raise DeletionsPaused(_("Deletions are paused."))
            text = _("Cleanup %s may not delete now: it is held or cancelled.")
            raise MayNotSend(text % self.pk)

    def acquire_lease(self) -> bool:
        """Take the cleanup for this worker, or return False: not due, somebody has it, it would
        delete and is paused, or another one of its deletion is blocked.

        Only one cleanup of a project in a bucket ever has a lease. The next attempt is set before
        the work begins, so that work that kills its worker is not tried again at once.
        Must be called inside a transaction.
        """
        self.lock()
        # A lease that nobody gave back: its worker died, or was too slow for it.
        takeovers = self.takeovers + 1 if self.lease_until else 0
        free = Q(status__in=self.WORKABLE, next_attempt_at__lte=DatabaseNow()) & ~has_lease()
        free &= ~self.WOULD_DELETE | ~DeletionPause.objects.covering_outer()
        cleanups = type(self).objects
        if cleanups.rivals(self).leased().exists():
            return False
        if cleanups.behind_blocked().filter(pk=self.pk).exists():
            return False
        return self.change_if(
            free,
            status=self.Status.RUNNING,
            lease_token=uuid.uuid4(),
            next_attempt_at=DatabaseNow(self.retry_delay(takeovers + 1)),
            lease_until=DatabaseNow(conf().lease_time),
            attempts=self.attempts + 1,
            started_at=self.started_at or timezone.now(),
            finished_at=None,
            takeovers=takeovers,
        )

    def lock(self) -> None:
        """Wait for whoever is acquiring this cleanup or a rival, and read the result.

        Must be called inside a transaction.
        """
        type(self).objects.rivals(self).lock()
        self.refresh_from_db()
        self.lease_token = None  # of another worker, for whom this one must not write

    def read_database_clock(self) -> datetime:
        """The time for what the next worker will read, which may have another clock."""
        now: datetime = type(self).objects.values_list(DatabaseNow(), flat=True).get(pk=self.pk)
        return now

    @staticmethod
    def retry_delay(attempts: int) -> timedelta:
        doublings = max(0, min(attempts - 1, 20))
        return min(conf().retry_first * (1 << doublings), conf().retry_longest)

    def renew(self, **values: Any) -> None:
        """Lengthen the lease, and write `values` with it. Raises LeaseLost."""
        self.change_with_lease(lease_until=DatabaseNow(conf().lease_time), **values)

    def begin_step(self, step: Step, **values: Any) -> None:
        """Go on to this step, at its beginning unless a position is given. Raises LeaseLost."""
        self.renew(**{"step": step, "position": Position(), **values})

    def renew_after_progress(self, **values: Any) -> None:
        """Renew after something was done for good: the attempts before it no longer count."""
        self.renew(attempts=0, takeovers=0, failing_since=None, **values)

    def return_lease(self, after: timedelta = timedelta(0)) -> None:
        """Give the lease back with work left. Any worker may go on once `after` is over."""
        self.change_with_lease(
            lease_token=None,
            lease_until=None,
            next_attempt_at=DatabaseNow(after),
            # A turn that ended by itself is no attempt that failed.
            attempts=max(0, self.attempts - 1),
        )

    def rest_while_paused(self, reason: str, *, after: timedelta, **values: Any) -> None:
        """End a turn that met a pause. It was no attempt, and no worker takes the cleanup until the
        pause is over."""
        values["next_attempt_at"] = DatabaseNow(after)
        values["attempts"] = max(0, self.attempts - 1)
        self._finish_turn(self.Status.PENDING, message=reason, **values)

    def make_due(self) -> None:
        """Let a worker take it from now on, if it waits for a later time and none has it."""
        self.change_if(Q(status=self.Status.PENDING), next_attempt_at=DatabaseNow())

    def freeze_plan(self, **values: Any) -> None:
        """End the planning of a dry run: what was found stays as it is until a person runs it."""
        self._finish_turn(self.Status.PLANNED, **values)

    def block(self, reason: str, **values: Any) -> None:
        self._finish_turn(self.Status.BLOCKED, message=reason, **values)

    def finish(self, status: str, totals: dict[str, int], **values: Any) -> None:
        self._finish_turn(status, **totals, **{"finished_at": timezone.now(), **values})

    def postpone(
        self,
        reason: str,
        totals: dict[str, int],
        *,
        after: timedelta = timedelta(0),
        hopeless: bool = False,
    ) -> None:
        """Work is left: try again with growing pauses, and not before `after` is over. Once
        RETRY_HORIZON is over, or at once when it is `hopeless`, fail and try daily."""
        now = timezone.now()
        # A time still to come is from a clock that was ahead.
        since = min(self.failing_since or now, now)
        given_up = hopeless or now - since >= conf().retry_horizon
        pause = conf().retry_failed_every if given_up else self.retry_delay(self.attempts)
        # Else all that an outage stopped would come back at the same moment.
        pause *= uniform(1, MAX_JITTER_FACTOR)
        self._finish_turn(
            self.Status.FAILED if given_up else self.Status.RETRYING,
            **totals,
            message=reason,
            failing_since=since,
            finished_at=now,
            next_attempt_at=DatabaseNow(max(pause, after)),
        )

    def _finish_turn(self, status: str, **values: Any) -> None:
        release: dict[str, Any] = {"lease_token": None, "lease_until": None, "progress": {}}
        release["next_attempt_at"] = None
        self.change_with_lease(status=status, **{**release, **values})

    def requeue_to_end(self, reason: str) -> None:
        """Have the next worker check the project again and end the cleanup; `reason` says why. A
        worker that has it now does so anyway."""
        self.change_if(
            self._is_free(),
            status=self.Status.PENDING,
            message=reason,
            lease_token=None,
            lease_until=None,
            next_attempt_at=DatabaseNow(),
            enqueued_at=None,
        )

    def unschedule(self) -> bool:
        """Keep workers from the cleanup until the commit, unless one has it."""
        values = {"lease_token": None, "lease_until": None, "next_attempt_at": None}
        return self.change_if(self._is_free(), **values)

    def finish_superseded(self, reason: str, totals: dict[str, int]) -> None:
        """End an unscheduled cleanup: another one does its work."""
        values = {"message": reason, "finished_at": timezone.now(), "progress": {}}
        self.change_if(Q(), status=self.Status.SUPERSEDED, **values, **totals)

    def finish_at_once(self, totals: dict[str, int]) -> None:
        """End a cleanup that no worker had, as all its objects are gone."""
        ended = {"status": self.Status.CLEAN, "finished_at": timezone.now()}
        done = {**ended, "step": self.Step.VERIFY, "next_attempt_at": None, **totals}
        self.change_if(Q(status=self.Status.PENDING), **done)

    def _is_free(self) -> Q:
        """It is open, and no worker has it."""
        is_open = Q(status__in=[*self.WORKABLE, self.Status.BLOCKED])
        return is_open & ~has_lease()
