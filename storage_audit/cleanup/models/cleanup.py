"""The table of cleanups. Its items and its timeline have modules of their own."""

from __future__ import annotations

import hashlib
import json
import uuid
from datetime import datetime
from itertools import islice
from typing import Any

from django.db import models
from django.db.models import Exists, F, Min, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from storage_audit import logs
from storage_audit.cleanup.models.bulk_job import BulkJob
from storage_audit.cleanup.models.cleanup_queries import CleanupQueries
from storage_audit.cleanup.models.event import CleanupEvent
from storage_audit.cleanup.models.item import CleanupItem, DeletedRow
from storage_audit.cleanup.models.lease_and_status import CleanupStates
from storage_audit.cleanup.models.pause import DeletionPause
from storage_audit.cleanup.models.person_transitions import PersonTransitions
from storage_audit.cleanup.models.position import Position, PositionField
from storage_audit.cleanup.models.snapshot import Snapshot
from storage_audit.clocks import DatabaseNow
from storage_audit.conf import conf
from storage_audit.fields import BytewiseTextField
from storage_audit.models import R2Object
from storage_audit.read_in_steps import read_in_steps
from storage_audit.redaction import redact_secrets
from storage_audit.request_origin import current_origin


class CleanupQuerySet(CleanupQueries["Cleanup"]):
    def request(self, **values: Any) -> Cleanup:
        """Create a cleanup, with who asked and from where; in the transaction that deletes."""
        origin = current_origin()
        asked: dict[str, Any] = {"requested_by": origin.user, "origin": origin.place}
        asked["next_attempt_at"] = DatabaseNow()
        if values["kind"] != self.model.Kind.VERIFY:
            asked |= {"discovery": conf().discovery, "strategy": conf().strategy}
        cleanup = self.create(**asked | values)
        cleanup.defer_times()
        asked_by = logs.current_context().request_id
        joins = {"request_id": asked_by} if asked_by else {}
        cleanup.record("request", cleanup.get_trigger_display(), **joins)
        return cleanup

    def request_for_rows(self, rows: list[DeletedRow], evidence: str) -> Cleanup:
        """A cleanup of the objects of these rows, of one bucket, which no `delete()` signals."""
        bucket, project_id = rows[0].bucket, rows[0].project_id
        cleanup = self.request(
            kind=self.model.Kind.OBJECTS,
            bucket=bucket,
            project_id=project_id,
            trigger=self.model.Trigger.DELETED,
        )
        cleanup.add_rows(rows, evidence)
        return cleanup

    def find_request_id(self, pk: uuid.UUID) -> str | None:
        """The id of the web request that asked for the cleanup, or for the one that it follows."""
        events = CleanupEvent.objects.filter(cleanup=pk)
        asked = events.filter(step="request", data__has_key="request_id")
        return asked.values_list("data__request_id", flat=True).first()

    def request_for_project(
        self, project_id: str, *, trigger: str, deleted_at: datetime | None, **values: Any
    ) -> list[Cleanup]:
        """One cleanup for each bucket in which the project may have objects."""
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
        tracked = R2Object.objects.buckets_of(project_id)
        open_ones = self.of_project(project_id).values_list("bucket", flat=True)
        return sorted({*tracked, *open_ones, conf().bucket})

    def get_untouched(self, pk: uuid.UUID) -> Cleanup | None:
        """The cleanup if it exists and no worker had it, kept from workers until the commit."""
        untouched = self.filter(pk=pk, status=self.model.Status.PENDING, started_at=None)
        return untouched.get() if untouched.update(attempts=0) else None


class Cleanup(PersonTransitions):
    """One deletion, from the request to its verification; the id is the deletion id."""

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

    id = models.UUIDField(_("deletion ID"), primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(_("kind"), max_length=10, choices=CleanupStates.Kind)
    project_id = BytewiseTextField(_("project"), null=True, blank=True)
    project_deleted_at = models.DateTimeField(_("project deleted"), null=True, blank=True)
    bucket = BytewiseTextField(_("bucket"))
    parent = models.ForeignKey(
        "self", models.PROTECT, verbose_name=_("follows"), null=True, related_name="children"
    )
    bulk_job = models.ForeignKey(
        BulkJob,
        models.PROTECT,
        verbose_name=_("bulk job"),
        null=True,
        # Most have none: see the index below.
        db_index=False,
        related_name="cleanups",
    )
    # The rows of the delete() call, as long as it can be undone.
    snapshot = models.ForeignKey(
        Snapshot, models.SET_NULL, null=True, editable=False, related_name="cleanups"
    )
    trigger = models.CharField(_("trigger"), max_length=12, choices=CleanupStates.Trigger)
    requested_by = models.TextField(_("requested by"), blank=True)
    origin = models.TextField(_("requested from"), blank=True)
    discovery = models.CharField(
        _("discovery"), max_length=10, choices=Discovery, default=Discovery.BOTH
    )
    strategy = models.CharField(
        _("strategy"), max_length=20, choices=Strategy, default=Strategy.BATCH
    )

    step = models.CharField(
        _("step"), max_length=10, choices=CleanupStates.Step, default=CleanupStates.Step.PLAN
    )
    position = PositionField(_("position"), default=Position, editable=False)
    # The ids that a cleanup of many vanished projects is about.
    vanished_ids = models.JSONField(_("vanished projects"), default=list, editable=False)
    # How much is asked of the store at a time: see cleanup/adaptive_batch.py.
    batch_state = models.JSONField(_("batch state"), default=dict, editable=False)
    # What its step has done, and when: see cleanup/progress.py.
    progress = models.JSONField(default=dict, editable=False)

    found = models.PositiveBigIntegerField(_("found"), default=0)
    found_bytes = models.PositiveBigIntegerField(_("bytes found"), default=0)
    deleted = models.PositiveBigIntegerField(_("deleted"), default=0)
    deleted_bytes = models.PositiveBigIntegerField(_("bytes deleted"), default=0)
    already_gone = models.PositiveBigIntegerField(_("already gone"), default=0)
    already_gone_bytes = models.PositiveBigIntegerField(_("bytes already gone"), default=0)
    kept = models.PositiveBigIntegerField(_("kept"), default=0)
    kept_bytes = models.PositiveBigIntegerField(_("bytes kept"), default=0)
    failed = models.PositiveBigIntegerField(_("failed"), default=0)
    failed_bytes = models.PositiveBigIntegerField(_("bytes failed"), default=0)

    plan_digest = models.CharField(_("plan digest"), max_length=64, blank=True)
    listed_prefixes = models.JSONField(_("listed prefixes"), default=list, editable=False)
    planned_at = models.DateTimeField(_("planned"), null=True, blank=True)
    # Of a dry run's plan, and of what became of it: see cleanup/plan_summary.py.
    plan_summary = models.JSONField(default=dict, editable=False)

    created_at = models.DateTimeField(_("requested"), default=timezone.now)

    # Items and timeline were written to the archive of this name and digest, and deleted.
    pruned_at = models.DateTimeField(_("pruned"), null=True, blank=True)
    archive = models.TextField(_("archive"), blank=True)
    archive_digest = models.CharField(_("archive digest"), max_length=64, blank=True)

    objects = CleanupQuerySet.as_manager()

    class Meta:
        verbose_name = _("cleanup")
        verbose_name_plural = _("cleanups")
        indexes = [
            models.Index(fields=["next_attempt_at"], name="cleanup_due"),
            # Written at the end of an attempt only.
            models.Index(
                fields=["finished_at"],
                condition=Q(finished_at__isnull=False),
                name="cleanup_finished",
            ),
            models.Index(
                fields=["bulk_job", "status"],
                condition=Q(bulk_job__isnull=False),
                name="cleanup_of_bulk_job",
            ),
            models.Index(fields=["created_at"], name="cleanup_created"),
            models.Index(
                fields=["created_at"],
                condition=Q(decided_at__isnull=False),
                name="cleanup_decided",
            ),
            models.Index(fields=["project_id", "created_at"], name="cleanup_project"),
            models.Index(fields=["status", "created_at"], name="cleanup_status"),
            models.Index(fields=["trigger", "created_at"], name="cleanup_trigger"),
            models.Index(fields=["requested_by", "created_at"], name="cleanup_requester"),
            models.Index(fields=["status", "trigger", "created_at"], name="cleanup_status_trigger"),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(status__in=CleanupStates.Status.values),
                name="cleanup_status_is_known",
            ),
            models.CheckConstraint(
                condition=~Q(status__in=CleanupStates.FINISHED)
                | Q(found=F("deleted") + F("already_gone") + F("kept") + F("failed"))
                & Q(
                    found_bytes=F("deleted_bytes")
                    + F("already_gone_bytes")
                    + F("kept_bytes")
                    + F("failed_bytes")
                ),
                name="cleanup_totals_add_up",
            ),
            models.CheckConstraint(
                condition=~Q(status=CleanupStates.Status.CLEAN) | Q(failed=0, kept=0),
                name="cleanup_clean_is_clean",
            ),
            models.CheckConstraint(
                condition=~Q(status=CleanupStates.Status.CLEAN_WITH_KEPT) | Q(failed=0),
                name="cleanup_kept_is_no_failure",
            ),
            models.CheckConstraint(
                condition=Q(lease_until=None) | Q(status=CleanupStates.Status.RUNNING),
                name="cleanup_leased_is_running",
            ),
            models.CheckConstraint(
                condition=Q(deleted=0) | ~Q(kind=CleanupStates.Kind.VERIFY) & Q(dry_run=False),
                name="cleanup_verification_deletes_nothing",
            ),
            # Two of one project, created and deleted again, are told apart by their deletions: the
            # later one supersedes the other, as soon as no worker has it.
            models.UniqueConstraint(
                fields=["project_id", "bucket", "project_deleted_at"],
                condition=Q(
                    kind=CleanupStates.Kind.PROJECT,
                    dry_run=False,
                    parent=None,
                    status__in=[*CleanupStates.WORKABLE, CleanupStates.Status.BLOCKED],
                ),
                name="one_open_cleanup_per_deletion",
            ),
            models.CheckConstraint(
                condition=Q(pruned_at=None)
                | CleanupStates.OVER & ~Q(archive="") & ~Q(archive_digest=""),
                name="cleanup_open_is_not_pruned",
            ),
        ]
        permissions = [
            ("dry_run_cleanup", _("Can dry-run a cleanup")),
            ("verify_cleanup", _("Can verify a cleanup")),
            ("force_cleanup", _("Can force-delete, and approve blocked cleanups")),
            ("pause_cleanup", _("Can pause and resume deletions")),
            ("undo_cleanup", _("Can undo a deletion")),
            ("cancel_cleanup", _("Can cancel a cleanup, which keeps its files")),
            ("erase_cleanup", _("Can erase the files of a held deletion now")),
        ]

    def __str__(self) -> str:
        return str(self.pk)

    @property
    def subject(self) -> str:
        if self.kind == self.Kind.VANISHED:
            return str(_("many projects"))
        return self.project_id or str(_("objects of several projects"))

    def get_status_display(self) -> str:  # type: ignore[no-redef]
        """The status in words, by what a person would decide."""
        if self.status == self.Status.BLOCKED and self.kind == self.Kind.VERIFY:
            return str(_("verify again"))
        if self.status == self.Status.BLOCKED and self.kind == self.Kind.VANISHED:
            return str(_("needs a decision"))
        return str(self.Status(self.status).label)

    @property
    def named_subject(self) -> str:
        """With the name of the deleted project, if the query was `with_names` and it is kept."""
        name: str = getattr(self, "project_name", None) or self.subject
        return name if self.subject in name else f"{name} ({self.subject})"

    @property
    def confirmation_digest(self) -> str:
        """Stands for what a person is shown before an approval: it changes with the plan, the
        message or the list of projects."""
        shown = json.dumps([self.status, self.plan_digest, self.message])
        return hashlib.sha256(shown.encode()).hexdigest()[:12]

    @property
    def is_deletion(self) -> bool:
        return self.kind != self.Kind.VERIFY and not self.dry_run

    @property
    def runs_wrangler(self) -> bool:
        return self.strategy in (self.Strategy.WRANGLER, self.Strategy.WRANGLER_SEQUENTIAL)

    @property
    def root_kind(self) -> str:
        """Its kind, or that of the cleanup that it follows."""
        return self.parent.kind if self.parent else self.kind

    @property
    def has_given_objects(self) -> bool:
        """Its items were given with the request; otherwise they are looked for by project."""
        return self.root_kind in (self.Kind.OBJECTS, self.Kind.ORPHANS)

    def existing_outcomes(self) -> list[str]:
        """The outcomes that its items have. Counting each would take long where they are many."""
        known = CleanupItem.Outcome.values
        each = [Exists(self.items.filter(outcome=outcome)) for outcome in known]
        [there] = type(self).objects.filter(pk=self.pk).values_list(*each)
        return [outcome for outcome, is_there in zip(known, there, strict=True) if is_there]

    def record(self, step: str, message: object, **data: Any) -> None:
        """Add a line to the timeline, and to the log once it is committed; secrets are taken out
        of it."""
        event = CleanupEvent.objects.create(
            cleanup=self, step=step, message=redact_secrets(str(message)), data=redact_secrets(data)
        )
        event.log_on_commit()

    def find_pause(self) -> DeletionPause | None:
        """A pause that keeps it from deleting, whatever it does now. It covers follow-up checks,
        too."""
        return DeletionPause.objects.covering(self.pk, self.parent_id).order_by("paused_at").first()

    def renew_after_progress(self, **values: Any) -> None:
        """A verification gets nothing done for good before its end, and a pass that had to start
        again only repeats what was done: neither counts as progress."""
        if self.kind == self.Kind.VERIFY or self.position.restarts:
            self.renew(**values)
        else:
            super().renew_after_progress(**values)

    def mark_pruned(self, archive: str, digest: str) -> bool:
        """Note which archive holds the items and the timeline; False if the cleanup is open."""
        values = {"pruned_at": timezone.now(), "archive": archive, "archive_digest": digest}
        return self.change_if(self.OVER, **values)

    def add_rows(self, rows: list[DeletedRow], evidence: str = "") -> None:
        """Make these deleted rows items of the cleanup: delete these very objects."""
        outcomes = CleanupItem.Outcome
        if any(row.project_id != self.project_id for row in rows):
            self.change_if(Q(), project_id=None)
        self.items.bulk_create(
            [
                CleanupItem(
                    cleanup=self,
                    key=row.key,
                    identity=row.key,
                    project_id=row.project_id,
                    size=row.size,
                    etag=row.etag,
                    last_modified=row.last_modified,
                    copied_to=row.copied_to,
                    unanswered_at=row.unanswered_at,
                    found_in=CleanupItem.FoundIn.TRACKED,
                    owner_evidence=evidence or str(_("its tracking row was deleted")),
                    outcome=outcomes.KEPT if row.kept_reason else outcomes.TO_DELETE,
                    reason=row.kept_reason,
                )
                for row in rows
            ],
            batch_size=1000,
            ignore_conflicts=True,
        )

    def first_start_for_deletion(self) -> datetime | None:
        """When a worker first took up a cleanup of the same deletion."""
        same = Cleanup.objects.filter(
            project_id=self.project_id, project_deleted_at=self.project_deleted_at
        )
        first: datetime | None = same.aggregate(at=Min("started_at"))["at"]
        return first

    def copy_items(self, other: Cleanup) -> None:
        """Copy the items of another cleanup that are gone, unless they are items here already.
        Where its items were given, copy all that it was to delete, as no other record has them."""
        outcomes = CleanupItem.Outcome
        gone = other.items.filter(outcome__in=[outcomes.DELETED, outcomes.ALREADY_GONE])
        if other.has_given_objects:
            gone = other.items.exclude(outcome=outcomes.KEPT)
        facts = ("key", "identity", "escaped", "range_index", "project_id", "size", "etag")
        found = CleanupItem.FoundIn.TRACKED
        copies = (
            CleanupItem(cleanup=self, found_in=found, **row)
            for row in read_in_steps(gone.values(*facts))
        )
        while batch := list(islice(copies, 1000)):
            CleanupItem.objects.bulk_create(batch, ignore_conflicts=True)
