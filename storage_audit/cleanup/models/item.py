"""The table of the objects of each cleanup, and of what became of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any, NamedTuple, Self
from uuid import UUID

from django.db import models
from django.db.models import Count, Q, Sum
from django.db.models.functions import Coalesce
from django.utils import timezone
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from storage_audit.bucket.errors import LOCKED
from storage_audit.cleanup.models.lease_and_status import CleanupStates
from storage_audit.clocks import time_within
from storage_audit.conf import conf
from storage_audit.fields import MAX_ETAG_LENGTH, BytewiseTextField, unicode_spellings
from storage_audit.models import R2Object


class DeletedRow(NamedTuple):
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
    kept_reason: str = ""
    # When somebody asked for the deletion of its object, and nobody noted an answer.
    unanswered_at: datetime | None = None

    @classmethod
    def of(cls, tracked: Any) -> DeletedRow:
        given = (name for name in cls._fields if name not in cls._field_defaults)
        values = (getattr(tracked, name) for name in given)
        return cls(*values)._replace(kept_reason=upload_kept_reason(tracked))


def upload_kept_reason(tracked: Any) -> str:
    """Why the object stays while an upload is under way: it may store another object."""
    if not tracked.is_being_uploaded:
        return ""
    text = gettext("An upload to this name was in progress when its record was deleted.")
    return f"{text} {track_and_delete_advice()}"


def track_and_delete_advice() -> str:
    return gettext("To delete the file, track it, then delete it under “Files”.")


def has_unanswered_call() -> Q:
    """Items with a call that got no answer and that the store may still obey."""
    return time_within("unanswered_at", conf().deletion_timeout)


class CleanupItemQuerySet(models.QuerySet["CleanupItem"]):
    def planned(self) -> Self:
        return self.filter(outcome=self.model.Outcome.TO_DELETE)

    def open(self) -> Self:
        return self.filter(outcome__in=self.model.OPEN)

    def named_by(self, cleanups: models.QuerySet[Any]) -> Self:
        """The objects that these cleanups were given, except those that they keep."""
        named = cleanups.filter(kind__in=[CleanupStates.Kind.OBJECTS, CleanupStates.Kind.ORPHANS])
        return self.filter(cleanup__in=named).exclude(outcome=self.model.Outcome.KEPT)

    def of_deleted_rows(self, bucket: str) -> Self:
        """The objects of deleted rows that named a project, unless they are gone."""
        items = self.filter(
            cleanup__kind=CleanupStates.Kind.OBJECTS, cleanup__bucket=bucket, escaped=False
        )
        gone = [self.model.Outcome.DELETED, self.model.Outcome.ALREADY_GONE]
        return items.exclude(outcome__in=gone).exclude(project_id=None)

    def nameless(self) -> Self:
        """Items whose key no request can name, so that we cannot delete them."""
        return self.filter(outcome=self.model.Outcome.FAILED, escaped=True)

    def named(self) -> Self:
        """Files that the project's rows named, under keys that do not name the project."""
        return self.filter(found_in=self.model.FoundIn.NAMED)

    def dropped_since(self, planned_at: datetime) -> Self:
        """Items that a plan of that time was to delete and did not, or maybe did not; also those
        that came after the plan and stay."""
        outcome = self.model.Outcome
        stayed = Q(outcome__in=[outcome.KEPT, outcome.FAILED, *self.model.OPEN])
        # A tracked key without an object was already gone in the plan.
        gone = Q(outcome=outcome.ALREADY_GONE) & ~Q(found_in=self.model.FoundIn.TRACKED)
        # No plan deletes what no request can name.
        return self.filter(stayed | gone, changed_at__gt=planned_at, escaped=False)

    def kept_by_lock_rule(self) -> Self:
        """Items that a lock rule of the bucket kept when they were last sent."""
        return self.filter(store_answer__startswith=LOCKED)

    def mark(self, outcome: str, reason: str = "", **values: Any) -> int:
        return self.update(outcome=outcome, reason=reason, changed_at=timezone.now(), **values)

    def is_being_deleted(self, bucket: str, key: str) -> bool:
        """Whether a cleanup is deleting this key, or a spelling that may be the same object, or the
        store may still obey an earlier call."""
        same = self.filter(cleanup__bucket=bucket, identity__in=unicode_spellings(key))
        # Nothing is sent that was not marked again just before.
        deleting = Q(
            time_within("changed_at", conf().deletion_timeout), outcome=self.model.Outcome.DELETING
        )
        return same.filter(deleting | has_unanswered_call()).exists()

    def maybe_under_way(self) -> Self:
        return self.filter(has_unanswered_call())

    def row_ids_named(self, rows: Collection[R2Object]) -> set[int]:
        """The ids of the rows whose object is an item. Looked up by name, as the database would
        otherwise read all of these items for each row."""
        names = {row.pk: unicode_spellings(row.key) for row in rows}
        same = self.filter(identity__any_of=set[str]().union(*names.values()))
        found = set(same.values_list("cleanup__bucket", "identity")) if names else set()
        return {
            row.pk
            for row in rows
            if not found.isdisjoint((row.bucket, name) for name in names[row.pk])
        }

    def keys_and_identities(self) -> models.QuerySet[Any, Any]:
        """The keys that tracking rows of the items' objects may have."""
        return self.values("key").union(self.values("identity"))

    def totals(self) -> dict[str, int]:
        """Counts and bytes of all outcomes, from one aggregate; what is open counts as failed."""
        return self.totals_of(self.by_outcome())

    def totals_of(self, outcomes: dict[str, tuple[int, int]]) -> dict[str, int]:
        """The same, from what `by_outcome` gave."""
        names = ("found", "deleted", "already_gone", "kept", "failed")
        totals = {f"{name}{unit}": 0 for name in names for unit in ("", "_bytes")}
        for outcome, (count, size) in outcomes.items():
            column = self.model.Outcome.FAILED if outcome in self.model.OPEN else outcome
            for name in ("found", column):
                totals[name] += count
                totals[f"{name}_bytes"] += size
        return totals

    def by_outcome(self) -> dict[str, tuple[int, int]]:
        """The number of items and of bytes of each outcome there is."""
        groups = self.order_by().values("outcome")
        sums = groups.annotate(n=Count("pk"), total=Coalesce(Sum("size"), 0))
        return {
            outcome: (n, size) for outcome, n, size in sums.values_list("outcome", "n", "total")
        }

    def by_cleanup(
        self, cleanups: Iterable[UUID]
    ) -> models.QuerySet[Any, tuple[UUID, str, int, int]]:
        """The same for each of these cleanups."""
        groups = self.filter(cleanup__in=cleanups).order_by().values("cleanup", "outcome")
        sums = groups.annotate(n=Count("pk"), total=Coalesce(Sum("size"), 0))
        return sums.values_list("cleanup", "outcome", "n", "total")

    def by_reason(self, limit: int) -> models.QuerySet[Any, tuple[str, str, int, int]]:
        """Why objects stay, counted among `limit` of them; the commonest reason first."""
        stay = [self.model.Outcome.KEPT, self.model.Outcome.FAILED]
        staying = self.filter(outcome__in=stay)[:limit]
        looked_at = self.model.objects.filter(pk__in=staying.values("pk")).exclude(reason="")
        groups = looked_at.order_by().values("outcome", "reason")
        sums = groups.annotate(n=Count("pk"), total=Coalesce(Sum("size"), 0)).order_by("-n")
        return sums.values_list("outcome", "reason", "n", "total")


class CleanupItem(models.Model):
    """One key of one cleanup, and what became of it.

    While its outcome is *being deleted*, three fields say how far that is:
    marked, nothing sent: no calls
    sent, or maybe sent: calls, no answer from the store, and the time once a worker noticed
    answered: calls and the answer
    not there just before it was to be sent: the answer says so, and no call was added
    """

    class FoundIn(models.TextChoices):
        TRACKED = "tracked", _("tracked only")
        LISTED = "listed", _("listed only")
        BOTH = "both", _("tracked and listed")
        NAMED = "named", _("named by a row")

    class Outcome(models.TextChoices):
        TO_DELETE = "to_delete", _("to be deleted")
        DELETING = "deleting", _("being deleted")
        DELETED = "deleted", _("deleted")
        ALREADY_GONE = "already_gone", _("already gone")
        KEPT = "kept", _("kept")
        FAILED = "failed", _("failed")

    OPEN = (Outcome.TO_DELETE, Outcome.DELETING)

    cleanup = models.ForeignKey("Cleanup", models.CASCADE, related_name="items")
    key = BytewiseTextField(_("key"))
    # What the store takes for the same object: R2 folds keys to NFC, other stores do not.
    identity = BytewiseTextField(editable=False)
    # The key cannot be stored or sent as it is (NUL, invalid UTF-8): `key` shows it escaped.
    escaped = models.BooleanField(_("shown escaped"), default=False)
    range_index = models.PositiveIntegerField(null=True, editable=False)
    project_id = BytewiseTextField(_("project"), null=True)
    size = models.PositiveBigIntegerField(_("size in bytes"), null=True)
    etag = models.CharField(_("ETag"), max_length=MAX_ETAG_LENGTH, blank=True)
    last_modified = models.DateTimeField(_("last modified"), null=True)
    # Of a renamed object: the key of its copy. The object goes only while the copy is there.
    copied_to = BytewiseTextField(null=True, editable=False)
    found_in = models.CharField(_("found"), max_length=10, choices=FoundIn)
    owner_evidence = models.TextField(_("owner evidence"), blank=True)
    outcome = models.CharField(
        _("outcome"), max_length=15, choices=Outcome, default=Outcome.TO_DELETE
    )
    reason = models.TextField(_("reason"), blank=True)
    store_answer = models.TextField(_("the store's answer"), blank=True)
    attempts = models.PositiveSmallIntegerField(_("attempts"), default=0)
    # Calls that named the key, or may have: a worker that died may have sent one.
    calls = models.PositiveSmallIntegerField(_("calls to the store"), default=0, editable=False)
    # When such a call was made without an answer: the store may still obey it.
    unanswered_at = models.DateTimeField(null=True, editable=False)
    last_seen_at = models.DateTimeField(_("last seen in the bucket"), null=True)
    changed_at = models.DateTimeField(_("changed"), default=timezone.now)

    objects = CleanupItemQuerySet.as_manager()

    class Meta:
        verbose_name = _("item")
        verbose_name_plural = _("items")
        constraints = [
            models.UniqueConstraint(
                fields=["cleanup", "identity", "escaped"], name="one_item_per_object"
            ),
            models.CheckConstraint(
                condition=Q(
                    outcome__in=[
                        "to_delete",
                        "deleting",
                        "deleted",
                        "already_gone",
                        "kept",
                        "failed",
                    ]
                ),
                name="item_outcome_is_known",
            ),
        ]
        indexes = [
            models.Index(fields=["cleanup", "outcome", "range_index", "key"], name="item_work"),
            models.Index(fields=["identity"], name="item_identity"),
            models.Index(
                fields=["unanswered_at"],
                condition=Q(unanswered_at__isnull=False),
                name="item_unanswered",
            ),
        ]

    def __str__(self) -> str:
        return self.key
