"""Staff at the admin, who delete projects, change their minds and more while everything around
them breaks."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from random import Random
from threading import Event, Lock, Thread
from typing import TypeVar

from django.contrib.admin.utils import quote
from django.db import DatabaseError, close_old_connections
from django.db.models import Q
from django.urls import reverse

from devtools.demo.browser import Browser, Refused
from devtools.demo.site import USER
from storage_audit.cleanup import pause_deletions
from storage_audit.cleanup.admin.decisions import combined_digest
from storage_audit.cleanup.models import Cleanup, CleanupQuerySet, DeletionPause
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.models import Project, R2Object
from tests.crash.site import Site
from tests.crash.world import World

MAX_OPEN_CLEANUPS = 6
DATABASE_TIMEOUT_SECONDS = 90.0  # seconds
PAUSE_SECONDS = (12.0, 25.0)  # at least and at most
BETWEEN_PAUSES_SECONDS = 60.0
# What was done never yet is so much likelier, so that even a short run has seen all of it.
FIRST_TIME_FACTOR = 5

T = TypeVar("T")


def retry_query(ask: Callable[[], T]) -> T:
    """Ask the database until it answers, as it may be down just now."""
    ends = time.monotonic() + DATABASE_TIMEOUT_SECONDS
    while True:
        try:
            close_old_connections()
            return ask()
        except DatabaseError:
            if time.monotonic() > ends:
                raise
            time.sleep(1)


class NothingToDo(Exception):
    """There is nothing that could be done now."""


@dataclass
class Pause:
    """From when deletions were paused for sure, until somebody began to resume them."""

    began_at: float
    ended_at: float | None = None


class Person(Thread):
    """Acts again and again while `busy` is set; whatever fails is counted, and tried no more.

    `victims` are the projects that nobody has asked to delete yet, or that were brought back,
    `recreated` those that were created again. `released` counts the pauses that nobody resumed,
    and that were over all the same.
    """

    def __init__(self, site: Site, world: World, families: dict[str, list[str]], seed: int) -> None:
        super().__init__(name="a person", daemon=True)
        self.busy, self.stopped = Event(), Event()
        self.done, self.failed = Counter[str](), Counter[str]()
        self.victims, self.gone = list(families), list[str]()
        self.recreated = list[str]()
        self.pauses, self.released = list[Pause](), 0
        self._pause_lock, self._is_resuming, self._pause_ends_at = Lock(), False, 0.0
        self._site, self._world, self._families = site, world, families
        self._random = Random(seed)
        self._browser: Browser | None = None

    def run(self) -> None:
        while not self.stopped.is_set():
            is_busy = self.busy.wait(0.5)
            if self.look_for_pause() and not (is_busy and self.may_stay_paused()):
                self.try_action(self.resume)
            elif is_busy:
                ways = self.list_ways()
                [way] = self._random.choices(list(ways), list(ways.values()))
                self.try_action(way)
            if is_busy:
                self.stopped.wait(self._random.uniform(0, 1.5))

    def list_ways(self) -> dict[Callable[[], None], int]:
        ways = {
            self.undo: 2,
            self.cancel: 2,
            self.erase: 3,
            self.pause: 1,
        }
        if len(self.victims) >= 2 and not self.has_enough_work():
            ways |= {
                self.delete: 8,
                self.delete_some: 3,
                self.force_delete: 3,
                self.delete_and_erase: 1,
                self.delete_rows: 2,
                self.dry_run: 2,
                self.verify: 2,
                self.recreate_project: 2,
            }
        new = {way: n * FIRST_TIME_FACTOR for way, n in ways.items() if not self.done[way.__name__]}
        return ways | new

    def try_action(self, way: Callable[[], None]) -> None:
        name = way.__name__
        try:
            way()
        except NothingToDo:
            pass
        except (OSError, HTTPException, Refused, DatabaseError) as error:
            self.failed[f"{name}: {type(error).__name__}"] += 1
            self._browser = None
        else:
            self.done[name] += 1

    def has_enough_work(self) -> bool:
        waiting = Cleanup.objects.exclude(trigger="follow_up")
        waiting = waiting.not_held().filter(status__in=["pending", "running"])
        return retry_query(waiting.count) >= MAX_OPEN_CLEANUPS

    def send(self, name: str, *args: str, **fields: str | list[str]) -> None:
        if self._browser is None:
            browser = Browser(self._site.web.address)
            browser.log_in(USER, self._site.password)
            self._browser = browser
        self._browser.send(reverse(f"admin:storage_audit_{name}", args=args), **fields)

    def next_victim(self) -> str:
        id = self.victims.pop()
        self._world.allow_deletion(id)
        self.gone.append(id)
        return id

    def delete(self) -> None:
        id = self.next_victim()
        self.send("project_delete", quote(id), post="yes")

    def delete_and_erase(self) -> None:
        id = self.next_victim()
        self.send("project_delete", quote(id), post="yes", erase="now", erase_reason="storm")

    def run_action(
        self, action: str, ids: list[str], model: str = "project", **fields: str
    ) -> None:
        chosen: dict[str, str | list[str]] = {"_selected_action": ids, **fields}
        self.send(f"{model}_changelist", action=action, post="yes", **chosen)

    def delete_some(self) -> None:
        self.run_action("delete_selected", [self.next_victim() for _each in range(2)])

    def force_delete(self) -> None:
        self.run_action("force_delete", [self.next_victim()])

    def choose_relative(self) -> str:
        return self._random.choice(self._families[self._random.choice(list(self._families))])

    def delete_rows(self) -> None:
        relatives = [id for family in self._families.values() for id in family]
        rows = R2Object.objects.filter(project_id__in=relatives, source="backfill")
        chosen = self._random.sample(list(rows.order_by("pk")), 2)
        self._world.doomed_rows.update(row.key for row in chosen)
        self.run_action("delete_selected", [str(row.pk) for row in chosen], "r2object")

    def dry_run(self) -> None:
        self.run_action("dry_run_cleanup", [self._random.choice(self.victims)])

    def verify(self) -> None:
        self.run_action("verify_cleanup", [self.choose_relative()])

    def recreate_project(self) -> None:
        """Create a deleted project again, as long as its cleanup may still run. A held one could be
        brought back by somebody else meanwhile, and nobody would know in which life it is."""
        begun = Q(first_request_at__isnull=False) | Q(parent__first_request_at__isnull=False)
        running = Cleanup.objects.open().deleting().of_projects().filter(begun)
        id = self.choose_deletion(running.exclude(project_id__in=self.recreated)).project_id
        if id is None or Project.objects.filter(pk=id).exists():
            raise NothingToDo
        try:
            self.send("project_add", id=id, title="Again")
        finally:
            # Without an answer we have to look: both ends of it are right.
            if retry_query(Project.objects.filter(pk=id).exists):
                self._world.start_life(id)
                self.recreated.append(id)

    # What they decide on deletions

    def choose_deletion(self, cleanups: CleanupQuerySet) -> Cleanup:
        found = retry_query(lambda: list(cleanups.order_by("pk")))
        if not found:
            raise NothingToDo
        return self._random.choice(found)

    def choose_regretted(self, cleanups: CleanupQuerySet) -> Cleanup:
        """One of a third of them: else they would sooner or later regret each deletion."""
        ids = retry_query(lambda: list(cleanups.values_list("pk", flat=True)))
        regretted = [id for id in ids if id.int % 3 == 0]
        return self.choose_deletion(cleanups.filter(pk__in=regretted))

    def choose_undoable(self) -> Cleanup:
        return self.choose_regretted(open_deletions().held())

    def choose_cancellable(self) -> Cleanup:
        return self.choose_regretted(open_deletions())

    def choose_held(self) -> Cleanup:
        return self.choose_deletion(open_deletions().held())

    def decide(self, action: str, cleanup: Cleanup) -> None:
        figures = combined_digest([cleanup])
        self.run_action(action, [str(cleanup.pk)], "cleanup", figures=figures, reason="storm")

    def undo(self) -> None:
        cleanup = self.choose_undoable()
        id = cleanup.project_id or ""
        try:
            self.decide("undo_deletion", cleanup)
        finally:
            if id not in self.victims and retry_query(Project.objects.filter(pk=id).exists):
                self.victims.insert(self._random.randrange(len(self.victims) + 1), id)

    def cancel(self) -> None:
        self.decide("cancel_deletion", self.choose_cancellable())

    def erase(self) -> None:
        self.decide("erase_deletion", self.choose_held())

    # The brake

    def pause(self) -> None:
        if self.look_for_pause() or time.time() < self._pause_ends_at + BETWEEN_PAUSES_SECONDS:
            raise NothingToDo
        self.send("pause", reason="storm")

    def resume(self) -> None:
        figures = self.begin_to_resume()
        self.send("resume", figures=figures, over_limits="on")

    def begin_to_resume(self) -> str:
        """From now on deletions may go on; returns what confirms that."""
        with self._pause_lock:
            if self.pauses and self.pauses[-1].ended_at is None:
                self.pauses[-1].ended_at = time.time()
            self._is_resuming = True
        try:
            return retry_query(pause_deletions.find_resume_figures).digest
        except IllegalTransition as error:
            raise NothingToDo from error

    def look_for_pause(self) -> bool:
        """Whether deletions are paused, and since when: whoever asked for it may not know."""
        with self._pause_lock:
            is_paused = retry_query(DeletionPause.objects.exists)
            is_known = bool(self.pauses) and self.pauses[-1].ended_at is None
            if not is_paused:
                self._is_resuming = False
                if is_known:
                    self.pauses[-1].ended_at = self.pauses[-1].began_at
                    self.released += 1
            elif not (is_known or self._is_resuming):
                self.pauses.append(Pause(time.time()))
                self._pause_ends_at = time.time() + self._random.uniform(*PAUSE_SECONDS)
            return is_paused

    def may_stay_paused(self) -> bool:
        return not self._is_resuming and time.time() < self._pause_ends_at


def open_deletions() -> CleanupQuerySet:
    return Cleanup.objects.open().deleting().of_projects().filter(parent=None)
