import json
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError

from storage_audit.debug.comparison_result import MAX_EXAMPLES_KEPT, Comparison
from storage_audit.debug.discovery_comparison import compare_all_buckets
from storage_audit.management.console import EXIT_FAILED, command_context, parse_project_id
from storage_audit.management.documented import DocumentedCommand
from storage_audit.redaction import printable_text


class Command(DocumentedCommand):
    help = (
        "Looks for a project's files in three ways: tracking records, the rules of a cleanup,"
        " and file names alone. Shows the differences and why. Works for live, deleted"
        " and unknown projects. Changes nothing."
    )
    epilog = """
    examples:
      python manage.py compare_discovery proj_1
      python manage.py compare_discovery proj_1 --json

    exit codes:
      0  all three find the same files
      1  they differ, or the bucket could not be listed completely
      2  wrong usage, also when this is not a project ID

    Next: backfill_r2 tracks files that are not tracked. Files that may belong to another project
    are kept by cleanups: the cleanup's page in the admin lists them for your decision.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "project",
            metavar="PROJECT_ID",
            type=parse_project_id,
            help="the ID of a live or deleted project",
        )
        parser.add_argument(
            "--json",
            action="store_true",
            dest="as_json",
            help="print one JSON object: all counts, and the first"
            f" {MAX_EXAMPLES_KEPT} keys of each difference",
        )

    def handle(self, *, project: str, as_json: bool, **options: object) -> None:
        with command_context():
            comparisons = compare_all_buckets(project)
        if as_json:
            facts = {
                "project_id": project,
                "comparisons": [comparison_json(c) for c in comparisons],
            }
            self.stdout.write(json.dumps(facts))
        else:
            for comparison in comparisons:
                self.report(comparison)
        if not all(comparison.agrees for comparison in comparisons):
            raise CommandError("The results differ. See the reasons above.", returncode=EXIT_FAILED)

    def report(self, comparison: Comparison) -> None:
        counts = ", ".join(
            f"{keys.count} {way.label}" for way, keys in comparison.keys_by_method.items()
        )
        where = f"{comparison.project_id} in bucket {printable_text(comparison.bucket)}"
        self.stdout.write(f"{where}: {counts}.")
        if comparison.agrees:
            self.stdout.write("All three find the same files.")
        for difference in comparison.differences:
            self.stdout.write(f"{difference.count} {difference.place}: {difference.words}")
            for example in difference.examples:
                key, evidence = printable_text(example.key), printable_text(example.evidence)
                self.stdout.write(f"  {key} ({evidence})")
            if more := difference.count - len(difference.examples):
                self.stdout.write(f"  and {more} more")


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "bucket": comparison.bucket,
        "agrees": comparison.agrees,
        **{way.value: keys.count for way, keys in comparison.keys_by_method.items()},
        "only_listed": comparison.only_listed.count,
        "only_parsed": comparison.only_parsed.count,
        "differences": [
            {
                "found": list(difference.found),
                "reasons": list(difference.reasons),
                "words": difference.words,
                "count": difference.count,
                "examples": [asdict(example) for example in difference.examples],
            }
            for difference in comparison.differences
        ],
    }
