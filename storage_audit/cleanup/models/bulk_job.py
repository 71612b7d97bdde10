"""The table of bulk jobs: one thing that a person asked for of many projects at once."""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple, Self

from django.db import models
from django.db.models import Count, Q, Sum
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.text import capfirst
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from storage_audit.cleanup.models.lease_and_status import CleanupStates
from storage_audit.clocks import time_before
from storage_audit.models import KnownProject
from storage_audit.request_origin import current_origin

Status = CleanupStates.Status


class BulkJobQuerySet(models.QuerySet["BulkJob"]):
    def request(
        self,
        action: str,
        project_ids: Sequence[str],
        permissions: Sequence[str] = (),
        reason: str = "",
    ) -> "BulkJob":
        """Create a bulk job, with who asked and from where, and what they must still be allowed to
        do while it runs."""
        origin = current_origin()
        deletes = action in BulkJob.DELETING_ACTIONS
        return self.create(
            action=action,
            project_ids=project_ids,
            projects=len(project_ids),
            lives=KnownProject.objects.lifetimes(project_ids) if deletes else {},
            permissions=list(permissions),
            reason=reason,
            requested_by=origin.user,
            origin=origin.place,
        )

    def unfinished(self) -> Self:
        return self.filter(finished_at=None)

    def stalled(self, moment: datetime) -> Self:
        """Unfinished ones that have processed no project since `moment`."""
        return self.unfinished().filter(time_before("moved_at", moment))

    def not_enqueued_since(self, moment: datetime) -> Self:
        """Unfinished ones for which no worker was sent since `moment`."""
        unsent = Q(enqueued_at=None) | time_before("enqueued_at", moment)
        return self.unfinished().filter(unsent, time_before("created_at", moment))


class StatusTotals(NamedTuple):
    """The cleanups with one status: how many, how many with a message, and their totals."""

    status: str
    cleanups: int
    messages: int
    found: int
    found_bytes: int
    deleted: int
    deleted_bytes: int
    already_gone: int
    already_gone_bytes: int
    kept: int
    kept_bytes: int
    failed: int
    failed_bytes: int


class JobTotals(dict[str, StatusTotals]):
    """The totals of a bulk job's cleanups by status."""

    @property
    def made(self) -> int:
        return sum(each.cleanups for each in self.values())

    @property
    def under_way(self) -> int:
        return sum(
            self[status].cleanups
            for status in (Status.PENDING, Status.RUNNING, Status.RETRYING)
            if status in self
        )

    @property
    def needs_person(self) -> bool:
        return bool(self.keys() & {Status.BLOCKED, Status.FAILED, Status.DIFFERS})


class BulkJob(models.Model):
    """Makes a cleanup of each project, or several where it has objects in several buckets. It is
    finished when all of them are made; each cleanup then has a progress of its own. Or it undoes
    deletions, and is finished when each is undone or refused."""

    class Action(models.TextChoices):
        DRY_RUN = "dry_run", _("dry run")
        VERIFY = "verify", _("verification")
        DELETE = "delete", _("deletion")
        FORCE = "force", _("force-deletion")
        UNDO = "undo", _("undo")

    # They delete projects, whose cleanups follow.
    DELETING_ACTIONS = (Action.DELETE, Action.FORCE)
    # They stop when the person loses the permission.
    CHANGING_ACTIONS = (*DELETING_ACTIONS, Action.UNDO)

    id = models.UUIDField(_("bulk job ID"), primary_key=True, default=uuid.uuid4, editable=False)
    action = models.CharField(_("what is done"), max_length=10, choices=Action)
    # Text, as the projects may go meanwhile. Megabytes: leave it out of lists. To undo deletions,
    # the deletion IDs, one of each deletion.
    project_ids = models.JSONField(editable=False)
    # Lifetimes of the projects to be deleted: another project can take an id meanwhile.
    lives = models.JSONField(default=dict, editable=False)
    projects = models.PositiveIntegerField(_("projects"))
    position = models.PositiveIntegerField(_("started"), default=0)
    requested_by = models.TextField(_("requested by"), blank=True)
    origin = models.TextField(_("requested from"), blank=True)
    # Permissions that the person had and needed, such as "storage_audit.delete_project".
    permissions = models.JSONField(default=list, editable=False)
    reason = models.TextField(_("reason given"), blank=True)
    created_at = models.DateTimeField(_("requested"), default=timezone.now)
    # Attempts at the project at the position that were begun and not finished.
    attempts = models.PositiveIntegerField(default=0, editable=False)
    enqueued_at = models.DateTimeField(null=True, editable=False)
    moved_at = models.DateTimeField(default=timezone.now, editable=False)
    finished_at = models.DateTimeField(_("all started"), null=True, blank=True)
    # Why it stopped before that; it is finished then, too.
    stop_reason = models.TextField(_("stopped"), blank=True)

    objects = BulkJobQuerySet.as_manager()

    class Meta:
        verbose_name = _("bulk job")
        verbose_name_plural = _("bulk jobs")
        constraints = [
            models.CheckConstraint(
                condition=Q(action__in=["dry_run", "verify", "delete", "force", "undo"]),
                name="bulk_job_action_is_known",
            ),
        ]

    def __str__(self) -> str:
        if self.action == self.Action.UNDO:
            text = ngettext("undo of %d deletion", "undo of %d deletions", self.projects)
            return capfirst(text % self.projects)
        text = ngettext(
            "%(action)s of %(count)d project", "%(action)s of %(count)d projects", self.projects
        )
        return capfirst(text % {"action": self.get_action_display(), "count": self.projects})

    @cached_property
    def totals(self) -> JobTotals:
        """From one aggregate."""
        sums: dict[str, Any] = {f"sum_{name}": Sum(name) for name in StatusTotals._fields[3:]}
        with_message = Count("pk", filter=~Q(message=""))
        groups = self.cleanups.order_by().values("status")
        groups = groups.annotate(cleanups=Count("pk"), messages=with_message, **sums)
        found = groups.values_list("status", "cleanups", "messages", *sums)
        return JobTotals({row[0]: StatusTotals(*row) for row in found})

    def begin_attempt(self) -> bool:
        """Count an attempt before it is made, so that one that kills its worker counts; False if
        another worker was quicker."""
        mine = BulkJob.objects.filter(pk=self.pk, position=self.position, attempts=self.attempts)
        if not mine.update(attempts=self.attempts + 1):
            return False
        self.attempts += 1
        return True

    def reload_progress(self) -> None:
        """Read again how far the bulk job is, after a transaction that was rolled back."""
        self.refresh_from_db(
            fields=["position", "attempts", "moved_at", "finished_at", "stop_reason"]
        )

    def stop(self, reason: str) -> None:
        """End the bulk job and leave the projects that are not processed yet."""
        here = BulkJob.objects.unfinished().filter(pk=self.pk, position=self.position)
        now = timezone.now()
        if here.update(finished_at=now, stop_reason=reason):
            self.finished_at, self.stop_reason = now, reason

    def advance(self, projects: int) -> bool:
        """Note that so many more projects are processed, and keep other workers from the bulk job
        until the commit; False if one of them was quicker."""
        position = self.position + projects
        values: dict[str, Any] = {"position": position, "attempts": 0, "moved_at": timezone.now()}
        if position >= self.projects:
            values["finished_at"] = timezone.now()
        if not BulkJob.objects.filter(pk=self.pk, position=self.position).update(**values):
            return False
        for name, value in values.items():
            setattr(self, name, value)
        return True


class BulkJobNote(models.Model):
    """What a person must know of one deletion that a bulk job was to undo: why it was refused, or
    what did not come back."""

    bulk_job = models.ForeignKey(BulkJob, models.CASCADE, related_name="notes")
    cleanup = models.ForeignKey("storage_audit.Cleanup", models.CASCADE, related_name="+")
    is_refused = models.BooleanField()
    text = models.TextField()

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return self.text
