"""What must be true at the end, whatever happened before; each untruth is a line of text."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from math import inf

from django.db.models import F, Sum

from devtools.demo.report import escape_key
from storage_audit.cleanup.adaptive_batch import LARGEST_BATCH
from storage_audit.cleanup.models import Cleanup, CleanupEvent, CleanupItem
from storage_audit.conf import conf
from storage_audit.models import KnownProject, Project
from storage_audit.ownership.bucket_marker import CLOCK_KEY, MARKER_KEY, is_pause
from tests.crash.chaos import RESUME_TIMEOUT_SECONDS, Chaos, unfinished_cleanups
from tests.crash.observer import ROWS_OWNER, Call, Observer
from tests.crash.people import Pause
from tests.crash.world import UPLOAD_PATTERN, World

Status = Cleanup.Status
DELETION_TRIGGERS = ("deleted", "forced")
# Of each of these one worker may have had one batch under way.
INTERRUPTION_STEPS = ("takeover", "retrying", "failed", "blocked")
# From so many kills on there was time for everything that people do.
MANY_KILLS = 50
# A worker looks each second for a pause while calls are under way; and a slow machine takes its
# time between the last look and the signature. Later none may leave at all.
PAUSE_DELAY_SECONDS = 10.0  # seconds
# Of one project: two batches of its cleanup were on their way, each of so many calls.
MAX_CALLS_UNDER_WAY = 2 * LARGEST_BATCH["batch"].calls


@dataclass
class Verdict:
    """`objects` is what the store itself lists at the end, each with its size and ETag."""

    world: World
    observer: Observer
    chaos: Chaos
    objects: dict[str, tuple[int, str]]

    def __post_init__(self) -> None:
        self.living = set(Project.objects.values_list("pk", flat=True))
        self.deletions = list_deletions()
        last = {each.project_id: each for each in self.deletions}
        cancelled = (id for id, each in last.items() if each.status == Status.CANCELLED)
        self.kept = {id for id in cancelled if id and id not in self.living}
        self.must_stay, self.must_go = self.world.expected_end(
            self.living, set(list_deleted_rows(self.world)), self.kept, self.observer.sent_keys
        )
        self.changed = sorted(
            key for key, etag in self.must_stay.items() if self.objects.get(key, (0, ""))[1] != etag
        )
        self.leftover = sorted(
            key for key in self.objects if key in self.must_go or self.is_leftover(key)
        )

    def is_leftover(self, key: str) -> bool:
        """An upload of which nobody knows whether it succeeded, into a project that is gone."""
        named = UPLOAD_PATTERN.match(key)
        return (
            key not in self.must_stay
            and bool(named)
            and self.world.find_life(key).id not in self.living | self.kept
        )

    @property
    def deleted(self) -> int:
        return Cleanup.objects.aggregate(all=Sum("deleted"))["all"] or 0

    @property
    def taken_over(self) -> int:
        return CleanupEvent.objects.filter(step="takeover").count()

    @property
    def moves(self) -> dict[str, int]:
        """What people did about deletions, and how often it came to something."""
        statuses = Counter(each.status for each in self.deletions)
        return {
            "undone": statuses[Status.UNDONE],
            "cancelled": statuses[Status.CANCELLED],
            "erased now": CleanupEvent.objects.filter(step="erase").count(),
            "paused": len(self.chaos.person.pauses),
            "resumed": sum(bool(pause.ended_at) for pause in self.chaos.person.pauses),
        }

    @property
    def lost_leases(self) -> int:
        """How often a worker stopped as its lease was over."""
        logs = (log.read_text(errors="replace") for log in self.chaos.site.folder.glob("*.log"))
        return sum(log.count("LeaseLost: ") for log in logs)

    @property
    def false_deletions(self) -> list[str]:
        return sorted({*self.changed, *self.observer.wrong_keys})

    def list_problems(self) -> Iterator[str]:
        yield from (
            f"deleted or changed, and should not be: {escape_key(k)}" for k in self.false_deletions
        )
        yield from (f"leftover: {escape_key(key)}" for key in self.leftover)
        yield from (f"nobody put it there: {escape_key(key)}" for key in self.find_strange())
        yield from self.find_unfinished()
        yield from self.find_miscounted()
        yield from self.find_ended_twice()
        yield from self.find_wrongly_gone()
        yield from self.find_redone()
        yield from self.find_wrongly_undone()
        yield from self.find_sent_outside()
        yield from self.find_sent_while_paused()
        if self.chaos.kills.total() >= MANY_KILLS:
            yield from (f"nothing was {name}" for name, count in self.moves.items() if not count)
        if not self.deleted or not self.taken_over:
            yield "no deletion was interrupted, so that nothing was put to the proof"
        if self.chaos.longest_resume_seconds > RESUME_TIMEOUT_SECONDS:
            yield f"work resumed only after {self.chaos.longest_resume_seconds:.0f} s"

    def find_strange(self) -> list[str]:
        known = self.must_stay.keys() | self.must_go | {MARKER_KEY, CLOCK_KEY}
        # What a project that lives again had before may be there or not: it is the new one's. A
        # page of the past may have hidden the object of a pause from whoever resumed.
        return [
            key
            for key in self.objects
            if key not in known and not is_pause(key) and not self.world.find_life(key).id
        ]

    def find_unfinished(self) -> Iterator[str]:
        for cleanup in unfinished_cleanups():
            yield f"not ended: {cleanup.pk}, {cleanup.status}: {cleanup.message}"
        open_books = Cleanup.objects.exclude(
            found=F("deleted") + F("already_gone") + F("kept") + F("failed")
        )
        yield from (f"the totals do not close: {cleanup.pk}" for cleanup in open_books)

    def find_miscounted(self) -> Iterator[str]:
        """Each deletion that was committed, and not undone, has made one cleanup, and nothing else
        has."""
        made = Counter(each.project_id for each in self.deletions if each.status != Status.UNDONE)
        for id in self.world.list_ids():
            wanted = self.world.count_lives(id) - (id in self.living)
            if made[id] != wanted:
                yield f"{id} was deleted {wanted} times and has {made[id]} cleanups"
        alive = KnownProject.objects.filter(deleted_at=None).values_list("pk", flat=True)
        yield from (
            f"not known to be as it is: {id}" for id in self.living.symmetric_difference(alive)
        )
        for cleanup in Cleanup.objects.filter(trigger="vanished"):
            yield f"{cleanup.pk} was made for a deletion that had its own cleanup"

    def find_ended_twice(self) -> Iterator[str]:
        """As when a worker that slept past its lease went on writing."""
        ends = CleanupEvent.objects.filter(step="closed").values_list("cleanup", flat=True)
        yield from (f"ended {n} times: {pk}" for pk, n in Counter(ends).items() if n > 1)

    def find_wrongly_gone(self) -> Iterator[str]:
        """Of one cleanup, though the next one found it and deleted it."""
        items = CleanupItem.objects.filter(cleanup__kind="project")
        gone = items.filter(outcome__in=["deleted", "already_gone"])
        first = dict(gone.order_by("-changed_at").values_list("key", "changed_at"))
        deleted = items.filter(outcome="deleted").values_list("key", "cleanup__started_at")
        yield from (
            f"called gone, and was there: {escape_key(key)}"
            for key, began in deleted
            if key in self.world.planted and began and began > first[key]
        )

    def find_redone(self) -> Iterator[str]:
        """At most the two batches on their way, for each worker that was interrupted."""
        batches = 2 * conf().batch_size * LARGEST_BATCH["batch"].calls
        events = CleanupEvent.objects.filter(step__in=INTERRUPTION_STEPS)
        interrupted = Counter(
            ROWS_OWNER if kind == "objects" else id
            for kind, id in events.values_list("cleanup__kind", "cleanup__project_id")
        )
        for id, keys in self.observer.sent_again.items():
            if keys > batches * interrupted[id]:
                yield f"{id}: {keys} keys sent again, with {interrupted[id]} interruptions"

    def find_wrongly_undone(self) -> Iterator[str]:
        """A project that was restored is there, and nothing of it was sent for deletion or
        erased."""
        last = {each.project_id: each for each in self.deletions}
        erased = set(CleanupEvent.objects.filter(step="erase").values_list("cleanup", flat=True))
        for each in self.deletions:
            if each.status != Status.UNDONE:
                continue
            if each is last[each.project_id] and each.project_id not in self.living:
                yield f"undone, and its project is gone: {each.pk}"
            if Cleanup.objects.with_deletion(each).filter(first_request_at__isnull=False).exists():
                yield f"undone, and sent for deletion: {each.pk}"
            if each.pk in erased:
                yield f"undone and erased: {each.pk}"

    def find_sent_outside(self) -> Iterator[str]:
        """Whatever the database says of it, no call of a deletion left within its hold, and none
        once it was undone or cancelled."""
        following = dict[str | None, Cleanup]()
        for each in reversed(self.deletions):
            after = following.get(each.project_id)
            following[each.project_id] = each
            # Of one that lives again, who knows of which life a call is.
            if self.world.count_lives(each.project_id or "") > 1:
                continue
            ends = after.created_at if after else None
            spans = {
                "held": (each.created_at, each.held_until),
                "undone": (each.finished_at if each.status == Status.UNDONE else None, ends),
                "cancelled": (each.cancelled_at, ends),
            }
            for name, (start, end) in spans.items():
                if start and (name != "held" or end):
                    calls = self.find_calls(start, end, each.project_id)
                    yield from (f"sent while {name}: {each.pk}, {c.keys[0]}" for c in calls)

    def find_calls(
        self, start: datetime, end: datetime | None, owner: str | None
    ) -> Iterator[Call]:
        """Those that were signed in between for sure, as signatures know seconds only."""
        first, last = start.timestamp(), end.timestamp() if end else inf
        for call in self.observer.calls:
            if call.owner == owner and first <= call.signed_at and call.signed_at + 1 < last:
                yield call

    def find_sent_while_paused(self) -> Iterator[str]:
        """Of each project what was under way may still leave for a moment, and then nothing."""
        for pause, calls in self.calls_while_paused():
            late = [call for call in calls if call.signed_at > pause.began_at + PAUSE_DELAY_SECONDS]
            for call in late:
                seconds = call.signed_at - pause.began_at
                yield f"sent {seconds:.0f} s after a pause began: {call.owner}, {call.keys[0]}"
            for owner, count in Counter(call.owner for call in calls).items():
                if count > MAX_CALLS_UNDER_WAY:
                    yield f"{owner}: {count} calls after a pause began"
        if released := self.chaos.person.released:
            yield f"{released} pauses were over, and nobody had resumed deletions"

    def calls_while_paused(self) -> Iterator[tuple[Pause, list[Call]]]:
        for pause in self.chaos.person.pauses:
            ends = pause.ended_at or inf
            yield (
                pause,
                [
                    call
                    for call in self.observer.calls
                    if pause.began_at <= call.signed_at and call.signed_at + 1 < ends
                ],
            )


def list_deletions() -> list[Cleanup]:
    """The cleanups of deleted projects, the earlier ones first, but for what follows them."""
    made = Cleanup.objects.filter(kind="project", trigger__in=DELETION_TRIGGERS, parent=None)
    return list(made.order_by("created_at"))


def list_deleted_rows(world: World) -> list[str]:
    """The keys whose rows people deleted, by the cleanups that this made."""
    items = CleanupItem.objects.filter(cleanup__kind="objects", key__in=world.doomed_rows)
    return list(items.values_list("key", flat=True))


def render_table(verdict: Verdict, faults: Counter[str], title: str) -> str:
    chaos, observer = verdict.chaos, verdict.observer
    rows: list[tuple[str, object]] = [("kills", chaos.kills.total())]
    rows += [(f"  of {name}", number) for name, number in sorted(chaos.kills.items())]
    rows += [
        ("clusters frozen and woken", chaos.sleepers),
        ("clusters asked to stop", chaos.stops),
        ("clusters restarted, as no task was taken for a minute", chaos.stuck),
        ("faults", faults.total()),
        *((f"  {name}", number) for name, number in sorted(faults.items())),
        ("people's actions", chaos.person.done.total()),
        ("people's actions that failed", chaos.person.failed.total()),
        *((f"  {name}", number) for name, number in sorted(chaos.person.failed.items())),
        ("cleanups", Cleanup.objects.count()),
        ("  approved by a person", chaos.approved),
        *((f"  {name}", number) for name, number in verdict.moves.items()),
        ("  taken over from a worker that was gone", verdict.taken_over),
        ("  left by a worker whose lease was over", verdict.lost_leases),
        ("objects deleted", verdict.deleted),
        ("objects that had to stay", len(verdict.must_stay)),
        ("delete calls", len(observer.calls)),
        ("  just after a pause began", sum(len(c) for _p, c in verdict.calls_while_paused())),
        ("batches redone", observer.batches_again),
        ("longest resume", f"{chaos.longest_resume_seconds:.0f} s"),
        ("false deletions", len(verdict.false_deletions)),
        ("leftover files", len(verdict.leftover)),
    ]
    width = max(len(name) for name, _value in rows) + 1
    lines = [f"{name + ':':{width}} {value:>7}" for name, value in rows]
    return "\n".join([f"\n{title}", *lines])
