"""The benchmarks, in the order of the table of targets."""

from collections.abc import Callable

from benchmarks.deletion import measure_deletion, measure_large_latency
from benchmarks.lists import measure_lists
from benchmarks.measure import Contender, Failed
from benchmarks.ours import BACKFILL, RECONCILE
from benchmarks.rivals import FLOOR
from benchmarks.small import measure_many_small, measure_small
from benchmarks.stage import Bench, Row, Stage, Target, open_stage, speed_targets

LATENCY_SECONDS = 0.1
UPDATE_OR_CREATE_KEYS = 20_000
MAX_PEAK_MIB, MAX_GROWTH_MIB = 100, 10
SMALL_KEYS = 100_000
# For a shared scan: this many times as many keys, so that the start of its workers does not decide,
# and fewer lanes for each, as with all lanes one worker takes more than a core.
SHARED_FACTOR, CONCURRENCY = 2, "8"
TWO_PROCESSES = ["--processes", "2"]


def measure_reconcile(bench: Bench) -> Row:
    with open_stage(bench, bench.keys) as it:
        it.fill_rows()
        measured = bench.measure(
            it.our_contender("reconcile_r2 --processes 2", [*RECONCILE, *TWO_PROCESSES]),
            it.listing_rival("s5cmd ls", 3),
            it.listing_rival("rclone size"),
            it.listing_rival("aws s3 ls"),
            it.listing_rival("boto3 paginator", 12),
            it.listing_rival(FLOOR),
        )
    how = (
        "Canned store. Ours lists and compares with as many tracked rows, in a process for each of"
        " two cores, which s5cmd uses too; the others only list."
    )
    return Row(f"List and compare {bench.keys:,} keys", how, measured, speed_targets(measured))


def measure_latency(bench: Bench) -> Row:
    with open_stage(bench, bench.keys, LATENCY_SECONDS) as it:
        it.fill_rows()
        measured = bench.measure(
            it.our_contender("reconcile_r2", RECONCILE),
            it.listing_rival("s5cmd ls", 8),
            it.listing_rival("rclone size", 8),
            it.listing_rival("boto3 paginator", 20),
        )
    how = "As above, and the store waits for 100 ms before it answers a request."
    title = f"List and compare {bench.keys:,} keys, 100 ms a request"
    return Row(title, how, measured, speed_targets(measured))


def measure_first_backfill(bench: Bench) -> Row:
    some, database = min(bench.keys, UPDATE_OR_CREATE_KEYS), bench.database
    with open_stage(bench, bench.keys) as it, open_stage(bench, some) as smaller:
        measured = bench.measure(
            it.our_contender(
                "backfill_r2 --processes 2",
                [*BACKFILL, *TWO_PROCESSES],
                prepare=database.empty_tables,
            ),
            writing_rival(it, "bulk_create", 3, database.empty_tables),
            writing_rival(smaller, "update_or_create", 60, database.empty_tables),
        )
    how = (
        "Canned store, PostgreSQL, empty table. Ours has a process for each of two cores. The"
        " rivals list with boto3's paginator and know neither owners nor findings. update_or_create"
        f" has {some:,} keys, and is compared by the time for a key."
    )
    return Row(f"First backfill of {bench.keys:,} keys", how, measured, speed_targets(measured))


def writing_rival(it: Stage, name: str, target: float, prepare: Callable[[], object]) -> Contender:
    """A rival that must have left a row for every key; it takes the marker for one too."""

    def check() -> None:
        if (count := it.bench.database.row_stats()[0]) < it.keys:
            raise Failed(f"{name} left {count} rows for {it.keys} keys")

    return it.rival_contender(name, target, prepare=prepare, check=check)


def measure_repeat_backfill(bench: Bench) -> Row:
    database = bench.database
    with open_stage(bench, bench.keys) as it:
        it.fill_rows()
        written = set[int]()

        def check(facts: dict[str, object]) -> None:
            count, now = database.row_stats()
            written.add(now - (database.saved_stats or (0, 0))[1])
            if (count, facts["unchanged"]) != (it.keys, it.keys):
                raise Failed(f"ours: {count} rows after a repeat, {facts}")

        measured = bench.measure(
            it.our_contender("backfill_r2", BACKFILL, prepare=database.restore_rows, check=check),
            writing_rival(it, "bulk_create", 6, database.restore_rows),
        )
    how = "The same again with every row as it should be; bulk_create updates each of them."
    demands = speed_targets(measured)
    if written:
        most = max(written)
        demands.append(Target("no row written", f"{most} written", most == 0))
    return Row(f"Repeat backfill of {bench.keys:,} keys", how, measured, demands)


def measure_memory(bench: Bench) -> Row:
    small = min(SMALL_KEYS, bench.largest // 10)
    measured = []
    for keys in (small, bench.largest):
        with open_stage(bench, keys) as it:
            bench.database.empty_tables()
            # What is measured is the peak, which needs no rounds.
            once = bench.single_round()
            measured += once.measure(it.our_contender(f"backfill_r2, {keys:,} keys", BACKFILL))
            measured += once.measure(it.our_contender(f"reconcile_r2, {keys:,} keys", RECONCILE))
    demands = []
    if measured:
        peaks = [one.peak_mib for one in measured]
        growth = max(peaks[2] - peaks[0], peaks[3] - peaks[1])
        demands = [
            Target(
                f"at most {MAX_PEAK_MIB} MiB", f"{max(peaks):.0f} MiB", max(peaks) <= MAX_PEAK_MIB
            ),
            Target(
                f"growth at most {MAX_GROWTH_MIB} MiB",
                f"{growth:.1f} MiB",
                growth <= MAX_GROWTH_MIB,
            ),
        ]
    how = "The largest process of the command, as the kernel tells it at its end."
    return Row(f"Peak memory, {small:,} and {bench.largest:,} keys", how, measured, demands)


def measure_queries(bench: Bench) -> Row:
    if bench.rivals_alone:
        return Row("Queries", "", [])
    with open_stage(bench, bench.keys) as it:
        demands = []
        for name, argv, prepare in (
            ("first backfill", BACKFILL, bench.database.empty_tables),
            ("repeat backfill", BACKFILL, it.fill_rows),
            ("reconcile", RECONCILE, it.fill_rows),
        ):
            prepare()
            with bench.database.log_queries() as statements:
                it.application.manage(*argv)
            each = len(statements) / it.keys * 1000
            value = f"{each:.2f} ({len(statements)} in all)"
            demands.append(Target(f"{name}: at most 1 for 1,000 keys", value, each <= 1))
    how = "Every statement that PostgreSQL writes down with log_statement=all, COPY among them, but"
    how += " for those that begin or end a transaction."
    return Row(f"Queries for {bench.keys:,} keys", how, [], demands)


def measure_workers(bench: Bench) -> Row:
    keys = SHARED_FACTOR * bench.keys
    with open_stage(bench, keys, LATENCY_SECONDS) as it:
        it.fill_rows()
        it.application.environment["SCAN_CONCURRENCY"] = CONCURRENCY
        measured = bench.measure(
            *(
                it.our_contender(f"{count} of them", [*RECONCILE, "--processes", str(count)])
                for count in (1, 2, 4)
            )
        )
    demands = []
    if measured:
        ratio = measured[0].seconds / measured[1].seconds
        demands = [Target("at least 1.8x one process", f"{ratio:.2f}x", ratio >= 1.8)]
    how = (
        f"reconcile_r2 --processes, 100 ms a request, {CONCURRENCY} lanes (SCAN_CONCURRENCY) for"
        " each. CPU is of all of them."
    )
    return Row(f"Worker processes, {keys:,} keys", how, measured, demands)


ROWS: dict[str, Callable[[Bench], Row]] = {
    "reconcile": measure_reconcile,
    "latency": measure_latency,
    "first": measure_first_backfill,
    "repeat": measure_repeat_backfill,
    "deletion": measure_deletion,
    "large-latency": measure_large_latency,
    "small": measure_small,
    "many-small": measure_many_small,
    "memory": measure_memory,
    "queries": measure_queries,
    "workers": measure_workers,
    "lists": measure_lists,
}
