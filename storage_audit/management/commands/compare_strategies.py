import json
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from django.core.management.base import CommandError

from storage_audit.bucket import prices
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.conf import STRATEGIES, conf
from storage_audit.debug import strategy_benchmark
from storage_audit.debug.strategy_benchmark import BenchmarkImpossible, Run
from storage_audit.management.console import FAILED, INTERRUPTED, WRONG_USE, asked_from_shell
from storage_audit.management.documented import DocumentedCommand
from storage_audit.redaction import redact, visible

USUAL, MOST = 50, 10_000
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
LATER = (
    "Each of these cleanups is looked after like any other: after 1 hour, 1 day and 8 days a late"
    " check lists the same prefixes again, and would delete what had arrived since. They are"
    " operations in the admin. The made-up ids stay known as deleted ones."
)
COST = (
    f"Cost: an estimate, R2's prices of {prices.PRICES_OF}: 4.50 US dollars for a million calls"
    " that list or write, 0.36 for a million that read, DeleteObject free. Neither the writing of"
    " the objects nor the late checks are in it."
)


def number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MOST):
        raise ArgumentTypeError(f"a number of objects is from 1 to {MOST}")
    return int(text)


def strategies(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [visible(name) for name in names if name not in STRATEGIES]:
        known = ", ".join(STRATEGIES)
        raise ArgumentTypeError(f"no strategy {', '.join(unknown)}; there are {known}")
    return list(dict.fromkeys(names))


class Command(DocumentedCommand):
    help = (
        "Writes a made-up project for each strategy into the configured bucket, each with keys in"
        " every layout, has each deleted by a cleanup of its own in its strategy's way, and shows"
        " side by side how long that took, the calls, errors and cost, and what is left."
    )
    epilog = """
    examples:
      python manage.py compare_strategies
      python manage.py compare_strategies --objects 200 --strategies batch,parallel
      python manage.py compare_strategies --yes-write-to autoshorts-media --json

    Nothing but the made-up projects is written or deleted. Their cleanups are on record before the
    first object is written: if this is interrupted, or dies, a worker deletes what it wrote, after
    15 minutes at the latest; without a worker, sweep_cleanups --sync does.

    exit codes:
      0    each strategy that can run here left nothing
      1    something was left or failed; or the bucket is not claimed, or cannot be asked
      2    wrong use, also when the store is not on this machine and --yes-write-to is missing
      130  interrupted with Ctrl-C

    Next: set CLEANUP_STRATEGY to the strategy of your choice. Each deletion id has a page in the
    admin with its timeline. Late checks follow after 1 hour, 1 day and 8 days, and find nothing.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--objects",
            type=number,
            default=USUAL,
            metavar="N",
            help=f"so many small objects for each strategy, at most {MOST} (default: {USUAL})",
        )
        parser.add_argument(
            "--strategies",
            type=strategies,
            default=list(STRATEGIES),
            metavar="A,B",
            help=f"some of {','.join(STRATEGIES)} (default: all)",
        )
        parser.add_argument(
            "--yes-write-to",
            metavar="BUCKET",
            default="",
            help="the name of the configured bucket; without it, only a store on this machine is"
            " written to",
        )
        parser.add_argument(
            "--json", action="store_true", dest="as_json", help="print one JSON object"
        )

    def handle(
        self,
        *,
        objects: int,
        strategies: list[str],
        yes_write_to: str,
        as_json: bool,
        **options: object,
    ) -> None:
        refuse_without_consent(yes_write_to)
        runs: list[Run] = []
        with asked_from_shell():
            try:
                runs = strategy_benchmark.prepare(strategies, objects)
                self.announce(runs, objects)
                for run in strategy_benchmark.try_all(runs):
                    self.stderr.write(f"{run.strategy}: over.", style_func=str)
            except BenchmarkImpossible as error:
                raise CommandError(visible(str(error)), returncode=WRONG_USE) from error
            except KeyboardInterrupt as error:
                text = f"Interrupted. {what_remains(runs)}"
                raise CommandError(text, returncode=INTERRUPTED) from error
            except Exception:
                self.stderr.write(what_remains(runs), style_func=str)
                raise
        if as_json:
            self.stdout.write(json.dumps(facts_of_all(runs, objects)))
        else:
            self.report(runs)
        if not all(run.succeeded for run in runs):
            raise CommandError("Something was left or failed: see above.", returncode=FAILED)

    def announce(self, runs: list[Run], objects: int) -> None:
        tried = [run for run in runs if not run.obstacle]
        bucket = visible(conf().bucket)
        lines = [
            f"Writes {objects} objects for each of {len(tried)} projects into bucket {bucket}"
            f" at {address()}, and deletes them again. Touches nothing else.",
            *(f"  {run.project_id} for {run.strategy}" for run in tried),
        ]
        self.stderr.write("\n".join(lines), style_func=str)

    def report(self, runs: list[Run]) -> None:
        for line in columns([HEAD, *(cells(run) for run in runs if not run.obstacle)]):
            self.stdout.write(line)
        for run in runs:
            for line in remarks(run):
                self.stdout.write(f"{run.strategy}: {visible(line)}")
        self.stdout.write(f"{COST}\n{LATER}")


def address() -> str:
    """Of the store, without the password that it may hold."""
    return visible(redact(conf().endpoint_url))


def refuse_without_consent(bucket: str) -> None:
    local = urlsplit(conf().endpoint_url).hostname in THIS_MACHINE
    if bucket == conf().bucket or local and not bucket:
        return
    raise CommandError(
        f"This writes objects into bucket {visible(conf().bucket)} at {address()}, and"
        " deletes them again. If that is what you want, name the bucket: --yes-write-to"
        f" {visible(conf().bucket)}",
        returncode=WRONG_USE,
    )


def what_remains(runs: list[Run]) -> str:
    begun = [run.operation for run in runs if run.operation and not run.over]
    if not begun:
        return "Nothing that was written is left."
    ids = ", ".join(str(operation.pk) for operation in begun)
    return (
        f"Operation {ids} deletes what was written: a worker takes it by itself. Without a worker,"
        " run: manage.py sweep_cleanups --sync"
    )


HEAD = ("strategy", "seconds", "objects/s", "calls", "errors", "US dollars", "left", "deletion id")


def cells(run: Run) -> tuple[str, ...]:
    return (
        run.strategy,
        f"{run.seconds:.2f}",
        f"{run.speed:.1f}",
        str(run.calls.total()),
        str(run.errors),
        f"{run.cost:.6f}",
        str(run.left),
        str(run.operation),
    )


def columns(rows: list[tuple[str, ...]]) -> Iterable[str]:
    """The first and the last column to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        figures = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)][1:-1]
        yield "  ".join([row[0].ljust(widths[0]), *figures, row[-1]])


def remarks(run: Run) -> Iterable[str]:
    if run.obstacle:
        yield f"cannot run here: {run.obstacle}"
        return
    calls = sorted(run.calls.items())
    yield ", ".join(f"{n} {kind} {result}" for (kind, result), n in calls)
    if run.operation and run.operation.status != CleanupOperation.Status.CLEAN:
        yield f"{run.operation.get_status_display()}. {run.operation.error}"
    if run.cleared_by:
        yield (
            f"what it left was then cleaned up by operation {run.cleared_by}:"
            f" {run.cleared_by.get_status_display()}"
        )


def facts_of_all(runs: list[Run], objects: int) -> dict[str, Any]:
    return {
        "bucket": conf().bucket,
        "objects": objects,
        "prices_of": prices.PRICES_OF,
        "runs": [facts_of(run) for run in runs],
    }


def facts_of(run: Run) -> dict[str, Any]:
    facts: dict[str, Any] = {"strategy": run.strategy, "obstacle": run.obstacle}
    if run.operation is None:
        return facts
    return {
        **facts,
        "project_id": run.project_id,
        "deletion_id": str(run.operation.pk),
        "status": run.operation.status,
        "message": run.operation.error,
        "seconds": round(run.seconds, 3),
        "objects_per_second": round(run.speed, 1),
        "calls": [{"kind": k, "result": r, "calls": n} for (k, r), n in run.calls.items()],
        "errors": run.errors,
        "cost_usd": round(run.cost, 9),
        "left": run.left,
        "cleared_by": str(run.cleared_by.pk) if run.cleared_by else None,
    }
