"""How fast, how small: the application beside what is usually taken for the same work, in one run.

Writes benchmarks/results.md and prints it.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import rivals
from benchmarks.database import Database
from benchmarks.measure import Failed
from benchmarks.ours import Application
from benchmarks.report import RESULTS_PATH, render_report
from benchmarks.rows import ROWS
from benchmarks.stage import Bench
from devtools.environment import made_up_environment
from devtools.postgres import Server
from devtools.processes import StartError, stop_on_signals

EPILOG = """\
examples:
  make bench
  make bench ARGS=--quick
  make bench ARGS="--only reconcile --only latency --rounds 5"
  make bench ARGS=--full

exit codes:
  0  everything was measured, whatever came of it
  1  something failed, or did not do the work that it was timed for
  2  wrong use, and the same as 1, as make says it

Next: benchmarks/README.md says what is measured and how.
"""


def command_line() -> ArgumentParser:
    parser = ArgumentParser(
        prog="make bench",
        usage='make bench [ARGS="[--only ROW] [--keys N] [--rounds N] ..."]',
        description=__doc__,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="ROW",
        choices=ROWS,
        help=f"measure only this row, and write no results; can be given again (default: all of"
        f" {', '.join(ROWS)})",
    )
    parser.add_argument(
        "--keys", type=int, default=1_000_000, help="how many to list (default: %(default)s)"
    )
    parser.add_argument(
        "--deletions", type=int, default=100_000, help="how many to delete (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="turns of each contender (default: %(default)s)"
    )
    parser.add_argument(
        "--full", action="store_true", help="measure memory at ten million keys: half an hour more"
    )
    parser.add_argument(
        "--rivals-alone", action="store_true", help="leave ours out, and write no results"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a round of a few keys, which writes no results"
    )
    return parser


@contextmanager
def running_database(folder: Path) -> Iterator[Database]:
    server = Server(str(folder))
    try:
        with closing(Database(server, folder)) as database:
            yield database
    finally:
        server.stop()


def main(argv: list[str] | None = None) -> None:
    options = command_line().parse_args(argv)
    if options.quick:
        options.keys, options.deletions, options.rounds = 5_000, 500, 1
    rivals.install_programs()
    with stop_on_signals(), TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        with running_database(folder) as postgres:
            Application(made_up_environment(), postgres.url, folder).manage("migrate")
            bench = Bench(
                keys=options.keys,
                largest=10_000_000 if options.full else options.keys,
                deletions=options.deletions,
                rounds=options.rounds,
                rivals_alone=options.rivals_alone,
                folder=folder,
                database=postgres,
            )
            rows = {}
            for row in options.only or ROWS:
                print(f"== {row}", flush=True)
                rows[row] = ROWS[row](bench)
            text = render_report(rows, bench)
    print(f"\n{text}")
    if not (options.quick or options.rivals_alone or options.only):
        RESULTS_PATH.write_text(text)


if __name__ == "__main__":
    try:
        main()
    except (Failed, StartError) as error:
        sys.exit(str(error))
