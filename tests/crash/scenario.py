"""One store, one database, so many kills; in a process of its own, as Django is set up once."""

import logging
import shutil
import sys
from argparse import ArgumentParser
from io import StringIO
from random import Random
from typing import TYPE_CHECKING

from devtools.demo.site import BUCKET
from devtools.processes import stop_on_signals
from devtools.seaweedfs import SeaweedFS
from tests.crash.site import STORES, Site, running_site
from tests.faults.seeded import SeededFaults
from tests.paths import ROOT

if TYPE_CHECKING:
    from tests.crash.world import World

# Kept until the next run, for whoever asks why something went wrong.
FOLDER = ROOT / ".local" / "crash"
KILLS_PER_STORM = 20
VICTIMS_PER_STORM, MIN_VICTIMS = 25, 12
END_TIMEOUT_SECONDS = 900.0  # seconds
# Every kind of fault at once; those that take a connection's time are rare.
FAULT_RATES = {
    "access-denied": 0.002,
    "no-such-bucket": 0.002,
    "request-timeout": 0.002,
    "too-many-requests": 0.004,
    "internal-error": 0.004,
    "slow-down": 0.004,
    "redirect-301": 0.001,
    "redirect-307": 0.001,
    "wrong-region": 0.001,
    "edge-520": 0.002,
    "edge-524": 0.002,
    "client-disconnect": 0.002,
    "key-errors": 0.02,
    "empty-body": 0.002,
    "html": 0.002,
    "truncated-xml": 0.003,
    "kept": 0.02,
    "denied": 0.02,
    "late-answer": 0.002,
    "late-request": 0.001,
    "reset-before": 0.003,
    "reset-after": 0.003,
    "cut-short": 0.003,
    "page-again": 0.003,
    "page-backwards": 0.003,
    "page-without-token": 0.003,
    "page-same-token": 0.003,
    # Two in a hundred.
    "page-of-another-bucket": 0.006,
    "page-of-another-prefix": 0.006,
    "page-of-the-past": 0.004,
    "page-malformed": 0.004,
    "uploads-of-another-bucket": 0.004,
    "other-keys": 0.02,
}


def main() -> None:
    parser = ArgumentParser()
    parser.add_argument("--store", choices=STORES, required=True)
    parser.add_argument("--database", choices=["postgresql", "sqlite"], required=True)
    parser.add_argument("--strategy", choices=["batch", "parallel"], default="batch")
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    folder = FOLDER / f"{options.store}-{options.database}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    title = f"{options.store}, {options.database}, {options.strategy}"
    where = (options.store, options.database, options.strategy)
    with stop_on_signals(), running_site(folder, *where) as site:
        sys.exit(play_scenario(site, options.kills, options.seed, title))


def play_scenario(site: Site, kills: int, seed: int, title: str) -> int:
    """Returns the exit code."""
    # Their models can be imported only now that Django is set up.
    from tests.crash import verdict
    from tests.crash.chaos import Chaos
    from tests.crash.observer import Observer
    from tests.crash.people import Person
    from tests.crash.world import World

    logging.disable(logging.WARNING)
    world = World(seed, has_folders=isinstance(site.store.objects, SeaweedFS))
    victims = max(MIN_VICTIMS, kills * VICTIMS_PER_STORM // KILLS_PER_STORM)
    families = fill_bucket(site, world, victims)
    observer = Observer(world, BUCKET)
    faults = SeededFaults(seed, FAULT_RATES)
    site.network.observers.append(observer)
    site.network.rules.append(faults)
    person = Person(site, world, families, seed)
    chaos = Chaos(site, world, person, Random(seed), Random(seed))
    person.start()
    chaos.run(kills, KILLS_PER_STORM, title)
    if not person.is_alive():
        sys.exit("The person at the admin met an error that is none of theirs; it stands above.")
    person.stopped.set()
    person.join()
    faults.enabled = False
    chaos.finish_all(END_TIMEOUT_SECONDS)
    end = verdict.Verdict(world, observer, chaos, site.store.objects.keys())
    problems = list(end.list_problems())
    print(verdict.render_table(end, faults.counts, title))
    for problem in problems:
        print(f"WRONG: {problem}")
    if problems:
        print(f"The logs of all processes are in {site.folder}.")
    return bool(problems)


def fill_bucket(site: Site, world: "World", number: int) -> dict[str, list[str]]:
    """Fill the bucket, and have the table know a part of it; returns each victim's relatives."""
    from django.core.management import call_command

    from storage_audit.models import Project

    families = {}
    for turn in range(number):
        id, relatives, objects = world.add_family()
        for project in (id, *relatives):
            Project.objects.create(pk=project)
        for key, body in objects.items():
            site.store.objects.put(key, body)
        families[id] = relatives
        if turn == number // 2:
            call_command("backfill_r2", stdout=StringIO(), stderr=StringIO())
    return families


if __name__ == "__main__":
    main()
