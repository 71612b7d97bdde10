"""The benchmarks of large deletions, on SeaweedFS: each round uploads its objects again."""

import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import rivals
from benchmarks.measure import Contender, Failed, Measurement
from benchmarks.ours import BACKFILL, MANAGE, Application, require_facts
from benchmarks.rivals import make_rival, program_path
from benchmarks.stage import Bench, Row, Target, speed_targets
from benchmarks.stores import BUCKET, run_delay, run_seaweedfs

PROJECT_ID = "proj_benchmark"
ONE_BY_ONE_KEYS = 5_000
LATENCY_SECONDS = 0.1
# rclone sends a request for each object: eight at once.
RCLONE_KEYS = 1_000
KEYS_PER_SCENE = 100


class Site:
    """A bucket whose project is deleted again in each round, over this address of the store."""

    def __init__(self, bench: Bench, store: dict[str, str], address: str) -> None:
        self.bench, self.folder = bench, bench.folder / "objects"
        measured = {**store, "R2_ENDPOINT_URL": address}
        self.application = Application(measured, bench.database.url, bench.folder)
        self.environment = rivals.rival_environment(measured, bench.folder)
        self.direct_environment = rivals.rival_environment(store, bench.folder)
        if not bench.rivals_alone:
            self.application.connect_bucket()
        bench.database.empty_tables()
        # A living project, as the application distrusts a table without projects.
        bench.database.add_projects(1)

    def upload_objects(self, count: int) -> None:
        """Upload so many small objects, with the fastest program."""
        tree = self.folder / str(count)
        if not tree.exists():
            write_tree(tree, count)
        target = f"s3://{BUCKET}/projects/{PROJECT_ID}/scenes/"
        argv = [program_path("s5cmd"), "--log", "error", "cp", f"{tree}/", target]
        subprocess.run(argv, env=self.direct_environment, check=True)

    def delete_project(self, count: int) -> None:
        """Upload and track its objects, and delete its row."""
        self.upload_objects(count)
        self.bench.database.add_project(PROJECT_ID)
        self.application.manage(*BACKFILL)
        self.bench.database.remove_project(PROJECT_ID)

    def our_contender(self, count: int) -> Contender:
        def check(facts: dict[str, Any]) -> None:
            cleanup = facts["cleanups"][0]
            require_facts(cleanup, status="clean")
            require_facts(cleanup["objects"], deleted=count)
            self.require_empty()

        argv = [*MANAGE, "cleanup_project", PROJECT_ID, "--declare-deleted", "--sync", "--json"]
        prepare = partial(self.delete_project, count)
        return self.application.make_contender(
            "cleanup_project", argv, count, check, prepare=prepare
        )

    def rival_contender(self, name: str, count: int, target: float | None = None) -> Contender:
        return make_rival(
            name,
            count,
            self.environment,
            target=target,
            prepare=partial(self.upload_objects, count),
            check=self.require_empty,
        )

    def require_empty(self) -> None:
        argv = [program_path("s5cmd"), "ls", f"s3://{BUCKET}/projects/*"]
        env = self.direct_environment
        left = subprocess.run(argv, env=env, capture_output=True, text=True).stdout
        if left:
            raise Failed(f"{len(left.splitlines())} objects were not deleted")


def write_tree(folder: Path, count: int) -> None:
    for start in range(0, count, KEYS_PER_SCENE):
        media = folder / f"s{start // KEYS_PER_SCENE:05}" / "media"
        media.mkdir(parents=True)
        for number in range(start, min(start + KEYS_PER_SCENE, count)):
            (media / f"clip{number:07}.mp4").write_bytes(b"%d" % number)


def measure_deletion(bench: Bench) -> Row:
    count, some = bench.deletions, min(bench.deletions, ONE_BY_ONE_KEYS)
    with run_seaweedfs(bench.folder) as store:
        site = Site(bench, store.environment, store.environment["R2_ENDPOINT_URL"])
        measured = bench.measure(
            site.our_contender(count),
            site.rival_contender("s5cmd rm", count, 0.8),
            site.rival_contender("bucket.objects.delete()", count),
            site.rival_contender("one by one", some, 5),
        )
    how = (
        "SeaweedFS. Ours plans, rechecks, deletes, verifies and keeps totals of the deletion of a"
        " project; the others check nothing before or after. One by one has"
        f" {some:,} objects, and is compared by the time for an object."
    )
    return Row(f"Delete {count:,} objects", how, measured, speed_targets(measured))


def measure_large_latency(bench: Bench) -> Row:
    counts, targets = (bench.deletions // 5, bench.deletions), list[Target]()
    measured = list[Measurement]()
    with (
        run_seaweedfs(bench.folder) as store,
        run_delay(store, LATENCY_SECONDS, bench.folder) as address,
    ):
        site = Site(bench, store.environment, address)
        for count in counts:
            some = bench.measure(
                site.our_contender(count),
                site.rival_contender("s5cmd rm", count, 1),
                site.rival_contender("bucket.objects.delete()", count),
                *([site.rival_contender("rclone delete", RCLONE_KEYS)] if not measured else []),
            )
            measured += some
            targets += [
                replace(target, requirement=f"{count:,} objects: {target.requirement}")
                for target in speed_targets(some)
            ]
    how = (
        "As above, behind a proxy that waits for 100 ms before each request. rclone has"
        f" {RCLONE_KEYS:,} objects."
    )
    title = f"Delete {counts[0]:,} and {counts[1]:,} objects, 100 ms a request"
    return Row(title, how, measured, targets)
