import logging
from argparse import ArgumentParser
from uuid import UUID

from django.core.management.base import CommandError
from django.utils import timezone

from storage_audit import logs, tasks
from storage_audit.cleanup import runner, vanished_projects
from storage_audit.cleanup.models import Cleanup
from storage_audit.management.console import EXIT_FAILED, command_context
from storage_audit.management.documented import DocumentedCommand
from storage_audit.redaction import printable_text

logger = logging.getLogger(__name__)


class Command(DocumentedCommand):
    help = (
        "Notices projects that are gone without a signal, and enqueues each cleanup that is due and"
        " was forgotten. The worker does so twice a minute; cron can do it as well. Safe to repeat."
    )
    epilog = """
    examples:
      python manage.py sweep_cleanups
      python manage.py sweep_cleanups --sync

    exit codes:
      0  what was due is enqueued; with --sync, it was run, and ended as is printed
      1  with --sync: a cleanup stopped with an error, which is in the log; it is tried again
      2  wrong use

    Next: a project found gone has a blocked cleanup in the admin. Force-delete it if its files are
    to go, or restore the project.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--sync",
            action="store_true",
            help="run what is due here and now, and enqueue nothing: no worker is needed",
        )

    def handle(self, *, sync: bool, **options: object) -> None:
        with command_context():
            if sync:
                self.report_vanished(vanished_projects.check_vanished_projects())
                self.run_due()
            else:
                figures = tasks.sweep()
                self.report_vanished(figures["vanished"])
                self.stdout.write(f"Cleanups enqueued: {figures['enqueued']}.")

    def report_vanished(self, count: int) -> None:
        self.stdout.write(f"Projects found gone without a signal: {count}.")
        if count:
            self.stdout.write("Their cleanups are blocked until a person approves them.")

    def run_due(self) -> None:
        tasks.bring_work_forward(timezone.now())
        due = Cleanup.objects.due().order_by("next_attempt_at")
        ids = list(due.values_list("pk", flat=True))
        broken = [cleanup_id for cleanup_id in ids if not self.run_cleanup(cleanup_id)]
        self.stdout.write(f"Cleanups run: {len(ids)}.")
        if broken:
            raise CommandError(
                f"{len(broken)} of them stopped with an error that is in the log and will be"
                f" tried again: {', '.join(map(str, broken))}",
                returncode=EXIT_FAILED,
            )

    def run_cleanup(self, deletion_id: UUID) -> bool:
        """Errors are logged, so that one cleanup does not keep the others from running."""
        try:
            cleanup = runner.run_to_end(deletion_id)
        except Exception:
            with logs.deletion_context(deletion_id):
                logger.exception("%s failed", deletion_id)
            return False
        status = f"{cleanup.get_status_display()}. {printable_text(cleanup.message)}"
        self.stdout.write(f"{deletion_id}: {status.rstrip()}")
        return True
