"""The row of deletions, on SeaweedFS: each round has its objects planted anew."""

import subprocess
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import rivals
from benchmarks.measure import Contender, Failed
from benchmarks.ours import BACKFILL, MANAGE, Application, demand
from benchmarks.rivals import program, rival
from benchmarks.stage import Bench, Row, ratios
from benchmarks.stores import BUCKET, seaweedfs

PROJECT = "proj_benchmark"
ONE_BY_ONE_KEYS = 5_000
IN_A_SCENE = 100


class Site:
    """A bucket whose one project is deleted again and again."""

    def __init__(self, bench: Bench, store: dict[str, str]) -> None:
        self.bench, self.folder = bench, bench.folder / "objects"
        self.application = Application(store, bench.database.url, bench.folder)
        self.environment = rivals.environment(store, bench.folder)
        if not bench.rivals_alone:
            self.application.claim()
        bench.database.empty()
        # One that lives: the application distrusts a table without projects.
        bench.database.add_projects(1)

    def plant(self, count: int) -> None:
        """So many objects of some bytes, which the fastest program that there is uploads."""
        tree = self.folder / str(count)
        if not tree.exists():
            write_tree(tree, count)
        target = f"s3://{BUCKET}/projects/{PROJECT}/scenes/"
        argv = [program("s5cmd"), "--log", "error", "cp", f"{tree}/", target]
        subprocess.run(argv, env=self.environment, check=True)

    def delete_project(self, count: int) -> None:
        """Plant and track its objects, and delete its row."""
        self.plant(count)
        self.bench.database.add_project(PROJECT)
        self.application.manage(*BACKFILL)
        self.bench.database.remove_project(PROJECT)

    def ours(self, count: int) -> Contender:
        def check(facts: dict[str, Any]) -> None:
            operation = facts["operations"][0]
            demand(operation, status="clean")
            demand(operation["objects"], deleted=count)
            self.see_empty()

        argv = [*MANAGE, "cleanup_project", PROJECT, "--declare-deleted", "--sync", "--json"]
        prepare = partial(self.delete_project, count)
        return self.application.contender("cleanup_project", argv, count, check, prepare=prepare)

    def rival(self, name: str, count: int, target: float | None = None) -> Contender:
        return rival(
            name,
            count,
            self.environment,
            target=target,
            prepare=partial(self.plant, count),
            check=self.see_empty,
        )

    def see_empty(self) -> None:
        argv = [program("s5cmd"), "ls", f"s3://{BUCKET}/projects/*"]
        left = subprocess.run(argv, env=self.environment, capture_output=True, text=True).stdout
        if left:
            raise Failed(f"{len(left.splitlines())} objects were not deleted")


def write_tree(folder: Path, count: int) -> None:
    for start in range(0, count, IN_A_SCENE):
        media = folder / f"s{start // IN_A_SCENE:05}" / "media"
        media.mkdir(parents=True)
        for number in range(start, min(start + IN_A_SCENE, count)):
            (media / f"clip{number:07}.mp4").write_bytes(b"%d" % number)


def deletion(bench: Bench) -> Row:
    count, some = bench.deletions, min(bench.deletions, ONE_BY_ONE_KEYS)
    with seaweedfs(bench.folder) as store:
        site = Site(bench, store.environment)
        measured = bench.measure(
            site.ours(count),
            site.rival("s5cmd rm", count, 0.8),
            site.rival("bucket.objects.delete()", count),
            site.rival("one by one", some, 5),
        )
    how = (
        "SeaweedFS. Ours plans, proves, deletes, verifies and keeps books of the deletion of a"
        " project; the others look at nothing before or after. One by one has"
        f" {some:,} objects, and is compared by the time for an object."
    )
    return Row(f"Delete {count:,} objects", how, measured, ratios(measured))
