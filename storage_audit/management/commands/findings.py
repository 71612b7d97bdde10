import json
from argparse import ArgumentParser
from collections.abc import Iterator
from itertools import chain
from typing import Any
from uuid import UUID

from django.core.management.base import CommandError
from django.db import transaction
from django.utils.translation import ngettext

from storage_audit.cleanup import make_cleanups, requests, runner
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.conf import conf
from storage_audit.display_formats import format_amount
from storage_audit.exports import csv_lines
from storage_audit.findings import actions
from storage_audit.findings.action_result import ActionRefused, Decision
from storage_audit.findings.actions import FindingAction
from storage_audit.findings.models import FindingQuerySet
from storage_audit.management.console import (
    EXIT_FAILED,
    EXIT_USAGE,
    KEYS_SHOWN,
    cleanup_json,
    command_context,
    confirm_or_exit,
    exit_on_closed_pipe,
    parse_deletion_id,
    plan_lines,
    require_finished,
    result_lines,
    storable_text,
)
from storage_audit.management.documented import DocumentedCommand
from storage_audit.management.finding_filters import (
    FINDING_COLUMNS,
    add_filters,
    finding_json,
    finding_row,
    finding_text,
    select_findings,
)
from storage_audit.project_model import ProjectExists
from storage_audit.read_in_steps import read_in_steps
from storage_audit.redaction import printable_text

Status = Cleanup.Status
NO_CSV_TEXT = "--csv is for the list of findings: use --json instead."
ACTIONS_BY_OPTION = {
    "ignore": actions.IGNORE,
    "reopen": actions.REOPEN,
    "delete": actions.DELETE_OBJECTS,
    "assign": actions.ASSIGN,
    "track": actions.TRACK,
    "untrack": actions.UNTRACK,
    "rename": actions.RENAME,
    "abort_uploads": actions.ABORT,
}


class Command(DocumentedCommand):
    help = (
        "Lists what complete scans found, or acts on the findings that the options select. Says why"
        " it skips a finding."
    )
    epilog = """
    examples:
      python manage.py findings
      python manage.py findings --kind orphaned --csv
      python manage.py findings --kind orphaned --project proj_1 --delete --dry-run
      python manage.py findings --run-plan 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983 --sync
      python manage.py findings --prefix logo/ --ignore "made by the web site"
      python manage.py findings --key readme.txt --assign proj_1
      python manage.py findings --kind missing --untrack --no-input
      python manage.py findings --kind misnamed --rename --dry-run
      python manage.py findings --kind unfinished --abort-uploads

    --delete takes leftover files that are old enough and that two complete scans have seen, some
    time apart. It says when the others can be deleted, and checks each file again before it is
    deleted. --assign gives files to an existing project, and they are deleted with it. --track
    updates the tracked values to those in the bucket, and --untrack forgets files that are not in
    the bucket. --rename copies each file to its new name, then deletes the old one; to continue
    after an interruption, run the same command again.

    exit codes:
      0    the findings are listed, or all selected ones are settled or queued
      1    some were skipped, or a cleanup needs approval or is not finished
      2    wrong usage, also when no findings are selected, or the project does not exist
      141  the reader of the output, such as head, closed the pipe

    Next: verify_cleanup with the deletion ID that this prints. A skipped finding stays until you
    decide on it, or a complete scan no longer sees it.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_filters(parser)
        add_actions(parser)
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="with --delete, --rename or --abort-uploads: show what would be done and what"
            " would be skipped",
        )
        parser.add_argument(
            "--sync",
            action="store_true",
            help="with --delete or --run-plan: do the work now, in this process",
        )
        parser.add_argument(
            "--no-input",
            "--yes",
            action="store_false",
            dest="ask",
            help="do not ask for confirmation (the default without a terminal)",
        )
        form = parser.add_mutually_exclusive_group()
        form.add_argument(
            "--json",
            action="store_true",
            dest="as_json",
            help="print one JSON object for each finding, or one for the action",
        )
        form.add_argument(
            "--csv",
            action="store_true",
            dest="as_csv",
            help="print the list as CSV that is safe to open in a spreadsheet",
        )

    def handle(self, *, dry_run: bool, sync: bool, ask: bool, **options: Any) -> None:
        act, chosen = chosen_action(options), select_findings(options)
        refuse_if(
            dry_run and not (act and act.has_dry_run),
            "--dry-run goes with --delete, --rename and --abort-uploads.",
        )
        deletes = options["delete"] or options["run_plan"]
        refuse_if(sync and not deletes, "--sync goes with --delete and --run-plan.")
        if options["run_plan"]:
            refuse_if(
                options["state"] or has_filter(options),
                "--run-plan runs the whole plan: leave out --kind, --state, --prefix, --project"
                " and --key.",
            )
            refuse_if(options["as_csv"], NO_CSV_TEXT)
            cleanups = self.run_plan(options["run_plan"], ask)
            self.finish(Decision(cleanups=cleanups), sync or conf().sync, options["as_json"])
        elif act is None:
            with exit_on_closed_pipe():
                self.show(chosen, options)
        else:
            refuse_if(options["as_csv"], NO_CSV_TEXT)
            decision = self.decide(act, chosen, options, dry_run=dry_run, ask=ask and not dry_run)
            self.finish(decision, dry_run or sync or conf().sync, options["as_json"])

    def show(self, chosen: FindingQuerySet, options: dict[str, Any]) -> None:
        found = read_in_steps(chosen.order_by("bucket", "key", "pk"))
        if options["as_csv"]:
            for line in csv_lines(chain([FINDING_COLUMNS], map(finding_row, found))):
                self.stdout.write(line, ending="")
            return
        for line in map(finding_json if options["as_json"] else finding_text, found):
            self.stdout.write(line)

    def decide(
        self,
        act: FindingAction,
        chosen: FindingQuerySet,
        options: dict[str, Any],
        *,
        dry_run: bool,
        ask: bool,
    ) -> Decision:
        refuse_if(
            not has_filter(options), "Select findings with --kind, --prefix, --project or --key."
        )
        if ask:
            # Fix the selection, as a scan may find more while the person decides.
            asked = list(chosen.values_list("pk", flat=True))
            confirm_or_exit(f"{act.label}: continue with {count_text(len(asked))}?")
            chosen = chosen.filter(pk__any_of=asked)
        how: dict[str, Any] = {"dry_run": dry_run} if act.has_dry_run else {}
        if act.argument:
            how[act.argument] = options[act.name]
        with command_context():
            try:
                return act.decide(chosen, **how)
            except ActionRefused as error:
                raise CommandError(printable_text(str(error)), returncode=EXIT_USAGE) from error

    def run_plan(self, plan: UUID, ask: bool) -> list[Cleanup]:
        plans = Cleanup.objects.filter(kind=Cleanup.Kind.ORPHANS, status=Status.PLANNED)
        cleanup = plans.filter(pk=plan).first()
        if cleanup is None:
            text = f"{plan} is not a preview that can be run. Make one with --dry-run."
            raise CommandError(text, returncode=EXIT_USAGE)
        if ask:
            amount = cleanup.items.by_outcome().get(CleanupItem.Outcome.TO_DELETE, (0, 0))
            confirm_or_exit(f"Delete {format_amount(*amount)}? You can't undo this.")
        with command_context():
            try:
                return requests.approve_or_retry(cleanup)
            except (ProjectExists, IllegalTransition) as error:
                raise CommandError(printable_text(str(error)), returncode=EXIT_USAGE) from error

    def finish(self, decision: Decision, here: bool, as_json: bool) -> None:
        """Run or enqueue the cleanups, and report the result."""
        with command_context():
            if here:
                decision.cleanups = [runner.run_to_end(each.pk) for each in decision.cleanups]
            else:
                with transaction.atomic():
                    make_cleanups.enqueue_on_commit(decision.cleanups)
        if as_json:
            self.stdout.write(json.dumps(decision_json(decision)))
        else:
            for line in decision_lines(decision, here):
                self.stdout.write(line)
        if here:
            require_finished(decision.cleanups, self.stderr)
        if decision.skipped:
            text = f"Skipped {count_text(len(decision.skipped))}."
            raise CommandError(text, returncode=EXIT_FAILED)


def add_actions(parser: ArgumentParser) -> None:
    # No argparse group, as its usage line is too long for a terminal.
    parser.add_argument(
        "--ignore",
        metavar="NOTE",
        help="ignore the findings, so cleanups keep their files; NOTE says why (default: ignore"
        " none)",
    )
    parser.add_argument("--reopen", action="store_true", help="open ignored findings again")
    parser.add_argument(
        "--delete", action="store_true", help="delete leftover files with a cleanup"
    )
    parser.add_argument(
        "--run-plan",
        metavar="DELETION_ID",
        type=parse_deletion_id,
        help="run exactly the plan of --delete --dry-run, whatever its size (default: make a new"
        " plan,"
        " with safety limits)",
    )
    parser.add_argument(
        "--assign",
        metavar="PROJECT",
        type=storable_text,
        help="assign the files to this existing project (default: assign none)",
    )
    parser.add_argument(
        "--track", action="store_true", help="track the files as they are in the bucket"
    )
    parser.add_argument(
        "--untrack", action="store_true", help="untrack files that are not in the bucket"
    )
    parser.add_argument("--rename", action="store_true", help="rename files with old names")
    parser.add_argument(
        "--abort-uploads", action="store_true", help="abort unfinished multipart uploads"
    )


def refuse_if(wrong: object, text: str) -> None:
    if wrong:
        raise CommandError(text, returncode=EXIT_USAGE)


def count_text(findings: int) -> str:
    return ngettext("%d finding", "%d findings", findings) % findings


def has_filter(options: dict[str, Any]) -> bool:
    return any(options[name] for name in ("kind", "prefix", "project", "key"))


def chosen_action(options: dict[str, Any]) -> FindingAction | None:
    # An empty note or id counts as given.
    asked = [
        name for name in (*ACTIONS_BY_OPTION, "run_plan") if options[name] not in (None, False)
    ]
    refuse_if(len(asked) > 1, "Choose one action at a time.")
    return ACTIONS_BY_OPTION.get(asked[0]) if asked else None


def decision_json(decision: Decision) -> dict[str, Any]:
    return {
        "done": decision.done,
        "cleanups": [cleanup_json(cleanup) for cleanup in decision.cleanups],
        "left": [left._asdict() for left in decision.skipped],
        "results": [result._asdict() for result in decision.results],
    }


def decision_lines(decision: Decision, here: bool) -> Iterator[str]:
    if decision.is_preview:
        yield f"Would act on {count_text(decision.done)}. Nothing was changed."
    elif decision.done or not decision.cleanups:
        yield f"Settled {count_text(decision.done)}."
    for result in decision.results[:KEYS_SHOWN]:
        yield f"  {printable_text(result.key)} -> {printable_text(result.result)}"
    for cleanup in decision.cleanups:
        yield from cleanup_lines(cleanup, here)
    for left in decision.skipped[:KEYS_SHOWN]:
        yield f"  skipped: {printable_text(left.key)}: {printable_text(left.reason)}"
    if (more := max(len(decision.skipped), len(decision.results)) - KEYS_SHOWN) > 0:
        yield f"  and {more} more; --json shows all"


def cleanup_lines(cleanup: Cleanup, here: bool) -> Iterator[str]:
    where = f"{cleanup.pk}, {printable_text(cleanup.subject)}, bucket {cleanup.bucket}"
    if not here:
        yield f"Cleanup {where}: queued. Usually starts within a minute."
        yield f"To follow: manage.py deletion_log {cleanup.pk} --follow"
        return
    yield f"Cleanup {where}: {cleanup.get_status_display()}."
    if cleanup.dry_run:
        yield from plan_lines(cleanup)
        yield f"To delete exactly these files: manage.py findings --run-plan {cleanup.pk}"
    else:
        yield from result_lines(cleanup)
