import json
from argparse import ArgumentParser
from uuid import UUID

from django.core.management.base import CommandError
from django.db import transaction

from storage_audit import project_model
from storage_audit.cleanup import end_deletions, make_cleanups, requests, runner
from storage_audit.cleanup.cleanup_text import status_label
from storage_audit.cleanup.discovery_and_strategy import MODES, Mode, default_mode
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
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
from storage_audit.project_model import ProjectExists

Status = Cleanup.Status


class Command(DocumentedCommand):
    help = (
        "Deletes a deleted project's files from the bucket. Keeps files that may belong to another"
        " project, and says why."
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
      database    tracked files, many in one request: --discovery tracked --strategy batch
      s3          listed files, many in one request: --discovery listed --strategy batch
      wrangler    listed files, one wrangler call each, several at once: --discovery listed
                  --strategy wrangler
      sequential  listed files, one wrangler call each, one at a time: --discovery listed
                  --strategy wrangler_sequential

    Without these options, the settings CLEANUP_DISCOVERY and CLEANUP_STRATEGY apply. Files that the
    discovery leaves out are kept and shown. The ownership rule, the check before each deletion and
    the verification are the same in all modes.

    exit codes:
      0  all files that may be deleted are gone, or the preview is ready, or the cleanup is queued
      1  files are left, or the cleanup needs approval: the message and the admin say why
      2  wrong usage, also when the project exists, or no deletion of it is recorded

    Next: verify_cleanup with the deletion ID that this prints. The cleanup's page in the admin
    shows each kept file with its reason.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "project",
            metavar="PROJECT_ID",
            type=parse_project_id,
            help="the ID of a deleted project; with --dry-run, also of a live one",
        )
        parser.add_argument(
            "--declare-deleted",
            action="store_true",
            help="confirm that the project was deleted, before this app was installed or outside"
            " Django; without it, the deletion must be recorded",
        )
        how = parser.add_mutually_exclusive_group()
        how.add_argument(
            "--dry-run",
            action="store_true",
            help="show the files that would be deleted and kept; delete nothing",
        )
        how.add_argument(
            "--run-plan",
            dest="plan",
            metavar="DELETION_ID",
            type=parse_deletion_id,
            help="delete exactly the files of this dry run, without safety limits; without it, the"
            " command makes a new plan, with safety limits",
        )
        how.add_argument(
            "--again",
            metavar="REASON",
            help="delete the files that were kept when somebody cancelled the cleanup; without it,"
            " these files are kept",
        )
        parser.add_argument(
            "--mode",
            choices=sorted(MODES),
            help="discovery and strategy under one name; without it, the next two options or the"
            " settings apply",
        )
        parser.add_argument(
            "--discovery",
            choices=DISCOVERIES,
            help="delete only tracked files, or only listed files (default: the setting"
            " CLEANUP_DISCOVERY)",
        )
        parser.add_argument(
            "--strategy",
            metavar="STRATEGY",
            choices=STRATEGIES,
            help=f"how to delete: {', '.join(STRATEGIES)} (default: the setting CLEANUP_STRATEGY)",
        )
        parser.add_argument(
            "--sync",
            action="store_true",
            help="do the work now, in this process; needs no worker",
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
                text = "Leave out --declare-deleted: --dry-run does not need it."
                raise CommandError(text, returncode=EXIT_USAGE)
            if again is not None and (declare_deleted or how != default_mode()):
                text = "Leave out the other options: --again repeats the cancelled cleanup."
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
                    make_cleanups.enqueue_on_commit(cleanups)
        except (ProjectExists, IllegalTransition) as error:
            raise CommandError(str(error), returncode=EXIT_USAGE) from error
        return cleanups

    def report(self, cleanup: Cleanup, *, enqueued: bool) -> None:
        where = f"{cleanup.pk}, project {cleanup.subject}, bucket {cleanup.bucket}"
        if enqueued:
            self.stdout.write(f"Cleanup {where}: queued. Usually starts within a minute.")
            self.stdout.write(f"To follow: manage.py deletion_log {cleanup.pk} --follow")
            return
        self.stdout.write(f"Cleanup {where}: {status_label(cleanup)}.")
        if cleanup.dry_run:
            self.report_plan(cleanup)
        else:
            for line in result_lines(cleanup):
                self.stdout.write(line)

    def report_plan(self, cleanup: Cleanup) -> None:
        for line in plan_lines(cleanup):
            self.stdout.write(line)
        if cleanup.status != Status.PLANNED:
            return
        if project_model.is_alive(cleanup.project_id):
            self.stdout.write(
                "The project exists. To delete these files, delete the project in the admin."
            )
        elif other := requests.find_open_cleanup(cleanup):
            self.stdout.write(
                f"This preview can't run yet: cleanup {other.pk} of the project is still open. Wait"
                " until it ends, or approve or cancel it in the admin."
            )
        else:
            again = f"manage.py cleanup_project {cleanup.project_id} --run-plan {cleanup.pk}"
            said = KnownProject.objects.deletion_reported()
            if said.deletion_time(cleanup.project_id or "") is None:
                again += " --declare-deleted"
            self.stdout.write(f"To delete exactly these files: {again}")


def chosen_mode(
    mode: str | None, discovery: str | None, strategy: str | None, plan: UUID | None
) -> Mode:
    """The mode of the options, or of the settings without them."""
    if plan and (mode or discovery or strategy):
        text = "Leave out the mode: --run-plan uses the mode of the dry run."
        raise CommandError(text, returncode=EXIT_USAGE)
    if mode and (discovery or strategy):
        text = "Use either --mode, or --discovery and --strategy."
        raise CommandError(text, returncode=EXIT_USAGE)
    found = MODES[mode] if mode else default_mode()
    return Mode(discovery or found.discovery, strategy or found.strategy)


def require_deleted_project(project: str, declare_deleted: bool) -> None:
    """Exit unless the project is known to be deleted, or the option says so. Raises
    IllegalTransition for a vanished project."""
    if project_model.is_alive(project):
        raise CommandError(
            f"Project {project} exists, so nothing was deleted. Delete the project in the admin, or"
            " use --dry-run.",
            returncode=EXIT_USAGE,
        )
    if declare_deleted:
        return
    requests.require_declaration(project)
    if KnownProject.objects.deletion_time(project) is None:
        raise CommandError(
            f"No deletion of project {project} is recorded, so nothing was deleted. If the project"
            " was deleted before this app was installed, or outside Django, add --declare-deleted.",
            returncode=EXIT_USAGE,
        )


def run_plan(project: str, plan: UUID, declare_deleted: bool) -> Cleanup:
    """In the caller's transaction, so that a refused plan declares nothing deleted."""
    planned = Cleanup.objects.filter(pk=plan, project_id=project, status=Status.PLANNED)
    cleanup = planned.first()
    if cleanup is None:
        raise CommandError(
            f"{plan} is not a preview of project {project} that can be run. Make one with"
            " --dry-run.",
            returncode=EXIT_USAGE,
        )
    if declare_deleted:
        requests.record_deletion(project)
    requests.approve_or_retry(cleanup)
    return cleanup
