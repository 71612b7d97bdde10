"""What must hold at every moment, seen from outside the application."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from uuid import UUID

from devtools.http_reply import Reply
from storage_audit.cleanup.cleanup_text import superseded_text
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.models import KnownProject, R2Object
from storage_audit.ownership import bucket_marker
from tests.faults.matching import is_delete_batch, is_delete_single, sent_keys
from tests.faults.proxy import Request
from tests.promises import check_totals
from tests.real_bucket import Bucket
from tests.stateful.model import Fate, Model

Status = Cleanup.Status
OWN_KEYS = {bucket_marker.MARKER_KEY, bucket_marker.CLOCK_KEY}
PERSON_STATES = (Status.PLANNED, Status.BLOCKED)


class Watch:
    """`window` are the keys whose deletion was under way when others acted, or that others wrote
    to past the application: between a look and what follows from it nobody can keep an object
    from being changed, and the store has no condition. `decided` are the cleanups that a person
    let go on, and `taken_over` those of an earlier deletion that a worker is to end. `under_way`
    are the keys whose request was let go before a pause that came in this turn, and may leave after
    it."""

    def __init__(self, bucket: Bucket, model: Model) -> None:
        self.bucket, self.model = bucket, model
        self.window: set[str] = set()
        self.decided: set[UUID] = set()
        self.taken_over: set[UUID] = set()
        self.under_way: set[str] = set()
        self._working_on: UUID | None = None
        self._sent_while_paused: list[str] = []
        self._settled: set[int] = set()
        self._states: dict[UUID, tuple[str, int, datetime | None]] = {}

    @contextmanager
    def during_turn(self, cleanup: Cleanup) -> Iterator[None]:
        """Within, and nowhere else, cleanups delete objects."""
        self.check_all()
        self.window.clear()
        self.under_way.clear()
        self._working_on = cleanup.parent_id or cleanup.pk
        try:
            yield
        finally:
            self._working_on = None
        self.check_objects()

    def open_window(self) -> None:
        marked = CleanupItem.objects.filter(outcome="deleting", cleanup__status="running")
        self.window.update(marked.values_list("key", flat=True))

    def note_under_way(self) -> None:
        """A pause has just begun: what was let go before may still leave."""
        let_go = CleanupItem.objects.filter(outcome="deleting", calls__gt=0, store_answer="")
        self.under_way.update(let_go.values_list("key", flat=True))

    def see_request(self, request: Request, of_store: Reply | None, reply: Reply) -> None:
        if self._working_on and self.model.is_paused(self._working_on):
            sent = [key for key in self._deleted_keys(request) if not bucket_marker.is_pause(key)]
            self._sent_while_paused += [key for key in sent if key not in self.under_way]

    def _deleted_keys(self, request: Request) -> list[str]:
        if is_delete_batch(request):
            return sent_keys(request)
        if is_delete_single(request):
            return [request.path.partition(f"/{self.bucket.name}/")[2]]
        return []

    def check_objects(self) -> None:
        """What went might go, what is called gone is not there, and a pause holds."""
        assert not self._sent_while_paused, f"sent while paused: {self._sent_while_paused}"
        there = self.bucket.keys()
        for key in self.model.objects.keys() - there:
            assert self.model.fate(key) is not Fate.STAYS or key in self.window, f"lost: {key}"
            self.model.record_removal(key)
        gone = CleanupItem.objects.filter(outcome__in=["deleted", "already_gone"])
        for item in gone.exclude(pk__in=self._settled):
            self._settled.add(item.pk)
            assert item.key not in there - self.window, f"called {item.outcome}: {item.key}"

    def check_all(self) -> None:
        """All that must hold while no cleanup is at it."""
        self._check_every_object()
        self._check_upload_rows()
        for cleanup in Cleanup.objects.all():
            self._check_state(cleanup)
        self._check_deletion_count()

    def _check_every_object(self) -> None:
        there = {(key, etag) for key, (_size, etag) in self.bucket.facts().items()}
        expected = {(key, known.etag) for key, known in self.model.objects.items()}
        changed = {key for key, _etag in there ^ expected}
        assert {key for key in changed if not bucket_marker.is_pause(key)} <= OWN_KEYS

    def _check_upload_rows(self) -> None:
        rows = set(R2Object.objects.filter(source="upload").values_list("key", flat=True))
        for key in self.model.uploads.keys() - rows:
            assert key not in self.model.objects.keys() - self.window, f"forgotten: {key}"
            del self.model.uploads[key]

    def _check_state(self, cleanup: Cleanup) -> None:
        now = (cleanup.status, cleanup.attempts, cleanup.finished_at)
        if now == (before := self._states.get(cleanup.pk)):
            return
        self._states[cleanup.pk] = now
        if before is not None:
            self._check_transition(before[0], cleanup)
        assert cleanup.status in Status.values
        assert cleanup.status == Status.RUNNING or not cleanup.lease_token
        over = (*Cleanup.ENDED, Status.DIFFERS, *PERSON_STATES)
        assert bool(cleanup.next_attempt_at) != (cleanup.status in over)
        if cleanup.status in Cleanup.FINISHED:
            check_totals(cleanup)

    def _check_transition(self, before: str, cleanup: Cleanup) -> None:
        if before == Status.CLEAN and cleanup.status in (Status.UNDONE, Status.CANCELLED):
            # A project without files, which was clean at once.
            assert cleanup.pk in self.decided
        elif before in (*Cleanup.ENDED, Status.DIFFERS):
            assert cleanup.status == before
        elif before in PERSON_STATES and cleanup.pk not in self.decided:
            self._check_undecided(before, cleanup)
        elif cleanup.status in Cleanup.ENDED and cleanup.pk in self.taken_over - self.decided:
            assert cleanup.status == Status.SUPERSEDED
        self.taken_over -= self.decided
        self.decided.discard(cleanup.pk)

    def _check_undecided(self, before: str, cleanup: Cleanup) -> None:
        """Only a later deletion of the project has a worker take it, and only to end it."""
        if cleanup.status == Status.PENDING:
            project = cleanup.project_id or ""
            assert cleanup.message == superseded_text(project)
            assert cleanup.project_deleted_at != KnownProject.objects.deletion_time(project)
            self.taken_over.add(cleanup.pk)
        else:
            assert cleanup.status in (before, Status.SUPERSEDED)

    def _check_deletion_count(self) -> None:
        """Every committed deletion has its cleanup, and one that was rolled back has none."""
        asked = Cleanup.objects.filter(
            kind="project", trigger__in=["deleted", "forced"], parent=None
        ).values_list("project_id", flat=True)
        counted = {id: list(asked).count(id) for id in set(asked)}
        assert counted == dict(self.model.deletions)
