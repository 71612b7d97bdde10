"""Kill everything at random moments while projects are deleted, and prove that nothing was lost
and nothing was wrongly deleted."""

import os
import secrets
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator

from devtools.processes import Child, StartError, stop_on_signals
from tests.paths import ROOT

FUZZ_KEYS_PER_KILL = 10_000
HISTORIES_PER_100_KILLS = 60

EPILOG = """\
It starts its own store, database, clusters, web server and people at the admin, with a network
between them that breaks, and ends with a table for each of:
  local R2 and PostgreSQL      with three fifths of the kills
  SeaweedFS and PostgreSQL     with one fifth
  local R2 and SQLite          with one fifth, and a call for each object
Then it judges generated keys, 10,000 for each kill, a million by default, and plays random
histories against a model, 6 for each 10 kills.

examples:
  make test-crash
  make test-crash ARGS="--seed 7"
  make test-crash ARGS="--only seaweedfs-postgresql --kills 200"

exit codes:
  0  every cleanup ended, no object was deleted wrongly, none was left behind
  1  it is not so; the lines with WRONG say what
  2  wrong usage; make itself exits with 2 for any failure

Next: docs/reliability.md says what is promised, and what is not. The same seed kills in the same
order; what the processes are doing at that moment differs from run to run.
"""


def command_line() -> ArgumentParser:
    parser = ArgumentParser(
        prog="make test-crash",
        usage='make test-crash [ARGS="[-h] [--seed N] [--kills N] [--only PART]"]',
        description=__doc__,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, help="that of an earlier run (default: a new one)")
    parser.add_argument(
        "--kills",
        type=int,
        default=100,
        help="how many in all parts together; generated keys and histories are as many times fewer"
        " or more (default: 100)",
    )
    parser.add_argument(
        "--only",
        choices=[name for name, _argv in list_parts(0, 0)],
        help="play one part (default: all of them)",
    )
    return parser


def list_parts(seed: int, kills: int) -> Iterator[tuple[str, list[str]]]:
    """Each by its name, with the arguments for Python."""

    def crash(store: str, database: str, kills: int, strategy: str = "batch") -> list[str]:
        where = ["--store", store, "--database", database, "--strategy", strategy]
        return ["-m", "tests.crash.scenario", *where, "--kills", str(kills), "--seed", str(seed)]

    yield "r2-postgresql", crash("r2", "postgresql", kills - 2 * (kills // 5))
    yield "seaweedfs-postgresql", crash("seaweedfs", "postgresql", kills // 5)
    yield "r2-sqlite", crash("r2", "sqlite", kills // 5, "parallel")
    keys = str(kills * FUZZ_KEYS_PER_KILL)
    yield "ownership", ["-m", "tests.ownership.fuzz", "--keys", keys, "--seed", str(seed)]
    histories = [
        "-m",
        "pytest",
        "-q",
        "tests/stateful/test_stateful.py",
        f"--hypothesis-seed={seed}",
    ]
    yield "histories", histories


def main() -> None:
    options = command_line().parse_args()
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    print(f"Seed: {seed}. To repeat: make test-crash ARGS='--seed {seed}'", flush=True)
    failed, histories = [], max(1, options.kills * HISTORIES_PER_100_KILLS // 100)
    with stop_on_signals():
        for name, argv in list_parts(seed, options.kills):
            if options.only in (None, name):
                print(f"\n== {name}", flush=True)
                env = {**os.environ, "HYPOTHESIS_PROFILE": "crash", "HISTORIES": str(histories)}
                with Child(name, [sys.executable, *argv], env=env, cwd=ROOT, grace=60) as part:
                    if part.wait():
                        failed.append(name)
    if failed:
        sys.exit(f"\nFAILED: {', '.join(failed)}, with seed {seed}")
    print(f"\nEverything held, with seed {seed}.")


if __name__ == "__main__":
    try:
        main()
    except StartError as error:
        sys.exit(str(error))
