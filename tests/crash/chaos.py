"""What is killed, stopped and started again, and how often."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from uuid import UUID

from django.db.models import QuerySet

from storage_audit.cleanup.models import Cleanup
from tests.crash.people import NothingToDo, Person, retry_query
from tests.crash.services import Cluster, Program, Service, choose_pid
from tests.crash.site import Site
from tests.crash.world import World

RESUME_TIMEOUT_SECONDS = 120.0  # seconds
# So long that its lease is over and another worker goes on with the work.
SLEEP_SECONDS = 130.0
# Longer than a turn, which a slow machine may need to its end.
IDLE_SECONDS = 100.0
# Longer than a hold, and the waits after the faults of a deletion's first turns.
WORK_TIMEOUT_SECONDS = 180.0
COMMANDS = [
    ["backfill_r2"],
    ["sweep_cleanups", "--sync"],
    ["verify_cleanup", "{relative}"],
    ["cleanup_project", "{relative}", "--dry-run", "--sync"],
    ["cleanup_project", "{gone}", "--sync"],
    ["undo_deletion", "{undoable}"],
    ["cancel_cleanup", "{cancellable}", "--reason", "storm"],
    ["erase_cleanup", "{held}", "--reason", "storm"],
    ["pause_cleanups", "--reason", "storm"],
    ["resume_cleanups", "--over-limits", "--confirm", "{figures}"],
]


@dataclass
class Chaos:
    """`kills` counts the SIGKILLs by what they hit, `stuck` the clusters that had to be started
    again as a worker of theirs died with the lock of their queue."""

    site: Site
    world: World
    person: Person
    random: Random
    # Of its own, as how much the other gives depends on what there is to choose from.
    order: Random
    kills: Counter[str] = field(default_factory=Counter)
    stuck: int = 0
    approved: int = 0
    stops: int = 0
    sleepers: int = 0
    longest_resume_seconds: float = 0
    asleep: Cluster | None = None

    def run(self, kills: int, at_once: int, title: str) -> None:
        """Storms with calms between them, until there were so many kills."""
        while (left := kills - self.kills.total()) > 0:
            self.person.busy.set()
            with self.freeze_cluster() if self.may_sleep() else nullcontext():
                self.storm(min(at_once, left))
            self.person.busy.clear()
            self.site.heal()
            self.wait_for_calm()
            text = f"{title}: {self.kills.total()} of {kills} kills, longest resume so far"
            print(f"{text} {self.longest_resume_seconds:.0f} s", flush=True)

    def may_sleep(self) -> bool:
        return len(self.site.clusters) > 1 and self.order.random() < 0.5

    def finish_all(self, within: float) -> None:
        """Let everything end with nothing in its way; people release what is blocked."""
        ends = time.monotonic() + within
        while time.monotonic() < ends:
            self.restart_stuck()
            for cleanup in Cleanup.objects.filter(status="blocked"):
                cleanup.approve("the crash job")
                self.approved += 1
            if self.person.look_for_pause():
                self.person.try_action(self.person.resume)
            elif not unfinished_cleanups().exists():
                return
            time.sleep(1)

    def storm(self, kills: int) -> None:
        """So many kills, each a few seconds after what the one before it hit is back."""
        wanted = self.kills.total() + kills
        while self.kills.total() < wanted:
            self.choose_way()()
            time.sleep(self.random.uniform(0, 2))
            self.site.heal()
            time.sleep(self.random.uniform(0.5, 2.5))

    def choose_way(self) -> Callable[[], None]:
        # Chance alone may interrupt no deletion, and nothing is put to the proof then.
        if not self.kills:
            return self.kill_busy_cluster
        ways = self.list_ways()
        [way] = self.order.choices(list(ways), list(ways.values()))
        return way

    @contextmanager
    def freeze_cluster(self) -> Iterator[None]:
        """Freeze a whole cluster for longer than its leases last, and let it wake up again."""
        self.asleep = cluster = self.site.clusters[0]
        cluster.wait_for_work(WORK_TIMEOUT_SECONDS)
        wakes = time.monotonic() + SLEEP_SECONDS
        processes = [cluster.pid, *cluster.list_children()]
        send_signal(signal.SIGSTOP, processes)
        try:
            yield
            time.sleep(max(0, wakes - time.monotonic()))
        finally:
            send_signal(signal.SIGCONT, processes)
            self.asleep = None
        self.sleepers += 1
        # Or it would be taken for stuck, and killed before it has done anything.
        cluster.reset_idle_time()

    def wait_for_calm(self) -> None:
        """Wait until all work that was interrupted goes on, and take the time of that."""
        began = time.monotonic()
        leases = running_leases()
        while leases:
            # While deletions are paused, nothing goes on that deletes.
            if self.restart_stuck() or self.person.look_for_pause():
                began = time.monotonic()
            now = running_leases()
            leases = {id: lease for id, lease in leases.items() if now.get(id) == lease}
            self.longest_resume_seconds = max(self.longest_resume_seconds, time.monotonic() - began)
            if time.monotonic() > began + 2 * RESUME_TIMEOUT_SECONDS:
                return
            time.sleep(0.5)

    def restart_stuck(self) -> bool:
        """Start clusters again that do nothing any more, though there are sweeps to do."""
        stuck = [cluster for cluster in self.site.clusters if cluster.is_idle(IDLE_SECONDS)]
        for cluster in stuck:
            cluster.kill()
        self.site.heal()
        self.stuck += len(stuck)
        return bool(stuck)

    def list_ways(self) -> dict[Callable[[], None], int]:
        ways = {
            self.kill_worker: 5,
            self.kill_cluster: 3,
            self.kill_web: 3,
            self.kill_store: 2,
            self.kill_command: 4,
            self.kill_upload: 3,
            self.stop_cluster: 1,
        }
        # A sleeper that finds no connection any more could not write in any case.
        if not self.asleep:
            ways[self.kill_everything] = 1
            if self.site.database:
                ways |= {self.kill_database: 2, self.kill_connection: 2}
        return ways

    def kill_worker(self) -> None:
        self._kill_one(self.choose_awake().list_children, "a cluster's process")

    def kill_cluster(self) -> None:
        self._kill(self.choose_awake(), "a cluster")

    def kill_busy_cluster(self) -> None:
        """While one of its workers has a cleanup. Stopped first, as a small cleanup ends within a
        second, before anything else could kill its worker."""
        cluster = self.choose_awake()
        ends = time.monotonic() + WORK_TIMEOUT_SECONDS
        while True:
            cluster.wait_for_work(WORK_TIMEOUT_SECONDS)
            processes = [cluster.pid, *cluster.list_children()]
            send_signal(signal.SIGSTOP, processes)
            if running_leases() or time.monotonic() > ends:
                break
            send_signal(signal.SIGCONT, processes)
        self._kill(cluster, "a cluster")

    def choose_awake(self) -> Cluster:
        """A sleeper must live to wake up."""
        return self.random.choice([c for c in self.site.clusters if c is not self.asleep])

    def kill_web(self) -> None:
        if self.random.random() < 0.3:
            self._kill(self.site.web, "the web server")
        else:
            self._kill_one(self.site.web.list_children, "a web process")

    def kill_store(self) -> None:
        self._kill(self.site.store, "the object store")

    def kill_everything(self) -> None:
        """As when the machine goes down."""
        for service in self.site.services:
            service.kill()
        self.kills["everything at once"] += 1

    def kill_database(self) -> None:
        assert self.site.database
        self._kill(self.site.database, "PostgreSQL")

    def kill_connection(self) -> None:
        """One process of the server: it then ends all others, and starts afresh by itself."""
        assert self.site.database
        self._kill_one(self.site.database.list_backends, "a connection's process")

    def kill_command(self) -> None:
        template = self.random.choice(COMMANDS)
        try:
            words = [self.fill_in(word) for word in template]
        except NothingToDo:
            return
        command = self.site.start_command(*words)
        # Most of the time goes into starting; half of them come to their end.
        time.sleep(self.random.uniform(0.5, 6))
        if command.is_running:
            command.kill()
            self.kills["a command"] += 1

    def fill_in(self, word: str) -> str:
        """Raises NothingToDo."""
        person = self.person
        match word:
            case "{relative}":
                return person.choose_relative()
            case "{gone}":
                return self.random.choice(person.gone or ["proj_never"])
            case "{undoable}":
                return str(person.choose_undoable().pk)
            case "{cancellable}":
                return str(person.choose_cancellable().pk)
            case "{held}":
                return str(person.choose_held().pk)
            case "{figures}":
                return person.begin_to_resume()
        return word

    def kill_upload(self) -> None:
        """Of files into projects that stay, into those that are deleted next, and into those that
        were created again."""
        person = self.person
        ids = [person.choose_relative(), *person.victims[-2:], *person.recreated[-2:]]
        lives = {id: self.world.count_lives(id) for id in ids}
        upload = self.site.start_program("uploads", "-m", "tests.crash.uploads", *ids)
        time.sleep(self.random.uniform(2, 6))
        if upload.is_running:
            upload.kill()
            self.kills["an upload"] += 1
        self.record_uploads(upload, lives)

    def record_uploads(self, upload: Program, lives: dict[str, int]) -> None:
        """But for projects that came to life again meanwhile: who knows in which life it was."""
        for line in upload.log_text.splitlines():
            if line.startswith("saved "):
                _saved, key, etag = line.split()
                id = self.world.find_life(key).id
                if self.world.count_lives(id) == lives[id]:
                    self.world.record_saved(key, etag)

    def stop_cluster(self) -> None:
        """Ask it to end as a new version does; it must hand over."""
        cluster = self.site.clusters[-1]
        cluster.stop()
        self.stops += 1

    def _kill(self, service: Service, name: str) -> None:
        service.kill()
        self.kills[name] += 1

    def _kill_one(self, pids: Callable[[], list[int]], name: str) -> None:
        if pid := choose_pid(pids, self.random):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.kills[name] += 1


def unfinished_cleanups() -> QuerySet[Cleanup]:
    return Cleanup.objects.exclude(Cleanup.OVER).exclude(status="planned")


def send_signal(number: signal.Signals, pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def running_leases() -> dict[UUID, tuple[UUID | None, datetime | None]]:
    running = Cleanup.objects.filter(status="running")
    rows = retry_query(lambda: list(running.values_list("pk", "lease_token", "lease_until")))
    return {id: (token, until) for id, token, until in rows}
