import json
from argparse import ArgumentParser
from uuid import UUID

from django.core.management.base import CommandError
from django.db import transaction

from storage_audit import project_model
from storage_audit.cleanup import requests, runner
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.cleanup.models.states import IllegalTransition
from storage_audit.cleanup.modes import MODES, Mode, usual
from storage_audit.cleanup.requests import ProjectExists
from storage_audit.conf import DISCOVERIES, STRATEGIES, conf
from storage_audit.management.console import (
    SHOWN,
    WRONG_USE,
    asked_from_shell,
    deletion_id,
    facts_of,
    judge,
    lines_of_plan,
    lines_of_result,
    project_id,
)
from storage_audit.management.documented import DocumentedCommand
from storage_audit.models import KnownProject

Status = CleanupOperation.Status


class Command(DocumentedCommand):
    help = (
        "Cleans up after a project that is deleted: what is its own leaves the bucket, what is in"
        " doubt stays and is shown."
    )
    epilog = """
    examples:
      python manage.py cleanup_project proj_1 --dry-run
      python manage.py cleanup_project proj_1 --plan 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983
      python manage.py cleanup_project proj_1 --declare-deleted --sync
      python manage.py cleanup_project proj_1 --mode s3
      python manage.py cleanup_project proj_1 --discovery tracked --strategy parallel

    modes:
      database    tracked objects, many in a call: --discovery tracked --strategy batch
      s3          listed objects, many in a call: --discovery listed --strategy batch
      wrangler    listed objects, wrangler for each, some at once: --discovery listed
                  --strategy wrangler
      sequential  listed objects, wrangler for each, one after the other: --discovery listed
                  --strategy wrangler_sequential

    Without any, the settings CLEANUP_DISCOVERY and CLEANUP_STRATEGY say how. What the discovery
    leaves out stays and is shown; the rule of who owns a key, the look before each deletion and
    the verification are always the same.

    exit codes:
      0  all that may go is gone, the plan is made, or the cleanup is enqueued
      1  something remains, or the cleanup is blocked: the message and the admin say why
      2  wrong use, also when the project exists, or no deletion of it is on record

    Next: verify_cleanup with the deletion id that this prints. What stays in doubt waits for a
    person: the operation's page in the admin shows each key with its reason.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "project",
            metavar="PROJECT_ID",
            type=project_id,
            help="the id of a project that is deleted; with --dry-run it may be a live one",
        )
        parser.add_argument(
            "--declare-deleted",
            action="store_true",
            help="say that the id belonged to a project that was deleted before this was"
            " installed, or past Django; without it, a deletion must be on record",
        )
        how = parser.add_mutually_exclusive_group()
        how.add_argument(
            "--dry-run",
            action="store_true",
            help="plan, show what would go and what would stay, and delete nothing",
        )
        how.add_argument(
            "--plan",
            metavar="DELETION_ID",
            type=deletion_id,
            help="run exactly the plan of this dry run, whatever its size; without it, a new plan"
            " is made and held against the limits",
        )
        parser.add_argument(
            "--mode",
            choices=sorted(MODES),
            help="discovery and strategy by one name; without it, the next two options or the"
            " settings say them",
        )
        parser.add_argument(
            "--discovery",
            choices=DISCOVERIES,
            help="delete only what is tracked, or only what is listed (default: the setting"
            " CLEANUP_DISCOVERY)",
        )
        parser.add_argument(
            "--strategy",
            metavar="STRATEGY",
            choices=STRATEGIES,
            help=f"how to ask for the deletions: {', '.join(STRATEGIES)} (default: the setting"
            " CLEANUP_STRATEGY)",
        )
        parser.add_argument(
            "--sync",
            action="store_true",
            help="do the work here and now, and enqueue nothing: no worker is needed",
        )
        parser.add_argument(
            "--json",
            action="store_true",
            dest="as_json",
            help=f"print one JSON object: the operations, and the first {SHOWN} keys of each",
        )

    def handle(
        self,
        *,
        project: str,
        declare_deleted: bool,
        dry_run: bool,
        plan: UUID | None,
        mode: str | None,
        discovery: str | None,
        strategy: str | None,
        sync: bool,
        as_json: bool,
        **options: object,
    ) -> None:
        here = dry_run or sync or conf().sync
        with asked_from_shell():
            how = chosen(mode, discovery, strategy, plan)
            if dry_run and declare_deleted:
                text = "--dry-run needs no --declare-deleted: leave it out."
                raise CommandError(text, returncode=WRONG_USE)
            operations = self.request(
                project, declare_deleted, dry_run, plan, how, enqueue=not here
            )
            if here:
                operations = [runner.run(operation.pk) for operation in operations]
        if as_json:
            self.stdout.write(json.dumps({"operations": [facts_of(o) for o in operations]}))
        else:
            for operation in operations:
                self.report(operation, enqueued=not here)
        if here:
            judge(operations, self.stderr)

    def request(
        self,
        project: str,
        declare_deleted: bool,
        dry_run: bool,
        plan: UUID | None,
        mode: Mode,
        *,
        enqueue: bool,
    ) -> list[CleanupOperation]:
        try:
            with transaction.atomic():
                if dry_run:
                    operations = requests.dry_run(project, mode)
                else:
                    refuse(project, declare_deleted)
                    if plan:
                        operations = [execute(project, plan, declare_deleted)]
                    else:
                        operations = requests.declare_deleted(project, mode)
                if enqueue:
                    requests.enqueue_on_commit(operations)
        except (ProjectExists, IllegalTransition) as error:
            raise CommandError(str(error), returncode=WRONG_USE) from error
        return operations

    def report(self, operation: CleanupOperation, *, enqueued: bool) -> None:
        where = f"{operation.pk}, project {operation.subject}, bucket {operation.bucket}"
        if enqueued:
            self.stdout.write(f"Cleanup {where}: enqueued.")
            self.stdout.write(f"Follow it with: manage.py verify_cleanup {operation.pk}")
        elif operation.dry_run:
            self.stdout.write(f"Plan {where}: {operation.get_status_display()}.")
            self.report_plan(operation)
        else:
            self.stdout.write(f"Cleanup {where}: {operation.get_status_display()}.")
            for line in lines_of_result(operation):
                self.stdout.write(line)

    def report_plan(self, operation: CleanupOperation) -> None:
        for line in lines_of_plan(operation):
            self.stdout.write(line)
        if operation.status != Status.PLANNED:
            return
        if project_model.is_alive(operation.project_id):
            self.stdout.write("The project exists. Delete it in the admin to let them go.")
        elif other := requests.cleanup_beside(operation):
            self.stdout.write(
                f"Cleanup {other.pk} of the project is not over, so this plan cannot run. Wait"
                " until that cleanup is over, or force-delete it."
            )
        else:
            again = f"manage.py cleanup_project {operation.project_id} --plan {operation.pk}"
            said = KnownProject.objects.said()
            if said.time_of_deletion(operation.project_id or "") is None:
                again += " --declare-deleted"
            self.stdout.write(f"To run exactly this plan: {again}")


def chosen(
    mode: str | None, discovery: str | None, strategy: str | None, plan: UUID | None
) -> Mode:
    """What the options say; the settings where they say nothing."""
    if plan and (mode or discovery or strategy):
        text = "--plan runs the plan in the way that it was made for: leave the mode out."
        raise CommandError(text, returncode=WRONG_USE)
    if mode and (discovery or strategy):
        text = "--mode stands for a discovery and a strategy: leave out either it or them."
        raise CommandError(text, returncode=WRONG_USE)
    found = MODES[mode] if mode else usual()
    return Mode(discovery or found.discovery, strategy or found.strategy)


def refuse(project: str, declare_deleted: bool) -> None:
    """Stop unless the project is known to be deleted, or the option says that it is. Raises
    IllegalTransition for a project that vanished."""
    if project_model.is_alive(project):
        raise CommandError(
            f"Project {project} exists; delete it in the admin (or use --dry-run to see what"
            " would go).",
            returncode=WRONG_USE,
        )
    if declare_deleted:
        return
    requests.refuse_undeclared(project)
    if KnownProject.objects.time_of_deletion(project) is None:
        raise CommandError(
            f"No deletion of a project {project} is on record. If it was deleted before this was"
            " installed, or past Django, add --declare-deleted.",
            returncode=WRONG_USE,
        )


def execute(project: str, plan: UUID, declare_deleted: bool) -> CleanupOperation:
    """In the caller's transaction, so that a plan that is refused declares nothing deleted."""
    planned = CleanupOperation.objects.filter(pk=plan, project_id=project, status=Status.PLANNED)
    operation = planned.first()
    if operation is None:
        raise CommandError(
            f"{plan} is no plan of project {project} that waits to be run. Make one with"
            " --dry-run.",
            returncode=WRONG_USE,
        )
    if declare_deleted:
        requests.declare(project)
    requests.force_delete_operation(operation)
    return operation
