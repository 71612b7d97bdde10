"""The row of the admin's lists: what each view of each takes, with few rows and with many."""

import json
import sys
from statistics import median

from benchmarks.measure import Contender, run
from benchmarks.ours import Application
from benchmarks.plenty import Size, fill
from benchmarks.stage import Bench, Demand, Row
from benchmarks.visits import Visit

SMALL, LARGE = 10_000, 10_000_000
LONGEST = 0.3
HOW = """\
PostgreSQL. Of a tenth as many operations, findings and items of one deletion, a fiftieth as many
projects, one of which has a tenth of the objects. Each page is asked for once, and then {rounds}
times more by Django's test client in one process; the median, and the longest.

| list | view | rows | queries | ms ({small:,}) | queries | ms ({large:,}) |
|---|---|---|---|---|---|---|
{lines}"""


def lists(bench: Bench) -> Row:
    large = LARGE if bench.keys >= 1_000_000 else 10 * SMALL
    if bench.rivals_alone:
        return Row("Lists", "", [])
    few, many = looked_at(bench, SMALL), looked_at(bench, large)
    lines = [line(*pair) for pair in zip(few, many, strict=True)]
    how = HOW.format(rounds=len(few[0].seconds), small=SMALL, large=large, lines="\n".join(lines))
    longest = max(many, key=lambda one: median(one.seconds))
    took = median(longest.seconds)
    # Of how many there are is asked once more when they are too many to be counted.
    more = max(b.queries - a.queries for a, b in zip(few, many, strict=True))
    return Row(
        f"The admin's lists, {large:,} tracked objects",
        how,
        [],
        [
            Demand(
                f"below {LONGEST * 1000:.0f} ms",
                f"{took * 1000:.0f} ms ({longest.page}, {longest.view})",
                took < LONGEST,
            ),
            Demand("no more queries but one to count", f"{more} more", more <= 1),
        ],
    )


def looked_at(bench: Bench, objects: int) -> list[Visit]:
    with bench.database.connection.cursor() as cursor:
        fill(cursor, Size.of(objects))
    found = bench.folder / "visits.json"
    application = Application({}, bench.database.url, bench.folder)
    argv = [sys.executable, "-m", "benchmarks.visits", str(found)]
    run(
        Contender(name="lists", argv=argv, environment=application.environment, keys=objects),
        bench.folder,
    )
    return [Visit(*one) for one in json.loads(found.read_text())]


def line(few: Visit, many: Visit) -> str:
    cells = [f"| {many.page} | {many.view} | {many.rows}"]
    for one in (few, many):
        longest = max(one.seconds) * 1000
        cells.append(f"{one.queries} | {median(one.seconds) * 1000:.0f} ({longest:.0f})")
    return " | ".join(cells) + " |"
