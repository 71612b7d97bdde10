"""The benchmarks of small projects, whose requests take 100 ms each: one, and many."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from benchmarks import rivals
from benchmarks.deletion import write_tree
from benchmarks.measure import Contender, Failed
from benchmarks.naive import small_project
from benchmarks.ours import BACKFILL, MANAGE, Application, require_facts
from benchmarks.stage import Bench, Row, Target, speed_targets
from benchmarks.stores import BUCKET, run_delay, run_seaweedfs
from devtools.seaweedfs import SeaweedFS
from storage_audit.bucket.prices import cost_in_dollars

LATENCY_SECONDS = 0.1
MAX_REQUESTS, MAX_REQUESTS_WITH_CHECKS, MAX_SECONDS = 55, 130, 1.5
MIN_SPEED = 3
OTHER_OBJECTS, MANY_PROJECTS, FEW_PROJECTS = 100_000, 200, 5
OURS, CHECKS, CLUSTER = "cleanup_project", "Its three follow-up checks", "a cluster of 2 workers"
NAIVE = "delete small projects"
# What R2 calls the requests that delay.py counts.
CALLS = {
    "listings": "ListObjectsV2",
    "marker listings": "ListObjectsV2",
    "listings of uploads": "ListMultipartUploads",
    "marker reads": "GetObject",
    "deletions": "DeleteObjects",
}
DELETE_PROJECTS = "Project.objects.filter(pk__startswith='proj_small').delete()"


def keys_of(project: str) -> list[str]:
    """Ten keys of a project, in all key formats."""
    return [
        *(f"{kind}/{project}/s1/a.mp4" for kind in ("audio", "captions", "images", "thumbnails")),
        f"video/{project}/s1/a.mp4",
        f"video/proj_{project}/s1/a.mp4",
        f"projects/{project}/scenes/s1/media/a.mp4",
        f"projects/{project}/scenes/s2/media/a.mp4",
        f"projects/proj_{project}/scenes/s1/media/a.mp4",
        f"{project}_s1_media.mp4",
    ]


class Traffic(NamedTuple):
    """The requests of a run, and the seconds from the first one to the last answer."""

    counts: dict[str, int]
    seconds: float

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def dollars(self) -> float:
        return cost_in_dollars((CALLS.get(kind, ""), count) for kind, count in self.counts.items())


class SmallProjects:
    """A bucket behind the delay, whose projects are deleted again in each round."""

    def __init__(self, bench: Bench, store: SeaweedFS, address: str, count: int) -> None:
        self.bench, self.store, self.address = bench, store, address
        self.projects = [small_project(number) for number in range(count)]
        self.keys = [key for project in self.projects for key in keys_of(project)]
        environment = {**store.environment, "R2_ENDPOINT_URL": address}
        self.application = Application(environment, bench.database.url, bench.folder)
        self.environment = rivals.rival_environment(environment, bench.folder)
        self.environment |= {"SMALL_PROJECTS": str(count)}
        self.traffic: dict[str, list[Traffic]] = {}
        if not bench.rivals_alone:
            self.application.connect_bucket()
        bench.database.empty_tables()
        # A living project, as the application distrusts a table without projects.
        bench.database.add_projects(1)

    def upload_others(self, count: int) -> None:
        """Upload so many objects of another project, not through the delay."""
        tree = self.bench.folder / "others"
        write_tree(tree, count)
        argv = [rivals.program_path("s5cmd"), "--log", "error", "cp", f"{tree}/"]
        argv.append(f"s3://{BUCKET}/projects/proj_000000/scenes/")
        subprocess.run(
            argv,
            env=rivals.rival_environment(self.store.environment, self.bench.folder),
            check=True,
        )

    def take_traffic(self) -> Traffic:
        connection = HTTPConnection(urlsplit(self.address).netloc)
        connection.request("GET", "/_requests")
        return Traffic(**json.loads(connection.getresponse().read()))

    def upload_objects(self) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(partial(self.store.put, body=b"small"), self.keys))
        self.take_traffic()

    def track_objects(self) -> None:
        """Upload the objects of living projects, and track them."""
        self.upload_objects()
        for project in self.projects:
            self.bench.database.add_project(project)
        self.application.manage(*BACKFILL)

    def delete_row(self) -> None:
        self.track_objects()
        self.bench.database.remove_project(self.projects[0])
        self.take_traffic()

    def delete_rows(self) -> None:
        """As the application does it, so that a cleanup of each waits in the queue."""
        self.track_objects()
        self.application.manage("shell", "--verbosity", "0", "--command", DELETE_PROJECTS)
        self.take_traffic()

    def our_contender(self) -> Contender:
        def check(facts: dict[str, Any]) -> None:
            self.note_traffic(OURS)
            cleanup = facts["cleanups"][0]
            require_facts(cleanup, status="clean")
            require_facts(cleanup["objects"], deleted=len(self.keys))
            self.run_checks()

        argv = [*MANAGE, "cleanup_project", self.projects[0]]
        argv += ["--declare-deleted", "--sync", "--json"]
        return self.application.make_contender(
            OURS, argv, len(self.keys), check, prepare=self.delete_row
        )

    def run_checks(self) -> None:
        """Run the follow-up checks, which are due later, one after the other."""
        self.bench.database.execute(
            "UPDATE storage_audit_cleanup SET next_attempt_at = now() WHERE finished_at IS NULL"
        )
        self.application.manage("sweep_cleanups", "--sync")
        self.note_traffic(CHECKS)
        self.require_clean()

    def require_clean(self) -> None:
        open_or_bad = "SELECT count(*) FROM storage_audit_cleanup WHERE status <> 'clean'"
        if left := self.bench.database.execute(open_or_bad):
            raise Failed(f"ours: {left} cleanups did not end clean")

    def cluster_contender(self) -> Contender:
        argv = [sys.executable, "-m", "benchmarks.cluster", str(self.bench.folder / "cluster.log")]
        return Contender(
            name=CLUSTER,
            argv=argv,
            environment={**self.application.environment, "QUEUE_WORKERS": "2"},
            keys=len(self.keys),
            prepare=self.delete_rows,
            check=lambda _output: self.note_traffic(CLUSTER),
            is_ours=True,
        )

    def rival_contender(self, name: str, target: float | None = None) -> Contender:
        return rivals.make_rival(
            name,
            len(self.keys),
            self.environment,
            target=target,
            prepare=self.upload_objects,
            check=partial(self.note_traffic, name),
        )

    def note_traffic(self, name: str) -> None:
        self.traffic.setdefault(name, []).append(self.take_traffic())
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(self.is_there, self.keys))
        if any(found):
            raise Failed(f"{name} left {sum(found)} objects")

    def is_there(self, key: str) -> bool:
        page = self.store.own_client.list_objects_v2(Bucket=BUCKET, Prefix=key, MaxKeys=1)
        return page["KeyCount"] > 0

    def fastest(self, name: str) -> Traffic:
        return min(self.traffic[name], key=lambda traffic: traffic.seconds)


@contextmanager
def open_projects(bench: Bench, count: int) -> Iterator[SmallProjects]:
    with (
        run_seaweedfs(bench.folder) as store,
        run_delay(store, LATENCY_SECONDS, bench.folder) as address,
    ):
        yield SmallProjects(bench, store, address, count)


def measure_small(bench: Bench) -> Row:
    others = min(OTHER_OBJECTS, bench.deletions)
    with open_projects(bench, 1) as projects:
        projects.upload_others(others)
        measured = bench.measure(projects.our_contender(), projects.rival_contender(NAIVE))
        lines = [describe_traffic(name, projects.fastest(name)) for name in projects.traffic]
        targets = [] if bench.rivals_alone else small_targets(projects)
    how = (
        f"SeaweedFS behind a proxy that waits for 100 ms before each request, with {others:,} other"
        " objects in the bucket. Ours plans, rechecks, deletes and verifies, in a process of its"
        " own. The naive script lists the project's prefixes and sends one DeleteObjects. Of the"
        " fastest round, from the first request to the last answer, at R2's prices: "
    )
    title = f"Delete a project of {len(projects.keys)} objects, 100 ms a request"
    return Row(title, how + " ".join(lines), measured, targets)


def small_targets(projects: SmallProjects) -> list[Target]:
    cleanups, checks = projects.traffic[OURS], projects.traffic[CHECKS]
    most = max(one.total for one in cleanups)
    with_checks = [one.total + more.total for one, more in zip(cleanups, checks, strict=True)]
    seconds = projects.fastest(OURS).seconds
    return [
        Target(f"at most {MAX_REQUESTS} requests", f"{most}", most <= MAX_REQUESTS),
        Target(
            f"at most {MAX_REQUESTS_WITH_CHECKS} requests with its follow-up checks",
            f"{max(with_checks)}",
            max(with_checks) <= MAX_REQUESTS_WITH_CHECKS,
        ),
        Target(
            f"at most {MAX_SECONDS} s from the first request to the last answer",
            f"{seconds:.2f} s",
            seconds <= MAX_SECONDS,
        ),
    ]


def measure_many_small(bench: Bench) -> Row:
    count = MANY_PROJECTS if bench.deletions >= MANY_PROJECTS * 10 else FEW_PROJECTS
    with open_projects(bench, count) as projects:
        measured = bench.measure(
            projects.cluster_contender(), projects.rival_contender(NAIVE, MIN_SPEED)
        )
        lines = [describe_traffic(name, projects.fastest(name)) for name in projects.traffic]
    how = (
        "The same store. The deletions wait in the queue of a PostgreSQL database. One qcluster"
        " with 2 workers starts, runs all cleanups and stops. The naive script deletes one project"
        " after the other, in one process. Of the fastest round: "
    )
    title = f"Delete {count} projects of 10 objects, 100 ms a request"
    return Row(title, how + " ".join(lines), measured, speed_targets(measured))


def describe_traffic(name: str, traffic: Traffic) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(traffic.counts.items()))
    return (
        f"{name} {traffic.seconds:.2f} s, {traffic.total} requests ({kinds}),"
        f" ${traffic.dollars * 1000:.2f} for a thousand times as many."
    )
