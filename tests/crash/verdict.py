"""What must be true at the end, whatever happened before; each untruth is a line of text."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from django.db.models import F, Sum

from devtools.demo.report import shown
from storage_audit.cleanup.adaptive_batch import MOST
from storage_audit.cleanup.models import CleanupItem, CleanupOperation, OperationEvent
from storage_audit.conf import conf
from storage_audit.models import KnownProject, Project
from storage_audit.ownership.bucket_marker import MARKER
from tests.crash.chaos import RESUMES_WITHIN, Chaos, unfinished
from tests.crash.observer import ROWS, Observer
from tests.crash.world import UPLOADED, World

DELETIONS = ("deleted", "forced")
# Of each of these one worker may have had one batch under way.
INTERRUPTIONS = ("takeover", "incomplete", "failed", "blocked")


@dataclass
class Verdict:
    """`objects` is what the store itself lists at the end, each with its size and ETag."""

    world: World
    observer: Observer
    chaos: Chaos
    objects: dict[str, tuple[int, str]]

    def __post_init__(self) -> None:
        self.living = set(Project.objects.values_list("pk", flat=True))
        self.stays, self.goes = self.world.should(self.living, set(rows_deleted(self.world)))
        self.touched = sorted(
            key for key, etag in self.stays.items() if self.objects.get(key, (0, ""))[1] != etag
        )
        self.left = sorted(key for key in self.objects if key in self.goes or self.is_left(key))

    def is_left(self, key: str) -> bool:
        """An upload of which nobody knows whether it succeeded, into a project that is gone."""
        named = UPLOADED.match(key)
        return (
            key not in self.stays and bool(named) and self.world.life_of(key).id not in self.living
        )

    @property
    def deleted(self) -> int:
        return CleanupOperation.objects.aggregate(all=Sum("deleted"))["all"] or 0

    @property
    def taken_over(self) -> int:
        return OperationEvent.objects.filter(step="takeover").count()

    @property
    def refused(self) -> int:
        """How often a worker stopped as its lease was over."""
        logs = (log.read_text(errors="replace") for log in self.chaos.site.folder.glob("*.log"))
        return sum(log.count("LeaseLost: ") for log in logs)

    @property
    def false_deletions(self) -> list[str]:
        return sorted({*self.touched, *self.observer.wrong})

    def problems(self) -> Iterator[str]:
        yield from (
            f"deleted or changed, and should not be: {shown(k)}" for k in self.false_deletions
        )
        yield from (f"left behind: {shown(key)}" for key in self.left)
        yield from (f"nobody put it there: {shown(key)}" for key in self.strange())
        yield from self.unfinished()
        yield from self.miscounted()
        yield from self.ended_twice()
        yield from self.called_gone()
        yield from self.redone()
        if not self.deleted or not self.taken_over:
            yield "no deletion was interrupted, so that nothing was put to the proof"
        if self.chaos.longest_resume > RESUMES_WITHIN:
            yield f"work resumed only after {self.chaos.longest_resume:.0f} s"

    def strange(self) -> list[str]:
        known = self.stays.keys() | self.goes | {MARKER}
        # What a project that lives again had before may be there or not: it is the new one's.
        return [key for key in self.objects if key not in known and not self.world.life_of(key).id]

    def unfinished(self) -> Iterator[str]:
        for operation in unfinished():
            yield f"not ended: {operation.pk}, {operation.status}: {operation.error}"
        open_books = CleanupOperation.objects.exclude(
            found=F("deleted") + F("already_absent") + F("protected") + F("failed")
        )
        yield from (f"the books do not close: {operation.pk}" for operation in open_books)

    def miscounted(self) -> Iterator[str]:
        """Each deletion that was committed has made one operation, and nothing else has."""
        made = Counter(
            CleanupOperation.objects.filter(kind="project", trigger__in=DELETIONS).values_list(
                "project_id", flat=True
            )
        )
        for id in self.world.ids():
            wanted = self.world.lives(id) - (id in self.living)
            if made[id] != wanted:
                yield f"{id} was deleted {wanted} times and has {made[id]} operations"
        alive = KnownProject.objects.filter(deleted_at=None).values_list("pk", flat=True)
        yield from (
            f"not known to be as it is: {id}" for id in self.living.symmetric_difference(alive)
        )
        for operation in CleanupOperation.objects.filter(trigger="vanished"):
            yield f"{operation.pk} was made for a deletion that had its own operation"

    def ended_twice(self) -> Iterator[str]:
        """As when a worker that slept past its lease went on writing."""
        ends = OperationEvent.objects.filter(step="closed").values_list("operation", flat=True)
        yield from (f"ended {n} times: {pk}" for pk, n in Counter(ends).items() if n > 1)

    def called_gone(self) -> Iterator[str]:
        """Of one operation, though the next one found it and deleted it."""
        items = CleanupItem.objects.filter(operation__kind="project")
        gone = items.filter(outcome__in=["deleted", "already_absent"])
        first = dict(gone.order_by("-changed_at").values_list("key", "changed_at"))
        deleted = items.filter(outcome="deleted").values_list("key", "operation__started_at")
        yield from (
            f"called gone, and was there: {shown(key)}"
            for key, began in deleted
            if key in self.world.planted and began and began > first[key]
        )

    def redone(self) -> Iterator[str]:
        """At most the two batches on their way, for each worker that was interrupted."""
        batches = 2 * conf().batch_size * MOST["batch"].calls
        events = OperationEvent.objects.filter(step__in=INTERRUPTIONS)
        interrupted = Counter(
            ROWS if kind == "objects" else id
            for kind, id in events.values_list("operation__kind", "operation__project_id")
        )
        for id, keys in self.observer.again.items():
            if keys > batches * interrupted[id]:
                yield f"{id}: {keys} keys sent again, with {interrupted[id]} interruptions"


def rows_deleted(world: World) -> list[str]:
    """The keys whose rows people deleted, by the operations that this made."""
    items = CleanupItem.objects.filter(operation__kind="objects", key__in=world.doomed_rows)
    return list(items.values_list("key", flat=True))


def table(verdict: Verdict, faults: Counter[str], title: str) -> str:
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
        ("operations", CleanupOperation.objects.count()),
        ("  released by a person", chaos.released),
        ("  taken over from a worker that was gone", verdict.taken_over),
        ("  left by a worker whose lease was over", verdict.refused),
        ("objects deleted", verdict.deleted),
        ("objects that had to stay", len(verdict.stays)),
        ("delete calls", observer.batches),
        ("batches redone", observer.batches_again),
        ("longest resume", f"{chaos.longest_resume:.0f} s"),
        ("false deletions", len(verdict.false_deletions)),
        ("left behind", len(verdict.left)),
    ]
    width = max(len(name) for name, _value in rows) + 1
    lines = [f"{name + ':':{width}} {value:>7}" for name, value in rows]
    return "\n".join([f"\n{title}", *lines])
