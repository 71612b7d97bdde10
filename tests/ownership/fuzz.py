"""Judge a great many generated keys as a cleanup and as a scan does, and hold each verdict against
an oracle that knows nothing of the application. A false claim is an object that would be deleted
wrongly."""

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from multiprocessing import get_context
from random import Random
from time import monotonic
from unicodedata import normalize

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "devtools.check_settings")
django.setup()

from django.conf import settings  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connections, transaction  # noqa: E402
from django.test import override_settings  # noqa: E402
from django.utils import timezone  # noqa: E402

from storage_audit.models import KnownProject, Project, R2Object  # noqa: E402
from storage_audit.ownership.attribution import OwnerProblem, find_owner  # noqa: E402
from storage_audit.ownership.ownership_rule import (  # noqa: E402
    DeletedProject,
    get_key_formats,
    judge_ownership,
    known_ids,
    living_owners,
)
from tests.ownership.oracle import ID, KINDS, Row, expected_verdict  # noqa: E402

EPILOG = """\
examples:
  python -m tests.ownership.fuzz --keys 1000000 --seed 7

exit codes:
  0  the application and the oracle agree on every key
  1  they do not; the keys are shown, and the same seed shows them again
  2  wrong usage
"""

KEYS_PER_WORLD = 1000
HOUR, MOMENT = timedelta(hours=1), timedelta(microseconds=1)
NOW = timezone.now()
LONG_AGO = NOW - 1000 * HOUR
# When the project was deleted, when the object was written, and whether it was there before and
# for longer than a transaction may be open.
AGES: list[tuple[datetime, datetime | None, bool]] = [
    (LONG_AGO, LONG_AGO - HOUR, True),
    (LONG_AGO, LONG_AGO - HOUR / 10, True),
    (LONG_AGO, None, True),
    (NOW, NOW - 3 * HOUR, True),
    # The clocks of two machines may differ by minutes.
    (LONG_AGO, LONG_AGO - MOMENT, False),
    (LONG_AGO, LONG_AGO, False),
    (LONG_AGO, NOW, False),
    (NOW, NOW - HOUR, False),
]
FATES = ["alive", "silent", "vanished", "declared", "deleted", "unknown"]
WORDS = ["1", "10", "a", "A", "01", "x", "media", "scene", "scene_media", "-", "_"]
PIECES = [*WORDS, "/", "//", ".", "..", ".mp4", "_media.", "_scene_media", "_media.mp4"]
PIECES += ["proj_", "proj_1", "/scenes/", "/media/", "projects/", "audio/", "\n", "\0", "\udc80"]
# One letter in two spellings, and one that becomes an ASCII letter.
PIECES += ["\u00e9", "e\u0301", "\u212a", "%2F", "<script>"]


@dataclass
class FuzzResult:
    """`verdicts` counts what the oracle and the application said; `wrong` are keys on which they
    do not agree, with both; `orphaned` are the keys that a scan calls orphans."""

    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[tuple[str, str, str]] = field(default_factory=list)
    orphaned: int = 0

    def add(self, other: "FuzzResult") -> None:
        self.verdicts.update(other.verdicts)
        self.wrong += other.wrong
        self.orphaned += other.orphaned

    @property
    def key_count(self) -> int:
        return self.verdicts.total()

    def count_said(self, verdict: str) -> int:
        return sum(n for (_right, said), n in self.verdicts.items() if said == verdict)

    @property
    def falsely_owned(self) -> int:
        return self.count_said("owned") - self.verdicts["owned", "owned"]

    @property
    def missed_owned(self) -> int:
        return sum(n for pair, n in self.verdicts.items() if pair[0] == "owned" != pair[1])


class World:
    """A few projects whose ids are hard to tell apart, and what became of each."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.ids = self._random_ids()
        self.target, *others = self.ids
        self.fates = {id: random.choice(FATES) for id in others} | {self.target: "deleted"}
        self.invalid_ids = {self._invalid_id() for _ in range(random.choice([0, 1, 3]))}

    def _random_ids(self) -> list[str]:
        ids = [f"proj_{self.random.choice('1aA')}"]
        while len(ids) < 12:
            id = self._similar_id(self.random.choice(ids))
            if ID.fullmatch(id) and id not in ids:
                ids.append(id)
        self.random.shuffle(ids)
        return ids

    def _similar_id(self, id: str) -> str:
        word = self.random.choice(WORDS)
        return self.random.choice([id + word, f"{id}_{word}", "proj_" + id[5:].swapcase(), id[:-1]])

    def _invalid_id(self) -> str:
        """The id of a row that was written past all checks."""
        id = self.random.choice([self.target, self.random.choice(self.ids)])
        word = self.random.choice([*WORDS, "e\u0301", "\u00e9"])
        return self.random.choice(
            [f"proj_{id}", f"proj_{id}_{word}", id[5:], f"{id}/{word}", f"{id}.{word}", id.upper()]
        )

    @property
    def living_ids(self) -> set[str]:
        """Those that live, and those of whose end nobody has told."""
        lives = {id for id, fate in self.fates.items() if fate in ("alive", "silent", "vanished")}
        return lives | self.invalid_ids

    def save(self) -> None:
        rows = [id for id, fate in self.fates.items() if fate == "alive"]
        Project.objects.bulk_create(Project(pk=id) for id in {*rows, *self.invalid_ids})
        KnownProject.objects.bulk_create(
            KnownProject(
                pk=id,
                evidence="seen" if fate in ("alive", "silent") else fate,
                deleted_at=None if fate in ("alive", "silent") else LONG_AGO,
            )
            for id, fate in self.fates.items()
            if fate != "unknown"
        )

    def random_key(self) -> str:
        whose = self.target if self.random.random() < 0.4 else self.random.choice(self.ids)
        id = "proj_" * self.random.choice([0, 0, 0, 0, 1, 1, 1, 2]) + whose
        scene, name = self._random_part(), self._random_part()
        key = self.random.choice(
            [
                f"projects/{id}/scenes/{scene}/media/{name}",
                f"{self.random.choice(KINDS)}/{id}/{scene}/{name}",
                f"{id}_{scene}_media.mp4",
                f"{id}_{self.random.choice(self.ids)}_media.mp4",
                f"{id}{name}",
            ]
        )
        return self._spoil_key(key) if self.random.random() < 0.25 else key

    def _random_part(self) -> str:
        return "".join(self.random.choices(PIECES, k=self.random.choice([1, 1, 1, 2, 3])))

    def _spoil_key(self, key: str) -> str:
        at = self.random.randrange(len(key))
        return self.random.choice(
            [
                key[:at] + key[at + 1 :],
                key[:at] + self.random.choice(PIECES) + key[at:],
                key[:at] + key[at:].swapcase(),
                normalize("NFC", key),
                normalize("NFD", key),
                "/" + key,
            ]
        )

    def random_row(self) -> Row | None:
        if self.random.random() < 0.6:
            return None
        return Row(self.random.choice([*self.ids, None]), self.random.random() < 0.5)


def run_fuzz(keys: int, seed: int, processes: int) -> FuzzResult:
    """Judge so many keys, rounded up to whole worlds, in processes with a database each. The same
    seed gives the same keys, whatever the number of processes."""
    # Spawned, as a fork would share the database's connection.
    with ProcessPoolExecutor(processes, get_context("spawn"), use_memory_database) as pool:
        return sum_results(pool.map(partial(judge_world, seed), world_numbers(keys), chunksize=10))


def run_in_process(keys: int, seed: int) -> FuzzResult:
    """The same in this process and its database, which stays as it is."""
    return sum_results(map(partial(judge_world, seed), world_numbers(keys)))


def world_numbers(keys: int) -> range:
    return range(-(-keys // KEYS_PER_WORLD))


def sum_results(of_worlds: Iterable[FuzzResult]) -> FuzzResult:
    figures = FuzzResult()
    for each in of_worlds:
        figures.add(each)
    return figures


def use_memory_database() -> None:
    """In memory, whatever the settings say."""
    in_memory = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:", "OPTIONS": {}}
    connections.settings["default"].update(in_memory)
    del connections["default"]
    call_command("migrate", verbosity=0)


def judge_world(seed: int, number: int) -> FuzzResult:
    world = World(Random(f"{seed}/{number}"))
    strict = {**settings.STORAGE_AUDIT, "COMMIT_TIMEOUT": 2 * HOUR, "MEDIA_KINDS": KINDS}
    with override_settings(STORAGE_AUDIT=strict), transaction.atomic():
        world.save()
        figures = judge_keys(world, [world.random_key() for _ in range(KEYS_PER_WORLD)])
        transaction.set_rollback(True)
    return figures


def judge_keys(world: World, keys: list[str]) -> FuzzResult:
    figures, living = FuzzResult(), world.living_ids
    parsed_keys = {key: get_key_formats().parse_key(key) for key in keys}
    alive = living_owners(parsed_keys.values(), world.ids)
    known = known_ids(world.ids) | alive
    for key in keys:
        row, (deleted_at, written, is_older) = world.random_row(), world.random.choice(AGES)
        tracked = row and R2Object(
            project_id=row.project, source="upload" if row.is_upload else "backfill"
        )
        deleted = DeletedProject(world.target, deleted_at)
        rows = [tracked] if tracked else []
        said = judge_ownership(deleted, parsed_keys[key], rows, written, alive).ownership.value
        right = expected_verdict(world.target, key, row, is_older=is_older, living=living)
        figures.verdicts[right, said] += 1
        if said != right:
            figures.wrong.append((key, right, said))
        owner = find_owner(parsed_keys[key], rows, known, alive, None)
        if owner.project_id and owner.problem == OwnerProblem.ORPHANED:
            figures.orphaned += 1
            right = expected_verdict(owner.project_id, key, row, is_older=True, living=living)
            if right != "owned":
                figures.wrong.append((key, right, "orphaned"))
    return figures


def main(arguments: list[str]) -> int:
    parser = ArgumentParser(
        prog="python -m tests.ownership.fuzz",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--keys", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, help="default: a random one, which is shown")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="default: %(default)s"
    )
    given = parser.parse_args(arguments)
    seed = Random().randrange(2**32) if given.seed is None else given.seed
    started = monotonic()
    figures = run_fuzz(given.keys, seed, given.processes)
    sys.stdout.write(render_result(figures, seed, monotonic() - started))
    return 1 if figures.wrong else 0


def render_result(figures: FuzzResult, seed: int, seconds: float) -> str:
    lines = [f"{key!r}: {said}, and should be {right}" for key, right, said in figures.wrong[:20]]
    lines += [
        f"keys: {figures.key_count:,} (seed {seed}), {figures.key_count / seconds:,.0f} a second",
        f"claims: {figures.count_said('owned'):,}",
        f"protected: {figures.count_said('kept'):,}",
        f"of other projects: {figures.count_said('elsewhere'):,}",
        f"orphaned: {figures.orphaned:,}",
        f"missed claims: {figures.missed_owned:,}",
        f"false claims: {figures.falsely_owned:,}",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
