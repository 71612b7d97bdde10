"""The states of a cleanup operation, and who may change them when."""

import uuid
from datetime import datetime, timedelta
from random import uniform
from typing import Any

from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from storage_audit.clocks import DatabaseNow, leased
from storage_audit.conf import conf

SPREAD = 1.25  # times the pause, at most


class IllegalTransition(Exception):
    """The operation is not in a state that allows this; the message says which it is in."""


class LeaseLost(Exception):
    """Another worker may have the operation now: the caller must stop and write nothing."""


class Transitions(models.Model):
    """The states of an operation and the ways between them.

    pending -> running -> planned | clean | clean_with_protected | incomplete | failed | blocked
    | superseded;  planned, blocked -> pending (by a person);  incomplete, failed -> running;
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
        CLEAN_WITH_PROTECTED = "clean_with_protected", _("clean, some protected")
        INCOMPLETE = "incomplete", _("incomplete")
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

    ENDED = (Status.CLEAN, Status.CLEAN_WITH_PROTECTED, Status.SUPERSEDED)
    CLOSED = (*ENDED, Status.INCOMPLETE, Status.FAILED)
    # Nothing more is done, by itself or for a person: a look is not tried again.
    OVER = Q(status__in=ENDED) | Q(kind=Kind.VERIFY, status=Status.INCOMPLETE, next_attempt_at=None)
    WORKABLE = (Status.PENDING, Status.RUNNING, Status.INCOMPLETE, Status.FAILED)
    # `storage.delete` did it in one call: no worker was needed, or looked at anything else.
    DONE_AT_ONCE = Q(status=Status.CLEAN, step=Step.VERIFY, started_at=None)

    status = models.CharField(_("status"), max_length=20, choices=Status, default=Status.PENDING)
    released_by = models.TextField(_("limits lifted by"), blank=True)
    dry_run = models.BooleanField(_("dry run"), default=False)
    error = models.TextField(_("message"), blank=True)
    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    takeovers = models.PositiveIntegerField(default=0, editable=False)
    lease_token = models.UUIDField(null=True, editable=False)
    lease_until = models.DateTimeField(null=True, editable=False)
    next_attempt_at = models.DateTimeField(_("next attempt"), null=True, default=timezone.now)
    enqueued_at = models.DateTimeField(null=True, editable=False)
    troubled_since = models.DateTimeField(_("in trouble since"), null=True, blank=True)
    started_at = models.DateTimeField(_("started"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished"), null=True, blank=True)

    class Meta:
        abstract = True

    # Of the table that has these states.
    objects: Any
    bucket: str
    project_id: str | None
    plan_digest: str

    def change(self, allowed: Q, **values: Any) -> bool:
        changed: bool = type(self).objects.filter(allowed, pk=self.pk).update(**values) == 1
        if changed:
            for name, value in values.items():
                setattr(self, name, value)
            self.defer_times()
        return changed

    def defer_times(self) -> None:
        """What the database's clock was asked for is read when it is wanted, which is seldom."""
        for name in ("lease_until", "next_attempt_at"):
            if isinstance(vars(self).get(name), DatabaseNow):
                delattr(self, name)

    def change_as_holder(self, **values: Any) -> None:
        """Write as the worker that holds the lease, or raise LeaseLost and write nothing."""
        mine = Q(status=self.Status.RUNNING, lease_token=self.lease_token)
        held = mine & leased()
        if self.lease_token is None or not self.change(held, **values):
            raise LeaseLost(f"Operation {self.pk} is no longer held by this worker.")

    def claim(self) -> bool:
        """Take the operation for this worker, or return False: not due, somebody has it, or another
        one of its deletion is blocked.

        Of the operations of one project in one bucket only one is ever held. The next attempt
        is set before the work begins, so that work that kills its worker is not tried at once.
        Must be called inside a transaction.
        """
        self.lock()
        # A lease that nobody gave back: its worker died, or was too slow for it.
        takeovers = self.takeovers + 1 if self.lease_until else 0
        free = Q(status__in=self.WORKABLE, next_attempt_at__lte=DatabaseNow()) & ~leased()
        operations = type(self).objects
        if operations.rivals(self).held().exists():
            return False
        if operations.behind_blocked().filter(pk=self.pk).exists():
            return False
        return self.change(
            free,
            status=self.Status.RUNNING,
            lease_token=uuid.uuid4(),
            next_attempt_at=DatabaseNow(self.pause_after(takeovers + 1)),
            lease_until=DatabaseNow(conf().lease),
            attempts=self.attempts + 1,
            started_at=self.started_at or timezone.now(),
            finished_at=None,
            takeovers=takeovers,
        )

    def lock(self) -> None:
        """Wait for whoever claims this operation or a rival, and see how they left it.

        Must be called inside a transaction.
        """
        type(self).objects.rivals(self).lock()
        self.refresh_from_db()
        self.lease_token = None  # of another worker, for whom this one must not write

    def read_database_clock(self) -> datetime:
        """For what a worker writes down for the next one, which may have another clock."""
        now: datetime = type(self).objects.values_list(DatabaseNow(), flat=True).get(pk=self.pk)
        return now

    @staticmethod
    def pause_after(attempts: int) -> timedelta:
        doublings = max(0, min(attempts - 1, 20))
        return min(conf().first_retry * (1 << doublings), conf().longest_retry)

    def renew(self, **values: Any) -> None:
        """Lengthen the lease, and write `values` with it. Raises LeaseLost."""
        self.change_as_holder(lease_until=DatabaseNow(conf().lease), **values)

    def progress(self, **values: Any) -> None:
        """Renew after something was done for good: the attempts before it no longer count."""
        self.renew(attempts=0, takeovers=0, troubled_since=None, **values)

    def hand_over(self, after: timedelta = timedelta(0)) -> None:
        """Give the lease back with work left, for any worker to go on once `after` is over."""
        self.change_as_holder(
            lease_token=None,
            lease_until=None,
            next_attempt_at=DatabaseNow(after),
            # A turn that ended by itself is no attempt that failed.
            attempts=max(0, self.attempts - 1),
        )

    def make_due(self) -> None:
        """Let a worker take it from now on, if it waits for a later time and none has it."""
        self.change(Q(status=self.Status.PENDING), next_attempt_at=DatabaseNow())

    def freeze(self, **values: Any) -> None:
        """End the planning of a dry run: what was found stays as it is until a person runs it."""
        self._leave(self.Status.PLANNED, **values)

    def block(self, reason: str, **values: Any) -> None:
        self._leave(self.Status.BLOCKED, error=reason, **values)

    def close(self, status: str, books: dict[str, int], **values: Any) -> None:
        self._leave(status, **books, **{"finished_at": timezone.now(), **values})

    def postpone(
        self,
        reason: str,
        books: dict[str, int],
        *,
        after: timedelta = timedelta(0),
        hopeless: bool = False,
    ) -> None:
        """Something remains: try again with growing pauses, and not before `after` is over; daily
        once the hours are over, or at once when it is `hopeless`."""
        now = timezone.now()
        # No trouble is still to come: the clock was ahead.
        since = min(self.troubled_since or now, now)
        given_up = hopeless or now - since >= conf().retry_horizon
        pause = conf().failed_retry if given_up else self.pause_after(self.attempts)
        # Or all that an outage stopped would come back at the same moment.
        pause *= uniform(1, SPREAD)
        self._leave(
            self.Status.FAILED if given_up else self.Status.INCOMPLETE,
            **books,
            error=reason,
            troubled_since=since,
            finished_at=now,
            next_attempt_at=DatabaseNow(max(pause, after)),
        )

    def _leave(self, status: str, **values: Any) -> None:
        release: dict[str, Any] = {"lease_token": None, "lease_until": None, "headway": {}}
        release["next_attempt_at"] = None
        self.change_as_holder(status=status, **{**release, **values})

    def release(self, user: str) -> None:
        """Let a blocked operation run; the limits are lifted for its plan, if it has one yet.

        Raises IllegalTransition, also when it tells other figures by now.
        """
        lifted = {"released_by": user} if self.plan_digest else {}
        self._start_again(self._blocked_as_shown(), _("release"), **lifted)

    def supersede(self, reason: str) -> None:
        """End a blocked operation that other events made pointless. Raises IllegalTransition, also
        when it tells other figures by now."""
        values = {"error": reason, "finished_at": timezone.now()}
        shown = self._blocked_as_shown()
        self._decide(shown, _("end"), status=self.Status.SUPERSEDED, **values)

    def recall(self, reason: str) -> None:
        """Have the next worker look at the project again, and end the operation; `reason` says why.
        A worker that has it now does so anyway."""
        self.change(
            self._is_free(),
            status=self.Status.PENDING,
            error=reason,
            lease_token=None,
            lease_until=None,
            next_attempt_at=DatabaseNow(),
            enqueued_at=None,
        )

    def withdraw(self) -> bool:
        """Keep workers from the operation until the commit, unless one has it."""
        values = {"lease_token": None, "lease_until": None, "next_attempt_at": None}
        return self.change(self._is_free(), **values)

    def retire(self, reason: str, books: dict[str, int]) -> None:
        """End an operation that was withdrawn: another one does what it was to do."""
        values = {"error": reason, "finished_at": timezone.now(), "headway": {}}
        self.change(Q(), status=self.Status.SUPERSEDED, **values, **books)

    def conclude(self, books: dict[str, int]) -> None:
        """End an operation that no worker had: all that it was to delete is gone."""
        ended = {"status": self.Status.CLEAN, "finished_at": timezone.now()}
        done = {**ended, "step": self.Step.VERIFY, "next_attempt_at": None, **books}
        self.change(Q(status=self.Status.PENDING), **done)

    def _is_free(self) -> Q:
        """It is open, and no worker has it."""
        is_open = Q(status__in=[*self.WORKABLE, self.Status.BLOCKED])
        return is_open & ~leased()

    def _blocked_as_shown(self) -> Q:
        return Q(status=self.Status.BLOCKED, plan_digest=self.plan_digest, error=self.error)

    def retry(self, **values: Any) -> None:
        """Try an incomplete or failed operation now. Raises IllegalTransition."""
        tried = Q(status__in=[self.Status.INCOMPLETE, self.Status.FAILED])
        self._start_again(tried, _("try again"), **values)

    def execute(self, user: str, **values: Any) -> None:
        """Run the plan that a dry run froze. Raises IllegalTransition."""
        # A plan's items were counted as failed, as a deletion that ends here would.
        values |= {"dry_run": False, "released_by": user, "failed": 0, "failed_bytes": 0}
        self._start_again(Q(status=self.Status.PLANNED), _("run"), **values)

    def _start_again(self, allowed: Q, verb: Any, **values: Any) -> None:
        values |= {"next_attempt_at": DatabaseNow(), "attempts": 0, "troubled_since": None}
        self._decide(allowed, verb, status=self.Status.PENDING, enqueued_at=None, **values)

    def _decide(self, allowed: Q, verb: Any, **values: Any) -> None:
        if not self.change(allowed, **values):
            self.refresh_from_db(fields=["status"])
            raise IllegalTransition(
                _("Cannot %(verb)s operation %(id)s: it is %(status)s.")
                % {"verb": verb, "id": self.pk, "status": self.get_status_display()}
            )
