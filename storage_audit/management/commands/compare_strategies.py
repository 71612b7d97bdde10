import json
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from django.core.management.base import CommandError

from storage_audit.bucket import prices
from storage_audit.cleanup.models import Cleanup
from storage_audit.conf import STRATEGIES, conf
from storage_audit.debug import strategy_benchmark
from storage_audit.debug.strategy_benchmark import BenchmarkImpossible, BenchmarkRun
from storage_audit.management.console import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    command_context,
)
from storage_audit.management.documented import DocumentedCommand
from storage_audit.redaction import printable_text, redact_secrets

DEFAULT_OBJECTS, MAX_OBJECTS = 50, 10_000
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
FOLLOW_UP_NOTE = (
    "Each cleanup has its follow-up checks after 1 hour, 1 day and 8 days, which"
    " delete any new files in the same prefixes. The cleanups appear in the admin."
    " The test IDs stay known as deleted projects."
)
COST_NOTE = (
    f"Cost: an estimate, R2's prices of {prices.PRICES_DATE}: 4.50 US dollars for a million calls"
    " that list or write, 0.36 for a million that read, DeleteObject free. Neither the writing of"
    " the objects nor the follow-up checks are in it."
)


def parse_objects(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MAX_OBJECTS):
        raise ArgumentTypeError(f"a number of objects is from 1 to {MAX_OBJECTS}")
    return int(text)


def parse_strategies(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [printable_text(name) for name in names if name not in STRATEGIES]:
        known = ", ".join(STRATEGIES)
        raise ArgumentTypeError(f"no strategy {', '.join(unknown)}; there are {known}")
    return list(dict.fromkeys(names))


class Command(DocumentedCommand):
    help = (
        "Compares the strategies: writes a test project for each into the configured"
        " bucket, in every key format, and deletes it with its own cleanup. Shows time,"
        " calls, errors, cost and what is left."
    )
    epilog = """
    examples:
      python manage.py compare_strategies
      python manage.py compare_strategies --objects 200 --strategies batch,parallel
      python manage.py compare_strategies --yes-write-to autoshorts-media --json

    Only test projects are written and deleted. If the command is interrupted, a worker deletes the
    test files within 15 minutes. Without a worker, run sweep_cleanups --sync.

    exit codes:
      0    each strategy that can run here left nothing
      1    files are left, a strategy failed, or the bucket can't be used
      2    wrong usage, also when the store is not on this machine and --yes-write-to is missing
      130  interrupted with Ctrl-C

    Next: set CLEANUP_STRATEGY to the strategy of your choice. Each deletion ID has a page in the
    admin with its timeline.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--objects",
            type=parse_objects,
            default=DEFAULT_OBJECTS,
            metavar="N",
            help=f"number of small files for each strategy, at most {MAX_OBJECTS}"
            f" (default: {DEFAULT_OBJECTS})",
        )
        parser.add_argument(
            "--strategies",
            type=parse_strategies,
            default=list(STRATEGIES),
            metavar="A,B",
            help=f"some of {','.join(STRATEGIES)} (default: all)",
        )
        parser.add_argument(
            "--yes-write-to",
            metavar="BUCKET",
            default="",
            help="the name of the configured bucket; without it, the store must be on this machine",
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
        require_consent(yes_write_to)
        runs: list[BenchmarkRun] = []
        with command_context():
            try:
                runs = strategy_benchmark.prepare_runs(strategies, objects)
                self.announce(runs, objects)
                for run in strategy_benchmark.run_all(runs):
                    self.stderr.write(f"{run.strategy}: done.", style_func=str)
            except BenchmarkImpossible as error:
                raise CommandError(printable_text(str(error)), returncode=EXIT_USAGE) from error
            except KeyboardInterrupt as error:
                text = f"Interrupted. {remaining_text(runs)}"
                raise CommandError(text, returncode=EXIT_INTERRUPTED) from error
            except Exception:
                self.stderr.write(remaining_text(runs), style_func=str)
                raise
        if as_json:
            self.stdout.write(json.dumps(benchmark_json(runs, objects)))
        else:
            self.report(runs)
        if not all(run.is_successful for run in runs):
            raise CommandError(
                "Files are left or a strategy failed. See above.", returncode=EXIT_FAILED
            )

    def announce(self, runs: list[BenchmarkRun], objects: int) -> None:
        tried = [run for run in runs if not run.obstacle]
        bucket = printable_text(conf().bucket)
        lines = [
            f"Writes {objects} objects for each of {len(tried)} projects into bucket {bucket}"
            f" at {store_address()}, and deletes them again. Touches nothing else.",
            *(f"  {run.project_id} for {run.strategy}" for run in tried),
        ]
        self.stderr.write("\n".join(lines), style_func=str)

    def report(self, runs: list[BenchmarkRun]) -> None:
        for line in aligned_lines(
            [TABLE_HEAD, *(run_cells(run) for run in runs if not run.obstacle)]
        ):
            self.stdout.write(line)
        for run in runs:
            for line in run_notes(run):
                self.stdout.write(f"{run.strategy}: {printable_text(line)}")
        self.stdout.write(f"{COST_NOTE}\n{FOLLOW_UP_NOTE}")


def store_address() -> str:
    """The store's address, without a password in it."""
    return printable_text(redact_secrets(conf().endpoint_url))


def require_consent(bucket: str) -> None:
    local = urlsplit(conf().endpoint_url).hostname in THIS_MACHINE
    if bucket == conf().bucket or local and not bucket:
        return
    raise CommandError(
        f"This writes objects into bucket {printable_text(conf().bucket)} at {store_address()}, and"
        " deletes them again. To agree, name the bucket: --yes-write-to"
        f" {printable_text(conf().bucket)}",
        returncode=EXIT_USAGE,
    )


def remaining_text(runs: list[BenchmarkRun]) -> str:
    begun = [run.cleanup for run in runs if run.cleanup and not run.is_over]
    if not begun:
        return "No test files are left."
    ids = ", ".join(str(cleanup.pk) for cleanup in begun)
    return (
        f"A worker deletes the test files (cleanup {ids}). Without a worker, run"
        " manage.py sweep_cleanups --sync"
    )


TABLE_HEAD = (
    "strategy",
    "seconds",
    "objects/s",
    "calls",
    "errors",
    "US dollars",
    "left",
    "deletion ID",
)


def run_cells(run: BenchmarkRun) -> tuple[str, ...]:
    return (
        run.strategy,
        f"{run.seconds:.2f}",
        f"{run.objects_per_second:.1f}",
        str(run.request_counts.total()),
        str(run.error_count),
        f"{run.cost_usd:.6f}",
        str(run.objects_left),
        str(run.cleanup),
    )


def aligned_lines(rows: list[tuple[str, ...]]) -> Iterable[str]:
    """First and last column aligned left, figures aligned right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        figures = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)][1:-1]
        yield "  ".join([row[0].ljust(widths[0]), *figures, row[-1]])


def run_notes(run: BenchmarkRun) -> Iterable[str]:
    if run.obstacle:
        yield f"cannot run here: {run.obstacle}"
        return
    calls = sorted(run.request_counts.items())
    yield ", ".join(f"{n} {kind} {result}" for (kind, result), n in calls)
    if run.cleanup and run.cleanup.status != Cleanup.Status.CLEAN:
        yield f"{run.cleanup.get_status_display()}. {run.cleanup.message}"
    if run.cleared_by:
        yield (
            f"the files it left were then deleted by cleanup {run.cleared_by}:"
            f" {run.cleared_by.get_status_display()}"
        )


def benchmark_json(runs: list[BenchmarkRun], objects: int) -> dict[str, Any]:
    return {
        "bucket": conf().bucket,
        "objects": objects,
        "prices_of": prices.PRICES_DATE,
        "runs": [run_json(run) for run in runs],
    }


def run_json(run: BenchmarkRun) -> dict[str, Any]:
    facts: dict[str, Any] = {"strategy": run.strategy, "obstacle": run.obstacle}
    if run.cleanup is None:
        return facts
    return {
        **facts,
        "project_id": run.project_id,
        "deletion_id": str(run.cleanup.pk),
        "status": run.cleanup.status,
        "message": run.cleanup.message,
        "seconds": round(run.seconds, 3),
        "objects_per_second": round(run.objects_per_second, 1),
        "calls": [{"kind": k, "result": r, "calls": n} for (k, r), n in run.request_counts.items()],
        "errors": run.error_count,
        "cost_usd": round(run.cost_usd, 9),
        "left": run.objects_left,
        "cleared_by": str(run.cleared_by.pk) if run.cleared_by else None,
    }
