from argparse import ArgumentParser
from uuid import UUID

from django.core.management.base import CommandError

from storage_audit.cleanup import make_cleanups, pause_deletions
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.cleanup.pause_deletions import ResumeFigures
from storage_audit.display_formats import format_amount
from storage_audit.management.console import (
    EXIT_FAILED,
    EXIT_USAGE,
    command_context,
    find_cleanup,
    parse_deletion_id,
)
from storage_audit.management.documented import DocumentedCommand
from storage_audit.redaction import printable_text


class Command(DocumentedCommand):
    help = (
        "Shows how much paused deletions would delete, and a code for exactly these figures. With"
        " the code, resumes them. The code is valid for ten minutes."
    )
    epilog = """
    examples:
      python manage.py resume_cleanups
      python manage.py resume_cleanups --confirm 692ec3a0-5d41402abc4b
      python manage.py resume_cleanups --confirm 692ec3a0-5d41402abc4b --over-limits

    exit codes:
      0  the figures are shown; with --confirm, deletions are resumed
      1  the figures have changed, or they are over the safety limit: deletions stay paused
      2  wrong usage, also when deletions are not paused

    Next: cleanups that are due usually start within a minute. deletion_log shows the progress of
    one cleanup.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--cleanup",
            metavar="DELETION_ID",
            type=parse_deletion_id,
            help="resume only this cleanup, if it was paused separately; without it, all deletions",
        )
        parser.add_argument(
            "--confirm",
            metavar="CODE",
            help="resume with this code, which changes when the figures change; without it, the"
            " command shows the figures and their code",
        )
        parser.add_argument(
            "--over-limits",
            action="store_true",
            help="resume even if the deletions together exceed the safety limit",
        )

    def handle(
        self, *, cleanup: UUID | None, confirm: str | None, over_limits: bool, **options: object
    ) -> None:
        found = find_cleanup(cleanup) if cleanup else None
        try:
            figures = pause_deletions.find_resume_figures(found)
        except IllegalTransition as error:
            raise CommandError(str(error), returncode=EXIT_USAGE) from error
        if confirm is None:
            self.show(figures, found)
            return
        with command_context():
            try:
                resumed = pause_deletions.resume_deletions(confirm, found, over_limits=over_limits)
            except IllegalTransition as error:
                self.show(pause_deletions.find_resume_figures(found), found)
                raise CommandError(printable_text(str(error)), returncode=EXIT_FAILED) from error
            for each in resumed:
                make_cleanups.enqueue_cleanup(each.pk)
        self.stdout.write("Deletions are resumed.")

    def show(self, figures: ResumeFigures, cleanup: Cleanup | None) -> None:
        amount = format_amount(figures.objects, figures.size).replace("\xa0", " ")
        self.stdout.write(f"{printable_text(str(figures.pause))}.")
        self.stdout.write(f"Would delete {amount}. Cleanups waiting: {figures.cleanups}.")
        more = f" --cleanup {cleanup.pk}" if cleanup else ""
        if figures.over_limits:
            self.stdout.write(printable_text(figures.over_limits))
            more += " --over-limits"
        self.stdout.write(f"To resume: manage.py resume_cleanups --confirm {figures.digest}{more}")
