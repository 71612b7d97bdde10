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
from storage_audit.cleanup.models.states import Transitions
from storage_audit.clocks import lately
from storage_audit.conf import conf
from storage_audit.fields import LONGEST_ETAG, BytewiseTextField, spellings
from storage_audit.models import R2Object


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
    def of(cls, tracked: Any) -> Row:
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


def maybe_under_way() -> Q:
    """Items for which a call got no answer, as long as the store may still obey it."""
    return lately("unanswered_at", conf().deletion_timeout)


class CleanupItemQuerySet(models.QuerySet["CleanupItem"]):
    def planned(self) -> Self:
        return self.filter(outcome=self.model.Outcome.PLANNED)

    def open(self) -> Self:
        return self.filter(outcome__in=self.model.OPEN)

    def named_by(self, operations: models.QuerySet[Any]) -> Self:
        """The objects that these were given, but for those that they decided to keep."""
        named = operations.filter(kind__in=[Transitions.Kind.OBJECTS, Transitions.Kind.ORPHANS])
        return self.filter(operation__in=named).exclude(outcome=self.model.Outcome.PROTECTED)

    def of_deleted_rows(self, bucket: str) -> Self:
        """The objects of deleted rows that named a project, unless they were seen gone."""
        items = self.filter(
            operation__kind=Transitions.Kind.OBJECTS, operation__bucket=bucket, escaped=False
        )
        gone = [self.model.Outcome.DELETED, self.model.Outcome.ALREADY_ABSENT]
        return items.exclude(outcome__in=gone).exclude(project_id=None)

    def nameless(self) -> Self:
        """What no request can name, and so nobody deletes from here."""
        return self.filter(outcome=self.model.Outcome.FAILED, escaped=True)

    def named(self) -> Self:
        """What rows of the project named, under keys that no key format reads as its."""
        return self.filter(found_in=self.model.FoundIn.NAMED)

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


class CleanupItem(models.Model):
    """One key of one operation, and what became of it."""

    class FoundIn(models.TextChoices):
        TRACKED = "tracked", _("tracked only")
        LISTED = "listed", _("listed only")
        BOTH = "both", _("tracked and listed")
        NAMED = "named", _("named by a row")

    class Outcome(models.TextChoices):
        PLANNED = "planned", _("to be deleted")
        DELETING = "deleting", _("being deleted")
        DELETED = "deleted", _("deleted")
        ALREADY_ABSENT = "already_absent", _("already absent")
        PROTECTED = "protected", _("protected")
        FAILED = "failed", _("failed")

    OPEN = (Outcome.PLANNED, Outcome.DELETING)

    operation = models.ForeignKey("CleanupOperation", models.CASCADE, related_name="items")
    key = BytewiseTextField(_("key"))
    # What the store takes for the same object: R2 folds keys to NFC, other stores do not.
    identity = BytewiseTextField(editable=False)
    # The key cannot be stored or sent as it is (NUL, invalid UTF-8): `key` shows it escaped.
    escaped = models.BooleanField(_("shown escaped"), default=False)
    span = models.PositiveIntegerField(null=True, editable=False)
    project_id = BytewiseTextField(_("project"), null=True)
    size = models.PositiveBigIntegerField(_("size in bytes"), null=True)
    etag = models.CharField(_("ETag"), max_length=LONGEST_ETAG, blank=True)
    last_modified = models.DateTimeField(_("last modified"), null=True)
    # Of a renamed object: the key of its copy. The object goes only while the copy is there.
    copied_to = BytewiseTextField(null=True, editable=False)
    found_in = models.CharField(_("found"), max_length=10, choices=FoundIn)
    evidence = models.TextField(_("owner evidence"), blank=True)
    outcome = models.CharField(
        _("outcome"), max_length=15, choices=Outcome, default=Outcome.PLANNED
    )
    reason = models.TextField(_("reason"), blank=True)
    answer = models.TextField(_("the store's answer"), blank=True)
    tries = models.PositiveSmallIntegerField(_("tries"), default=0)
    # Those that named the key, or may have: a worker that dies does not say what it still sent.
    calls = models.PositiveSmallIntegerField(_("calls to the store"), default=0, editable=False)
    # The store may still obey such a call, whatever became of the object since.
    unanswered_at = models.DateTimeField(null=True, editable=False)
    present_at = models.DateTimeField(_("last seen in the bucket"), null=True)
    changed_at = models.DateTimeField(_("changed"), default=timezone.now)

    objects = CleanupItemQuerySet.as_manager()

    class Meta:
        verbose_name = _("item")
        verbose_name_plural = _("items")
        constraints = [
            models.UniqueConstraint(
                fields=["operation", "identity", "escaped"], name="one_item_per_object"
            ),
            models.CheckConstraint(
                condition=Q(
                    outcome__in=[
                        "planned",
                        "deleting",
                        "deleted",
                        "already_absent",
                        "protected",
                        "failed",
                    ]
                ),
                name="item_outcome_is_known",
            ),
        ]
        indexes = [
            models.Index(fields=["operation", "outcome", "span", "key"], name="item_work"),
            models.Index(fields=["identity"], name="item_identity"),
            models.Index(
                fields=["unanswered_at"],
                condition=Q(unanswered_at__isnull=False),
                name="item_unanswered",
            ),
        ]

    def __str__(self) -> str:
        return self.key
