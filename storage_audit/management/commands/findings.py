import json
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any
from uuid import UUID

from django.core.management.base import CommandError
from django.db import transaction

from storage_audit.cleanup import requests, runner
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.cleanup.models.states import IllegalTransition
from storage_audit.conf import conf
from storage_audit.exports import csv_lines
from storage_audit.findings import action_result, actions, track_files
from storage_audit.findings.action_result import ActionRefused, Decision
from storage_audit.findings.models import FindingQuerySet
from storage_audit.findings.orphans import delete_orphans
from storage_audit.management.console import (
    FAILED,
    SHOWN,
    WRONG_USE,
    asked_from_shell,
    confirm,
    deletion_id,
    facts_of,
    for_a_reader,
    judge,
    lines_of_plan,
    lines_of_result,
    stored_text,
)
from storage_audit.management.documented import DocumentedCommand
from storage_audit.management.finding_filters import (
    COLUMNS,
    add_choices,
    as_json,
    as_row,
    as_text,
    selection,
)
from storage_audit.reading import read_in_steps
from storage_audit.redaction import visible

Status = CleanupOperation.Status


class Command(DocumentedCommand):
    help = (
        "Lists the differences between bucket and table that complete scans found, or acts on them:"
        " on those that the options choose, and on no others. Of each that it leaves as it is, it"
        " says why."
    )
    epilog = """
    examples:
      python manage.py findings
      python manage.py findings --kind orphaned --csv
      python manage.py findings --kind orphaned --project proj_1 --delete-orphans --dry-run
      python manage.py findings --plan 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983 --sync
      python manage.py findings --prefix logo/ --acknowledge "made by the web site"
      python manage.py findings --key readme.txt --adopt proj_1
      python manage.py findings --kind missing --untrack --no-input
      python manage.py findings --kind misnamed --rename --dry-run
      python manage.py findings --kind unfinished --abort-uploads

    --delete-orphans takes those that two complete scans have seen, long enough apart, and that are
    old enough; says of the others when they may go; and asks the tables again before each
    deletion. --adopt gives objects to a live project, and they go when it does. --track writes what
    the bucket shows into the rows, and --untrack forgets the rows of what is not there. --rename
    has the store copy each object to a key of the current layout, and then deletes the old one, by
    a deletion with an id; stopped at any moment, the same command goes on. --abort-uploads ends
    multipart uploads that nobody completed.

    exit codes:
      0    they are listed; or all that were chosen are dealt with, or enqueued to be
      1    some were left as they are; or what was asked for is blocked or not finished
      2    wrong use, also when nothing says which findings, or there is no such live project
      141  whoever read the list, such as head, had enough

    Next: verify_cleanup with the deletion id that this prints. What stays is a finding until it is
    decided on, or until a complete scan does not see it any more.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_choices(parser)
        add_acts(parser)
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="with --delete-orphans, --rename or --abort-uploads: plan, show what would be done"
            " and what would stay",
        )
        parser.add_argument(
            "--sync",
            action="store_true",
            help="with --delete-orphans or --plan: do the work here and now, without a worker",
        )
        parser.add_argument(
            "--no-input",
            "--yes",
            action="store_false",
            dest="ask",
            help="do not ask for a confirmation; nobody is asked where there is no terminal",
        )
        form = parser.add_mutually_exclusive_group()
        form.add_argument(
            "--json",
            action="store_true",
            dest="as_json",
            help="print one JSON object for each finding; of an act, one that tells all of it",
        )
        form.add_argument(
            "--csv",
            action="store_true",
            dest="as_csv",
            help="print the list as CSV, in which nothing is a formula",
        )

    def handle(self, *, dry_run: bool, sync: bool, ask: bool, **options: Any) -> None:
        act, chosen = act_of(options, dry_run), selection(options)
        deletes = options["delete_orphans"]
        planned = deletes or options["rename"] or options["abort_uploads"]
        refuse(
            dry_run and not planned,
            "--dry-run goes with --delete-orphans, --rename and --abort-uploads.",
        )
        refuse(sync and not (deletes or options["plan"]), "--sync goes with a deletion.")
        if options["plan"]:
            refuse(
                options["state"] or says_which(options),
                "--plan runs all of its plan: leave out --kind, --state, --prefix, --project and"
                " --key.",
            )
            refuse(options["as_csv"], "--csv is for the list; of a plan, --json tells all.")
            operations = self.run_plan(options["plan"], ask)
            self.finish(Decision(operations=operations), sync or conf().sync, options["as_json"])
        elif act is None:
            with for_a_reader():
                self.show(chosen, options)
        else:
            refuse(options["as_csv"], "--csv is for the list; of an act, --json tells all.")
            decision = self.decide(act, chosen, options, ask=ask and not dry_run)
            self.finish(decision, dry_run or sync or conf().sync, options["as_json"])

    def show(self, chosen: FindingQuerySet, options: dict[str, Any]) -> None:
        found = read_in_steps(chosen.order_by("bucket", "key", "pk"))
        if options["as_csv"]:
            for line in csv_lines(chain([COLUMNS], map(as_row, found))):
                self.stdout.write(line, ending="")
            return
        for line in map(as_json if options["as_json"] else as_text, found):
            self.stdout.write(line)

    def decide(
        self,
        act: Callable[[FindingQuerySet], Decision],
        chosen: FindingQuerySet,
        options: dict[str, Any],
        *,
        ask: bool,
    ) -> Decision:
        refuse(
            not says_which(options), "Say which findings: add --kind, --prefix, --project or --key."
        )
        if ask:
            # A scan may find more while the person decides.
            asked = list(chosen.values_list("pk", flat=True))
            confirm(f"This is about {len(asked)} findings. Go on?")
            chosen = chosen.filter(pk__any_of=asked)
        with asked_from_shell():
            try:
                return act(chosen)
            except ActionRefused as error:
                raise CommandError(visible(str(error)), returncode=WRONG_USE) from error

    def run_plan(self, plan: UUID, ask: bool) -> list[CleanupOperation]:
        plans = CleanupOperation.objects.filter(
            kind=CleanupOperation.Kind.ORPHANS, status=Status.PLANNED
        )
        operation = plans.filter(pk=plan).first()
        if operation is None:
            text = f"{plan} is no plan that waits to be run. Make one with --dry-run."
            raise CommandError(text, returncode=WRONG_USE)
        if ask:
            confirm(f"Delete {operation.items.planned().count()} objects?")
        with asked_from_shell():
            try:
                return requests.force_delete_operation(operation)
            except (requests.ProjectExists, IllegalTransition) as error:
                raise CommandError(visible(str(error)), returncode=WRONG_USE) from error

    def finish(self, decision: Decision, here: bool, as_json: bool) -> None:
        """Have the operations run, or run them; tell what came of it all."""
        with asked_from_shell():
            if here:
                decision.operations = [runner.run(each.pk) for each in decision.operations]
            else:
                with transaction.atomic():
                    requests.enqueue_on_commit(decision.operations)
        if as_json:
            self.stdout.write(json.dumps(facts(decision)))
        else:
            for line in told(decision, here):
                self.stdout.write(line)
        if here:
            judge(decision.operations, self.stderr)
        if decision.left:
            text = f"Left as they are: {len(decision.left)} findings."
            raise CommandError(text, returncode=FAILED)


def add_acts(parser: ArgumentParser) -> None:
    # No group of argparse's: its usage is a line too long for a terminal.
    parser.add_argument(
        "--acknowledge",
        metavar="NOTE",
        help="they may stay as they are, and this is why; without it, nothing is acknowledged",
    )
    parser.add_argument("--reopen", action="store_true", help="take acknowledgements back")
    parser.add_argument(
        "--delete-orphans", action="store_true", help="delete the objects, by a cleanup operation"
    )
    parser.add_argument(
        "--plan",
        metavar="DELETION_ID",
        type=deletion_id,
        help="run exactly the plan that --delete-orphans --dry-run made, whatever its size;"
        " without it, a new plan is held against the limits",
    )
    parser.add_argument(
        "--adopt",
        metavar="PROJECT",
        type=stored_text,
        help="give the objects to this live project; without it, they stay whose they are",
    )
    parser.add_argument(
        "--track", action="store_true", help="have rows say what the bucket shows by now"
    )
    parser.add_argument(
        "--untrack", action="store_true", help="forget the rows of what is not in the bucket"
    )
    parser.add_argument(
        "--rename", action="store_true", help="give misnamed objects keys of the current layout"
    )
    parser.add_argument(
        "--abort-uploads", action="store_true", help="abort unfinished multipart uploads"
    )


def refuse(wrong: object, text: str) -> None:
    if wrong:
        raise CommandError(text, returncode=WRONG_USE)


def says_which(options: dict[str, Any]) -> bool:
    return any(options[name] for name in ("kind", "prefix", "project", "key"))


def act_of(options: dict[str, Any], dry_run: bool) -> Callable[[FindingQuerySet], Decision] | None:
    acts: dict[str, Callable[[FindingQuerySet], Decision]] = {
        "acknowledge": partial(action_result.acknowledge, note=options["acknowledge"]),
        "reopen": action_result.reopen,
        "delete_orphans": partial(delete_orphans, dry_run=dry_run),
        "adopt": partial(track_files.adopt, project_id=options["adopt"]),
        "track": track_files.track,
        "untrack": track_files.untrack,
        "rename": partial(actions.rename_objects, dry_run=dry_run),
        "abort_uploads": partial(actions.abort_uploads, dry_run=dry_run),
    }
    # An empty note, or id, was given all the same.
    asked = [name for name in (*acts, "plan") if options[name] not in (None, False)]
    refuse(len(asked) > 1, "Ask for one thing at a time.")
    return acts.get(asked[0]) if asked else None


def facts(decision: Decision) -> dict[str, Any]:
    return {
        "done": decision.done,
        "operations": [facts_of(operation) for operation in decision.operations],
        "left": [left._asdict() for left in decision.left],
        "results": [result._asdict() for result in decision.results],
    }


def told(decision: Decision, here: bool) -> Iterator[str]:
    if decision.is_plan:
        yield f"Findings that would be dealt with: {decision.done}. Nothing was changed."
    elif decision.done or not decision.operations:
        yield f"Findings dealt with: {decision.done}."
    for result in decision.results[:SHOWN]:
        yield f"  {visible(result.key)} -> {visible(result.result)}"
    for operation in decision.operations:
        yield from shown(operation, here)
    for left in decision.left[:SHOWN]:
        yield f"  left: {visible(left.key)}: {visible(left.reason)}"
    if (more := max(len(decision.left), len(decision.results)) - SHOWN) > 0:
        yield f"  and {more} more; --json tells of all."


def shown(operation: CleanupOperation, here: bool) -> Iterator[str]:
    where = f"{operation.pk}, {visible(operation.subject)}, bucket {operation.bucket}"
    if not here:
        yield f"Deletion {where}: enqueued."
        yield f"Follow it with: manage.py verify_cleanup {operation.pk}"
    elif operation.dry_run:
        yield f"Plan {where}: {operation.get_status_display()}."
        yield from lines_of_plan(operation)
        yield f"To run exactly this plan: manage.py findings --plan {operation.pk}"
    else:
        yield f"Deletion {where}: {operation.get_status_display()}."
        yield from lines_of_result(operation)
