import json
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError

from storage_audit.debug.discovery_comparison import (
    MAX_EXAMPLES_KEPT,
    Comparison,
    compare_all_buckets,
)
from storage_audit.management.console import EXIT_FAILED, command_context, parse_project_id
from storage_audit.management.documented import DocumentedCommand
from storage_audit.redaction import printable_text


class Command(DocumentedCommand):
    help = (
        "Lists the bucket and shows what a project has in three ways, and why they differ: what its"
        " rows track, what a cleanup would find and take, and what the keys alone say, without the"
        " database. For live, deleted and unknown projects. Changes nothing."
    )
    epilog = """
    examples:
      python manage.py compare_discovery proj_1
      python manage.py compare_discovery proj_1 --json

    exit codes:
      0  the three find the same
      1  they differ, or the bucket could not be listed to its end
      2  wrong use, also when this can be no project's id

    Next: backfill_r2 tracks what no row tracks. What may be another project's, a cleanup keeps: its
    cleanup's page in the admin shows each such key, and a person decides.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "project",
            metavar="PROJECT_ID",
            type=parse_project_id,
            help="the id of a project, also of one that is deleted",
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
            raise CommandError("They differ; the reasons are above.", returncode=EXIT_FAILED)

    def report(self, comparison: Comparison) -> None:
        counts = ", ".join(
            f"{keys.count} {way.label}" for way, keys in comparison.keys_by_method.items()
        )
        where = f"{comparison.project_id} in bucket {printable_text(comparison.bucket)}"
        self.stdout.write(f"{where}: {counts}.")
        if comparison.agrees:
            self.stdout.write("All three find the same.")
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
