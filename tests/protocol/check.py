"""Checks the protocol of cleanups in all states that its model can reach, with SPIN.

The whole model must hold. Then each rule is removed once, and the checker must find
what goes wrong without it. tests/protocol/README.md maps each step of the model to its function."""

import os
import re
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

MODEL = Path(__file__).with_name("cleanup.pml")
RULES = sorted(set(re.findall(r"\bWITHOUT_([A-Z_]+)\b", MODEL.read_text())))
# No path is half as long. A longer one would be cut off, which the checker says.
MAX_DEPTH = 10_000

EPILOG = """\
examples:
  make check-protocol
  make check-protocol ARGS="--rule PAUSE"
  make check-protocol ARGS="--rule FIRST_REQUEST --steps"

exit codes:
  0  the model holds, and no rule can be removed
  1  it does not hold, or a rule makes no difference; lines say which
  2  the same, as make says it; or a program is missing

Next: read the steps of a rule with --rule and --steps, beside tests/protocol/README.md.
"""


class Outcome(NamedTuple):
    """What SPIN said of the model without this rule, or of the whole model."""

    rule: str
    violation: str
    states: int
    megabytes: float
    seconds: float
    is_complete: bool
    steps: str

    @property
    def is_expected(self) -> bool:
        return bool(self.violation) if self.rule else self.is_complete and not self.violation

    def __str__(self) -> str:
        name = f"without {self.rule}" if self.rule else "all rules"
        found = self.violation or ("holds" if self.is_complete else "not searched to the end")
        size = f"{self.states:,} states, {self.megabytes:.0f} MB, {self.seconds:.1f} s"
        return f"{'' if self.is_expected else 'WRONG: '}{name}: {found} ({size})"


def command_line() -> ArgumentParser:
    parser = ArgumentParser(
        prog="make check-protocol",
        usage='make check-protocol [ARGS="[-h] [--rule RULE] [--steps]"]',
        description=__doc__,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rule",
        choices=RULES,
        metavar="RULE",
        help="remove this one (default: check all, one after the other)",
    )
    parser.add_argument("--steps", action="store_true", help="print the steps to what goes wrong")
    return parser


def check_model(rule: str) -> Outcome:
    """Search all states of the model without this rule, or until something goes wrong."""
    with TemporaryDirectory() as folder:
        defined = [f"-DWITHOUT_{name}={int(name == rule)}" for name in RULES]
        began = time.monotonic()
        run(folder, "spin", "-a", *defined, str(MODEL))
        run(folder, "cc", "-O2", "-w", "-DSAFETY", "-DNOFAIR", "-o", "pan", "pan.c")
        said = run(folder, "./pan", f"-m{MAX_DEPTH}", "-w22")
        is_cut_off = "max search depth too small" in said or "Search not completed" in said
        steps = ""
        if list(Path(folder).glob("*.trail")):
            trail = "cleanup.pml.trail"
            steps = run(folder, "spin", "-t", "-p", "-g", "-k", trail, *defined, str(MODEL))
        return Outcome(
            rule=rule,
            violation=find_violation(said, steps),
            states=int(find_number(r"(\d+) states, stored", said)),
            megabytes=find_number(r"([\d.]+)\s+total actual memory usage", said),
            seconds=time.monotonic() - began,
            is_complete="errors: 0" in said and not is_cut_off,
            steps=steps,
        )


def run(folder: str, *command: str) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        print(f"{command[0]} is missing: apt-get install spin gcc", file=sys.stderr)
        sys.exit(2)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def find_number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    return float(found[1]) if found else 0.0


def find_violation(said: str, steps: str) -> str:
    """The invariant that does not hold: the comment behind the assertion in the model."""
    if "errors: 0" in said:
        return ""
    if at := re.search(r"cleanup\.pml:(\d+), Error: assertion violated", steps):
        line = MODEL.read_text().splitlines()[int(at[1]) - 1]
        return line.rpartition("/* ")[2].removesuffix(" */")
    return next((line for line in said.splitlines() if line.startswith("pan:1: ")), "no answer")


def check_all() -> bool:
    wrong = 0
    # The whole model takes longest, so it comes first.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for outcome in pool.map(check_model, ["", *RULES]):
            wrong += not outcome.is_expected
            print(outcome, flush=True)
    return not wrong


def main() -> None:
    options = command_line().parse_args()
    if options.rule:
        outcome = check_model(options.rule)
        print(outcome.steps if options.steps else outcome)
        is_expected = outcome.is_expected
    else:
        is_expected = check_all()
    if not is_expected:
        sys.exit("\nFAILED: the lines with WRONG say what is not as it must be")


if __name__ == "__main__":
    main()
