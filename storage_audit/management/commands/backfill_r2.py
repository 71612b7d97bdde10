import json
from argparse import ArgumentParser, ArgumentTypeError
from contextlib import closing
from time import monotonic

from django.core.management.base import CommandError, OutputWrapper
from django.template.defaultfilters import filesizeformat

from storage_audit.audit import scan as scans
from storage_audit.bucket.listing import storable
from storage_audit.management.console import FAILED, INTERRUPTED, asked_from_shell
from storage_audit.management.documented import DocumentedCommand
from storage_audit.models import BucketScan, Finding
from storage_audit.redaction import visible

SAMPLES = 20
FIGURES = (
    "listed",
    "listed_bytes",
    "added",
    "updated",
    "unchanged",
    "orphaned",
    "ambiguous",
    "unrecognised",
    "unstorable",
)


def prefix(text: str) -> str:
    if not storable(text):
        raise ArgumentTypeError("a prefix must be UTF-8 without NUL")
    return text


class Command(DocumentedCommand):
    help = (
        "Lists the bucket and writes a tracking row for each object that has none, with the project"
        " that its key names. Reports keys that no layout knows, that could be several projects',"
        " or whose project is gone. Deletes no object. Safe to repeat, and beside uploads and"
        " cleanups."
    )
    epilog = """
    examples:
      python manage.py backfill_r2 --dry-run
      python manage.py backfill_r2
      python manage.py backfill_r2 --prefix projects/proj_1/ --json

    exit codes:
      0    the listing reached its end, whatever it found
      1    it did not: the store failed, or the bucket is not claimed; or it showed far fewer
           objects than there should be. It is safe to run it again
      2    wrong use
      130  interrupted with Ctrl-C; what was written stays

    Next: the findings in the admin show what nobody could attribute. Objects of a project that was
    deleted before this was installed go with cleanup_project --declare-deleted.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--prefix",
            type=prefix,
            default="",
            help="list only keys that start with it, such as projects/proj_1/ (default: all)",
        )
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="report what would be written, and write no tracking row and no finding",
        )
        parser.add_argument(
            "--accept-fewer",
            action="store_true",
            help="believe a listing that shows far fewer objects than there should be; without it,"
            " nothing is concluded from such a one",
        )
        parser.add_argument(
            "--json",
            action="store_true",
            dest="as_json",
            help=f"print one JSON object: the figures, and the first {SAMPLES} findings of a kind",
        )

    def handle(
        self, *, prefix: str, dry_run: bool, accept_fewer: bool, as_json: bool, **options: object
    ) -> None:
        with asked_from_shell():
            scan = scans.begin(prefix, dry_run=dry_run)
            samples = self.follow(scan, accept_fewer)
        if as_json:
            self.stdout.write(json.dumps(facts_of(scan, samples)))
        else:
            self.report(scan, samples)
        if scan.status != BucketScan.Status.COMPLETE:
            raise CommandError(
                f"Scan {scan.pk} failed: {visible(scan.error)} It is safe to run it again.",
                returncode=FAILED,
            )

    def follow(self, scan: BucketScan, accept_fewer: bool) -> list[Finding]:
        """Show how far it is; gives the first findings of each kind."""
        samples: list[Finding] = []
        progress = Progress(self.stderr)
        try:
            with closing(scans.backfill(scan, accept_fewer=accept_fewer)) as pages:
                for findings in pages:
                    progress.show(scan.listed)
                    for kind in Finding.Kind:
                        room = SAMPLES - sum(f.kind == kind for f in samples)
                        samples += [f for f in findings if f.kind == kind][:room]
        except KeyboardInterrupt as interrupt:
            progress.end()
            raise CommandError(
                f"Interrupted after {scan.listed:,} objects. What was written stays; it is safe to"
                " run it again.",
                returncode=INTERRUPTED,
            ) from interrupt
        progress.end()
        return samples

    def report(self, scan: BucketScan, samples: list[Finding]) -> None:
        size = filesizeformat(scan.listed_bytes).replace("\xa0", " ")
        would = "would be " if scan.dry_run else ""
        self.stdout.write(
            f"{scan.listed} objects ({size}) in bucket {scan.bucket}: {scan.added} {would}added,"
            f" {scan.updated} {would}updated, {scan.unchanged} unchanged."
        )
        for kind in Finding.Kind:
            if count := getattr(scan, kind):
                self.report_kind(kind, count, [f for f in samples if f.kind == kind])
        if samples and not scan.dry_run:
            self.stdout.write("All of these are findings in the admin, where you can decide.")

    def report_kind(self, kind: Finding.Kind, count: int, samples: list[Finding]) -> None:
        self.stdout.write(f"{count} {kind.label}:")
        for finding in samples:
            self.stdout.write(f"  {visible(finding.key)} ({visible(finding.evidence)})")
        if count > len(samples):
            self.stdout.write(f"  and {count - len(samples)} more")


def facts_of(scan: BucketScan, samples: list[Finding]) -> dict[str, object]:
    return {
        "scan_id": str(scan.pk),
        "bucket": scan.bucket,
        "prefix": scan.prefix,
        "dry_run": scan.dry_run,
        "status": scan.status,
        "message": scan.error,
        **{name: getattr(scan, name) for name in FIGURES},
        "samples": [
            {"kind": f.kind, "key": f.key, "project_id": f.project_id, "evidence": f.evidence}
            for f in samples
        ],
    }


class Progress:
    """One line that changes on a terminal, a line now and then elsewhere."""

    def __init__(self, out: OutputWrapper) -> None:
        self.out, self.terminal = out, out.isatty()
        self.began = self.shown = monotonic()
        self.pause = 0.2 if self.terminal else 10.0

    def show(self, listed: int) -> None:
        now = monotonic()
        if now - self.shown < self.pause:
            return
        self.shown = now
        text = f"{listed:,} objects, {listed / (now - self.began):,.0f}/s"
        if self.terminal:
            self.out.write(f"\r{text}\x1b[K", style_func=str, ending="")
            self.out.flush()
        else:
            self.out.write(text, style_func=str)

    def end(self) -> None:
        if self.terminal:
            self.out.write("\r\x1b[K", style_func=str, ending="")
