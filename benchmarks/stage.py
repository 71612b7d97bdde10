"""The surroundings of a measurement, which are not timed: a connected store and a database."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any

from benchmarks import rivals
from benchmarks.database import Database
from benchmarks.measure import Contender, Failed, Measurement, measure_rounds, run_contender
from benchmarks.ours import BACKFILL, MANAGE, Application, require_facts
from benchmarks.stores import CannedStore, run_canned_store


@dataclass(frozen=True)
class Target:
    """A requirement of the table of targets, and the value reached."""

    requirement: str
    value: str
    is_met: bool


@dataclass
class Row:
    title: str
    explanation: str
    measured: Sequence[Measurement]
    targets: list[Target] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The options of a run, its folder and its database."""

    keys: int
    largest: int
    deletions: int
    rounds: int
    rivals_alone: bool
    folder: Path
    database: Database

    def single_round(self) -> "Bench":
        return replace(self, rounds=1)

    def measure(self, *contenders: Contender) -> list[Measurement]:
        wanted = [one for one in contenders if not (one.is_ours and self.rivals_alone)]
        return measure_rounds(wanted, self.rounds, self.folder)


@dataclass(frozen=True)
class Stage:
    bench: Bench
    store: CannedStore
    keys: int
    application: Application

    def our_contender(self, name: str, argv: Sequence[str], **more: Any) -> Contender:
        """It must end well, and have seen every key."""

        def check(facts: dict[str, Any]) -> None:
            require_facts(facts, status="complete", listed=self.keys)

        whole = [*MANAGE, *argv]
        return self.application.make_contender(name, whole, self.keys, **{"check": check, **more})

    def rival_contender(self, name: str, target: float | None = None, **more: Any) -> Contender:
        environment = self.application.environment | rivals.rival_environment(
            self.store.environment, self.bench.folder
        )
        return rivals.make_rival(name, self.keys, environment, target=target, **more)

    def listing_rival(self, name: str, target: float | None = None) -> Contender:
        """A rival that must have fetched every page."""

        def check() -> None:
            if (pages := self.store.take_requests().get("list", 0)) < ceil(self.keys / 1000):
                raise Failed(f"{name} fetched {pages} pages of {self.keys} keys")

        return self.rival_contender(name, target, prepare=self.store.take_requests, check=check)

    def fill_rows(self) -> None:
        """Track every key, as the application itself does."""
        database = self.bench.database
        if database.saved_stats and database.saved_stats[0] == self.keys:
            return database.restore_rows()
        database.empty_tables()
        if self.bench.rivals_alone:
            run_contender(self.rival_contender("bulk_create"), self.bench.folder)
        else:
            self.application.manage(*BACKFILL)
        database.save_rows()


@contextmanager
def open_stage(bench: Bench, keys: int, latency: float = 0) -> Iterator[Stage]:
    with run_canned_store(keys, bench.folder, latency) as store:
        application = Application(store.environment, bench.database.url, bench.folder)
        if not bench.rivals_alone:
            application.connect_bucket()
        bench.database.add_projects(keys)
        yield Stage(bench, store, keys, application)


def speed_targets(measured: Sequence[Measurement]) -> list[Target]:
    """How many times as fast ours is for each key, where the rival sets a target."""
    mine = next((one for one in measured if one.contender.is_ours), None)
    found = []
    for one in measured:
        if mine and (target := one.contender.target):
            ratio = one.seconds_per_key / mine.seconds_per_key
            what = f"at least {target:g}x {one.contender.name}"
            found.append(Target(what, f"{ratio:.2f}x", ratio >= target))
    return found
