"""The questions that the code asks of cleanups and of their items."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from uuid import UUID

from django.apps import apps
from django.db import models
from django.db.models import Case, Count, Exists, Max, OuterRef, Q, Sum, Value, When
from django.db.models.functions import Coalesce
from django.utils import timezone

from storage_audit import logs, projects
from storage_audit.bucket.errors import LOCKED
from storage_audit.clocks import DatabaseNow, after, after_outer, before, lately, leased
from storage_audit.conf import conf
from storage_audit.fields import spellings
from storage_audit.origin import current_origin

if TYPE_CHECKING:
    # Ruff does not see names in the strings of a class's bases.
    from storage_audit.items import CleanupItem  # noqa: F401
    from storage_audit.models import R2Object
    from storage_audit.operations import CleanupOperation, Row  # noqa: F401
    from storage_audit.transitions import Transitions

KEPT_LATELY = timedelta(days=30)
# A call of `storage.delete` with all its looks, at a slow store. Its cleanup waits for it as long.
CALL_LASTS = timedelta(minutes=5)
# In sums, of those that are incomplete the ones that are tried again by themselves.
AGAIN = "again"


class StatusSums(NamedTuple):
    """The operations with one status, or `AGAIN`: how many, how many with a message, and their
    books."""

    status: str
    operations: int
    messages: int
    found: int
    found_bytes: int
    deleted: int
    deleted_bytes: int
    already_absent: int
    already_absent_bytes: int
    protected: int
    protected_bytes: int
    failed: int
    failed_bytes: int


class CleanupOperationQuerySet(models.QuerySet["CleanupOperation"]):
    def request(self, **values: Any) -> CleanupOperation:
        """Create an operation, with who asked and from where; in the transaction that deletes."""
        origin = current_origin()
        asked: dict[str, Any] = {"requested_by": origin.user, "origin": origin.place}
        asked["next_attempt_at"] = DatabaseNow()
        if values["kind"] != self.model.Kind.VERIFY:
            asked |= {"discovery": conf().discovery, "strategy": conf().strategy}
        operation = self.create(**asked | values)
        operation.defer_times()
        asked_by = logs.current().request_id
        joins = {"request_id": asked_by} if asked_by else {}
        operation.record("request", operation.get_trigger_display(), **joins)
        return operation

    def request_for_rows(self, rows: list[Row], evidence: str) -> CleanupOperation:
        """A deletion of the objects of these rows, of one bucket, which no `delete()` signals."""
        bucket, project_id = rows[0].bucket, rows[0].project_id
        operation = self.request(
            kind=self.model.Kind.OBJECTS,
            bucket=bucket,
            project_id=project_id,
            trigger=self.model.Trigger.DELETED,
        )
        operation.add_rows(rows, evidence)
        return operation

    def request_id(self, pk: UUID) -> str | None:
        """Of the web request that asked for the operation, or for the one that it follows."""
        events = apps.get_model("storage_audit", "OperationEvent").objects.filter(operation=pk)
        asked = events.filter(step="request", data__has_key="request_id")
        return asked.values_list("data__request_id", flat=True).first()

    def request_for_project(
        self, project_id: str, *, trigger: str, deleted_at: datetime | None, **values: Any
    ) -> list[CleanupOperation]:
        """One operation for each bucket in which the project may have objects."""
        return [
            self.request(
                project_id=project_id,
                project_deleted_at=deleted_at,
                bucket=bucket,
                trigger=trigger,
                **{"kind": self.model.Kind.PROJECT, **values},
            )
            for bucket in self.buckets_for(project_id)
        ]

    def buckets_for(self, project_id: str) -> list[str]:
        """Where the project may have objects: an open cleanup may be the only trace of some."""
        tracked = apps.get_model("storage_audit", "R2Object").objects.buckets_of(project_id)
        open_ones = self.of_project(project_id).values_list("bucket", flat=True)
        return sorted({*tracked, *open_ones, conf().bucket})

    def of_project(self, project_id: str) -> Self:
        """The open cleanups of the whole project, with their follow-up checks."""
        return self.open().filter(
            kind=self.model.Kind.PROJECT, dry_run=False, project_id=project_id
        )

    def still_untouched(self, pk: UUID) -> CleanupOperation | None:
        """The operation if it exists and no worker had it, kept from workers until the commit."""
        untouched = self.filter(pk=pk, status=self.model.Status.PENDING, started_at=None)
        return untouched.get() if untouched.update(attempts=0) else None

    def rivals(self, operation: Transitions) -> Self:
        """The operations that must not run beside this one."""
        return self.filter(bucket=operation.bucket).filter(
            Q(pk=operation.pk) | Q(project_id__isnull=False, project_id=operation.project_id),
            status__in=operation.WORKABLE,
        )

    def lock(self) -> Self:
        """Wait for whoever claims one of these rows, then keep others from it (PostgreSQL)."""
        list(self.select_for_update().order_by("pk").values_list("pk"))
        return self.all()

    def held(self) -> Self:
        return self.filter(leased())

    def worked_on_since(self, moment: datetime) -> Self:
        """Those whose lease a worker has taken or renewed since, or that it has brought to their
        end."""
        # What was taken over, workers die of, until one has done something for good.
        held = Q(status=self.model.Status.RUNNING, takeovers=0) & leased(moment + conf().lease)
        # To be superseded takes no worker.
        without_worker = Q(status=self.model.Status.SUPERSEDED) | self.model.DONE_AT_ONCE
        over = self.model.OVER & after("finished_at", moment)
        return self.filter(held | over).exclude(without_worker)

    def due(self, late: timedelta = timedelta(0)) -> Self:
        """Operations that a worker may take: their time has come, so long ago, and nobody has had
        them since."""
        since = DatabaseNow(-late)
        ready = self.filter(
            ~leased(since), status__in=self.model.WORKABLE, next_attempt_at__lte=since
        )
        return ready.waiting_for_nobody()

    def behind_blocked(self) -> Self:
        """Cleanups, and follow-up checks, of a deletion of which another one is blocked: they would
        delete the files on which a person has yet to decide there."""
        same = (OuterRef("bucket"), OuterRef("project_id"), OuterRef("project_deleted_at"))
        blocked = self.model.objects.blocked_of_deletion(*same)
        return self.deleting().of_projects().filter(Exists(blocked))

    def blocked_of_deletion(self, bucket: Any, project_id: Any, deleted_at: Any) -> Self:
        """The cleanups of this deletion, and their follow-up checks, that a person has to approve.
        At the next deletion they end superseded, so that one waits for none of them."""
        same = {"project_id": project_id, "project_deleted_at": deleted_at}
        blocked = self.filter(status=self.model.Status.BLOCKED, bucket=bucket, **same)
        return blocked.deleting().of_projects()

    def waiting_for_nobody(self) -> Self:
        behind = self.model.objects.behind_blocked().filter(pk=OuterRef("pk"))
        return self.filter(~Exists(behind))

    def put_off_too_far(self) -> Self:
        """Operations whose next attempt is further ahead than twice the longest pause that they can
        have: the clock that set it was ahead."""
        status = self.model.Status
        waits = Q(status=status.PENDING, trigger=self.model.Trigger.LATE_CHECK)
        longest = (
            (
                Q(status__in=[status.PENDING, status.RUNNING, status.INCOMPLETE]) & ~waits,
                max(conf().longest_retry, CALL_LASTS),
            ),
            (Q(status=status.FAILED), conf().failed_retry),
            (waits, max(conf().late_checks, default=timedelta(0))),
        )
        too_far = (
            which & Q(next_attempt_at__gt=DatabaseNow(2 * pause)) for which, pause in longest
        )
        return self.filter(reduce(or_, too_far))

    def not_enqueued_since(self, moment: datetime) -> Self:
        return self.filter(Q(enqueued_at=None) | before("enqueued_at", moment))

    def open(self) -> Self:
        return self.filter(status__in=[*self.model.WORKABLE, self.model.Status.BLOCKED])

    def deleting(self) -> Self:
        """All but looks and dry runs."""
        return self.filter(dry_run=False).exclude(kind=self.model.Kind.VERIFY)

    def covering(self) -> Self:
        """Open cleanups that are to delete something, if need be once a person approves them. No
        other way deletes what they cover. A follow-up check covers nothing until it begins."""
        waiting = Q(parent__isnull=False, status=self.model.Status.PENDING)
        return self.open().deleting().exclude(waiting)

    def about_bucket(self, bucket: str) -> Self:
        """Those that delete in it, or do once a person decides: the projects that disappeared
        together may have files in any bucket."""
        return self.filter(Q(bucket=bucket) | Q(kind=self.model.Kind.VANISHED))

    def unrelated_to(self, operation: CleanupOperation) -> Self:
        """All but this one, what it follows, and what follows it."""
        return self.exclude(pk__in=[operation.pk, operation.parent_id]).exclude(
            parent_id=operation.pk
        )

    def of_projects(self) -> Self:
        """Those that cover all files of a project."""
        return self.filter(kind=self.model.Kind.PROJECT)

    def covering_outer(self) -> Q:
        """Whether one of these covers the outer query's object, which has a bucket, a key and a
        project. audit/covering.py asks the same of keys; also of projects that disappeared
        together, which count as alive: no file of theirs is an orphan."""
        place = {"bucket": OuterRef("bucket"), "project_id": OuterRef("project_id")}
        items = apps.get_model("storage_audit", "CleanupItem").objects.named_by(self)
        same = items.filter(
            operation__bucket=OuterRef("bucket"),
            identity=OuterRef("key"),
            escaped=OuterRef("escaped"),
        )
        return Q(Exists(self.of_projects().filter(**place))) | Q(Exists(same))

    def without_follow_ups(self) -> Self:
        return self.exclude(trigger=self.model.Trigger.LATE_CHECK)

    def follow_ups_last(self) -> Self:
        """The latest first, and follow-up checks, which are newer, behind what they follow."""
        follows = Case(When(trigger=self.model.Trigger.LATE_CHECK, then=Value(1)), default=Value(0))
        return self.order_by(follows, "-created_at")

    def overdue(self, moment: datetime) -> Self:
        """Deletions that are to get on by themselves, and are not over though they were asked for,
        or decided on, before `moment`."""
        events = apps.get_model("storage_audit", "OperationEvent").objects
        decided = events.filter(operation=OuterRef("pk"), step__in=["run", "force"])
        decided_at = models.Subquery(decided.order_by("-at").values("at")[:1])
        status = self.model.Status
        under_way = [status.PENDING, status.RUNNING, status.INCOMPLETE]
        waiting = self.cleanups().filter(before("created_at", moment), status__in=under_way)
        waiting = waiting.waiting_for_nobody()
        return waiting.annotate(asked_at=Coalesce(decided_at, "created_at")).filter(
            before("asked_at", moment)
        )

    def without_incident(self, *kinds: str) -> Self:
        """Those of which no incident is open of these kinds, or of any."""
        known = apps.get_model("storage_audit", "Incident").objects.open()
        known = known.filter(operation=OuterRef("pk"))
        return self.exclude(Exists(known.filter(kind__in=kinds) if kinds else known))

    def prunable(self, moment: datetime) -> Self:
        """Operations that were over before `moment`, as is now all that follows them, and whose
        items and timeline are still here. An open alert reads the items: it would end without."""
        following = self.model.objects.filter(~self.model.OVER, parent=OuterRef("pk")).exclude(
            # Nobody can release it: one verifies again.
            kind=self.model.Kind.VERIFY,
            status=self.model.Status.BLOCKED,
        )
        over = self.filter(
            self.model.OVER, ~Exists(following), finished_at__lt=moment, pruned_at=None
        )
        return over.without_incident()

    def pruned(self) -> Self:
        return self.filter(pruned_at__isnull=False)

    def with_asked_at(self) -> Self:
        """When each was asked for: a plan is a deletion from when somebody runs it."""
        events = apps.get_model("storage_audit", "OperationEvent").objects
        runs = events.filter(operation=OuterRef("pk"), step="run").order_by("at")
        return self.annotate(
            asked_at=Coalesce(models.Subquery(runs.values("at")[:1]), "created_at")
        )

    def waiting(self) -> Self:
        """Blocked, or failed for hours: a person must decide, or look. A look that was blocked is
        done with once it was repeated, as nobody can release it."""
        same = Q(project_id=OuterRef("project_id")) | Q(parent=OuterRef("parent"))
        repeated = self.model.objects.filter(
            same | Q(parent=OuterRef("pk")),
            after_outer("created_at", "created_at"),
            kind=self.model.Kind.VERIFY,
            bucket=OuterRef("bucket"),
        )
        return self.filter(
            Q(status=self.model.Status.FAILED)
            | Q(status=self.model.Status.BLOCKED)
            & (~Q(kind=self.model.Kind.VERIFY) | ~Exists(repeated))
        )

    def leaving(self) -> Self:
        """Deletions that could not be brought to their end so far, also while they are tried
        again: their books are those of the last end until the next one."""
        status = self.model.Status
        tried_again = Q(status__in=[status.PENDING, status.RUNNING], failed__gt=0)
        ended = Q(status__in=[status.INCOMPLETE, status.FAILED])
        return self.deleting().filter(ended | tried_again)

    def of_whole_projects(self) -> Self:
        """Those that look for all objects of a project, and not only for some that they name."""
        of_whole = Q(parent=None) | Q(parent__kind=self.model.Kind.PROJECT)
        return self.filter(of_whole, kind__in=[self.model.Kind.PROJECT, self.model.Kind.VERIFY])

    def finding_differences(self) -> Self:
        """Verifications that are over and found some."""
        different = {"kind": self.model.Kind.VERIFY, "status": self.model.Status.INCOMPLETE}
        return self.filter(self.model.OVER, failed__gt=0, **different)

    def seeing_remains(self) -> Self:
        """Verifications that found objects of a deleted project, all of which nobody looked for
        again to the end."""
        of_project = {"bucket": OuterRef("bucket"), "project_id": OuterRef("project_id")}
        status = self.model.Status
        clean = Q(status__in=[status.CLEAN, status.CLEAN_WITH_PROTECTED])
        looked = clean | self.model.OVER & Q(status=status.INCOMPLETE)
        later = self.model.objects.of_whole_projects().filter(
            looked, after_outer("finished_at", "finished_at"), **of_project
        )
        # What differs with a live project is no remains, though it may be deleted since.
        deleted_since = apps.get_model("storage_audit", "KnownProject").objects.filter(
            after_outer("deleted_at", "finished_at"), pk=OuterRef("project_id")
        )
        alive = projects.rows().filter(storage_audit_id=OuterRef("project_id"))
        found = self.finding_differences().exclude(project_id=None)
        return found.filter(~Exists(later), ~Exists(deleted_since), ~Exists(alive))

    def with_remains(self) -> Self:
        """Verifications that found files of a deleted project, which no open cleanup covers."""
        of_project = {"bucket": OuterRef("bucket"), "project_id": OuterRef("project_id")}
        covering = self.model.objects.covering().of_projects().filter(**of_project)
        return self.seeing_remains().filter(~Exists(covering))

    def keeping(self) -> Self:
        """Those of the last weeks that kept protected objects, and after which nobody looked
        again. Of what stays for longer the findings tell."""
        later = self.model.objects.filter(
            after_outer("finished_at", "finished_at"),
            bucket=OuterRef("bucket"),
            project_id=OuterRef("project_id"),
            status__in=self.model.ENDED,
        ).exclude(self.model.DONE_AT_ONCE)
        lately = timezone.now() - KEPT_LATELY
        return self.filter(
            ~Exists(later), status=self.model.Status.CLEAN_WITH_PROTECTED, finished_at__gte=lately
        )

    def by_status(self) -> dict[str, StatusSums]:
        """What the operations with each status, or `AGAIN`, have in their books, from one
        aggregate."""
        again = When(
            status=self.model.Status.INCOMPLETE, next_attempt_at__isnull=False, then=Value(AGAIN)
        )
        sums: dict[str, Any] = {f"sum_{name}": Sum(name) for name in StatusSums._fields[3:]}
        with_message = Count("pk", filter=~Q(error=""))
        groups = self.order_by().values(group=Case(again, default="status"))
        groups = groups.annotate(operations=Count("pk"), messages=with_message, **sums)
        found = groups.values_list("group", "operations", "messages", *sums)
        return {row[0]: StatusSums(*row) for row in found}

    def disappearances(self) -> Self:
        """Of many projects at once, and nobody decided on them yet."""
        return self.filter(kind=self.model.Kind.VANISHED, status=self.model.Status.BLOCKED)

    def disappearances_of(self, project_id: str) -> Self:
        """Those that wait for a person to say whether this project was deleted."""
        alone = Q(
            trigger=self.model.Trigger.VANISHED,
            status=self.model.Status.BLOCKED,
            project_id=project_id,
        )
        return self.filter(alone | Q(pk__in=self.disappearances().values("pk")))

    def cleanups(self) -> Self:
        """Deletions: no look, no dry run, no late check of another, and no call of
        `storage.delete`, unless it left its file to a worker."""
        cleanups = self.filter(parent=None, dry_run=False).exclude(kind=self.model.Kind.VERIFY)
        return cleanups.exclude(self.model.DONE_AT_ONCE)


def maybe_under_way() -> Q:
    """Items for which a call got no answer, as long as the store may still obey it."""
    return lately("unanswered_at", conf().deletion_timeout)


class CleanupItemQuerySet(models.QuerySet["CleanupItem"]):
    def planned(self) -> Self:
        return self.filter(outcome=self.model.Outcome.PLANNED)

    def open(self) -> Self:
        return self.filter(outcome__in=self.model.OPEN)

    def named_by(self, operations: CleanupOperationQuerySet) -> Self:
        """The objects that these were given, but for those that they decided to keep."""
        named = operations.filter(
            kind__in=[operations.model.Kind.OBJECTS, operations.model.Kind.ORPHANS]
        )
        return self.filter(operation__in=named).exclude(outcome=self.model.Outcome.PROTECTED)

    def of_deleted_rows(self, bucket: str) -> Self:
        """The objects of deleted rows that named a project, unless they were seen gone."""
        items = self.filter(self.model.OF_DELETED_ROWS, operation__bucket=bucket, escaped=False)
        gone = [self.model.Outcome.DELETED, self.model.Outcome.ALREADY_ABSENT]
        return items.exclude(outcome__in=gone).exclude(project_id=None)

    def nameless(self) -> Self:
        """What no request can name, and so nobody deletes from here."""
        return self.filter(outcome=self.model.Outcome.FAILED, escaped=True)

    def named(self) -> Self:
        """What rows of the project named, under keys that no key format reads as its."""
        return self.filter(found_in=self.model.FoundIn.NAMED)

    def left_behind(self) -> Self:
        """What verifications found of deleted projects and no open cleanup covers; but for the
        objects of which an open finding tells as well: those are counted there."""
        operations = apps.get_model("storage_audit", "CleanupOperation").objects
        findings = apps.get_model("storage_audit", "Finding").objects.orphaned()
        found = findings.filter(bucket=OuterRef("operation__bucket"), escaped=OuterRef("escaped"))
        return self.filter(
            # R2 lists a key as it was last spelled, which may be neither.
            ~Exists(found.filter(key=OuterRef("key"))),
            ~Exists(found.filter(key=OuterRef("identity"))),
            operation__in=operations.with_remains(),
            outcome=self.model.Outcome.FAILED,
        )

    def as_objects(self) -> models.QuerySet[Any, Any]:
        """Each object once, though several operations may have it, with its latest item."""
        objects = self.order_by().values("operation__bucket", "identity", "escaped")
        return objects.annotate(latest=Max("pk"), bytes=Max("size", default=0))

    def dropped_since(self, planned_at: datetime) -> Self:
        """What a plan of that time was to delete, and did not, or of which nobody knows whether it
        did; or came after it, and stays."""
        outcome = self.model.Outcome
        stayed = Q(outcome__in=[outcome.PROTECTED, outcome.FAILED, *self.model.OPEN])
        # A tracked key without an object was to be found so.
        gone = Q(outcome=outcome.ALREADY_ABSENT) & ~Q(found_in=self.model.FoundIn.TRACKED)
        # No plan deletes what no request can name.
        return self.filter(stayed | gone, changed_at__gt=planned_at, escaped=False)

    def locked(self) -> Self:
        """Items that a lock rule of the bucket kept when they were last sent."""
        return self.filter(answer__startswith=LOCKED)

    def mark(self, outcome: str, reason: str = "", **values: Any) -> int:
        return self.update(outcome=outcome, reason=reason, changed_at=timezone.now(), **values)

    def marked(self) -> Self:
        """Items that a cleanup is deleting. The mark of a cleanup that is over was left behind by a
        worker that died, and holds as long as a request may take."""
        cleanups = apps.get_model("storage_audit", "CleanupOperation").objects.covering()
        recent = lately("changed_at", conf().deletion_timeout)
        return self.filter(recent | Q(operation__in=cleanups), outcome=self.model.Outcome.DELETING)

    def being_deleted(self, bucket: str, key: str) -> bool:
        """Whether a cleanup is deleting this key, or a spelling of it that may be the same; or has
        asked for that, and nobody knows whether the store is still at it."""
        same = self.filter(operation__bucket=bucket, identity__in=spellings(key))
        # Nothing is sent that was not marked again just before.
        deleting = Q(
            lately("changed_at", conf().deletion_timeout), outcome=self.model.Outcome.DELETING
        )
        return same.filter(deleting | maybe_under_way()).exists()

    def maybe_under_way(self) -> Self:
        return self.filter(maybe_under_way())

    def naming(self, rows: Collection[R2Object]) -> set[int]:
        """The ids of the rows of whose object there is an item. Looked up by name: the database
        would read all of these items for each such question."""
        names = {row.pk: spellings(row.key) for row in rows}
        same = self.filter(identity__any_of=set[str]().union(*names.values()))
        found = set(same.values_list("operation__bucket", "identity")) if names else set()
        return {
            row.pk
            for row in rows
            if not found.isdisjoint((row.bucket, name) for name in names[row.pk])
        }

    def names(self) -> models.QuerySet[Any, Any]:
        """What tracking rows may call the items' objects."""
        return self.values("key").union(self.values("identity"))

    def books(self) -> dict[str, int]:
        """Counts and bytes of all outcomes, from one aggregate; what is open counts as failed."""
        return self.books_of(self.by_outcome())

    def books_of(self, outcomes: dict[str, tuple[int, int]]) -> dict[str, int]:
        """The same, from what `by_outcome` gave."""
        names = ("found", "deleted", "already_absent", "protected", "failed")
        books = {f"{name}{unit}": 0 for name in names for unit in ("", "_bytes")}
        for outcome, (count, size) in outcomes.items():
            column = self.model.Outcome.FAILED if outcome in self.model.OPEN else outcome
            for name in ("found", column):
                books[name] += count
                books[f"{name}_bytes"] += size
        return books

    def by_outcome(self) -> dict[str, tuple[int, int]]:
        """The number of items and of bytes of each outcome there is."""
        groups = self.order_by().values("outcome")
        sums = groups.annotate(n=Count("pk"), total=Coalesce(Sum("size"), 0))
        return {
            outcome: (n, size) for outcome, n, size in sums.values_list("outcome", "n", "total")
        }

    def by_operation(
        self, operations: Iterable[UUID]
    ) -> models.QuerySet[Any, tuple[UUID, str, int, int]]:
        """The same of each of these operations."""
        groups = self.filter(operation__in=operations).order_by().values("operation", "outcome")
        sums = groups.annotate(n=Count("pk"), total=Coalesce(Sum("size"), 0))
        return sums.values_list("operation", "outcome", "n", "total")

    def by_reason(self, most: int) -> models.QuerySet[Any, tuple[str, str, int, int]]:
        """Why objects stay, going by so many of them; the commonest reason first."""
        stay = [self.model.Outcome.PROTECTED, self.model.Outcome.FAILED]
        staying = self.filter(outcome__in=stay)[:most]
        looked_at = self.model.objects.filter(pk__in=staying.values("pk")).exclude(reason="")
        groups = looked_at.order_by().values("outcome", "reason")
        sums = groups.annotate(n=Count("pk"), total=Coalesce(Sum("size"), 0)).order_by("-n")
        return sums.values_list("outcome", "reason", "n", "total")
