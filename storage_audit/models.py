"""The tables that all features rest on. Each feature's own stand beside it; apps.py loads them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime
from typing import Any, Self, TypeAlias

from django.core.exceptions import ValidationError
from django.db import OperationalError, connection, models, transaction
from django.db.models import Case, Count, Exists, F, OuterRef, Q, Sum, Value, When
from django.db.models.functions import Coalesce, Concat, Upper
from django.db.models.lookups import GreaterThanOrEqual, LessThan
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from storage_audit import project_model
from storage_audit.clocks import is_recent, time_within
from storage_audit.conf import conf
from storage_audit.fields import (
    LAST_CHARACTER,
    MAX_ETAG_LENGTH,
    Bytewise,
    BytewiseTextField,
    find_in_any_spelling,
    prefix_end,
    starts_with,
)
from storage_audit.locking import SHORT_LOCK_TIMEOUT_MS, atomic_with_timeout
from storage_audit.read_in_steps import ROWS_PER_STEP
from storage_audit.redaction import printable_text


def validate_project_id(value: str) -> None:
    if not re.fullmatch(conf().project_id_pattern, value):
        raise ValidationError(
            _("“%(value)s” is not a project ID. IDs look like proj_a1: they match %(pattern)s."),
            code="project_id",
            params={"value": value, "pattern": conf().project_id_pattern},
        )


class Project(models.Model):
    id = BytewiseTextField(_("ID"), primary_key=True, validators=[validate_project_id])
    title = models.CharField(_("title"), max_length=200, blank=True)
    created_at = models.DateTimeField(_("created"), default=timezone.now, editable=False)

    # What a title is searched by.
    UPPER_TITLE = Bytewise(Upper("title"))

    class Meta:
        swappable = "STORAGE_AUDIT_PROJECT_MODEL"
        verbose_name = _("project")
        verbose_name_plural = _("projects")
        indexes = [
            models.Index(fields=["created_at"], name="project_created"),
            models.Index(Bytewise(Upper("title")), name="project_titled"),
        ]

    def __str__(self) -> str:
        shown = printable_text(self.pk)
        return f"{printable_text(self.title)} ({shown})" if self.title else shown

    def save(self, *args: Any, **kwargs: Any) -> None:
        # A key is built from the id, so an id outside the grammar must not come into being.
        validate_project_id(self.pk)
        super().save(*args, **kwargs)

    @classmethod
    def title_starts_with(cls, text: str) -> Q:
        """In whatever case. A range, as SQLite reads no index for LIKE."""
        first = Upper(Value(text))
        is_after = GreaterThanOrEqual(cls.UPPER_TITLE, first)
        return Q(is_after, LessThan(cls.UPPER_TITLE, Concat(first, Value(LAST_CHARACTER))))


class KnownProjectQuerySet(models.QuerySet["KnownProject"]):
    def record_alive(self, project_id: str, evidence: str, *, created: bool) -> None:
        """Note that an id is alive: for the first time, again, or still (then nothing changes).

        For a project that was just created the row is written in any case, which locks it until
        the commit: a sweep may be about to call its id gone.
        """
        alive = {"deleted_at": None, "evidence": evidence, "kept_for": ""}
        if created or not self.filter(pk=project_id, deleted_at=None).exists():
            again = alive | {"last_created_at": timezone.now()}
            first = again if created else alive
            self.update_or_create(pk=project_id, defaults=again, create_defaults=first)

    def lifetimes(self, ids: Collection[str]) -> dict[str, list[str]]:
        """By id, when it was deleted and last created: as long as that is equal, the id stands for
        the same project. Which time is later says nothing, as several clocks wrote them."""
        known = self.filter(pk__any_of=ids).values_list("pk", "deleted_at", "last_created_at")
        found = {pk: [str(deleted), str(created)] for pk, deleted, created in known}
        # An id that nobody has noted yet has the values of one that was just noted as alive.
        return dict.fromkeys(ids, [str(None), str(None)]) | found

    def clear_deletion(self) -> int:
        """Note that these were deleted and have a row again, though no signal said so."""
        return self.update(
            deleted_at=None,
            last_created_at=timezone.now(),
            evidence=self.model.Evidence.SEEN,
            kept_for="",
        )

    def record_deleted(
        self, project_id: str, at: datetime, evidence: str, kept_for: str = ""
    ) -> None:
        deleted = {"deleted_at": at, "evidence": evidence, "kept_for": kept_for}
        self.update_or_create(pk=project_id, defaults=deleted)

    def declare_deleted(self, project_id: str) -> datetime:
        """Note that a person calls the id deleted, and return since when. A deletion on record
        keeps its time. The row stays locked until the commit."""
        now = timezone.now()
        row = self.model(pk=project_id, deleted_at=now, evidence=self.model.Evidence.DECLARED)
        self.bulk_create([row], ignore_conflicts=True)
        self.filter(self.model.DELETION_UNREPORTED, pk=project_id).update(
            evidence=self.model.Evidence.DECLARED
        )
        self.filter(pk=project_id).update(deleted_at=Coalesce("deleted_at", Value(now)))
        return self.get(pk=project_id).deleted_at or now

    def lock_id(self, project_id: str | None) -> None:
        """Make others who decide on the project's cleanups wait until the commit: a row that is
        written is locked."""
        self.filter(pk=project_id).update(first_seen_at=F("first_seen_at"))

    def deletion_reported(self) -> Self:
        """Those that a signal or a person has reported as deleted."""
        return self.exclude(self.model.DELETION_UNREPORTED)

    def deletion_time(self, project_id: str) -> datetime | None:
        return self.filter(pk=project_id).values_list("deleted_at", flat=True).first()

    def unreported_ids(self, ids: Collection[str]) -> set[str]:
        """Which of exactly these ids were seen alive and are not reported as deleted."""
        return set(
            self.filter(self.model.DELETION_UNREPORTED, pk__in=ids).values_list("pk", flat=True)
        )

    def maybe_alive_ids(self, ids: Collection[str]) -> set[str]:
        """Ids that were seen alive and are not reported as deleted, though the row may be gone."""
        return self.filter(self.model.DELETION_UNREPORTED).find_spelled(ids)

    def find_spelled(self, ids: Collection[str]) -> set[str]:
        """Which of these ids are here, in any spelling."""
        return find_in_any_spelling(
            ids, lambda forms: self.filter(pk__in=forms).values_list("pk", flat=True)
        )

    def keeping_files(self) -> Self:
        """Those without a row whose files others take for a living project's: the deletion is not
        reported, or may be undone, or a person keeps the files."""
        return self.filter(self.model.DELETION_UNREPORTED | ~Q(kept_for=""))

    def of_deletion(self, project_id: str | None, deleted_at: datetime | None) -> Self:
        return self.filter(pk=project_id, deleted_at=deleted_at)

    def is_changing(self, project_id: str) -> bool:
        """Whether a transaction that does not end in five seconds is changing the id's row, such as
        to note that it is alive. On SQLite none can be open beside one of ours that writes."""
        if connection.vendor == "sqlite":
            return False
        try:
            with atomic_with_timeout():
                list(self.filter(pk=project_id).select_for_update().values_list("pk"))
        except OperationalError:
            return True
        return False

    def is_any_changing(self, ids: Collection[str]) -> bool:
        """The same for many ids at once, without waiting; also for ids that nobody knew before."""
        if connection.vendor == "sqlite":
            return False
        try:
            with atomic_with_timeout(SHORT_LOCK_TIMEOUT_MS):
                list(self.filter(pk__any_of=ids).select_for_update().values_list("pk"))
                # Waits for whoever just writes such a row, and is taken back.
                new = map(self.model, sorted(ids))
                self.bulk_create(new, ignore_conflicts=True, batch_size=1000)
                transaction.set_rollback(True)
        except OperationalError:
            return True
        return False

    def vanished(self) -> Self:
        """Ids that were seen alive and have no project any more, though no signal reported it."""
        return self.filter(~self._project_exists(), deleted_at=None)

    def unreported_if_table_empty(self) -> Self:
        """Ids that are not reported as deleted, while the table of projects has no row at all."""
        return self.filter(self.model.DELETION_UNREPORTED, ~Exists(project_model.annotated_rows()))

    def reappeared(self) -> Self:
        return self.filter(self._project_exists(), deleted_at__isnull=False)

    @staticmethod
    def _project_exists() -> Exists:
        return Exists(project_model.annotated_rows().filter(storage_audit_id=OuterRef("pk")))


class KnownProject(models.Model):
    """An id that was seen alive at some time. Never pruned: it decides who owns a key."""

    class Evidence(models.TextChoices):
        SAVED = "saved", _("saved by the application")
        SEEN = "seen", _("found by a worker")
        DELETED = "deleted", _("deleted by the application")
        VANISHED = "vanished", _("missing, not reported")
        DECLARED = "declared", _("declared deleted by a person")

    class KeptFor(models.TextChoices):
        HOLD = "hold", _("held: the deletion can be undone")
        CANCELLED = "cancelled", _("cancelled: a person keeps the files")

    # Not reported as deleted, though its row may be gone.
    DELETION_UNREPORTED = Q(deleted_at=None) | Q(evidence=Evidence.VANISHED)

    id = BytewiseTextField(_("ID"), primary_key=True)
    first_seen_at = models.DateTimeField(_("first seen"), default=timezone.now)
    deleted_at = models.DateTimeField(_("deleted"), null=True, blank=True)
    # Of a project that was saved, or that came back; empty for those older than this field.
    last_created_at = models.DateTimeField(_("last created"), null=True, editable=False)
    evidence = models.CharField(_("evidence"), max_length=10, choices=Evidence)
    # Why no other project's cleanup may take its files, though it is deleted.
    kept_for = models.CharField(_("files kept for"), max_length=10, choices=KeptFor, blank=True)

    objects = KnownProjectQuerySet.as_manager()

    class Meta:
        verbose_name = _("known project ID")
        verbose_name_plural = _("known project IDs")
        indexes = [models.Index(fields=["evidence", "id"], name="known_by_evidence")]

    def __str__(self) -> str:
        return printable_text(self.pk)


class ObjectState(models.TextChoices):
    UPLOADING = "uploading", _("uploading")
    STORED = "stored", _("stored")
    UPLOAD_FAILED = "upload_failed", _("upload failed")
    DELETING = "deleting", _("being deleted")


# States of a tracking row whose last upload or deletion said how it ended.
STABLE_STATES = (ObjectState.STORED, ObjectState.UPLOAD_FAILED)


def uploading_rows() -> Q:
    """Rows of uploads under way. The process of one that began long ago has died."""
    return Q(time_within("updated_at", conf().upload_timeout), state=ObjectState.UPLOADING)


def deleting_rows() -> Q:
    """Rows of keys that are locked against uploads. A lock does not hold for ever: its process may
    have died, and a cleanup that is yet to come keeps what was written since its plan."""
    return Q(time_within("updated_at", conf().deletion_timeout), state=ObjectState.DELETING)


class R2ObjectQuerySet(models.QuerySet["R2Object"]):
    def in_bucket(self, bucket: str) -> Self:
        return self.filter(bucket=bucket)

    def under(self, prefix: str) -> Self:
        """Keys that start with `prefix`, compared byte by byte."""
        return self.filter(starts_with("key", prefix))

    def outside(self, prefixes: Iterable[str]) -> Self:
        found = self.all()
        for prefix in prefixes:
            found = found.exclude(key__gte=prefix, key__lt=prefix_end(prefix))
        return found

    def between(self, after: str, last: str | None) -> Self:
        """Keys later than `after`, up to and with `last`; without an end when it is None."""
        found = self.filter(key__gt=after) if after else self.all()
        return found if last is None else found.filter(key__lte=last)

    def iterate_by_key(self) -> Iterator[R2Object]:
        """All in the order of their keys, some at a time. Between them the store may be asked, as
        no transaction is open."""
        after: str | None = ""
        while after is not None:
            some = list(self.between(after, None).order_by("key")[:ROWS_PER_STEP])
            yield from some
            after = some[-1].key if len(some) == ROWS_PER_STEP else None

    def buckets_of(self, project_id: str) -> set[str]:
        return set(self.filter(project_id=project_id).values_list("bucket", flat=True).distinct())

    def without_confirmed_owner(self) -> Self:
        """Rows that a backfill wrote, or whose project is reported as deleted."""
        owner = OuterRef("project_id")
        known = KnownProject.objects
        alive = Exists(project_model.annotated_rows().filter(storage_audit_id=owner))
        unsaid = Exists(known.filter(known.model.DELETION_UNREPORTED, pk=owner))
        return self.filter(
            Q(project_id=None) | Q(source=self.model.Source.BACKFILL) | ~alive & ~unsaid
        )

    def lock_for_deletion(self, keys: Collection[str]) -> int:
        """Lock these keys against uploads until the objects are gone; an upload under way wins."""
        return self.filter(key__any_of=keys).exclude(uploading_rows()).mark_deleting()

    def mark_deleting(self) -> int:
        """Mark the rows as being deleted. The row of an unconfirmed upload loses its ETag, which
        shows afterwards that the object may be another one."""
        unconfirmed = When(
            state__in=[ObjectState.UPLOADING, ObjectState.UPLOAD_FAILED], then=Value("")
        )
        etag = Case(unconfirmed, default="etag")
        return self.update(etag=etag, state=ObjectState.DELETING, updated_at=timezone.now())

    def unlock(self, names: models.QuerySet[Any]) -> int:
        """Let uploads write again to the keys with these names."""
        before = Case(
            # An upload that never ended, so nobody knows what it stored.
            When(etag="", upload_id__isnull=False, then=Value(ObjectState.UPLOAD_FAILED)),
            default=Value(ObjectState.STORED),
        )
        rows = self.filter(state=ObjectState.DELETING, key__in=names)
        return rows.update(state=before, updated_at=timezone.now())

    def delete_without_signals(self) -> int:
        """Delete the rows without signals: their objects are gone, so nothing is to follow."""
        return self._raw_delete(self.db) or 0

    def totals(self) -> tuple[int, int]:
        """The number of objects and of bytes that the rows stand for."""
        figures = self.aggregate(n=Count("pk"), size=Coalesce(Sum("size"), 0))
        return figures["n"], figures["size"]

    def totals_by_project(self) -> dict[str | None, tuple[int, int]]:
        """The number of objects and of bytes of each project that has any."""
        sums = (
            self.order_by()
            .values("project_id")
            .annotate(n=Count("pk"), total=Coalesce(Sum("size"), 0))
        )
        return {one: (n, total) for one, n, total in sums.values_list("project_id", "n", "total")}

    def totals_by_bucket(self) -> list[tuple[str, int, int]]:
        """Each bucket with the number of objects and of bytes in it."""
        groups = self.order_by("bucket").values("bucket")
        sums = groups.annotate(n=Count("pk"), total=Coalesce(Sum("size"), 0))
        return list(sums.values_list("bucket", "n", "total"))


class R2Object(models.Model):
    """One object that we know of. The row outlives its project until the object is gone."""

    class Source(models.TextChoices):
        UPLOAD = "upload", _("upload")
        BACKFILL = "backfill", _("backfill")
        ASSIGNED = "assigned", _("assigned")

    # Who wrote such a row knew whose the object is; a backfill only read the key.
    AUTHORITATIVE = (Source.UPLOAD, Source.ASSIGNED)

    State: TypeAlias = ObjectState

    bucket = BytewiseTextField(_("bucket"))
    key = BytewiseTextField(_("key"))
    # No foreign key: the row outlives its project, and the project may be of any model.
    project_id = BytewiseTextField(_("project"), null=True, blank=True)
    scene_id = models.TextField(_("scene"), blank=True)
    file_type = models.CharField(_("file type"), max_length=40, blank=True)
    key_format = models.CharField(_("key format"), max_length=60, blank=True)
    size = models.PositiveBigIntegerField(_("size in bytes"), null=True, blank=True)
    etag = models.CharField(_("ETag"), max_length=MAX_ETAG_LENGTH, blank=True)
    last_modified = models.DateTimeField(_("last modified"), null=True, blank=True)
    source = models.CharField(_("source"), max_length=10, choices=Source)
    state = models.CharField(_("state"), max_length=15, choices=State)
    # Assigning empties it: an assigned row that has one was, or may have been, uploaded to since.
    # Where a scan finds another object, it sets one.
    upload_id = models.UUIDField(_("last upload"), null=True, editable=False)
    # The version of the key formats under which the key names one project and is not misnamed, so
    # that only its project's end can make a finding of it; see scan/diff_lines.py.
    unambiguous_under = models.IntegerField(null=True, editable=False)
    created_at = models.DateTimeField(_("created"), default=timezone.now)
    updated_at = models.DateTimeField(_("changed"), default=timezone.now)

    objects = R2ObjectQuerySet.as_manager()

    class Meta:
        verbose_name = _("file")
        verbose_name_plural = _("files")
        indexes = [
            models.Index(fields=["project_id", "key"], name="keys_of_a_project"),
            models.Index(
                fields=["bucket", "key"],
                condition=~Q(state=ObjectState.STORED),
                name="objects_not_at_rest",
            ),
        ]
        constraints = [
            models.UniqueConstraint(fields=["bucket", "key"], name="one_row_per_object"),
            models.CheckConstraint(
                condition=Q(state__in=ObjectState.values),
                name="object_state_is_known",
            ),
        ]

    def __str__(self) -> str:
        return printable_text(self.key)

    @property
    def is_being_uploaded(self) -> bool:
        """As `uploading_rows` has it."""
        uploading = self.state == self.State.UPLOADING
        return uploading and is_recent(self.updated_at, conf().upload_timeout)


class DatabaseIdentity(models.Model):
    """This database's identity, which the marker in each connected bucket repeats."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    fingerprint = models.CharField(_("database fingerprint"), max_length=64)
    connected_at = models.DateTimeField(_("connected"), default=timezone.now)
    # By bucket, how its listing shows the marker that was written there:
    # see ownership/bucket_marker.py.
    markers = models.JSONField(default=dict, editable=False)
    singleton = models.BooleanField(default=True, unique=True, editable=False)

    class Meta:
        verbose_name = _("database identity")
        verbose_name_plural = _("database identities")

    def __str__(self) -> str:
        return str(self.pk)
