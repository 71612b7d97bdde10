"""The states of a cleanup, and who may change them when."""

import uuid
from datetime import datetime, timedelta
from random import uniform
from typing import Any

from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from storage_audit.clocks import DatabaseNow, has_lease
from storage_audit.conf import conf

MAX_JITTER_FACTOR = 1.25  # times the pause, at most


class IllegalTransition(Exception):
    """The cleanup is not in a state that allows this; the message says which it is in."""


class LeaseLost(Exception):
    """Another worker may have the cleanup now: the caller must stop and write nothing."""


class CleanupStates(models.Model):
    """The states of a cleanup and the ways between them.

    pending -> running -> planned | clean | clean_with_kept | differs | retrying | failed | blocked
    | superseded;  planned, blocked -> pending (by a person);  retrying, failed -> running;
    any open one -> superseded, or pending to be superseded, when no worker has it;
    pending -> clean, when `storage.delete` has deleted the file.

    Each transition is one compare-and-set in the database, so that of two who try, one succeeds;
    those of a worker also demand that its lease is the current one and still runs.
    """

    class Status(models.TextChoices):
        PLANNED = "planned", _("planned")
        PENDING = "pending", _("pending")
        RUNNING = "running", _("running")
        CLEAN = "clean", _("clean")
        CLEAN_WITH_KEPT = "clean_with_kept", _("clean, some kept")
        RETRYING = "retrying", _("retrying")
        DIFFERS = "differs", _("differences found")
        FAILED = "failed", _("failed")
        BLOCKED = "blocked", _("blocked")
        SUPERSEDED = "superseded", _("superseded")

    class Kind(models.TextChoices):
        PROJECT = "project", _("project cleanup")
        OBJECTS = "objects", _("deletion of objects")
        ORPHANS = "orphans", _("deletion of orphans")
        VERIFY = "verify", _("verification")
        VANISHED = "vanished", _("disappearance of many projects")

    class Step(models.TextChoices):
        PLAN = "plan", _("looking for objects")
        DELETE = "delete", _("deleting")
        VERIFY = "verify", _("verifying")

    ENDED = (Status.CLEAN, Status.CLEAN_WITH_KEPT, Status.SUPERSEDED)
    FINISHED = (*ENDED, Status.DIFFERS, Status.RETRYING, Status.FAILED)
    # Nothing more is done, by itself or for a person: a verification is not tried again.
    OVER = Q(status__in=ENDED) | Q(kind=Kind.VERIFY, status=Status.DIFFERS)
    WORKABLE = (Status.PENDING, Status.RUNNING, Status.RETRYING, Status.FAILED)
    # `storage.delete` did it in one call, without a worker.
    DONE_AT_ONCE = Q(status=Status.CLEAN, step=Step.VERIFY, started_at=None)

    status = models.CharField(_("status"), max_length=20, choices=Status, default=Status.PENDING)
    limits_waived_by = models.TextField(_("limits lifted by"), blank=True)
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
    plan_digest: str

    def change_if(self, allowed: Q, **values: Any) -> bool:
        changed: bool = type(self).objects.filter(allowed, pk=self.pk).update(**values) == 1
        if changed:
            for name, value in values.items():
                setattr(self, name, value)
            self.defer_times()
        return changed

    def defer_times(self) -> None:
        """Reload times that the database's clock has set only when they are read, which is rare."""
        for name in ("lease_until", "next_attempt_at"):
            if isinstance(vars(self).get(name), DatabaseNow):
                delattr(self, name)

    def change_with_lease(self, **values: Any) -> None:
        """Write as the worker that holds the lease, or raise LeaseLost and write nothing."""
        mine = Q(status=self.Status.RUNNING, lease_token=self.lease_token)
        held = mine & has_lease()
        if self.lease_token is None or not self.change_if(held, **values):
            raise LeaseLost(f"Cleanup {self.pk} is no longer held by this worker.")

    def acquire_lease(self) -> bool:
        """Take the cleanup for this worker, or return False: not due, somebody has it, or another
        one of its deletion is blocked.

        Only one cleanup of a project in a bucket ever has a lease. The next attempt is set before
        the work begins, so that work that kills its worker is not tried again at once.
        Must be called inside a transaction.
        """
        self.lock()
        # A lease that nobody gave back: its worker died, or was too slow for it.
        takeovers = self.takeovers + 1 if self.lease_until else 0
        free = Q(status__in=self.WORKABLE, next_attempt_at__lte=DatabaseNow()) & ~has_lease()
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

    def approve(self, user: str) -> None:
        """Let a blocked cleanup run; the limits are lifted for its plan, if it has one yet.

        Raises IllegalTransition, also when its figures have changed.
        """
        lifted = {"limits_waived_by": user} if self.plan_digest else {}
        self._restart(self._blocked_as_shown(), _("approve"), **lifted)

    def supersede(self, reason: str) -> None:
        """End a blocked cleanup that other events made pointless. Raises IllegalTransition, also
        when its figures have changed."""
        values = {"message": reason, "finished_at": timezone.now()}
        shown = self._blocked_as_shown()
        self._decide(shown, _("end"), status=self.Status.SUPERSEDED, **values)

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

    def _blocked_as_shown(self) -> Q:
        return Q(status=self.Status.BLOCKED, plan_digest=self.plan_digest, message=self.message)

    def retry(self, **values: Any) -> None:
        """Try a retrying or failed cleanup now. Raises IllegalTransition."""
        tried = Q(status__in=[self.Status.RETRYING, self.Status.FAILED])
        self._restart(tried, _("try again"), **values)

    def run_plan(self, user: str, **values: Any) -> None:
        """Run the plan that a dry run froze. Raises IllegalTransition."""
        # A plan's items were counted as failed, as a deletion that ends here would.
        values |= {"dry_run": False, "limits_waived_by": user, "failed": 0, "failed_bytes": 0}
        self._restart(Q(status=self.Status.PLANNED), _("run"), **values)

    def _restart(self, allowed: Q, verb: Any, **values: Any) -> None:
        values |= {"next_attempt_at": DatabaseNow(), "attempts": 0, "failing_since": None}
        self._decide(allowed, verb, status=self.Status.PENDING, enqueued_at=None, **values)

    def _decide(self, allowed: Q, verb: Any, **values: Any) -> None:
        if not self.change_if(allowed, **values):
            self.refresh_from_db(fields=["status"])
            raise IllegalTransition(
                _("Cannot %(verb)s cleanup %(id)s: it is %(status)s.")
                % {"verb": verb, "id": self.pk, "status": self.get_status_display()}
            )
