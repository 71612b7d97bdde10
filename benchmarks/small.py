"""The benchmark of one small project, whose requests take 100 ms each."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from benchmarks import rivals
from benchmarks.measure import Contender, Failed
from benchmarks.ours import BACKFILL, MANAGE, Application, require_facts
from benchmarks.stage import Bench, Row, Target
from benchmarks.stores import run_delay, run_seaweedfs
from devtools.seaweedfs import SeaweedFS

PROJECT_ID = "proj_benchmark"
LATENCY_SECONDS = 0.1
MAX_REQUESTS, MAX_SECONDS = 55, 1.5
# In all key formats.
KEYS = [
    *(f"{kind}/{PROJECT_ID}/s1/a.mp4" for kind in ("audio", "captions", "images", "thumbnails")),
    f"video/{PROJECT_ID}/s1/a.mp4",
    f"video/proj_{PROJECT_ID}/s1/a.mp4",
    f"projects/{PROJECT_ID}/scenes/s1/media/a.mp4",
    f"projects/{PROJECT_ID}/scenes/s2/media/a.mp4",
    f"projects/proj_{PROJECT_ID}/scenes/s1/media/a.mp4",
    f"{PROJECT_ID}_s1_media.mp4",
]


class Traffic(NamedTuple):
    """The requests of a run, and the seconds from the first one to the last answer."""

    counts: dict[str, int]
    seconds: float

    @property
    def total(self) -> int:
        return sum(self.counts.values())


class SmallProject:
    """A bucket behind the delay, whose project is deleted again in each round."""

    def __init__(self, bench: Bench, store: SeaweedFS, address: str) -> None:
        self.bench, self.store, self.address = bench, store, address
        environment = {**store.environment, "R2_ENDPOINT_URL": address}
        self.application = Application(environment, bench.database.url, bench.folder)
        self.environment = rivals.rival_environment(environment, bench.folder)
        self.traffic: dict[str, list[Traffic]] = {}
        if not bench.rivals_alone:
            self.application.connect_bucket()
        bench.database.empty_tables()
        # A living project, as the application distrusts a table without projects.
        bench.database.add_projects(1)

    def take_traffic(self) -> Traffic:
        connection = HTTPConnection(urlsplit(self.address).netloc)
        connection.request("GET", "/_requests")
        return Traffic(**json.loads(connection.getresponse().read()))

    def upload_objects(self) -> None:
        for key in KEYS:
            self.store.put(key, b"small")
        self.take_traffic()

    def delete_project(self) -> None:
        """Upload and track its objects, and delete its row."""
        self.upload_objects()
        self.bench.database.add_project(PROJECT_ID)
        self.application.manage(*BACKFILL)
        self.bench.database.remove_project(PROJECT_ID)
        self.take_traffic()

    def our_contender(self) -> Contender:
        name = "cleanup_project"

        def check(facts: dict[str, Any]) -> None:
            self.note_traffic(name)
            cleanup = facts["cleanups"][0]
            require_facts(cleanup, status="clean")
            require_facts(cleanup["objects"], deleted=len(KEYS))

        argv = [*MANAGE, "cleanup_project", PROJECT_ID, "--declare-deleted", "--sync", "--json"]
        prepare = self.delete_project
        return self.application.make_contender(name, argv, len(KEYS), check, prepare=prepare)

    def rival_contender(self) -> Contender:
        name = "delete a project"
        return rivals.make_rival(
            name,
            len(KEYS),
            self.environment,
            prepare=self.upload_objects,
            check=partial(self.note_traffic, name),
        )

    def note_traffic(self, name: str) -> None:
        self.traffic.setdefault(name, []).append(self.take_traffic())
        if left := set(KEYS) & set(self.store.keys()):
            raise Failed(f"{name} left {sorted(left)}")

    def fastest(self, name: str) -> Traffic:
        return min(self.traffic[name], key=lambda traffic: traffic.seconds)


@contextmanager
def open_project(bench: Bench) -> Iterator[SmallProject]:
    with (
        run_seaweedfs(bench.folder) as store,
        run_delay(store, LATENCY_SECONDS, bench.folder) as address,
    ):
        yield SmallProject(bench, store, address)


def measure_small(bench: Bench) -> Row:
    with open_project(bench) as project:
        measured = bench.measure(project.our_contender(), project.rival_contender())
        lines = [describe_traffic(name, project.fastest(name)) for name in project.traffic]
    targets = []
    if traffic := project.traffic.get("cleanup_project"):
        most = max(one.total for one in traffic)
        seconds = project.fastest("cleanup_project").seconds
        targets = [
            Target(f"at most {MAX_REQUESTS} requests", f"{most}", most <= MAX_REQUESTS),
            Target(
                f"at most {MAX_SECONDS} s from the first request to the last answer",
                f"{seconds:.2f} s",
                seconds <= MAX_SECONDS,
            ),
        ]
    how = (
        "SeaweedFS behind a proxy that waits for 100 ms before each request. Ours plans, rechecks,"
        " deletes and verifies, in a process of its own. The naive script lists the project's"
        " prefixes and sends one DeleteObjects. Of the fastest round, from the first request to the"
        " last answer: "
    )
    title = f"Delete a project of {len(KEYS)} objects, 100 ms a request"
    return Row(title, how + " ".join(lines), measured, targets)


def describe_traffic(name: str, traffic: Traffic) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(traffic.counts.items()))
    return f"{name} {traffic.seconds:.2f} s, {traffic.total} requests ({kinds})."
