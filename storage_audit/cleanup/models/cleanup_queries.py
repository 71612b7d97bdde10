"""Questions to the table of cleanups: which may run now, which wait, which are of one deletion."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import reduce
from operator import or_
from typing import Any, Self, TypeVar

from django.db import models
from django.db.models import Case, Exists, F, OuterRef, Q, Subquery, Value, When
from django.db.models.functions import Coalesce

from storage_audit import project_model
from storage_audit.cleanup.models.event import CleanupEvent
from storage_audit.cleanup.models.item import CleanupItem
from storage_audit.cleanup.models.lease_and_status import CleanupStates
from storage_audit.cleanup.models.pause import DeletionPause
from storage_audit.cleanup.models.snapshot import SnapshotName
from storage_audit.clocks import DatabaseNow, has_lease, time_after, time_before
from storage_audit.conf import conf
from storage_audit.models import Project

# A call of `storage.delete` with all its checks, at a slow store. Its cleanup waits that long.
STORAGE_DELETE_TIME = timedelta(minutes=5)

_C = TypeVar("_C", bound=CleanupStates)


class CleanupQueries(models.QuerySet[_C]):
    def of_project(self, project_id: str) -> Self:
        """The open cleanups of the whole project, with their follow-up checks."""
        return self.open().filter(
            kind=self.model.Kind.PROJECT, dry_run=False, project_id=project_id
        )

    def rivals(self, cleanup: CleanupStates) -> Self:
        """The cleanups that must not run beside this one."""
        return self.filter(bucket=cleanup.bucket).filter(
            Q(pk=cleanup.pk) | Q(project_id__isnull=False, project_id=cleanup.project_id),
            status__in=cleanup.WORKABLE,
        )

    def lock(self) -> Self:
        """Wait until none of these rows is locked, then lock them (PostgreSQL)."""
        list(self.select_for_update().order_by("pk").values_list("pk"))
        return self.all()

    def leased(self) -> Self:
        return self.filter(has_lease())

    def worked_on_since(self, moment: datetime) -> Self:
        """Those whose lease a worker has taken or renewed since, or that it has brought to their
        end."""
        # A cleanup that was taken over may kill its workers, until one gets something done.
        held = Q(status=self.model.Status.RUNNING, takeovers=0) & has_lease(
            moment + conf().lease_time
        )
        # To be superseded takes no worker.
        without_worker = Q(status=self.model.Status.SUPERSEDED) | self.model.DONE_AT_ONCE
        over = self.model.OVER & time_after("finished_at", moment)
        return self.filter(held | over).exclude(without_worker)

    def due(self, late: timedelta = timedelta(0)) -> Self:
        """Cleanups that a worker may take: their time has come, so long ago, nobody has had them
        since, and no pause keeps them from deleting."""
        since = DatabaseNow(-late)
        ready = self.filter(
            ~has_lease(since), status__in=self.model.WORKABLE, next_attempt_at__lte=since
        )
        return ready.not_behind_blocked().not_paused()

    def paused(self) -> Self:
        """Those that would delete now, and may not until a person resumes them."""
        would = self.filter(self.model.WOULD_DELETE, status__in=self.model.WORKABLE)
        return would.filter(DeletionPause.objects.covering_outer())

    def not_paused(self) -> Self:
        return self.exclude(self.model.WOULD_DELETE, DeletionPause.objects.covering_outer())

    def behind_blocked(self) -> Self:
        """Cleanups and follow-up checks of a deletion that has a blocked cleanup: they would delete
        the files on which a person has yet to decide there."""
        same = (OuterRef("bucket"), OuterRef("project_id"), OuterRef("project_deleted_at"))
        blocked = self.model.objects.blocked_of_deletion(*same)
        return self.deleting().of_projects().filter(Exists(blocked))

    def blocked_of_deletion(self, bucket: Any, project_id: Any, deleted_at: Any) -> Self:
        """The blocked cleanups of this deletion, and their follow-up checks. The next deletion of
        the project supersedes them and waits for none of them."""
        same = {"project_id": project_id, "project_deleted_at": deleted_at}
        blocked = self.filter(status=self.model.Status.BLOCKED, bucket=bucket, **same)
        return blocked.deleting().of_projects()

    def not_behind_blocked(self) -> Self:
        behind = self.model.objects.behind_blocked().filter(pk=OuterRef("pk"))
        return self.filter(~Exists(behind))

    def scheduled_too_far(self) -> Self:
        """Cleanups whose next attempt is further ahead than twice the longest pause that they can
        have: the clock that set it was ahead."""
        status = self.model.Status
        waits = Q(status=status.PENDING, trigger=self.model.Trigger.FOLLOW_UP)
        # A held cleanup waits until its hold ends.
        over = Q(held_until=None) | Q(held_until__lt=DatabaseNow())
        longest = (
            (
                Q(status__in=[status.PENDING, status.RUNNING, status.RETRYING]) & ~waits,
                max(conf().retry_longest, STORAGE_DELETE_TIME),
            ),
            (Q(status=status.FAILED), conf().retry_failed_every),
            (waits, max(conf().follow_up_checks, default=timedelta(0))),
        )
        too_far = (
            which & Q(next_attempt_at__gt=DatabaseNow(2 * pause)) for which, pause in longest
        )
        return self.filter(over, reduce(or_, too_far))

    def held(self) -> Self:
        """Open ones whose deletion can still be undone."""
        return self.open().filter(held_until__gt=DatabaseNow())

    def undoable(self) -> Self:
        """Deletions whose rows may still be brought back: the copy is kept for as long as that."""
        kept = self.filter(snapshot__isnull=False, first_request_at=None, parent=None)
        return kept.exclude(status__in=self.model.GIVEN_UP)

    def not_held(self) -> Self:
        return self.filter(self.model.HOLD_OVER)

    def of_deletion(self, project_id: str | None, deleted_at: datetime | None) -> Self:
        """The cleanups of one deletion of a project in all buckets, with their follow-up checks."""
        same = {"project_id": project_id, "project_deleted_at": deleted_at}
        return self.deleting().of_projects().filter(**same)

    def with_deletion(self, cleanup: CleanupStates) -> Self:
        """This cleanup and all others of its deletion."""
        if cleanup.kind != self.model.Kind.PROJECT:
            return self.filter(Q(pk=cleanup.pk) | Q(parent=cleanup.pk)).deleting()
        return self.of_deletion(cleanup.project_id, cleanup.project_deleted_at)

    def of_other_deletions(self, cleanup: CleanupStates) -> Self:
        """The open cleanups of other deletions of the project. They are earlier ones if this
        cleanup's deletion is still on record as the latest afterwards."""
        same = self.of_project(cleanup.project_id or "").filter(bucket=cleanup.bucket)
        other = same.exclude(project_deleted_at=cleanup.project_deleted_at)
        return other.none() if cleanup.parent_id else other

    def with_names(self) -> Self:
        """Annotate what the deleted project was called, for as long as that is kept; of what was
        only compared or previewed, the title of the project. A model of the site's own may have
        none."""
        same = {"snapshot": OuterRef("snapshot"), "project_id": OuterRef("project_id")}
        name: Any = Subquery(SnapshotName.objects.filter(**same).values("name")[:1])
        if project_model.get_model() is Project:
            titles = Project.objects.filter(pk=OuterRef("project_id")).values("title")
            deletes_nothing = Q(kind=self.model.Kind.VERIFY) | Q(dry_run=True)
            title = Case(When(deletes_nothing, then=Subquery(titles)))
            name = Coalesce(name, title, output_field=models.TextField())
        return self.annotate(project_name=name)

    def called(self, text: str) -> Self:
        """Deletions of projects whose name contains this, in whatever case."""
        named = {"snapshot__names__project_id": F("project_id")}
        found = self.filter(**named, snapshot__names__name__icontains=text)
        return found.of_projects().filter(parent=None)

    def not_enqueued_since(self, moment: datetime) -> Self:
        return self.filter(Q(enqueued_at=None) | time_before("enqueued_at", moment))

    def open(self) -> Self:
        return self.filter(status__in=[*self.model.WORKABLE, self.model.Status.BLOCKED])

    def deleting(self) -> Self:
        """All but verifications and dry runs."""
        return self.filter(dry_run=False).exclude(kind=self.model.Kind.VERIFY)

    def covering(self) -> Self:
        """Open cleanups that will delete something, maybe once a person approves them. Nothing else
        deletes what they cover. A follow-up check covers nothing until it begins."""
        waiting = Q(parent__isnull=False, status=self.model.Status.PENDING)
        return self.open().deleting().exclude(waiting)

    def about_bucket(self, bucket: str) -> Self:
        """Those that delete in it, or do once a person decides: the projects that disappeared
        together may have files in any bucket."""
        return self.filter(Q(bucket=bucket) | Q(kind=self.model.Kind.VANISHED))

    def unrelated_to(self, cleanup: CleanupStates) -> Self:
        """All but this one, what it follows, and what follows it."""
        return self.exclude(pk__in=[cleanup.pk, cleanup.parent_id]).exclude(parent_id=cleanup.pk)

    def of_projects(self) -> Self:
        """Those that cover all files of a project."""
        return self.filter(kind=self.model.Kind.PROJECT)

    def covering_outer(self) -> Q:
        """Whether one of these covers the outer query's object, which has a bucket, a key and a
        project. cleanup/open_decisions.py asks the same of keys; also of projects that disappeared
        together, which count as alive: no file of theirs is an orphan."""
        place = {"bucket": OuterRef("bucket"), "project_id": OuterRef("project_id")}
        items = CleanupItem.objects.named_by(self)
        same = items.filter(
            cleanup__bucket=OuterRef("bucket"),
            identity=OuterRef("key"),
            escaped=OuterRef("escaped"),
        )
        return Q(Exists(self.of_projects().filter(**place))) | Q(Exists(same))

    def without_follow_ups(self) -> Self:
        return self.exclude(trigger=self.model.Trigger.FOLLOW_UP)

    def follow_ups_last(self) -> Self:
        """The latest first, and follow-up checks, which are newer, behind what they follow."""
        follows = Case(When(trigger=self.model.Trigger.FOLLOW_UP, then=Value(1)), default=Value(0))
        return self.order_by(follows, "-created_at")

    def prunable(self, moment: datetime) -> Self:
        """Cleanups that were over before `moment`, as is now all that follows them, and whose
        items and timeline are still here. An open alert reads the items: it would end without."""
        following = self.model.objects.filter(~self.model.OVER, parent=OuterRef("pk")).exclude(
            # Nobody can approve it: one verifies again.
            kind=self.model.Kind.VERIFY,
            status=self.model.Status.BLOCKED,
        )
        over = self.filter(
            self.model.OVER, ~Exists(following), finished_at__lt=moment, pruned_at=None
        )
        # One of a project without files is over, and can still be undone.
        over = over.not_held()
        alerted = self.model.objects.filter(
            pk=OuterRef("pk"), alerts__isnull=False, alerts__ended_at=None
        )
        return over.exclude(Exists(alerted))

    def pruned(self) -> Self:
        return self.filter(pruned_at__isnull=False)

    def with_asked_at(self) -> Self:
        """Annotate when each was requested: a plan counts from when somebody runs it, and a hold
        from its end."""
        events = CleanupEvent.objects
        runs = events.filter(cleanup=OuterRef("pk"), step="run").order_by("at")
        return self.annotate(
            asked_at=Coalesce(models.Subquery(runs.values("at")[:1]), "held_until", "created_at")
        )

    def leaving_files(self) -> Self:
        """Deletions that are not finished, as an attempt has failed; also while they are tried
        again: their totals are those of the last attempt until the next one ends."""
        status = self.model.Status
        tried_again = Q(status__in=[status.PENDING, status.RUNNING], failed__gt=0)
        ended = Q(status__in=[status.RETRYING, status.FAILED])
        return self.deleting().filter(ended | tried_again)

    def of_whole_projects(self) -> Self:
        """Those that look for all objects of a project, and not only for some that they name."""
        of_whole = Q(parent=None) | Q(parent__kind=self.model.Kind.PROJECT)
        return self.filter(of_whole, kind__in=[self.model.Kind.PROJECT, self.model.Kind.VERIFY])

    def differing(self) -> Self:
        """Verifications that are over and found differences."""
        return self.filter(status=self.model.Status.DIFFERS)

    def disappearances(self) -> Self:
        """Cleanups of many vanished projects at once, on which nobody has decided yet."""
        return self.filter(kind=self.model.Kind.VANISHED, status=self.model.Status.BLOCKED)

    def disappearances_of(self, project_id: str) -> Self:
        """Those that wait for a person to say whether this project was deleted."""
        alone = Q(
            trigger=self.model.Trigger.VANISHED,
            status=self.model.Status.BLOCKED,
            project_id=project_id,
        )
        return self.filter(alone | Q(pk__in=self.disappearances().values("pk")))

    def requested_deletions(self) -> Self:
        """Deletions: no verification, no dry run, no follow-up check of another, and no call of
        `storage.delete`, unless it left its file to a worker."""
        cleanups = self.filter(parent=None, dry_run=False).exclude(kind=self.model.Kind.VERIFY)
        return cleanups.exclude(self.model.DONE_AT_ONCE)
