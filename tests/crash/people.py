"""Staff at the admin, who delete projects and more while everything around them breaks."""

import time
from collections import Counter
from collections.abc import Callable
from http.client import HTTPException
from random import Random
from threading import Event, Thread
from typing import TypeVar

from django.contrib.admin.utils import quote
from django.db import DatabaseError, close_old_connections
from django.urls import reverse

from devtools.demo.browser import Browser, Refused
from devtools.demo.site import USER
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import Project, R2Object
from tests.crash.site import Site
from tests.crash.world import World

MAX_OPEN_CLEANUPS = 6
DATABASE_TIMEOUT_SECONDS = 90.0  # seconds

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


class Person(Thread):
    """Acts again and again while `busy` is set; whatever fails is counted, and tried no more.

    `victims` are the projects that nobody has asked to delete yet, `reborn` those that were
    created again.
    """

    def __init__(self, site: Site, world: World, families: dict[str, list[str]], seed: int) -> None:
        super().__init__(name="a person", daemon=True)
        self.busy, self.stopped = Event(), Event()
        self.done, self.failed = Counter[str](), Counter[str]()
        self.victims, self.gone = list(families), list[str]()
        self.recreated = list[str]()
        self._site, self._world, self._families = site, world, families
        self._random = Random(seed)
        self._browser: Browser | None = None

    def run(self) -> None:
        ways = {
            self.delete: 8,
            self.delete_some: 3,
            self.force_delete: 3,
            self.delete_rows: 2,
            self.dry_run: 2,
            self.verify: 2,
            self.recreate_project: 2,
        }
        while not self.stopped.is_set():
            if self.busy.wait(0.5):
                [way] = self._random.choices(list(ways), list(ways.values()))
                self.try_action(way)
                self.stopped.wait(self._random.uniform(0, 1.5))

    def try_action(self, way: Callable[[], None]) -> None:
        name = way.__name__
        try:
            if len(self.victims) < 2 or self.has_enough_work():
                return
            way()
        except (OSError, HTTPException, Refused, DatabaseError) as error:
            self.failed[f"{name}: {type(error).__name__}"] += 1
            self._browser = None
        else:
            self.done[name] += 1

    def has_enough_work(self) -> bool:
        waiting = Cleanup.objects.exclude(trigger="follow_up")
        waiting = waiting.filter(status__in=["pending", "running"])
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

    def run_action(self, action: str, ids: list[str], model: str = "project") -> None:
        self.send(f"{model}_changelist", action=action, _selected_action=ids, post="yes")

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
        """Create a deleted project again, as long as its cleanup may still run."""
        id = self.gone[-1] if self.gone else None
        if id is None or id in self.recreated or Project.objects.filter(pk=id).exists():
            return
        try:
            self.send("project_add", id=id, title="Again")
        finally:
            # Without an answer we have to look: both ends of it are right.
            if retry_query(Project.objects.filter(pk=id).exists):
                self._world.start_life(id)
                self.recreated.append(id)
