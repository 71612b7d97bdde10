"""The rows of the table of targets, in its order."""

from collections.abc import Callable

from benchmarks.deletion import deletion
from benchmarks.lists import lists
from benchmarks.measure import Contender, Failed
from benchmarks.ours import BACKFILL, RECONCILE
from benchmarks.rivals import FLOOR
from benchmarks.stage import Bench, Demand, Row, Stage, ratios, stage

LATENCY = 0.1
UPDATE_OR_CREATE_KEYS = 20_000
MOST_MEMORY, MOST_GROWTH = 100, 10
SMALL = 100_000
# Of a scan that is shared: so many times as many keys, so that the start of its workers does not
# decide, and fewer lanes for each, as with all of them one takes more than a core.
SHARED, LANES = 2, "8"
BOTH_CORES = ["--processes", "2"]


def reconcile(bench: Bench) -> Row:
    with stage(bench, bench.keys) as it:
        it.filled()
        measured = bench.measure(
            it.ours("reconcile_r2 --processes 2", [*RECONCILE, *BOTH_CORES]),
            it.lister("s5cmd ls", 3),
            it.lister("rclone size"),
            it.lister("aws s3 ls"),
            it.lister("boto3 paginator", 12),
            it.lister(FLOOR),
        )
    how = (
        "Canned store. Ours lists and compares with as many tracked rows, in a process for each of"
        " two cores, which s5cmd uses too; the others only list."
    )
    return Row(f"List and compare {bench.keys:,} keys", how, measured, ratios(measured))


def latency(bench: Bench) -> Row:
    with stage(bench, bench.keys, LATENCY) as it:
        it.filled()
        measured = bench.measure(
            it.ours("reconcile_r2", RECONCILE),
            it.lister("s5cmd ls", 8),
            it.lister("rclone size", 8),
            it.lister("boto3 paginator", 20),
        )
    how = "As above, and the store waits for 100 ms before it answers a request."
    title = f"List and compare {bench.keys:,} keys, 100 ms a request"
    return Row(title, how, measured, ratios(measured))


def first(bench: Bench) -> Row:
    some, database = min(bench.keys, UPDATE_OR_CREATE_KEYS), bench.database
    with stage(bench, bench.keys) as it, stage(bench, some) as smaller:
        measured = bench.measure(
            it.ours("backfill_r2 --processes 2", [*BACKFILL, *BOTH_CORES], prepare=database.empty),
            writer(it, "bulk_create", 3, database.empty),
            writer(smaller, "update_or_create", 60, database.empty),
        )
    how = (
        "Canned store, PostgreSQL, empty table. Ours has a process for each of two cores. The"
        " rivals list with boto3's paginator and know neither owners nor findings. update_or_create"
        f" has {some:,} keys, and is compared by the time for a key."
    )
    return Row(f"First backfill of {bench.keys:,} keys", how, measured, ratios(measured))


def writer(it: Stage, name: str, target: float, prepare: Callable[[], object]) -> Contender:
    """A rival that must have left a row for every key; it takes the marker for one too."""

    def check() -> None:
        if (count := it.bench.database.state()[0]) < it.keys:
            raise Failed(f"{name} left {count} rows for {it.keys} keys")

    return it.rival(name, target, prepare=prepare, check=check)


def repeat(bench: Bench) -> Row:
    database = bench.database
    with stage(bench, bench.keys) as it:
        it.filled()
        written = set[int]()

        def check(facts: dict[str, object]) -> None:
            count, now = database.state()
            written.add(now - (database.kept or (0, 0))[1])
            if (count, facts["unchanged"]) != (it.keys, it.keys):
                raise Failed(f"ours: {count} rows after a repeat, {facts}")

        measured = bench.measure(
            it.ours("backfill_r2", BACKFILL, prepare=database.restore, check=check),
            writer(it, "bulk_create", 6, database.restore),
        )
    how = "The same again with every row as it should be; bulk_create updates each of them."
    demands = ratios(measured)
    if written:
        most = max(written)
        demands.append(Demand("no row written", f"{most} written", most == 0))
    return Row(f"Repeat backfill of {bench.keys:,} keys", how, measured, demands)


def memory(bench: Bench) -> Row:
    small = min(SMALL, bench.largest // 10)
    measured = []
    for keys in (small, bench.largest):
        with stage(bench, keys) as it:
            bench.database.empty()
            # What is measured is the peak, which needs no rounds.
            once = bench.once()
            measured += once.measure(it.ours(f"backfill_r2, {keys:,} keys", BACKFILL))
            measured += once.measure(it.ours(f"reconcile_r2, {keys:,} keys", RECONCILE))
    demands = []
    if measured:
        peaks = [one.peak for one in measured]
        growth = max(peaks[2] - peaks[0], peaks[3] - peaks[1])
        demands = [
            Demand(
                f"at most {MOST_MEMORY} MiB", f"{max(peaks):.0f} MiB", max(peaks) <= MOST_MEMORY
            ),
            Demand(f"growth at most {MOST_GROWTH} MiB", f"{growth:.1f} MiB", growth <= MOST_GROWTH),
        ]
    how = "The largest process of the command, as the kernel tells it at its end."
    return Row(f"Peak memory, {small:,} and {bench.largest:,} keys", how, measured, demands)


def queries(bench: Bench) -> Row:
    if bench.rivals_alone:
        return Row("Queries", "", [])
    with stage(bench, bench.keys) as it:
        demands = []
        for name, argv, prepare in (
            ("first backfill", BACKFILL, bench.database.empty),
            ("repeat backfill", BACKFILL, it.filled),
            ("reconcile", RECONCILE, it.filled),
        ):
            prepare()
            with bench.database.logged() as statements:
                it.application.manage(*argv)
            each = len(statements) / it.keys * 1000
            value = f"{each:.2f} ({len(statements)} in all)"
            demands.append(Demand(f"{name}: at most 1 for 1,000 keys", value, each <= 1))
    how = "Every statement that PostgreSQL writes down with log_statement=all, COPY among them, but"
    how += " for those that begin or end a transaction."
    return Row(f"Queries for {bench.keys:,} keys", how, [], demands)


def workers(bench: Bench) -> Row:
    keys = SHARED * bench.keys
    with stage(bench, keys, LATENCY) as it:
        it.filled()
        it.application.environment["SCAN_LANES"] = LANES
        measured = bench.measure(
            *(
                it.ours(f"{count} of them", [*RECONCILE, "--processes", str(count)])
                for count in (1, 2, 4)
            )
        )
    demands = []
    if measured:
        ratio = measured[0].seconds / measured[1].seconds
        demands = [Demand("at least 1.8x one process", f"{ratio:.2f}x", ratio >= 1.8)]
    how = (
        f"reconcile_r2 --processes, 100 ms a request, {LANES} lanes (SCAN_LANES) for each. CPU is"
        " of all of them."
    )
    return Row(f"Worker processes, {keys:,} keys", how, measured, demands)


ROWS: dict[str, Callable[[Bench], Row]] = {
    "reconcile": reconcile,
    "latency": latency,
    "first": first,
    "repeat": repeat,
    "deletion": deletion,
    "memory": memory,
    "queries": queries,
    "workers": workers,
    "lists": lists,
}
