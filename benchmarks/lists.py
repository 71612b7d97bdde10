"""The benchmark of the admin's lists: the time of each view, with few rows and with many."""

import json
import sys
from statistics import median

from benchmarks.measure import Contender, run_contender
from benchmarks.ours import Application
from benchmarks.plenty import Size, fill_tables
from benchmarks.stage import Bench, Row, Target
from benchmarks.visits import Visit

SMALL_ROWS, LARGE_ROWS = 10_000, 10_000_000
MAX_PAGE_SECONDS = 0.3
EXPLANATION = """\
PostgreSQL. Of a tenth as many cleanups, findings and items of one deletion, a fiftieth as many
projects, one of which has a tenth of the objects. Each page is asked for once, and then {rounds}
times more by Django's test client in one process; the median, and the longest.

| list | view | rows | queries | ms ({small:,}) | queries | ms ({large:,}) |
|---|---|---|---|---|---|---|
{lines}"""


def measure_lists(bench: Bench) -> Row:
    large = LARGE_ROWS if bench.keys >= 1_000_000 else 10 * SMALL_ROWS
    if bench.rivals_alone:
        return Row("Lists", "", [])
    few, many = visit_lists(bench, SMALL_ROWS), visit_lists(bench, large)
    lines = [table_line(*pair) for pair in zip(few, many, strict=True)]
    how = EXPLANATION.format(
        rounds=len(few[0].seconds), small=SMALL_ROWS, large=large, lines="\n".join(lines)
    )
    longest = max(many, key=lambda one: median(one.seconds))
    took = median(longest.seconds)
    # One more query estimates the number of rows when they are too many to be counted.
    more = max(b.queries - a.queries for a, b in zip(few, many, strict=True))
    return Row(
        f"The admin's lists, {large:,} tracked objects",
        how,
        [],
        [
            Target(
                f"below {MAX_PAGE_SECONDS * 1000:.0f} ms",
                f"{took * 1000:.0f} ms ({longest.page}, {longest.view})",
                took < MAX_PAGE_SECONDS,
            ),
            Target("no more queries but one to count", f"{more} more", more <= 1),
        ],
    )


def visit_lists(bench: Bench, objects: int) -> list[Visit]:
    with bench.database.connection.cursor() as cursor:
        fill_tables(cursor, Size.of(objects))
    found = bench.folder / "visits.json"
    application = Application({}, bench.database.url, bench.folder)
    argv = [sys.executable, "-m", "benchmarks.visits", str(found)]
    run_contender(
        Contender(name="lists", argv=argv, environment=application.environment, keys=objects),
        bench.folder,
    )
    return [Visit(*one) for one in json.loads(found.read_text())]


def table_line(few: Visit, many: Visit) -> str:
    cells = [f"| {many.page} | {many.view} | {many.rows}"]
    for one in (few, many):
        longest = max(one.seconds) * 1000
        cells.append(f"{one.queries} | {median(one.seconds) * 1000:.0f} ({longest:.0f})")
    return " | ".join(cells) + " |"
