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
        "Queues each cleanup that is due but not queued, and finds projects that disappeared"
        " without a recorded deletion. The worker does this twice a minute. You can also run it"
        " from cron. Safe to repeat."
    )
    epilog = """
    examples:
      python manage.py sweep_cleanups
      python manage.py sweep_cleanups --sync

    exit codes:
      0  all cleanups that were due are queued; with --sync, they ran
      1  with --sync: a cleanup stopped with an error; the log has the details, and it is retried
      2  wrong usage

    Next: each project that disappeared has a cleanup in the admin that needs a decision. Approve
    the cleanup to delete the files, or restore the project.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--sync",
            action="store_true",
            help="run the due cleanups now, in this process; needs no worker",
        )

    def handle(self, *, sync: bool, **options: object) -> None:
        with command_context():
            if sync:
                self.report_vanished(vanished_projects.check_vanished_projects())
                self.run_due()
            else:
                figures = tasks.sweep()
                self.report_vanished(figures["vanished"])
                self.stdout.write(f"Cleanups queued: {figures['enqueued']}.")

    def report_vanished(self, count: int) -> None:
        self.stdout.write(f"Projects that disappeared: {count}.")
        if count:
            self.stdout.write("Their files are kept until you decide on them in the admin.")

    def run_due(self) -> None:
        tasks.bring_work_forward(timezone.now())
        due = Cleanup.objects.due().order_by("next_attempt_at")
        ids = list(due.values_list("pk", flat=True))
        broken = [cleanup_id for cleanup_id in ids if not self.run_cleanup(cleanup_id)]
        self.stdout.write(f"Cleanups run: {len(ids)}.")
        if broken:
            raise CommandError(
                f"Stopped with an error and will be retried: {', '.join(map(str, broken))}. The log"
                " has the details.",
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
