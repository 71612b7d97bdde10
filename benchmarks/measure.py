"""Times whole processes in turn: one round of every contender, then the next."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from devtools.processes import Child

ROOT = Path(__file__).resolve().parent.parent
TIMED_SCRIPT = Path(__file__).with_name("timed.py")
KEPT_VARIABLES = ("PATH", "LANG")


class Failed(Exception):
    """A contender failed or did not do its work; the message says which and how."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A command that works on so many keys. Neither `prepare` nor `check`, which gets its output,
    is timed. Ours must be `target` times as fast for each key, if there is a target."""

    name: str
    argv: Sequence[str | Path]
    environment: Mapping[str, str]
    keys: int
    prepare: Callable[[], object] = lambda: None
    check: Callable[[str], object] = lambda output: None
    target: float | None = None
    is_ours: bool = False


@dataclass(frozen=True)
class Run:
    seconds: float
    cpu_seconds: float
    peak_mib: float
    """MiB, of the largest process."""


@dataclass
class Measurement:
    contender: Contender
    runs: list[Run] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return median(run.seconds for run in self.runs)

    @property
    def cpu_seconds(self) -> float:
        return median(run.cpu_seconds for run in self.runs)

    @property
    def peak_mib(self) -> float:
        return max(run.peak_mib for run in self.runs)

    @property
    def seconds_per_key(self) -> float:
        return self.seconds / self.contender.keys


def measure_rounds(contenders: Sequence[Contender], rounds: int, folder: Path) -> list[Measurement]:
    """Raises Failed."""
    measured = [Measurement(contender) for contender in contenders]
    for number in range(rounds):
        for one in measured:
            one.contender.prepare()
            one.runs.append(run_contender(one.contender, folder))
            seconds = one.runs[-1].seconds
            print(f"  round {number + 1}: {one.contender.name} {seconds:.2f} s", flush=True)
    return measured


def run_contender(contender: Contender, folder: Path) -> Run:
    report, output, log = (folder / name for name in ("report.json", "output", "log"))
    argv = [sys.executable, "-IS", TIMED_SCRIPT, report, output, *contender.argv]
    with Child(contender.name, argv, env=contender.environment, log=log, cwd=ROOT) as child:
        if child.wait() != 0:
            raise Failed(f"{contender.name} failed\n{child.tail()}")
    contender.check(output.read_text(errors="replace"))
    seconds, cpu, peak = json.loads(report.read_text())
    return Run(seconds, cpu, peak / 1024)
