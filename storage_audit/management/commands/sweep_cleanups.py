import logging
from argparse import ArgumentParser
from uuid import UUID

from django.core.management.base import CommandError
from django.utils import timezone

from storage_audit import logs, tasks
from storage_audit.cleanup import runner, vanished_projects
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.management.console import FAILED, asked_from_shell
from storage_audit.management.documented import DocumentedCommand
from storage_audit.redaction import visible

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
      1  with --sync: an operation stopped with an error, which is in the log; it is tried again
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
        with asked_from_shell():
            if sync:
                self.report_vanished(vanished_projects.notice())
                self.run_due()
            else:
                figures = tasks.sweep()
                self.report_vanished(figures["vanished"])
                self.stdout.write(f"Operations enqueued: {figures['enqueued']}.")

    def report_vanished(self, count: int) -> None:
        self.stdout.write(f"Projects found gone without a signal: {count}.")
        if count:
            self.stdout.write("Their cleanups are blocked until a person releases them.")

    def run_due(self) -> None:
        tasks.bring_forward(timezone.now())
        due = CleanupOperation.objects.due().order_by("next_attempt_at")
        ids = list(due.values_list("pk", flat=True))
        broken = [operation_id for operation_id in ids if not self.run(operation_id)]
        self.stdout.write(f"Operations run: {len(ids)}.")
        if broken:
            raise CommandError(
                f"{len(broken)} of them stopped with an error that is in the log and will be"
                f" tried again: {', '.join(map(str, broken))}",
                returncode=FAILED,
            )

    def run(self, operation_id: UUID) -> bool:
        """One operation that fails must not keep the others from being run."""
        try:
            operation = runner.run(operation_id)
        except Exception:
            with logs.about(operation_id):
                logger.exception("%s failed", operation_id)
            return False
        status = f"{operation.get_status_display()}. {visible(operation.error)}"
        self.stdout.write(f"{operation_id}: {status.rstrip()}")
        return True
