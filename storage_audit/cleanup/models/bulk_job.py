"""The table of jobs: one thing that a person asked for of many projects at once."""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Self

from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from storage_audit.clocks import before
from storage_audit.models import KnownProject
from storage_audit.origin import current_origin


class JobQuerySet(models.QuerySet["Job"]):
    def request(
        self, action: str, project_ids: Sequence[str], permissions: Sequence[str] = ()
    ) -> "Job":
        """Create a job, with who asked and from where, and what they must still be allowed to do
        while it runs."""
        origin = current_origin()
        deletes = action in Job.DELETIONS
        return self.create(
            action=action,
            project_ids=project_ids,
            projects=len(project_ids),
            lives=KnownProject.objects.lives(project_ids) if deletes else {},
            permissions=list(permissions),
            requested_by=origin.user,
            origin=origin.place,
        )

    def unfinished(self) -> Self:
        return self.filter(finished_at=None)

    def motionless(self, moment: datetime) -> Self:
        """Unfinished ones that took up no project since `moment`."""
        return self.unfinished().filter(before("moved_at", moment))

    def forgotten(self, moment: datetime) -> Self:
        """Unfinished ones for which no worker was sent since `moment`."""
        unsent = Q(enqueued_at=None) | before("enqueued_at", moment)
        return self.unfinished().filter(unsent, before("created_at", moment))


class Job(models.Model):
    """Makes an operation of each project, or several where it has objects in several buckets; how
    these go on, they say themselves. It is finished when all of them are made."""

    class Action(models.TextChoices):
        DRY_RUN = "dry_run", _("dry run")
        VERIFY = "verify", _("verification")
        DELETE = "delete", _("deletion")
        FORCE = "force", _("force-deletion")

    # They delete projects, whose cleanups follow.
    DELETIONS = (Action.DELETE, Action.FORCE)

    id = models.UUIDField(_("job id"), primary_key=True, default=uuid.uuid4, editable=False)
    action = models.CharField(_("what is done"), max_length=10, choices=Action)
    # Text, as the projects may go meanwhile. Megabytes: leave it out of lists.
    project_ids = models.JSONField(editable=False)
    # Of projects to be deleted, which ones the person meant: another one can take an id meanwhile.
    lives = models.JSONField(default=dict, editable=False)
    projects = models.PositiveIntegerField(_("projects"))
    position = models.PositiveIntegerField(_("taken up"), default=0)
    requested_by = models.TextField(_("requested by"), blank=True)
    origin = models.TextField(_("requested from"), blank=True)
    # That the person had and needed, such as "storage_audit.delete_project".
    permissions = models.JSONField(default=list, editable=False)
    created_at = models.DateTimeField(_("requested"), default=timezone.now)
    # Of the project at the position: begun, and not come to an end.
    attempts = models.PositiveIntegerField(default=0, editable=False)
    enqueued_at = models.DateTimeField(null=True, editable=False)
    moved_at = models.DateTimeField(default=timezone.now, editable=False)
    finished_at = models.DateTimeField(_("all taken up"), null=True, blank=True)
    # Why it stopped before that; it is finished then, too.
    stop_reason = models.TextField(_("stopped"), blank=True)

    objects = JobQuerySet.as_manager()

    class Meta:
        verbose_name = _("job")
        verbose_name_plural = _("jobs")
        constraints = [
            models.CheckConstraint(
                condition=Q(action__in=["dry_run", "verify", "delete", "force"]),
                name="job_action_is_known",
            ),
        ]

    def __str__(self) -> str:
        text = ngettext(
            "%(action)s of %(count)d project", "%(action)s of %(count)d projects", self.projects
        )
        return text % {"action": self.get_action_display(), "count": self.projects}

    def begin_attempt(self) -> bool:
        """Count an attempt before it is made, so that one counts of which the worker dies; False if
        another worker was quicker."""
        mine = Job.objects.filter(pk=self.pk, position=self.position, attempts=self.attempts)
        if not mine.update(attempts=self.attempts + 1):
            return False
        self.attempts += 1
        return True

    def read_progress(self) -> None:
        """Read again how far the job is, after a transaction that was rolled back."""
        self.refresh_from_db(
            fields=["position", "attempts", "moved_at", "finished_at", "stop_reason"]
        )

    def stop(self, reason: str) -> None:
        """Leave the projects that are not taken up yet."""
        here = Job.objects.unfinished().filter(pk=self.pk, position=self.position)
        now = timezone.now()
        if here.update(finished_at=now, stop_reason=reason):
            self.finished_at, self.stop_reason = now, reason

    def advance(self, projects: int) -> bool:
        """Note that so many projects more are taken up, and keep other workers from the job until
        the commit; False if one of them was quicker."""
        position = self.position + projects
        values: dict[str, Any] = {"position": position, "attempts": 0, "moved_at": timezone.now()}
        if position >= self.projects:
            values["finished_at"] = timezone.now()
        if not Job.objects.filter(pk=self.pk, position=self.position).update(**values):
            return False
        for name, value in values.items():
            setattr(self, name, value)
        return True
