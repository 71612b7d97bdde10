"""The benchmark of deletions, on SeaweedFS: each round uploads its objects again."""

import subprocess
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import rivals
from benchmarks.measure import Contender, Failed
from benchmarks.ours import BACKFILL, MANAGE, Application, require_facts
from benchmarks.rivals import make_rival, program_path
from benchmarks.stage import Bench, Row, speed_targets
from benchmarks.stores import BUCKET, run_seaweedfs

PROJECT_ID = "proj_benchmark"
ONE_BY_ONE_KEYS = 5_000
KEYS_PER_SCENE = 100


class Site:
    """A bucket whose project is deleted again in each round."""

    def __init__(self, bench: Bench, store: dict[str, str]) -> None:
        self.bench, self.folder = bench, bench.folder / "objects"
        self.application = Application(store, bench.database.url, bench.folder)
        self.environment = rivals.rival_environment(store, bench.folder)
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
        subprocess.run(argv, env=self.environment, check=True)

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
        left = subprocess.run(argv, env=self.environment, capture_output=True, text=True).stdout
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
        site = Site(bench, store.environment)
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
