"""What the scan commands share: arguments, progress and report."""

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
from django.utils.translation import ngettext

from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.conf import conf
from storage_audit.display_formats import format_price
from storage_audit.findings.finding_text import kind_count
from storage_audit.findings.models import Finding, Kind
from storage_audit.management.console import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    command_context,
    parse_project_id,
    storable_text,
)
from storage_audit.management.documented import DocumentedCommand
from storage_audit.management.scan_processes import extra_processes
from storage_audit.redaction import printable_text
from storage_audit.scan.models import BucketScan, PendingFinding
from storage_audit.scan.models.scan import COUNT_FIELDS
from storage_audit.scan.start import (
    RESUMED_TEXTS,
    ScanCost,
    ScanTooExpensive,
    estimate_scan,
    other_bucket_reason,
    scan_cost,
    send_workers,
    start_scan,
)
from storage_audit.scan.worker import work_on_scan

SAMPLES_PER_KIND = 20
MAX_WORKERS = 100
MAX_PROCESSES = 64
Status = BucketScan.Status


def parse_scan_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise ArgumentTypeError(f"“{printable_text(text)}” is not a scan ID") from error


def parse_count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise ArgumentTypeError(f"“{printable_text(text)}” is not a whole number of 0 or more")
    return int(text)


class ScanCommand(DocumentedCommand):
    purpose: ClassVar[BucketScan.Purpose]
    # Not all system checks: they load the whole site, which takes as much memory as a scan.
    requires_system_checks = (Tags.compatibility,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        scope = parser.add_mutually_exclusive_group()
        scope.add_argument(
            "--prefix",
            type=storable_text,
            default="",
            help="list only keys with this prefix, such as projects/proj_1/ (default: all)",
        )
        scope.add_argument(
            "--project",
            type=parse_project_id,
            metavar="ID",
            help="list only the places of this project's files, in all key formats (default: all)",
        )
        scope.add_argument(
            "--resume",
            type=parse_scan_id,
            metavar="SCAN_ID",
            help="continue a stopped or failed scan, or help a running one; after an hour without"
            " activity the scan starts over (default: start a new scan)",
        )
        add_scan_options(parser)

    def handle(
        self,
        *,
        resume: UUID | None,
        cost: bool,
        workers: int,
        processes: int,
        as_json: bool,
        max_requests: int | None,
        accept_fewer: bool,
        **options: Any,
    ) -> None:
        scope = scan_scope(options)
        how = {"max_requests": max_requests, "accept_fewer": accept_fewer}
        new = cost or scope.get("dry_run") or scope.get("since")
        refuse_if(
            resume and new,
            "--resume continues the scan as it was started: leave the other options out.",
        )
        refuse_if(workers > MAX_WORKERS, f"--workers: use at most {MAX_WORKERS}.")
        refuse_if(not 0 < processes <= MAX_PROCESSES, f"--processes: use 1 to {MAX_PROCESSES}.")
        refuse_if(
            workers and conf().sync,
            "The setting CLEANUP_SYNC turns workers off: leave --workers out.",
        )
        with command_context():
            if cost:
                self.show_cost(estimate_scan(purpose=self.purpose, **scope), as_json)
                return
            scan = self.resume_scan(resume, **how) if resume else self.start_new(**how, **scope)
            send_workers(scan, workers)
            self.follow(scan, processes)
        self.report(scan, as_json)

    def start_new(self, **how: Any) -> BucketScan:
        try:
            return start_scan(purpose=self.purpose, **how)
        except ScanTooExpensive as error:
            raise CommandError(f"{error} Use --max-requests.", returncode=EXIT_USAGE) from error

    def resume_scan(self, pk: UUID, **how: Any) -> BucketScan:
        scan = BucketScan.objects.filter(pk=pk).first()
        if scan is None:
            raise CommandError(f"There is no scan {pk}.", returncode=EXIT_USAGE)
        refuse_if(
            scan.purpose != self.purpose,
            f"Scan {pk} is not a {self.purpose}. Use: manage.py {scan.purpose}_r2 --resume {pk}",
        )
        reason = other_bucket_reason(scan)
        refuse_if(reason, reason)
        try:
            starts_again = scan.resume(**how)
        except IllegalTransition as error:
            raise CommandError(str(error), returncode=EXIT_USAGE) from error
        if starts_again:
            self.stderr.write(str(RESUMED_TEXTS[starts_again]))
        return scan

    def follow(self, scan: BucketScan, processes: int) -> None:
        progress = ProgressLine(self.stderr, scan)
        try:
            with extra_processes(scan, processes - 1):
                work_with_progress(scan, progress)
                while scan.status == Status.RUNNING:
                    sleep(1)  # Another worker is ending it.
                    work_with_progress(scan, progress)
        except KeyboardInterrupt as interrupt:
            raise CommandError(
                f"Interrupted after {object_count(scan.listed)}. Objects tracked so far stay"
                " tracked."
                f" {self.resume_hint(scan)}",
                returncode=EXIT_INTERRUPTED,
            ) from interrupt
        finally:
            progress.end()

    def resume_hint(self, scan: BucketScan) -> str:
        return f"To continue within an hour: manage.py {self.purpose}_r2 --resume {scan.pk}"

    def report(self, scan: BucketScan, as_json: bool) -> None:
        if as_json:
            self.stdout.write(json.dumps(scan_json(scan)))
        else:
            for line in (self.summary(scan), *caveat_lines(scan), *finding_lines(scan)):
                self.stdout.write(line)
        if scan.status != Status.COMPLETE:
            what = f"Scan {scan.pk} {scan.get_status_display()}: {printable_text(scan.message)}"
            raise CommandError(f"{what} {self.resume_hint(scan)}", returncode=EXIT_FAILED)

    def summary(self, scan: BucketScan) -> str:
        raise NotImplementedError

    def show_cost(self, cost: ScanCost, as_json: bool) -> None:
        if as_json:
            names = ("objects", "requests", "dollars", "seconds")
            self.stdout.write(json.dumps({name: getattr(cost, name) for name in names}))
            return
        requests = ngettext("%s request", "%s requests", cost.requests) % f"{cost.requests:,}"
        text = f"About {object_count(cost.objects)}, {requests} (R2 Class A), "
        text += format_price(cost.dollars)
        if cost.seconds is not None:
            text += f", {duration_text(cost.seconds)} at the speed of the last scan"
        self.stdout.write(f"{text}.")


def add_scan_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--accept-fewer",
        action="store_true",
        help="accept a result with far fewer objects than expected (default: the scan fails)",
    )
    parser.add_argument(
        "--max-requests",
        type=parse_count,
        metavar="N",
        help="stop after so many requests (default: the setting SCAN_MAX_REQUESTS, or the limit of"
        " the resumed scan)",
    )
    parser.add_argument("--cost", action="store_true", help="estimate the cost, and list nothing")
    parser.add_argument(
        "--workers",
        type=parse_count,
        default=0,
        metavar="N",
        help="number of queue workers that help this process (default: 0)",
    )
    parser.add_argument(
        "--processes",
        type=parse_count,
        default=1,
        metavar="N",
        help="number of processes on this machine (default: 1); each takes up to 100 MiB and lists"
        " SCAN_CONCURRENCY parts at once",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="report the same, but track nothing and save no findings",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        dest="as_json",
        help="print one JSON object: the figures, and the first"
        f" {SAMPLES_PER_KIND} findings of each kind",
    )


def refuse_if(wrong: object, text: str) -> None:
    if wrong:
        raise CommandError(text, returncode=EXIT_USAGE)


def scan_scope(options: dict[str, Any]) -> dict[str, Any]:
    """The options that say what to scan."""
    names = {"prefix": "prefix", "project": "project_id", "dry_run": "dry_run", "since": "since"}
    return {name: options[given] for given, name in names.items() if given in options}


def work_with_progress(scan: BucketScan, progress: "ProgressLine") -> None:
    with closing(work_on_scan(scan)) as steps:
        for _batch in steps:
            progress.show()


def caveat_lines(scan: BucketScan) -> Iterator[str]:
    if scan.is_partial:
        yield (
            "This partial scan checked only objects tracked since"
            f" {scan.since:%Y-%m-%d %H:%M:%S%z}, so it saved no findings."
        )
    if not scan.in_key_order:
        yield (
            "The store does not list keys in order, so the scan could not be shared out and was"
            " slower."
        )


def finding_lines(scan: BucketScan) -> Iterator[str]:
    for kind in Kind:
        seen = findings_of_scan(scan).filter(kind=kind)
        if total := seen.count():
            yield f"{kind_count(kind, total)}:"
            for one in seen.order_by("key")[:SAMPLES_PER_KIND]:
                yield f"  {printable_text(one.key)} ({printable_text(one.evidence)})"
        if total > SAMPLES_PER_KIND:
            yield f"  and {total - SAMPLES_PER_KIND} more"
    if Finding.objects.filter(last_scan=scan).exists():
        yield "To act on these findings, use the admin or manage.py findings."


def findings_of_scan(scan: BucketScan) -> QuerySet[Finding] | QuerySet[PendingFinding]:
    """What the scan saw: findings if it is complete and wrote some, otherwise pending findings."""
    pending_findings = PendingFinding.objects.filter(scan=scan, kind__in=Kind)
    return pending_findings if pending_findings.exists() else Finding.objects.filter(last_scan=scan)


def scan_json(scan: BucketScan) -> dict[str, object]:
    shown = ("bucket", "purpose", "prefix", "project_id", "dry_run", "status", "in_key_order")
    seen = (
        findings_of_scan(scan).filter(kind=kind).order_by("key")[:SAMPLES_PER_KIND] for kind in Kind
    )
    return {
        "scan_id": str(scan.pk),
        **{name: getattr(scan, name) for name in shown},
        "since": scan.since and scan.since.isoformat(),
        "is_partial": scan.is_partial,
        "message": scan.message,
        **{name: getattr(scan, name) for name in ("requests", *COUNT_FIELDS)},
        "samples": [
            {"kind": f.kind, "key": f.key, "project_id": f.project_id, "evidence": f.evidence}
            for of_a_kind in seen
            for f in of_a_kind
        ],
    }


def scanned_text(scan: BucketScan) -> str:
    """Such as “2 objects (1.5 MB) in bucket media”."""
    size = filesizeformat(scan.listed_bytes).replace("\xa0", " ")
    return f"{object_count(scan.listed)} ({size}) in bucket {scan.bucket}"


def object_count(count: int) -> str:
    return ngettext("%s object", "%s objects", count) % f"{count:,}"


def duration_text(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


class ProgressLine:
    """One line that changes on a terminal, a line now and then elsewhere."""

    def __init__(self, out: OutputWrapper, scan: BucketScan) -> None:
        self.out, self.is_terminal = out, out.isatty()
        self.scan, self.listed_before = scan, scan.listed
        self.began_at = self.shown_at = monotonic()
        self.pause_seconds = 0.2 if self.is_terminal else 10.0

    @cached_property
    def expected_objects(self) -> int:
        """Counted only when it is shown, as that takes a while."""
        return scan_cost(self.scan).objects

    def show(self) -> None:
        listed = self.scan.listed
        now = monotonic()
        if now - self.shown_at < self.pause_seconds:
            return
        self.shown_at = now
        rate = (listed - self.listed_before) / (now - self.began_at)
        text = f"{object_count(listed)}, {rate:,.0f}/s"
        if rate > 0 and self.expected_objects > listed:
            text += f", about {duration_text((self.expected_objects - listed) / rate)} left"
        if self.is_terminal:
            self.out.write(f"\r{text}\x1b[K", style_func=str, ending="")
            self.out.flush()
        else:
            self.out.write(text, style_func=str)

    def end(self) -> None:
        if self.is_terminal:
            self.out.write("\r\x1b[K", style_func=str, ending="")
