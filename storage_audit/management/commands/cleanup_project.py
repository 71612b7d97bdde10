import json
from argparse import ArgumentParser
from uuid import UUID

from django.core.management.base import CommandError
from django.db import transaction

from storage_audit import project_model
from storage_audit.cleanup import end_deletions, requests, runner
from storage_audit.cleanup.cleanup_text import status_label
from storage_audit.cleanup.discovery_and_strategy import MODES, Mode, default_mode
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.models.states import IllegalTransition
from storage_audit.cleanup.requests import ProjectExists
from storage_audit.conf import DISCOVERIES, STRATEGIES, conf
from storage_audit.management.console import (
    EXIT_USAGE,
    KEYS_SHOWN,
    cleanup_json,
    command_context,
    parse_deletion_id,
    parse_project_id,
    plan_lines,
    require_finished,
    result_lines,
)
from storage_audit.management.documented import DocumentedCommand
from storage_audit.models import KnownProject

Status = Cleanup.Status


class Command(DocumentedCommand):
    help = (
        "Cleans up after a project that is deleted: what is its own leaves the bucket, what is in"
        " doubt stays and is shown."
    )
    epilog = """
    examples:
      python manage.py cleanup_project proj_1 --dry-run
      python manage.py cleanup_project proj_1 --run-plan 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983
      python manage.py cleanup_project proj_1 --declare-deleted --sync
      python manage.py cleanup_project proj_1 --again "the lawsuit is over"
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
    leaves out stays and is shown; the rule of who owns a key, the check before each deletion and
    the verification are always the same.

    exit codes:
      0  all that may go is gone, the plan is made, or the cleanup is enqueued
      1  something remains, or the cleanup is blocked: the message and the admin say why
      2  wrong use, also when the project exists, or no deletion of it is on record

    Next: verify_cleanup with the deletion id that this prints. What stays in doubt waits for a
    person: the cleanup's page in the admin shows each key with its reason.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "project",
            metavar="PROJECT_ID",
            type=parse_project_id,
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
            "--run-plan",
            dest="plan",
            metavar="DELETION_ID",
            type=parse_deletion_id,
            help="run exactly the plan of this dry run, whatever its size; without it, a new plan"
            " is made and held against the limits",
        )
        how.add_argument(
            "--again",
            metavar="REASON",
            help="delete the files that stayed when a person cancelled the cleanup, for this"
            " reason, as the settings say; without it, they stay",
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
            help=f"print one JSON object: the cleanups, and the first {KEYS_SHOWN} keys of each",
        )

    def handle(
        self,
        *,
        project: str,
        declare_deleted: bool,
        dry_run: bool,
        plan: UUID | None,
        again: str | None,
        mode: str | None,
        discovery: str | None,
        strategy: str | None,
        sync: bool,
        as_json: bool,
        **options: object,
    ) -> None:
        here = dry_run or sync or conf().sync
        with command_context():
            how = chosen_mode(mode, discovery, strategy, plan)
            if dry_run and declare_deleted:
                text = "--dry-run needs no --declare-deleted: leave it out."
                raise CommandError(text, returncode=EXIT_USAGE)
            if again is not None and (declare_deleted or how != default_mode()):
                text = "--again repeats a cancelled cleanup: leave the other options out."
                raise CommandError(text, returncode=EXIT_USAGE)
            cleanups = self.request(
                project, declare_deleted, dry_run, plan, again, how, enqueue=not here
            )
            if here:
                cleanups = [runner.run_to_end(cleanup.pk) for cleanup in cleanups]
        if as_json:
            self.stdout.write(json.dumps({"cleanups": [cleanup_json(o) for o in cleanups]}))
        else:
            for cleanup in cleanups:
                self.report(cleanup, enqueued=not here)
        if here:
            require_finished(cleanups, self.stderr)

    def request(
        self,
        project: str,
        declare_deleted: bool,
        dry_run: bool,
        plan: UUID | None,
        again: str | None,
        mode: Mode,
        *,
        enqueue: bool,
    ) -> list[Cleanup]:
        try:
            with transaction.atomic():
                if dry_run:
                    cleanups = requests.request_preview(project, mode)
                elif again is not None:
                    cleanups = end_deletions.clean_up_again(project, again)
                else:
                    require_deleted_project(project, declare_deleted)
                    if plan:
                        cleanups = [run_plan(project, plan, declare_deleted)]
                    else:
                        cleanups = requests.declare_deleted(project, mode)
                if enqueue:
                    requests.enqueue_on_commit(cleanups)
        except (ProjectExists, IllegalTransition) as error:
            raise CommandError(str(error), returncode=EXIT_USAGE) from error
        return cleanups

    def report(self, cleanup: Cleanup, *, enqueued: bool) -> None:
        where = f"{cleanup.pk}, project {cleanup.subject}, bucket {cleanup.bucket}"
        if enqueued:
            self.stdout.write(f"Cleanup {where}: enqueued.")
            self.stdout.write(f"Follow it with: manage.py verify_cleanup {cleanup.pk}")
        elif cleanup.dry_run:
            self.stdout.write(f"Plan {where}: {cleanup.get_status_display()}.")
            self.report_plan(cleanup)
        else:
            self.stdout.write(f"Cleanup {where}: {status_label(cleanup)}.")
            for line in result_lines(cleanup):
                self.stdout.write(line)

    def report_plan(self, cleanup: Cleanup) -> None:
        for line in plan_lines(cleanup):
            self.stdout.write(line)
        if cleanup.status != Status.PLANNED:
            return
        if project_model.is_alive(cleanup.project_id):
            self.stdout.write("The project exists. Delete it in the admin to let them go.")
        elif other := requests.find_open_cleanup(cleanup):
            self.stdout.write(
                f"Cleanup {other.pk} of the project is not over, so this plan cannot run. Wait"
                " until that cleanup is over, or force-delete it."
            )
        else:
            again = f"manage.py cleanup_project {cleanup.project_id} --run-plan {cleanup.pk}"
            said = KnownProject.objects.deletion_reported()
            if said.deletion_time(cleanup.project_id or "") is None:
                again += " --declare-deleted"
            self.stdout.write(f"To run exactly this plan: {again}")


def chosen_mode(
    mode: str | None, discovery: str | None, strategy: str | None, plan: UUID | None
) -> Mode:
    """The mode of the options, or of the settings without them."""
    if plan and (mode or discovery or strategy):
        text = "--run-plan runs the plan in the way that it was made for: leave the mode out."
        raise CommandError(text, returncode=EXIT_USAGE)
    if mode and (discovery or strategy):
        text = "--mode stands for a discovery and a strategy: leave out either it or them."
        raise CommandError(text, returncode=EXIT_USAGE)
    found = MODES[mode] if mode else default_mode()
    return Mode(discovery or found.discovery, strategy or found.strategy)


def require_deleted_project(project: str, declare_deleted: bool) -> None:
    """Exit unless the project is known to be deleted, or the option says so. Raises
    IllegalTransition for a vanished project."""
    if project_model.is_alive(project):
        raise CommandError(
            f"Project {project} exists; delete it in the admin (or use --dry-run to see what"
            " would go).",
            returncode=EXIT_USAGE,
        )
    if declare_deleted:
        return
    requests.require_declaration(project)
    if KnownProject.objects.deletion_time(project) is None:
        raise CommandError(
            f"No deletion of a project {project} is on record. If it was deleted before this was"
            " installed, or past Django, add --declare-deleted.",
            returncode=EXIT_USAGE,
        )


def run_plan(project: str, plan: UUID, declare_deleted: bool) -> Cleanup:
    """In the caller's transaction, so that a refused plan declares nothing deleted."""
    planned = Cleanup.objects.filter(pk=plan, project_id=project, status=Status.PLANNED)
    cleanup = planned.first()
    if cleanup is None:
        raise CommandError(
            f"{plan} is no plan of project {project} that waits to be run. Make one with"
            " --dry-run.",
            returncode=EXIT_USAGE,
        )
    if declare_deleted:
        requests.record_deletion(project)
    requests.approve_or_retry(cleanup)
    return cleanup
