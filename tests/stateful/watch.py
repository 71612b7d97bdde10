"""What must hold at every moment, seen from outside the application."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from uuid import UUID

from storage_audit.cleanup.models import CleanupItem, CleanupOperation
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_marker
from tests.promises import check_books
from tests.real_bucket import Bucket
from tests.stateful.model import Fate, Model

Status = CleanupOperation.Status
WAITS_FOR_A_PERSON = (Status.PLANNED, Status.BLOCKED)


class Watch:
    """`window` are the keys whose deletion was under way when others acted, or that others wrote
    to past the application: between a look and what follows from it nobody can keep an object
    from being changed, and the store has no condition. `decided` are the operations that a person
    let go on."""

    def __init__(self, bucket: Bucket, model: Model) -> None:
        self.bucket, self.model = bucket, model
        self.window: set[str] = set()
        self.decided: set[UUID] = set()
        self._settled: set[int] = set()
        self._states: dict[UUID, tuple[str, int, datetime | None]] = {}

    @contextmanager
    def slice(self) -> Iterator[None]:
        """Within, and nowhere else, cleanups delete objects."""
        self.agrees()
        self.window.clear()
        yield
        self.look()

    def open_window(self) -> None:
        marked = CleanupItem.objects.filter(outcome="deleting", operation__status="running")
        self.window.update(marked.values_list("key", flat=True))

    def look(self) -> None:
        """What went might go, and what is called gone is not there."""
        there = self.bucket.keys()
        for key in self.model.objects.keys() - there:
            assert self.model.fate(key) is not Fate.STAYS or key in self.window, f"lost: {key}"
            self.model.removed(key)
        gone = CleanupItem.objects.filter(outcome__in=["deleted", "already_absent"])
        for item in gone.exclude(pk__in=self._settled):
            self._settled.add(item.pk)
            assert item.key not in there - self.window, f"called {item.outcome}: {item.key}"

    def agrees(self) -> None:
        """All that must hold while no cleanup is at it."""
        self._sees_every_object()
        self._keeps_rows_of_uploads()
        for operation in CleanupOperation.objects.all():
            self._is_legal(operation)
        self._counts_deletions()

    def _sees_every_object(self) -> None:
        there = {(key, etag) for key, (_size, etag) in self.bucket.facts().items()}
        expected = {(key, known.etag) for key, known in self.model.objects.items()}
        assert {key for key, _etag in there ^ expected} == {bucket_marker.MARKER}

    def _keeps_rows_of_uploads(self) -> None:
        rows = set(R2Object.objects.filter(source="upload").values_list("key", flat=True))
        for key in self.model.uploads.keys() - rows:
            assert key not in self.model.objects.keys() - self.window, f"forgotten: {key}"
            del self.model.uploads[key]

    def _is_legal(self, operation: CleanupOperation) -> None:
        now = (operation.status, operation.attempts, operation.finished_at)
        if now == (before := self._states.get(operation.pk)):
            return
        self._states[operation.pk] = now
        if before is not None:
            self._may_follow(before[0], operation)
        assert operation.status in Status.values
        assert operation.status == Status.RUNNING or not operation.lease_token
        over = (*CleanupOperation.ENDED, *WAITS_FOR_A_PERSON)
        if operation.kind != "verify" or operation.status != Status.INCOMPLETE:
            assert bool(operation.next_attempt_at) != (operation.status in over)
        if operation.status in CleanupOperation.CLOSED:
            check_books(operation)

    def _may_follow(self, before: str, operation: CleanupOperation) -> None:
        if before in CleanupOperation.ENDED:
            assert operation.status == before
        elif before in WAITS_FOR_A_PERSON and operation.pk not in self.decided:
            assert operation.status in (before, Status.SUPERSEDED)
        self.decided.discard(operation.pk)

    def _counts_deletions(self) -> None:
        """Every committed deletion has its operation, and one that was rolled back has none."""
        asked = CleanupOperation.objects.filter(
            kind="project", trigger__in=["deleted", "forced"], parent=None
        ).values_list("project_id", flat=True)
        counted = {id: list(asked).count(id) for id in set(asked)}
        assert counted == dict(self.model.deletions)
