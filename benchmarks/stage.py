"""What stands around a measurement, and is not timed: a store, claimed, and a database."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any

from benchmarks import rivals
from benchmarks.database import Database
from benchmarks.measure import Contender, Failed, Measured, measure, run
from benchmarks.ours import BACKFILL, MANAGE, Application, demand
from benchmarks.stores import Canned, canned


@dataclass(frozen=True)
class Demand:
    """What the table of targets asks for, and what came of it."""

    what: str
    value: str
    met: bool


@dataclass
class Row:
    title: str
    how: str
    measured: Sequence[Measured]
    demands: list[Demand] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What a run was asked for, and where it works."""

    keys: int
    largest: int
    deletions: int
    rounds: int
    rivals_alone: bool
    folder: Path
    database: Database

    def once(self) -> "Bench":
        return replace(self, rounds=1)

    def measure(self, *contenders: Contender) -> list[Measured]:
        wanted = [one for one in contenders if not (one.ours and self.rivals_alone)]
        return measure(wanted, self.rounds, self.folder)


@dataclass(frozen=True)
class Stage:
    bench: Bench
    store: Canned
    keys: int
    application: Application

    def ours(self, name: str, argv: Sequence[str], **more: Any) -> Contender:
        """It must end well, and have seen every key."""

        def check(facts: dict[str, Any]) -> None:
            demand(facts, status="complete", listed=self.keys)

        whole = [*MANAGE, *argv]
        return self.application.contender(name, whole, self.keys, **{"check": check, **more})

    def rival(self, name: str, target: float | None = None, **more: Any) -> Contender:
        environment = self.application.environment | rivals.environment(
            self.store.environment, self.bench.folder
        )
        return rivals.rival(name, self.keys, environment, target=target, **more)

    def lister(self, name: str, target: float | None = None) -> Contender:
        """A rival that must have fetched every page."""

        def check() -> None:
            if (pages := self.store.requests().get("list", 0)) < ceil(self.keys / 1000):
                raise Failed(f"{name} fetched {pages} pages of {self.keys} keys")

        return self.rival(name, target, prepare=self.store.requests, check=check)

    def filled(self) -> None:
        """Let every key be tracked, as the application itself writes it down."""
        database = self.bench.database
        if database.kept and database.kept[0] == self.keys:
            return database.restore()
        database.empty()
        if self.bench.rivals_alone:
            run(self.rival("bulk_create"), self.bench.folder)
        else:
            self.application.manage(*BACKFILL)
        database.keep()


@contextmanager
def stage(bench: Bench, keys: int, latency: float = 0) -> Iterator[Stage]:
    with canned(keys, bench.folder, latency) as store:
        application = Application(store.environment, bench.database.url, bench.folder)
        if not bench.rivals_alone:
            application.claim()
        bench.database.add_projects(keys)
        yield Stage(bench, store, keys, application)


def ratios(measured: Sequence[Measured]) -> list[Demand]:
    """How many times as fast ours is for each key, where the rival sets a target."""
    mine = next((one for one in measured if one.contender.ours), None)
    found = []
    for one in measured:
        if mine and (target := one.contender.target):
            ratio = one.per_key / mine.per_key
            what = f"at least {target:g}x {one.contender.name}"
            found.append(Demand(what, f"{ratio:.2f}x", ratio >= target))
    return found
