import os.path
from argparse import ArgumentParser, ArgumentTypeError
from datetime import datetime, timedelta
from pathlib import Path

from django.core.management.base import CommandError
from django.utils import timezone

from storage_audit.cleanup import retention
from storage_audit.cleanup.models import Cleanup, CleanupEvent, CleanupItem
from storage_audit.conf import conf
from storage_audit.management.console import EXIT_FAILED, EXIT_USAGE
from storage_audit.management.documented import DocumentedCommand
from storage_audit.redaction import printable_text


def parse_days(text: str) -> timedelta:
    if not text.isdecimal() or not 1 <= int(text) <= 36500:
        raise ArgumentTypeError("must be a whole number of days from 1 to 36500")
    return timedelta(days=int(text))


class Command(DocumentedCommand):
    help = (
        "Archives the files' rows and timelines of old cleanups, checks each archive, and then"
        " deletes these rows. Keeps all cleanups and known IDs. Skips cleanups that are open, or"
        " have an open follow-up. Safe to stop and to repeat."
    )
    epilog = """
    examples:
      python manage.py prune_cleanups --to /var/lib/autoshorts/archive --dry-run
      python manage.py prune_cleanups --to /var/lib/autoshorts/archive --older-than 730
      python manage.py prune_cleanups --to /var/lib/autoshorts/archive --verify

    exit codes:
      0  all cleanups that are old enough are archived; with --verify, all archives are intact
      1  an archive could not be written or read, so its cleanup keeps its rows; with --verify, an
         archive is missing or damaged
      2  wrong usage, also when there is no such folder

    Next: a cleanup's page in the admin names its archive. To restore its rows, run manage.py
    loaddata with the archive's path.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--to",
            metavar="FOLDER",
            type=Path,
            required=True,
            help="the folder for the archives; it must exist, and should be backed up",
        )
        parser.add_argument(
            "--older-than",
            metavar="DAYS",
            type=parse_days,
            help="prune cleanups that ended this many days ago or earlier (default: the setting"
            " RETENTION, 400 days unless set)",
        )
        instead = parser.add_mutually_exclusive_group()
        instead.add_argument(
            "--dry-run",
            action="store_true",
            help="show how much is old enough; write and delete nothing",
        )
        instead.add_argument(
            "--verify",
            action="store_true",
            help="check every archive against its checksum; prune nothing",
        )

    def handle(
        self,
        *,
        to: Path,
        older_than: timedelta | None,
        dry_run: bool,
        verify: bool,
        **options: object,
    ) -> None:
        # Unlike the path's own method it says no also of a name that no folder can have.
        if not os.path.isdir(to):
            text = f"There is no folder {printable_text(str(to))}. Create it, or mount it."
            raise CommandError(text, returncode=EXIT_USAGE)
        moment = timezone.now() - (older_than or conf().retention)
        if verify:
            self.verify(to)
        elif dry_run:
            self.report(moment)
        else:
            self.prune(to, moment)

    def verify(self, folder: Path) -> None:
        problems = [printable_text(problem) for problem in retention.find_damaged_archives(folder)]
        for problem in problems:
            self.stdout.write(problem)
        if problems:
            text = f"{len(problems)} archives are missing or damaged. Restore them from a backup."
            raise CommandError(text, returncode=EXIT_FAILED)
        self.stdout.write(f"Intact archives: {Cleanup.objects.pruned().count()}.")

    def report(self, moment: datetime) -> None:
        due = Cleanup.objects.prunable(moment)
        rows = [model.objects.filter(cleanup__in=due) for model in (CleanupItem, CleanupEvent)]
        items, events = (found.count() for found in rows)
        self.stdout.write(
            f"Would archive and delete rows: {items} files and {events} timeline entries, of"
            f" {due.count()} cleanups."
        )

    def prune(self, folder: Path, moment: datetime) -> None:
        count = 0
        try:
            for cleanup in retention.prune_cleanups(folder, moment):
                self.stdout.write(f"{cleanup.pk}: archived to {cleanup.archive}")
                count += 1
        except (retention.ArchiveError, OSError) as error:
            text = f"{printable_text(str(error))} No rows were lost. Run the command again."
            raise CommandError(text, returncode=EXIT_FAILED) from error
        finally:
            self.stdout.write(f"Cleanups pruned: {count}.")
