"""The table of cleanups. Its items and its timeline have modules of their own."""

import hashlib
import json
import uuid
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple

from django.db import models
from django.db.models import Exists, F, Min, Q
from django.utils import timezone
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from storage_audit.fields import BytewiseTextField
from storage_audit.items import CleanupItem
from storage_audit.jobs import Job
from storage_audit.reading import read_in_steps
from storage_audit.redaction import redact
from storage_audit.timeline import OperationEvent
from storage_audit.transitions import Transitions


class Row(NamedTuple):
    """What is kept of a tracking row that is being deleted."""

    bucket: str
    key: str
    project_id: str | None
    size: int | None
    etag: str
    last_modified: datetime | None
    # Of a renamed object: the key of its copy.
    copied_to: str | None = None
    # Why its object stays, if it does.
    kept: str = ""
    # When somebody asked for the deletion of its object, and nobody noted an answer.
    unanswered_at: datetime | None = None

    @classmethod
    def of(cls, tracked: Any) -> "Row":
        given = (name for name in cls._fields if name not in cls._field_defaults)
        values = (getattr(tracked, name) for name in given)
        return cls(*values)._replace(kept=why_kept(tracked))


def why_kept(tracked: Any) -> str:
    """Nobody can tell the object that an upload is just storing from the one of the row."""
    if not tracked.is_being_uploaded:
        return ""
    return gettext(
        "An upload to this key was under way when its row was deleted. Track the file, and delete"
        " that row if it is to go."
    )


class CleanupOperation(Transitions):
    """One deletion, from the request to its proof; the id is the deletion id."""

    class Trigger(models.TextChoices):
        DELETED = "deleted", _("deletion")
        FORCED = "forced", _("force-deletion")
        ORPHANED = "orphaned", _("orphans")
        DECLARED = "declared", _("declared deleted")
        VANISHED = "vanished", _("gone without a signal")
        DRY_RUN = "dry_run", _("dry run")
        VERIFY = "verify", _("verification")
        LATE_CHECK = "late_check", _("late check")
        TRIAL = "trial", _("trial of a strategy")

    class Discovery(models.TextChoices):
        BOTH = "both", _("tracked and listed objects")
        TRACKED = "tracked", _("tracked objects only")
        LISTED = "listed", _("listed objects only")

    class Strategy(models.TextChoices):
        BATCH = "batch", _("many objects in a call")
        PARALLEL = "parallel", _("one object in a call, some calls at once")
        SEQUENTIAL = "sequential", _("one object in a call, one after the other")
        WRANGLER = "wrangler", _("wrangler, some at once")
        WRANGLER_SEQUENTIAL = "wrangler_sequential", _("wrangler, one after the other")

    id = models.UUIDField(_("deletion id"), primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(_("kind"), max_length=10, choices=Transitions.Kind)
    project_id = BytewiseTextField(_("project"), null=True, blank=True)
    project_deleted_at = models.DateTimeField(_("project deleted"), null=True, blank=True)
    bucket = BytewiseTextField(_("bucket"))
    parent = models.ForeignKey(
        "self", models.PROTECT, verbose_name=_("follows"), null=True, related_name="children"
    )
    job = models.ForeignKey(
        Job,
        models.PROTECT,
        verbose_name=_("job"),
        null=True,
        # Most have none: see the index below.
        db_index=False,
        related_name="operations",
    )
    trigger = models.CharField(_("trigger"), max_length=12, choices=Trigger)
    requested_by = models.TextField(_("requested by"), blank=True)
    origin = models.TextField(_("requested from"), blank=True)
    discovery = models.CharField(
        _("discovery"), max_length=10, choices=Discovery, default=Discovery.BOTH
    )
    strategy = models.CharField(
        _("strategy"), max_length=20, choices=Strategy, default=Strategy.BATCH
    )

    step = models.CharField(
        _("step"), max_length=10, choices=Transitions.Step, default=Transitions.Step.PLAN
    )
    cursor = models.JSONField(_("position"), default=dict, editable=False)
    # How much is asked of the store at a time: see audit/pace.py.
    pace = models.JSONField(_("pace"), default=dict, editable=False)
    # What its step has done, and when: see audit/headway.py.
    headway = models.JSONField(default=dict, editable=False)

    found = models.PositiveBigIntegerField(_("found"), default=0)
    found_bytes = models.PositiveBigIntegerField(_("bytes found"), default=0)
    deleted = models.PositiveBigIntegerField(_("deleted"), default=0)
    deleted_bytes = models.PositiveBigIntegerField(_("bytes deleted"), default=0)
    already_absent = models.PositiveBigIntegerField(_("already absent"), default=0)
    already_absent_bytes = models.PositiveBigIntegerField(_("bytes already absent"), default=0)
    protected = models.PositiveBigIntegerField(_("protected"), default=0)
    protected_bytes = models.PositiveBigIntegerField(_("bytes protected"), default=0)
    failed = models.PositiveBigIntegerField(_("failed"), default=0)
    failed_bytes = models.PositiveBigIntegerField(_("bytes failed"), default=0)

    plan_digest = models.CharField(_("plan digest"), max_length=64, blank=True)
    ranges = models.JSONField(_("listed prefixes"), default=list, editable=False)
    planned_at = models.DateTimeField(_("planned"), null=True, blank=True)
    # Of a dry run's plan, and of what became of it: see audit/plan_summary.py.
    summary = models.JSONField(default=dict, editable=False)

    created_at = models.DateTimeField(_("requested"), default=timezone.now)

    # Items and timeline were written to the archive of this name and digest, and deleted.
    pruned_at = models.DateTimeField(_("pruned"), null=True, blank=True)
    archive = models.TextField(_("archive"), blank=True)
    archive_digest = models.CharField(_("archive digest"), max_length=64, blank=True)

    class Meta:
        verbose_name = _("cleanup operation")
        verbose_name_plural = _("cleanup operations")
        indexes = [
            models.Index(fields=["next_attempt_at"], name="operation_due"),
            # Written at the end of an attempt only.
            models.Index(
                fields=["finished_at"],
                condition=Q(finished_at__isnull=False),
                name="operation_finished",
            ),
            models.Index(
                fields=["job", "status"],
                condition=Q(job__isnull=False),
                name="operation_of_job",
            ),
            models.Index(fields=["created_at"], name="operation_created"),
            models.Index(fields=["project_id", "created_at"], name="operation_project"),
            models.Index(fields=["status", "created_at"], name="operation_status"),
            models.Index(fields=["trigger", "created_at"], name="operation_trigger"),
            models.Index(
                fields=["status", "trigger", "created_at"], name="operation_status_trigger"
            ),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(status__in=Transitions.Status.values),
                name="operation_status_is_known",
            ),
            models.CheckConstraint(
                condition=~Q(status__in=Transitions.CLOSED)
                | Q(found=F("deleted") + F("already_absent") + F("protected") + F("failed"))
                & Q(
                    found_bytes=F("deleted_bytes")
                    + F("already_absent_bytes")
                    + F("protected_bytes")
                    + F("failed_bytes")
                ),
                name="operation_books_close",
            ),
            models.CheckConstraint(
                condition=~Q(status=Transitions.Status.CLEAN) | Q(failed=0, protected=0),
                name="operation_clean_is_clean",
            ),
            models.CheckConstraint(
                condition=~Q(status=Transitions.Status.CLEAN_WITH_PROTECTED) | Q(failed=0),
                name="operation_protected_is_no_failure",
            ),
            models.CheckConstraint(
                condition=Q(lease_until=None) | Q(status=Transitions.Status.RUNNING),
                name="operation_held_is_running",
            ),
            models.CheckConstraint(
                condition=Q(deleted=0) | ~Q(kind=Transitions.Kind.VERIFY) & Q(dry_run=False),
                name="operation_look_deletes_nothing",
            ),
            # Two of one project, created and deleted again, are told apart by their deletions: the
            # later one supersedes the other, as soon as no worker has it.
            models.UniqueConstraint(
                fields=["project_id", "bucket", "project_deleted_at"],
                condition=Q(
                    kind=Transitions.Kind.PROJECT,
                    dry_run=False,
                    parent=None,
                    status__in=[*Transitions.WORKABLE, Transitions.Status.BLOCKED],
                ),
                name="one_open_cleanup_per_deletion",
            ),
            models.CheckConstraint(
                condition=Q(pruned_at=None)
                | Transitions.OVER & ~Q(archive="") & ~Q(archive_digest=""),
                name="operation_open_is_not_pruned",
            ),
        ]
        permissions = [
            ("dry_run_cleanup", _("Can dry-run a cleanup")),
            ("verify_cleanup", _("Can verify a cleanup")),
            ("force_cleanup", _("Can force-delete, and release blocked cleanups")),
        ]

    def __str__(self) -> str:
        return str(self.pk)

    @property
    def subject(self) -> str:
        if self.kind == self.Kind.VANISHED:
            return str(_("many projects"))
        return self.project_id or str(_("objects of several projects"))

    @property
    def figures(self) -> str:
        """Stands for what a person is shown before a release: with another plan, message or list
        of projects it is another."""
        shown = json.dumps([self.status, self.plan_digest, self.error])
        return hashlib.sha256(shown.encode()).hexdigest()[:12]

    @property
    def deletes(self) -> bool:
        return self.kind != self.Kind.VERIFY and not self.dry_run

    @property
    def runs_wrangler(self) -> bool:
        return self.strategy in (self.Strategy.WRANGLER, self.Strategy.WRANGLER_SEQUENTIAL)

    @property
    def about(self) -> str:
        """Its kind; that of what it looks after, if it follows another."""
        return self.parent.kind if self.parent else self.kind

    @property
    def names_its_objects(self) -> bool:
        """Its items were given with the request; otherwise they are looked for by project."""
        return self.about in (self.Kind.OBJECTS, self.Kind.ORPHANS)

    def outcomes_there(self) -> list[str]:
        """What its items have come to. To count each would take long where they are many."""
        known = CleanupItem.Outcome.values
        each = [Exists(self.items.filter(outcome=outcome)) for outcome in known]
        [there] = type(self).objects.filter(pk=self.pk).values_list(*each)
        return [outcome for outcome, is_there in zip(known, there, strict=True) if is_there]

    def record(self, step: str, message: object, **data: Any) -> None:
        """Add a line to the timeline, and to the log once it is committed; secrets are taken out
        of it."""
        event = OperationEvent.objects.create(
            operation=self, step=step, message=redact(str(message)), data=redact(data)
        )
        event.log_on_commit()

    def progress(self, **values: Any) -> None:
        """Of a verification nothing is done for good before its end, and a pass that had to start
        again only repeats what was done."""
        if self.kind == self.Kind.VERIFY or "restarts" in self.cursor:
            self.renew(**values)
        else:
            super().progress(**values)

    def mark_pruned(self, archive: str, digest: str) -> bool:
        """Note which archive has the items and the timeline from now on; False if it is open."""
        values = {"pruned_at": timezone.now(), "archive": archive, "archive_digest": digest}
        return self.change(self.OVER, **values)

    def add_rows(self, rows: list[Row], evidence: str = "") -> None:
        """Make these deleted rows items of the operation: delete these very objects."""
        outcomes = CleanupItem.Outcome
        if any(row.project_id != self.project_id for row in rows):
            self.change(Q(), project_id=None)
        self.items.bulk_create(
            [
                CleanupItem(
                    operation=self,
                    key=row.key,
                    identity=row.key,
                    project_id=row.project_id,
                    size=row.size,
                    etag=row.etag,
                    last_modified=row.last_modified,
                    copied_to=row.copied_to,
                    unanswered_at=row.unanswered_at,
                    found_in=CleanupItem.FoundIn.TRACKED,
                    evidence=evidence or str(_("its tracking row was deleted")),
                    outcome=outcomes.PROTECTED if row.kept else outcomes.PLANNED,
                    reason=row.kept,
                )
                for row in rows
            ],
            batch_size=1000,
            ignore_conflicts=True,
        )

    def first_start_for_deletion(self) -> datetime | None:
        """When a worker first took up a cleanup of the same deletion."""
        same = CleanupOperation.objects.filter(
            project_id=self.project_id, project_deleted_at=self.project_deleted_at
        )
        first: datetime | None = same.aggregate(at=Min("started_at"))["at"]
        return first

    def copy_items(self, other: "CleanupOperation") -> None:
        """Take over what another operation saw gone, unless it is an item here already; where
        its items were given, all that it was to delete, as nothing else tells of them."""
        outcomes = CleanupItem.Outcome
        gone = other.items.filter(outcome__in=[outcomes.DELETED, outcomes.ALREADY_ABSENT])
        if other.names_its_objects:
            gone = other.items.exclude(outcome=outcomes.PROTECTED)
        facts = ("key", "identity", "escaped", "span", "project_id", "size", "etag")
        found = CleanupItem.FoundIn.TRACKED
        copies = (
            CleanupItem(operation=self, found_in=found, **row)
            for row in read_in_steps(gone.values(*facts))
        )
        while batch := list(islice(copies, 1000)):
            CleanupItem.objects.bulk_create(batch, ignore_conflicts=True)
