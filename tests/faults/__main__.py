"""A proxy in front of an S3 store, on this machine only, that answers some requests wrongly.

Point a client at its address instead of the store's. With the same seed and the same requests it
does the same again.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from threading import Event

from devtools.processes import Stopped, stop_on_signals
from tests.faults.kinds import FAULT_KINDS
from tests.faults.proxy import faulty_store
from tests.faults.seeded import SeededFaults

EPILOG = """\
examples:
  python -m tests.faults --list
  python -m tests.faults --upstream http://127.0.0.1:9000 --fault 'slow-down 0.1'
  python -m tests.faults --upstream http://127.0.0.1:9000 --seed 7 --fault 'kept 0.02'

exit codes:
  0  with --list
  1  the port is taken
  2  wrong usage
  128 and the signal's number, such as 130 for Ctrl-C: stopped, after the counts were printed

Next: set R2_ENDPOINT_URL to the address that it prints.
"""


def command_line() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m tests.faults",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    says = "the store's address, without TLS; without it there is only --list"
    what.add_argument("--upstream", metavar="URL", help=says)
    what.add_argument("--list", action="store_true", help="show the faults that there are, and end")
    parser.add_argument(
        "--port", type=int, default=0, metavar="N", help="its own (default: any free)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="another one strikes otherwise (default: 0)",
    )
    parser.add_argument(
        "--fault",
        type=parse_rate,
        action="append",
        default=[],
        metavar="'NAME RATE'",
        help="a fault, and the share of the requests that it strikes, 0 to 1; may be repeated"
        " (default: none, and all is handed on)",
    )
    return parser


def parse_rate(text: str) -> tuple[str, float]:
    name, _space, number = text.partition(" ")
    return name, float(number)


def run_proxy(upstream: str, port: int, seeded: SeededFaults) -> None:
    """Serve until a signal comes. Raises OSError when the port is taken."""
    with stop_on_signals(), faulty_store(upstream, port, kept_requests=0) as store:
        store.rules.append(seeded)
        print(f"{store.url}\nCtrl-C ends it.", flush=True)
        try:
            Event().wait()
        except Stopped:
            for name in seeded.rates:
                print(f"{seeded.counts[name]:8} {name}")
            raise


if __name__ == "__main__":
    parser = command_line()
    options = parser.parse_args()
    if options.list:
        for name, fault in FAULT_KINDS.items():
            print(f"{name:20} {fault.explanation}")
        sys.exit()
    try:
        run_proxy(options.upstream, options.port, SeededFaults(options.seed, dict(options.fault)))
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        sys.exit(f"Nothing was started: {error}")
