from argparse import ArgumentParser

from django.core.management.base import CommandError

from storage_audit.alerts import alert_rules, deliver
from storage_audit.alerts.models import Alert
from storage_audit.dashboard import daily_figures
from storage_audit.management.console import EXIT_FAILED, EXIT_USAGE
from storage_audit.management.documented import DocumentedCommand
from storage_audit.redaction import printable_text

NO_RECIPIENTS = (
    "No recipients: set NOTIFY_EMAILS or NOTIFY_WEBHOOK_URL, then run manage.py notify --test"
)


class Command(DocumentedCommand):
    help = (
        "Sends an alert once when a problem starts and once when it is resolved. The worker does so"
        " each minute. Run it from a timer too, or nobody learns that the worker stopped. Safe to"
        " repeat."
    )
    epilog = """
    examples:
      python manage.py notify
      python manage.py notify --test

    exit codes:
      0  every message that was due is sent
      1  a message could not be sent: it is retried for a day, except with --test
      2  wrong usage; with --test, also when there are no recipients

    Next: the Alerts page in the admin lists open alerts and the messages about each.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--test",
            action="store_true",
            help="only send a test message to each recipient in the settings",
        )

    def handle(self, *, test: bool, **options: object) -> None:
        if test:
            self.send_test()
        else:
            self.check_and_send()

    def check_and_send(self) -> None:
        alert_rules.update_alerts(daily_figures.latest_refused_ids())
        tried = deliver.send_due_deliveries()
        self.stdout.write(f"Open alerts: {Alert.objects.open().count()}.")
        if not alert_rules.list_recipients():
            self.stdout.write(NO_RECIPIENTS)
        self.stdout.write(f"Messages sent: {sum(each.is_sent for each in tried)}.")
        if failed := [each for each in tried if not each.is_sent]:
            lines = [
                f"{printable_text(str(each))}: {printable_text(each.error)}" for each in failed
            ]
            raise CommandError("\n".join(["Not sent:", *lines]), returncode=EXIT_FAILED)

    def send_test(self) -> None:
        if not alert_rules.list_recipients():
            raise CommandError(NO_RECIPIENTS, returncode=EXIT_USAGE)
        errors = dict(deliver.send_test_messages())
        for who, error in errors.items():
            self.stdout.write(f"{printable_text(who)}: {printable_text(error) or 'sent'}")
        if any(errors.values()):
            raise CommandError("Some messages were not sent.", returncode=EXIT_FAILED)
