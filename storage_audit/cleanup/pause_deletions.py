"""The brake: pauses all deletions, or one, until a person resumes them.

A pause is a row, which every UPDATE that lets a request leave reads, and an object beside the
bucket marker, as a database restored from a backup may lack the row.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import NamedTuple
from uuid import UUID

from django.db import transaction
from django.db.models import Count, Q, Sum
from django.db.models.functions import Coalesce
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.bucket import s3
from storage_audit.bucket.errors import StoreError
from storage_audit.cleanup import delete_batches, limits
from storage_audit.cleanup.adaptive_batch import BatchSize
from storage_audit.cleanup.models import (
    Cleanup,
    CleanupEvent,
    CleanupItem,
    CleanupQuerySet,
    DeletionPause,
)
from storage_audit.cleanup.models.lease_and_status import DeletionsPaused, IllegalTransition
from storage_audit.clocks import DatabaseNow
from storage_audit.conf import conf
from storage_audit.models import DatabaseIdentity, R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import PausedInBucket
from storage_audit.redaction import redact_secrets
from storage_audit.request_origin import current_origin

Status, Step = Cleanup.Status, Cleanup.Step
# So long a person may look at the figures before they decide.
SHOWN_FIGURES_VALID = timedelta(minutes=10)
# The sweep enqueues the others.
MAX_ENQUEUED_AT_ONCE = 100


@dataclass(frozen=True)
class PauseResult:
    """The pause, and the buckets in which its object could not be written, with the reason."""

    pause: DeletionPause
    unwritten: dict[str, str]


class DueFigures(NamedTuple):
    """How many cleanups are concerned, and what they may still delete as far as that is known."""

    cleanups: int
    objects: int
    size: int


@dataclass(frozen=True)
class ResumeFigures:
    """What becomes due when deletions are resumed, and why that needs an approval, if it does."""

    pause: DeletionPause
    cleanups: int
    objects: int
    size: int
    over_limits: str
    shown_at: datetime = field(default_factory=timezone.now)

    @property
    def digest(self) -> str:
        """Stands for the figures and the moment at which a person saw them."""
        moment = int(self.shown_at.timestamp())
        return f"{moment:x}-{self._hash(moment)}"

    def _hash(self, moment: int) -> str:
        pause = [self.pause.pk, self.pause.paused_at.isoformat(), self.pause.reason]
        shown = [moment, pause, self.cleanups, self.objects, self.size, self.over_limits]
        return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:12]

    def require_shown(self, digest: str) -> None:
        """Raises IllegalTransition unless a person saw these very figures a short while ago."""
        try:
            moment = int(digest.partition("-")[0], 16)
            age = timezone.now() - datetime.fromtimestamp(moment, UTC)
        except (ValueError, OverflowError, OSError):
            moment, age = 0, SHOWN_FIGURES_VALID * 2
        is_recent = timedelta(seconds=-1) <= age <= SHOWN_FIGURES_VALID
        if not is_recent or digest != f"{moment:x}-{self._hash(moment)}":
            text = _("The figures have changed since they were shown. Deletions stay paused.")
            raise IllegalTransition(f"{text} {_('Look at the new figures.')}")


def pause_deletions(reason: str, cleanup: Cleanup | None = None) -> PauseResult:
    """Let no request leave that deletes, of any cleanup or of this one. Plans, verifications and
    scans go on. Raises IllegalTransition.

    The row comes first, as it pauses at once. Call it outside a transaction.
    """
    if not reason.strip():
        raise IllegalTransition(_("Enter a reason to pause deletions."))
    # A follow-up check deletes the same files as the cleanup that it follows.
    cleanup = cleanup and (cleanup.parent or cleanup)
    if cleanup and not may_still_delete(cleanup):
        text = _("Cleanup %s has nothing left to delete, so it can't be paused.")
        raise IllegalTransition(text % cleanup.pk)
    user = current_origin().user or "command"
    with transaction.atomic():
        pause, is_new = DeletionPause.objects.get_or_create(
            cleanup=cleanup, defaults={"paused_by": user, "reason": reason}
        )
        if cleanup and is_new:
            text = _("Deletions are paused by %(user)s: %(reason)s")
            cleanup.record("paused", text % {"user": user, "reason": reason})
    # Also of a pause that is known: its object may be missing.
    return PauseResult(pause, write_objects(pause))


def may_still_delete(cleanup: Cleanup) -> bool:
    mine = Cleanup.objects.filter(pk=cleanup.pk) | Cleanup.objects.filter(parent=cleanup)
    return mine.deleting().open().exists()


def write_objects(pause: DeletionPause) -> dict[str, str]:
    """Write the pause's object into each of its buckets; the errors by bucket."""
    content = {"paused_by": pause.paused_by, "reason": pause.reason}
    body = json.dumps({**content, "paused_at": pause.paused_at.isoformat()}, indent=1).encode()
    unwritten = {}
    for bucket in buckets_of(pause):
        try:
            s3.write_object(bucket, bucket_marker.pause_key(pause.cleanup_id), body)
        except StoreError as error:
            unwritten[bucket] = redact_secrets(str(error))
    return unwritten


def buckets_of(pause: DeletionPause) -> list[str]:
    return [pause.cleanup.bucket] if pause.cleanup else connected_buckets()


def connected_buckets() -> list[str]:
    identity_row = DatabaseIdentity.objects.first()
    return sorted(identity_row.markers) if identity_row else []


def find_pause(cleanup: Cleanup | None = None) -> DeletionPause | None:
    """The pause of all deletions, or that of this cleanup alone."""
    root = cleanup and (cleanup.parent_id or cleanup.pk)
    return DeletionPause.objects.filter(cleanup=root).first()


def refuse_while_paused(cleanups: Iterable[Cleanup] = ()) -> None:
    """Raises IllegalTransition when all deletions are paused, or one of these is."""
    found = chain([find_pause()], (cleanup.find_pause() for cleanup in cleanups))
    if pause := next(filter(None, found), None):
        text = _("Nothing can be erased until they are resumed.")
        raise IllegalTransition(f"{pause}. {text}")


def find_resume_figures(cleanup: Cleanup | None = None) -> ResumeFigures:
    """What is shown before deletions are resumed. Raises IllegalTransition when none are paused."""
    pause = find_pause(cleanup)
    if pause is None:
        raise IllegalTransition(_("Deletions are not paused."))
    due = find_resting(pause)
    return ResumeFigures(pause, *count_due(due), over_limits_text(due))


def find_pause_figures(cleanup: Cleanup | None = None) -> DueFigures:
    """What is shown before deletions are paused."""
    concerned = Cleanup.objects.deleting().open()
    if cleanup:
        return count_due(concerned.filter(Q(pk=cleanup.pk) | Q(parent=cleanup.pk)))
    # A follow-up check that is yet to begin mostly finds nothing.
    return count_due(concerned.covering())


def count_due(due: CleanupQuerySet) -> DueFigures:
    items = CleanupItem.objects.filter(cleanup__in=due).planned()
    items = items.exclude(found_in=CleanupItem.FoundIn.TRACKED)
    sums = items.aggregate(n=Count("pk"), size=Coalesce(Sum("size"), 0))
    return DueFigures(due.count(), sums["n"], sums["size"])


def find_resting(pause: DeletionPause) -> CleanupQuerySet:
    """The cleanups that delete again once this pause is over; another one may cover some."""
    others = DeletionPause.objects.exclude(pk=pause.pk)
    paused = Cleanup.objects.deleting().paused()
    if pause.cleanup_id:
        covered = Cleanup.objects.filter(pk=pause.cleanup_id)
        paused = paused.filter(pk__in=covered | Cleanup.objects.filter(parent=pause.cleanup_id))
    return paused.exclude(others.covering_outer())


def over_limits_text(due: CleanupQuerySet) -> str:
    """Why these need an approval together, or nothing. Each was within the limits alone, or a
    person approved it; what was approved is not counted."""
    unapproved = due.filter(limits_waived_by="")
    wanted = defaultdict[str, int](int)
    items = CleanupItem.objects.filter(cleanup__in=unapproved).planned()
    items = items.exclude(found_in=CleanupItem.FoundIn.TRACKED)
    for bucket, count in items.values_list("cleanup__bucket").annotate(n=Count("pk")):
        wanted[bucket] += count
    texts = []
    for bucket, count in sorted(wanted.items()):
        limit = limits.bucket_limit(R2Object.objects.in_bucket(bucket).count())
        if count > limit:
            text = _(
                "Together they would delete %(n)s files in bucket %(bucket)s, more than the safety"
                " limit of %(limit)s."
            )
            texts.append(text % {"n": count, "bucket": bucket, "limit": limit})
    return " ".join(texts)


def resume_deletions(
    digest: str, cleanup: Cleanup | None = None, *, over_limits: bool = False
) -> list[Cleanup]:
    """End the pause whose figures a person was shown. Returns cleanups that are to be enqueued;
    the sweep finds the others. Raises IllegalTransition, and StoreError when an object cannot be
    removed: deletions stay paused then.

    The objects go first, so that no failure in between resumes anything. Call it outside a
    transaction.
    """
    figures = find_resume_figures(cleanup)
    figures.require_shown(digest)
    if figures.over_limits and not over_limits:
        text = _("Approve them, or cancel some of them.")
        raise IllegalTransition(f"{figures.over_limits} {text}")
    pause = figures.pause
    remove_objects(pause)
    try:
        with transaction.atomic():
            find_resume_figures(cleanup).require_shown(digest)
            return end_pause(pause)
    except IllegalTransition:
        write_objects(pause)
        raise


def remove_objects(pause: DeletionPause) -> None:
    """Remove the pause's objects, and see in a listing that they are gone. Raises StoreError."""
    for bucket in buckets_of(pause):
        for key in find_objects(bucket, pause.cleanup_id):
            s3.delete_single(bucket, key)
        if left := find_objects(bucket, pause.cleanup_id):
            text = _("The object %(key)s is still in bucket %(bucket)s. Deletions stay paused.")
            raise StoreError(text % {"key": left[0], "bucket": bucket})


def find_objects(bucket: str, deletion_id: UUID | None) -> list[str]:
    keys = bucket_marker.find_pauses(bucket)
    return [key for key in keys if bucket_marker.paused_id(key) == deletion_id]


def end_pause(pause: DeletionPause) -> list[Cleanup]:
    user = current_origin().user or "command"
    resumed = list(find_resting(pause).values_list("pk", flat=True))
    pause.delete()
    text = _("Deletions resumed by %s.") % user
    if pause_of := pause.cleanup:
        pause_of.record("resumed", text)
    every = Cleanup.objects.filter(pk__in=resumed)
    # Not as late as the pause was long.
    every.update(next_attempt_at=DatabaseNow(), enqueued_at=None, failing_since=None)
    every.filter(status=Status.PENDING).update(message="", progress={})
    events = (
        CleanupEvent(cleanup_id=pk, step="resumed", message=text)
        for pk in resumed
        if pk != pause.cleanup_id
    )
    CleanupEvent.objects.bulk_create(events, batch_size=1000)
    return list(every.order_by("pk")[:MAX_ENQUEUED_AT_ONCE])


def count_requests_under_way() -> int:
    """How many requests that have left may still delete: the calls at once of each cleanup that is
    deleting now."""
    running = Cleanup.objects.deleting().leased().filter(step=Step.DELETE)
    return sum(BatchSize.of(cleanup).calls for cleanup in running)


def rest_cleanup(cleanup: Cleanup, met: DeletionsPaused | PausedInBucket) -> None:
    """End the turn as one that met a pause, which is no attempt."""
    cleanup.renew()
    after = timedelta(0)
    if isinstance(met, PausedInBucket) and not adopt_pause(met):
        after = conf().retry_first
    reason = str(cleanup.find_pause() or met)
    with transaction.atomic():
        # Pages show by this, without a query, that it rests.
        shown = {"totals": cleanup.items.by_outcome(), "paused": True}
        cleanup.rest_while_paused(reason, after=after, progress=shown)
        delete_batches.unlock_idle_items(cleanup)
        cleanup.record("paused", reason)


def adopt_pauses() -> None:
    """Write the rows of all pauses that only their objects tell of, so that pages show them and a
    person can resume. A worker would write them, but only once it has something to delete."""
    for bucket in connected_buckets():
        try:
            keys = bucket_marker.find_pauses(bucket)
        except StoreError:
            continue
        for key in keys:
            deletion_id = bucket_marker.paused_id(key)
            is_shown = DeletionPause.objects.filter(cleanup=deletion_id).exists()
            is_ours = deletion_id is None or Cleanup.objects.filter(pk=deletion_id).exists()
            if is_ours and not is_shown:
                adopt_pause(PausedInBucket(bucket, key))


def adopt_pause(met: PausedInBucket) -> bool:
    """Write the row of a pause that only its object tells of, as the database was restored from a
    backup. False where the object cannot be read now, or was just removed."""
    try:
        body = s3.read_object(met.bucket, met.key)
    except StoreError:
        return False
    if body is None:
        return False
    deletion_id = bucket_marker.paused_id(met.key)
    mine = Cleanup.objects.filter(pk=deletion_id).first() if deletion_id else None
    try:
        content = json.loads(body)
        told = {name: str(content[name]) for name in ("paused_by", "reason")}
    except (ValueError, TypeError, KeyError):
        told = {"paused_by": "", "reason": ""}
    told["paused_by"] = told["paused_by"] or _("an object in the bucket")
    told["reason"] = told["reason"] or met.key
    DeletionPause.objects.get_or_create(cleanup=mine, defaults=told)
    return True
