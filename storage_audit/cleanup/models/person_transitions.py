"""What a person may decide about a cleanup: run it, try again, cancel, undo or erase."""

from datetime import timedelta
from typing import Any

from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from storage_audit.cleanup.models.held_deletion import HeldDeletion
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.clocks import DatabaseNow


class PersonTransitions(HeldDeletion):
    """The transitions that no worker makes, though vanished projects that are back supersede their
    cleanup. Those that come too late raise IllegalTransition."""

    class Meta:
        abstract = True

    def approve(self, user: str, objects: int | None = None, size: int | None = None) -> None:
        """Let a blocked cleanup run; the limits are lifted for its plan, if it has one yet. Within
        the hold, they are lifted for a later plan of up to so many objects and bytes.

        Raises IllegalTransition, also when its figures have changed.
        """
        lifted: dict[str, Any] = {}
        if self.plan_digest:
            lifted = {"limits_waived_by": user, "approved_objects": None, "approved_bytes": None}
        shown = self._blocked_as_shown()
        if self.plan_digest and self.is_held():
            # What is planned once the hold is over was shown to nobody.
            lifted |= {"approved_objects": objects, "approved_bytes": size}
            lifted |= {"step": self.Step.HELD, "next_attempt_at": self.held_until}
        self._restart(shown, _("approve"), **lifted)

    def supersede(self, reason: str) -> None:
        """End a blocked cleanup that other events made pointless. Raises IllegalTransition, also
        when its figures have changed."""
        values = {"message": reason, "finished_at": timezone.now()}
        shown = self._blocked_as_shown()
        self._decide(shown, _("end"), status=self.Status.SUPERSEDED, **values)

    def undo(self, **values: Any) -> None:
        """End it, as its deletion was undone, open or empty and over. Raises IllegalTransition once
        a request was sent. Call it with the row locked."""
        undone = {"status": self.Status.UNDONE, "finished_at": timezone.now(), "progress": {}}
        release = {"lease_token": None, "lease_until": None, "next_attempt_at": None}
        undone["decided_at"] = timezone.now()
        self._decide(Q(first_request_at=None), _("undo"), **{**undone, **release, **values})

    def cancel(self, **values: Any) -> None:
        """Give it up: its files stay. If anything was sent, the next worker verifies that first.
        One that found no files, and so was over at once, is given up as long as it is held. Raises
        IllegalTransition where a worker has it, or it is over."""
        stopped: dict[str, Any] = {"cancelled_at": timezone.now(), "decided_at": timezone.now()}
        stopped |= {"lease_token": None, "lease_until": None}
        if self.first_request_at is None:
            ended = {"status": self.Status.CANCELLED, "finished_at": timezone.now()}
            stopped |= {**ended, "next_attempt_at": None, "progress": {}}
        else:
            again = {"status": self.Status.PENDING, "step": self.Step.VERIFY, "attempts": 0}
            stopped |= {**again, "next_attempt_at": DatabaseNow(), "enqueued_at": None}
        sent = Q(first_request_at=self.first_request_at, cancelled_at=None)
        empty = Q(status=self.Status.CLEAN, held_until__gt=DatabaseNow()) & sent
        self._decide(self._is_free() & sent | empty, _("cancel"), **{**stopped, **values})

    def erase(self, **values: Any) -> None:
        """End its hold, and have it run now by a new plan, if it is open."""
        values["decided_at"] = timezone.now()
        after = timedelta(0)
        if self.trigger == self.Trigger.FOLLOW_UP and self.held_until and self.next_attempt_at:
            # A check catches what ends later, so it keeps its distance.
            after = max(after, self.next_attempt_at - self.held_until)
        self.change_if(Q(cancelled_at=None), held_until=None, **values)
        due = Q(status__in=[self.Status.PENDING, self.Status.RETRYING, self.Status.FAILED])
        self.change_if(due, next_attempt_at=DatabaseNow(after), enqueued_at=None)

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
        fresh = {"next_attempt_at": DatabaseNow(), "attempts": 0, "failing_since": None}
        values = {**fresh, "status": self.Status.PENDING, "enqueued_at": None, **values}
        self._decide(allowed, verb, **values)

    def _decide(self, allowed: Q, verb: Any, **values: Any) -> None:
        if not self.change_if(allowed, **values):
            self.refresh_from_db(fields=["status"])
            raise IllegalTransition(
                _("Cannot %(verb)s cleanup %(id)s: its status is %(status)s.")
                % {"verb": verb, "id": self.pk, "status": self.get_status_display()}
            )
