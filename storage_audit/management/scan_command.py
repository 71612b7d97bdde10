"""What the commands that scan the bucket have in common: arguments, progress and report."""

import json
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from functools import cached_property
from time import monotonic, sleep
from typing import Any, ClassVar
from uuid import UUID

from django.core.checks import Tags
from django.core.management.base import CommandError, OutputWrapper
from django.db.models import QuerySet
from django.template.defaultfilters import filesizeformat

from storage_audit.cleanup.models.states import IllegalTransition
from storage_audit.conf import conf
from storage_audit.findings.models import Finding, Kind
from storage_audit.management.console import (
    FAILED,
    INTERRUPTED,
    WRONG_USE,
    asked_from_shell,
    project_id,
    stored_text,
)
from storage_audit.management.documented import DocumentedCommand
from storage_audit.management.scan_processes import beside
from storage_audit.redaction import visible
from storage_audit.scan.models import BucketScan, Sighting
from storage_audit.scan.models.scan import FIGURES
from storage_audit.scan.start import Cost, ScanTooExpensive, cost_of, estimate, share, start_scan
from storage_audit.scan.worker import work_on_scan

SAMPLES = 20
MOST_WORKERS = 100
MOST_PROCESSES = 64
Status = BucketScan.Status


def scan_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise ArgumentTypeError(f"“{visible(text)}” is no id of a scan") from error


def count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise ArgumentTypeError(f"“{visible(text)}” is no whole number from 0")
    return int(text)


class ScanCommand(DocumentedCommand):
    purpose: ClassVar[BucketScan.Purpose]
    # Those of the settings. All of them load the whole site, which takes as much memory as a scan.
    requires_system_checks = (Tags.compatibility,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        scope = parser.add_mutually_exclusive_group()
        scope.add_argument(
            "--prefix",
            type=stored_text,
            default="",
            help="list only keys that start with it, such as projects/proj_1/ (default: all)",
        )
        scope.add_argument(
            "--project",
            type=project_id,
            metavar="ID",
            help="list only where files of this project can be, in all layouts (default: all)",
        )
        scope.add_argument(
            "--resume",
            type=scan_id,
            metavar="SCAN_ID",
            help="go on with a scan that stopped or failed within the last hour, start an older one"
            " again, or take part in one that is running; without it, a new one begins",
        )
        add_manners(parser)

    def handle(
        self,
        *,
        resume: UUID | None,
        cost: bool,
        workers: int,
        processes: int,
        as_json: bool,
        ceiling: int | None,
        accept_fewer: bool,
        **options: Any,
    ) -> None:
        scope, how = scope_of(options), {"ceiling": ceiling, "accept_fewer": accept_fewer}
        new = cost or scope.get("dry_run") or scope.get("since")
        refuse(resume and new, "A scan is resumed as it was begun: --resume goes without these.")
        refuse(workers > MOST_WORKERS, f"--workers: at most {MOST_WORKERS}.")
        refuse(not 0 < processes <= MOST_PROCESSES, f"--processes: 1 to {MOST_PROCESSES}.")
        refuse(workers and conf().sync, "With CLEANUP_SYNC there are no workers.")
        with asked_from_shell():
            if cost:
                self.show_cost(estimate(purpose=self.purpose, **scope), as_json)
                return
            scan = self.resumed(resume, **how) if resume else self.begun(**how, **scope)
            share(scan, workers)
            self.follow(scan, processes)
        self.report(scan, as_json)

    def begun(self, **how: Any) -> BucketScan:
        try:
            return start_scan(purpose=self.purpose, **how)
        except ScanTooExpensive as error:
            raise CommandError(f"{error} Add --ceiling.", returncode=WRONG_USE) from error

    def resumed(self, pk: UUID, **how: Any) -> BucketScan:
        scan = BucketScan.objects.filter(pk=pk).first()
        if scan is None:
            raise CommandError(f"There is no scan {pk}.", returncode=WRONG_USE)
        refuse(
            scan.purpose != self.purpose,
            f"Scan {pk} is no {self.purpose}. Use: manage.py {scan.purpose}_r2 --resume {pk}",
        )
        refuse(
            scan.bucket != conf().bucket,
            f"Scan {pk} is of bucket {visible(scan.bucket)}, and the settings name"
            f" {visible(conf().bucket)}.",
        )
        try:
            starts_again = scan.resume(**how)
        except IllegalTransition as error:
            raise CommandError(str(error), returncode=WRONG_USE) from error
        if starts_again:
            self.stderr.write(
                "Nobody worked on this scan for more than an hour, so it starts again from the"
                " beginning. The rows that it wrote stay."
            )
        return scan

    def follow(self, scan: BucketScan, processes: int) -> None:
        progress = Progress(self.stderr, scan)
        try:
            with beside(scan, processes - 1):
                work(scan, progress)
                while scan.status == Status.RUNNING:
                    sleep(1)  # Another worker is at its ending.
                    work(scan, progress)
        except KeyboardInterrupt as interrupt:
            raise CommandError(
                f"Interrupted after {scan.listed:,} objects. What was written stays."
                f" {self.to_go_on(scan)}",
                returncode=INTERRUPTED,
            ) from interrupt
        finally:
            progress.end()

    def to_go_on(self, scan: BucketScan) -> str:
        return f"To go on from there within an hour: manage.py {self.purpose}_r2 --resume {scan.pk}"

    def report(self, scan: BucketScan, as_json: bool) -> None:
        if as_json:
            self.stdout.write(json.dumps(facts_of(scan)))
        else:
            for line in (self.summary(scan), *caveats(scan), *lines_of_differences(scan)):
                self.stdout.write(line)
        if scan.status != Status.COMPLETE:
            what = f"Scan {scan.pk} {scan.get_status_display()}: {visible(scan.error)}"
            raise CommandError(f"{what} {self.to_go_on(scan)}", returncode=FAILED)

    def summary(self, scan: BucketScan) -> str:
        raise NotImplementedError

    def show_cost(self, cost: Cost, as_json: bool) -> None:
        if as_json:
            names = ("objects", "requests", "dollars", "seconds")
            self.stdout.write(json.dumps({name: getattr(cost, name) for name in names}))
            return
        text = f"About {cost.objects:,} objects, {cost.requests:,} requests (R2: Class A), "
        text += f"${cost.dollars:.4f}"
        if cost.seconds is not None:
            text += f", {shown_time(cost.seconds)} if it goes as the last time"
        self.stdout.write(f"{text}.")


def add_manners(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--accept-fewer",
        action="store_true",
        help="believe a listing that shows far fewer objects than there should be; without it,"
        " nothing is concluded from such a one",
    )
    parser.add_argument(
        "--ceiling",
        type=count,
        metavar="N",
        help="stop after so many requests (default: the setting SCAN_CEILING, or what the scan"
        " that is resumed was given)",
    )
    parser.add_argument(
        "--cost", action="store_true", help="say what the scan would cost, and list nothing"
    )
    parser.add_argument(
        "--workers",
        type=count,
        default=0,
        metavar="N",
        help="have so many workers of the queue take part beside this process (default: 0)",
    )
    parser.add_argument(
        "--processes",
        type=count,
        default=1,
        metavar="N",
        help="use so many cores of this machine (default: 1); a process takes up to 100 MiB and"
        " lists SCAN_LANES parts at once",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="report the same, and write no row and no finding"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        dest="as_json",
        help=f"print one JSON object: the figures, and the first {SAMPLES} differences of a kind",
    )


def refuse(wrong: object, text: str) -> None:
    if wrong:
        raise CommandError(text, returncode=WRONG_USE)


def scope_of(options: dict[str, Any]) -> dict[str, Any]:
    """What to scan, of all that Django gives a command."""
    names = {"prefix": "prefix", "project": "project_id", "dry_run": "dry_run", "since": "since"}
    return {name: options[given] for given, name in names.items() if given in options}


def work(scan: BucketScan, progress: "Progress") -> None:
    with closing(work_on_scan(scan)) as steps:
        for _batch in steps:
            progress.show()


def caveats(scan: BucketScan) -> Iterator[str]:
    if scan.is_partial:
        yield (
            f"This was a partial look, only at rows written since {scan.since:%Y-%m-%d %H:%M:%S%z}:"
            " it says nothing of all others, and nothing follows from it."
        )
    if not scan.in_key_order:
        yield (
            "The store lists keys in an order of its own. So they were listed in one stream, which"
            " is slower, and compared without an order."
        )


def lines_of_differences(scan: BucketScan) -> Iterator[str]:
    for kind in Kind:
        seen = seen_by(scan).filter(kind=kind)
        if total := seen.count():
            yield f"{total} {kind.label}:"
            for one in seen.order_by("key")[:SAMPLES]:
                yield f"  {visible(one.key)} ({visible(one.evidence)})"
        if total > SAMPLES:
            yield f"  and {total - SAMPLES} more"
    if Finding.objects.filter(last_scan=scan).exists():
        yield "All of these are findings. To decide on them: the admin, or manage.py findings"


def seen_by(scan: BucketScan) -> QuerySet[Finding] | QuerySet[Sighting]:
    """What the scan saw: findings, once it is complete and unless it only was to look."""
    sightings = Sighting.objects.filter(scan=scan, kind__in=Kind)
    return sightings if sightings.exists() else Finding.objects.filter(last_scan=scan)


def facts_of(scan: BucketScan) -> dict[str, object]:
    shown = ("bucket", "purpose", "prefix", "project_id", "dry_run", "status", "in_key_order")
    seen = (seen_by(scan).filter(kind=kind).order_by("key")[:SAMPLES] for kind in Kind)
    return {
        "scan_id": str(scan.pk),
        **{name: getattr(scan, name) for name in shown},
        "since": scan.since and scan.since.isoformat(),
        "is_partial": scan.is_partial,
        "message": scan.error,
        **{name: getattr(scan, name) for name in ("requests", *FIGURES)},
        "samples": [
            {"kind": f.kind, "key": f.key, "project_id": f.project_id, "evidence": f.evidence}
            for of_a_kind in seen
            for f in of_a_kind
        ],
    }


def shown_size(scan: BucketScan) -> str:
    return filesizeformat(scan.listed_bytes).replace("\xa0", " ")


def shown_time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


class Progress:
    """One line that changes on a terminal, a line now and then elsewhere."""

    def __init__(self, out: OutputWrapper, scan: BucketScan) -> None:
        self.out, self.terminal = out, out.isatty()
        self.scan, self.before = scan, scan.listed
        self.began = self.shown = monotonic()
        self.pause = 0.2 if self.terminal else 10.0

    @cached_property
    def expected(self) -> int:
        """Counted only when it is to be shown, as that takes a while."""
        return cost_of(self.scan).objects

    def show(self) -> None:
        listed = self.scan.listed
        now = monotonic()
        if now - self.shown < self.pause:
            return
        self.shown = now
        rate = (listed - self.before) / (now - self.began)
        text = f"{listed:,} objects, {rate:,.0f}/s"
        if rate > 0 and self.expected > listed:
            text += f", about {shown_time((self.expected - listed) / rate)} left"
        if self.terminal:
            self.out.write(f"\r{text}\x1b[K", style_func=str, ending="")
            self.out.flush()
        else:
            self.out.write(text, style_func=str)

    def end(self) -> None:
        if self.terminal:
            self.out.write("\r\x1b[K", style_func=str, ending="")
