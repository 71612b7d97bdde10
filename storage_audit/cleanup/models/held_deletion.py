"""The hold of a deletion: until it is over nothing is sent, and a person can undo it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.utils import timezone

from storage_audit.cleanup.models.lease_and_status import CleanupStates
from storage_audit.cleanup.models.snapshot import Snapshot
from storage_audit.models import KnownProject


class HeldDeletion(CleanupStates):
    class Meta:
        abstract = True

    def is_held(self) -> bool:
        """Whether its hold is not over, by the database's clock."""
        if self.held_until is None or self.status in self.GIVEN_UP:
            return False
        return not type(self).objects.filter(self.HOLD_OVER, pk=self.pk).exists()

    def shown_hold(self) -> datetime | None:
        """Until when it is held, for people: by this machine's clock, and without a query."""
        if self.status in self.GIVEN_UP or self.first_request_at or not self.held_until:
            return None
        return self.held_until if self.held_until > timezone.now() else None

    def rest_until_hold_ends(self) -> None:
        """End a turn within the hold. A plan from now is only for figures and limits."""
        held = {"step": self.Step.HELD, "next_attempt_at": self.held_until}
        fresh = {"attempts": 0, "takeovers": 0, "failing_since": None, "message": ""}
        self._finish_turn(self.Status.PENDING, **held, **fresh)

    def begin_sending(self, **values: Any) -> None:
        """With the first request the deletion cannot be undone any more. Call it in a
        transaction."""
        if self.held_until and self.first_request_at is None:
            self.lock_hold()
            super().begin_sending(**values)
            self.end_hold()
        else:
            super().begin_sending(**values)

    def lock_hold(self) -> None:
        """Lock what ends with the hold. Call it before the rows of cleanups are locked, as in a
        deletion of the project: the projects of one delete() call share a snapshot."""
        KnownProject.objects.lock_id(self.project_id)
        same = type(self).objects.with_deletion(self).exclude(snapshot=None)
        shared = Snapshot.objects.filter(pk__in=same.values("snapshot"))
        list(shared.select_for_update().order_by("pk").values_list("pk"))

    def end_hold(self) -> None:
        """Forget how to undo the deletion, and let other projects' cleanups decide on its files."""
        held = KnownProject.objects.of_deletion(self.project_id, self.project_deleted_at)
        held.filter(kept_for=KnownProject.KeptFor.HOLD).update(kept_for="")
        same = type(self).objects.with_deletion(self)
        Snapshot.objects.filter(cleanups__in=same).delete()
