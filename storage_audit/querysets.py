"""The questions that the code asks of the tables, in the words of docs/architecture.md."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from django.apps import apps
from django.db import OperationalError, connection, models, transaction
from django.db.models import Case, Count, Exists, F, OuterRef, Q, Sum, Value, When
from django.db.models.functions import Coalesce
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from storage_audit import projects
from storage_audit.clocks import lately, maybe_since
from storage_audit.conf import conf
from storage_audit.fields import after_prefix, in_any_spelling, starts_with
from storage_audit.locking import MOMENT, impatient
from storage_audit.reading import STEP

if TYPE_CHECKING:
    # Ruff does not see names in the strings of a class's bases.
    from storage_audit.models import KnownProject, R2Object  # noqa: F401
    from storage_audit.scans import BucketScan


# So many objects of each project are counted for a list of projects, and so many added up. An index
# counts; to add up their bytes is to read each row.
COUNTED, SUMMED = 1_000, 200


def with_storage(owners: models.QuerySet[Any], *, whole: bool = False) -> models.QuerySet[Any]:
    """Each project with its tracked objects and bytes, as far as they are counted and added up or
    the `whole` of them, and its last cleanup's status. The model's own fields may have any name
    without our prefix."""
    mine = {"project_id": OuterRef("storage_audit_id")}
    objects = apps.get_model("storage_audit", "R2Object").objects.filter(**mine)
    cleanups = apps.get_model("storage_audit", "CleanupOperation").objects.cleanups()
    operations = cleanups.filter(**mine).order_by("-created_at")
    counted, summed = (None, None) if whole else (COUNTED + 1, SUMMED)
    annotated: models.QuerySet[Any] = owners.annotate(
        storage_audit_id=projects.id_expression(owners.model),
        storage_audit_object_count=aggregate_of(objects.values("project_id")[:counted], "COUNT(*)"),
        storage_audit_object_bytes=aggregate_of(
            objects.values("size")[:summed], "COALESCE(SUM(size), 0)"
        ),
        storage_audit_last_operation_id=models.Subquery(operations.values("pk")[:1]),
        storage_audit_last_operation_status=models.Subquery(operations.values("status")[:1]),
    )
    return annotated


def aggregate_of(objects: models.QuerySet[Any], aggregate: str) -> models.Subquery:
    return models.Subquery(
        objects,
        output_field=models.BigIntegerField(),
        template=f"(SELECT {aggregate} FROM (%(subquery)s) AS counted)",
    )


class KnownProjectQuerySet(models.QuerySet["KnownProject"]):
    def saw_alive(self, project_id: str, evidence: str, *, created: bool) -> None:
        """Note that an id lives: for the first time, again, or still (then nothing changes).

        Of a project that was just created the row is written in any case, which locks it until the
        commit: its id may be on its way to be called gone.
        """
        alive = {"deleted_at": None, "evidence": evidence}
        if created or not self.filter(pk=project_id, deleted_at=None).exists():
            again = alive | {"last_created_at": timezone.now()}
            first = again if created else alive
            self.update_or_create(pk=project_id, defaults=again, create_defaults=first)

    def lives(self, ids: Collection[str]) -> dict[str, list[str]]:
        """By id, when it was deleted and last created: as long as that is equal, the id stands for
        the same project. Which time is later says nothing, as several clocks wrote them."""
        known = self.filter(pk__any_of=ids).values_list("pk", "deleted_at", "last_created_at")
        found = {pk: [str(deleted), str(created)] for pk, deleted, created in known}
        # An id that nobody has noted yet is what it is once it is seen alive for the first time.
        return dict.fromkeys(ids, [str(None), str(None)]) | found

    def drop_deletion(self) -> int:
        """Note that these were deleted and have a row again, though no signal said so."""
        return self.update(
            deleted_at=None, last_created_at=timezone.now(), evidence=self.model.Evidence.SEEN
        )

    def saw_deleted(self, project_id: str, at: datetime, evidence: str) -> None:
        self.update_or_create(pk=project_id, defaults={"deleted_at": at, "evidence": evidence})

    def declare_deleted(self, project_id: str) -> datetime:
        """Note that a person calls the id deleted, and return since when it is. A deletion that is
        on record keeps its time. The row stays locked until the commit."""
        now = timezone.now()
        row = self.model(pk=project_id, deleted_at=now, evidence=self.model.Evidence.DECLARED)
        self.bulk_create([row], ignore_conflicts=True)
        self.filter(self.model.UNSAID, pk=project_id).update(evidence=self.model.Evidence.DECLARED)
        self.filter(pk=project_id).update(deleted_at=Coalesce("deleted_at", Value(now)))
        return self.get(pk=project_id).deleted_at or now

    def hold(self, project_id: str | None) -> None:
        """Let others who decide on the project's cleanups wait until the commit: a row that is
        written is locked."""
        self.filter(pk=project_id).update(first_seen_at=F("first_seen_at"))

    def said(self) -> Self:
        """Those of which somebody, or a signal, said that they are deleted."""
        return self.exclude(self.model.UNSAID)

    def time_of_deletion(self, project_id: str) -> datetime | None:
        return self.filter(pk=project_id).values_list("deleted_at", flat=True).first()

    def unsaid(self, ids: Collection[str]) -> set[str]:
        """Of exactly these ids those that were seen alive and that nobody said are deleted."""
        return set(self.filter(self.model.UNSAID, pk__in=ids).values_list("pk", flat=True))

    def maybe_alive(self, ids: Collection[str]) -> set[str]:
        """Ids that were seen alive and that nobody said are deleted, though the row may be gone."""
        unsaid = self.filter(self.model.UNSAID)
        return in_any_spelling(
            ids, lambda forms: unsaid.filter(pk__in=forms).values_list("pk", flat=True)
        )

    def is_changing(self, project_id: str) -> bool:
        """Whether a transaction that does not end in five seconds says something new of the id,
        such as that it lives again. On SQLite none can be open beside one of ours that writes."""
        if connection.vendor == "sqlite":
            return False
        try:
            with impatient():
                list(self.filter(pk=project_id).select_for_update().values_list("pk"))
        except OperationalError:
            return True
        return False

    def are_changing(self, ids: Collection[str]) -> bool:
        """The same of many at once, and at this moment; also of ids that nobody knew before."""
        if connection.vendor == "sqlite":
            return False
        try:
            with impatient(MOMENT):
                list(self.filter(pk__any_of=ids).select_for_update().values_list("pk"))
                # Waits for whoever just writes such a row, and is taken back.
                new = map(self.model, sorted(ids))
                self.bulk_create(new, ignore_conflicts=True, batch_size=1000)
                transaction.set_rollback(True)
        except OperationalError:
            return True
        return False

    def vanished(self) -> Self:
        """Ids that were seen alive and have no project any more, though no signal told of it."""
        return self.filter(~self._project_exists(), deleted_at=None)

    def stranded(self) -> Self:
        """Ids that nobody said are deleted, while the table of projects has not a single row."""
        return self.filter(self.model.UNSAID, ~Exists(projects.rows()))

    def reappeared(self) -> Self:
        return self.filter(self._project_exists(), deleted_at__isnull=False)

    @staticmethod
    def _project_exists() -> Exists:
        return Exists(projects.rows().filter(storage_audit_id=OuterRef("pk")))


class ObjectState(models.TextChoices):
    UPLOADING = "uploading", _("uploading")
    STORED = "stored", _("stored")
    UPLOAD_FAILED = "upload_failed", _("upload failed")
    DELETING = "deleting", _("being deleted")


# States of a tracking row whose last upload or deletion said how it ended.
AT_REST = (ObjectState.STORED, ObjectState.UPLOAD_FAILED)


def under_way() -> Q:
    """Rows of uploads under way. One that began long ago was left behind by a process that died."""
    return Q(lately("updated_at", conf().upload_timeout), state=ObjectState.UPLOADING)


def barred() -> Q:
    """Rows of keys that nobody may write to now. One that is barred for long was left behind by a
    process that died, or waits for its cleanup, which spares what was written since its plan."""
    return Q(lately("updated_at", conf().deletion_timeout), state=ObjectState.DELETING)


def in_hand() -> Q:
    """Rows with either of them under way: a cleanup that is not over has its own in hand for as
    long as it takes. The application's own deletions mark no row, but an item."""
    items = apps.get_model("storage_audit", "CleanupItem").objects
    mine = items.filter(operation__bucket=OuterRef("bucket"), identity=OuterRef("key"))
    marked, sent = Exists(mine.marked()), Exists(mine.maybe_under_way())
    return under_way() | barred() | Q(state=ObjectState.DELETING) & Q(marked) | Q(sent)


class R2ObjectQuerySet(models.QuerySet["R2Object"]):
    def in_bucket(self, bucket: str) -> Self:
        return self.filter(bucket=bucket)

    def under(self, prefix: str) -> Self:
        """Keys that start with `prefix`, compared byte by byte."""
        return self.filter(starts_with("key", prefix))

    def outside(self, prefixes: Iterable[str]) -> Self:
        found = self.all()
        for prefix in prefixes:
            found = found.exclude(key__gte=prefix, key__lt=after_prefix(prefix))
        return found

    def between(self, after: str, last: str | None) -> Self:
        """Keys later than `after`, up to and with `last`; without an end when it is None."""
        found = self.filter(key__gt=after) if after else self.all()
        return found if last is None else found.filter(key__lte=last)

    def by_key(self) -> Iterator[R2Object]:
        """All in the order of their keys, some at a time. Between them the store may be asked, as
        no transaction is open."""
        after: str | None = ""
        while after is not None:
            some = list(self.between(after, None).order_by("key")[:STEP])
            yield from some
            after = some[-1].key if len(some) == STEP else None

    def unlisted_by(self, scan: BucketScan) -> Self:
        """Rows whose keys such a scan did not note that notes them all."""
        return self.filter(~Exists(scan.listed_keys.filter(key=OuterRef("key"))))

    def buckets_of(self, project_id: str) -> set[str]:
        return set(self.filter(project_id=project_id).values_list("bucket", flat=True).distinct())

    def told_by_nobody_alive(self) -> Self:
        """Rows that a backfill wrote, or whose project is no more, as somebody said."""
        owner = OuterRef("project_id")
        known = apps.get_model("storage_audit", "KnownProject").objects
        alive = Exists(projects.rows().filter(storage_audit_id=owner))
        unsaid = Exists(known.filter(known.model.UNSAID, pk=owner))
        return self.filter(
            Q(project_id=None) | Q(source=self.model.Source.BACKFILL) | ~alive & ~unsaid
        )

    def lock_for_deletion(self, keys: Collection[str]) -> int:
        """Bar uploads to these keys until they are seen gone; an upload under way wins."""
        return self.filter(key__any_of=keys).exclude(under_way()).bar()

    def bar(self) -> int:
        """Mark them as being deleted. Of an upload that was not confirmed the row keeps no ETag,
        so that it is known for one afterwards: what is there may be another object."""
        unconfirmed = When(
            state__in=[ObjectState.UPLOADING, ObjectState.UPLOAD_FAILED], then=Value("")
        )
        etag = Case(unconfirmed, default="etag")
        return self.update(etag=etag, state=ObjectState.DELETING, updated_at=timezone.now())

    def unlock(self, names: models.QuerySet[Any]) -> int:
        """Let uploads write again to the keys with these names."""
        before = Case(
            # An upload that never ended, and so never told what it had stored.
            When(etag="", upload_id__isnull=False, then=Value(ObjectState.UPLOAD_FAILED)),
            default=Value(ObjectState.STORED),
        )
        rows = self.filter(state=ObjectState.DELETING, key__in=names)
        return rows.update(state=before, updated_at=timezone.now())

    def forget(self) -> int:
        """Delete the rows without signals: their objects are gone, so nothing is to follow."""
        return self._raw_delete(self.db) or 0

    def totals(self) -> tuple[int, int]:
        """The number of objects and of bytes that the rows stand for."""
        figures = self.aggregate(n=Count("pk"), size=Coalesce(Sum("size"), 0))
        return figures["n"], figures["size"]

    def by_project(self) -> dict[str | None, tuple[int, int]]:
        """The number of objects and of bytes of each project that has any."""
        sums = (
            self.order_by()
            .values("project_id")
            .annotate(n=Count("pk"), total=Coalesce(Sum("size"), 0))
        )
        return {one: (n, total) for one, n, total in sums.values_list("project_id", "n", "total")}

    def by_bucket(self) -> list[tuple[str, int, int]]:
        """Each bucket with the number of objects and of bytes in it."""
        groups = self.order_by("bucket").values("bucket")
        sums = groups.annotate(n=Count("pk"), total=Coalesce(Sum("size"), 0))
        return list(sums.values_list("bucket", "n", "total"))

    def at_rest(self) -> Self:
        return self.exclude(in_hand())

    def in_hand_among(self, rows: Iterable[R2Object]) -> set[int]:
        """The ids of those that have not been at rest since they were read."""
        rows, items = list(rows), apps.get_model("storage_audit", "CleanupItem").objects
        found = {row.pk for row in rows if row.state not in AT_REST}
        stale = self.filter(pk__any_of=found).exclude(under_way() | barred())
        stale = stale.exclude(state__in=AT_REST)
        left = list(stale.only("bucket", "key")) if found else []
        idle = {row.pk for row in left} - items.marked().naming(left)
        return found - idle | items.maybe_under_way().naming(rows)

    def changing_since(self, moment: datetime | None) -> Self:
        """Rows that are in hand, or that were written since."""
        return self.filter(in_hand() | maybe_since("updated_at", moment))

    def have_stored(self) -> Self:
        """Rows at rest of which an upload has stored an object, though a later one may have
        failed."""
        return self.at_rest().filter(Q(state=ObjectState.STORED) | ~Q(etag=""))
