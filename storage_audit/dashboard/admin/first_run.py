"""The checklist of a new installation."""

from collections.abc import Iterator
from typing import NamedTuple

from django.utils.translation import gettext as _

from storage_audit.alerts.alert_rules import list_recipients
from storage_audit.conf import conf
from storage_audit.dashboard.admin.next_steps import add_group_hint
from storage_audit.models import DatabaseIdentity
from storage_audit.scan.models import BucketScan
from storage_audit.ui.links import Links


class SetupStep(NamedTuple):
    """`command` is run on the server; `url` leads to the page where a person does the step."""

    title: str
    is_done: bool
    step: str
    command: str = ""
    url: str = ""


def list_setup_steps(links: Links, scan: BucketScan | None, *, has_worker: bool) -> list[SetupStep]:
    """All that the person may look into, done or not; none once all are done."""
    steps = [
        bucket_step(),
        *worker_steps(links, has_worker=has_worker),
        *scan_steps(links, scan),
        *alert_steps(links),
    ]
    return [] if all(each.is_done for each in steps) else steps


def bucket_step() -> SetupStep:
    return SetupStep(
        _("Connect the bucket"),
        DatabaseIdentity.objects.exists(),
        _("Nothing is deleted until the bucket is connected. Run this on the server:"),
        "manage.py connect_bucket",
    )


def worker_steps(links: Links, *, has_worker: bool) -> Iterator[SetupStep]:
    if links.can_view("healthreport") and not conf().sync:
        yield SetupStep(
            _("Start a worker"),
            has_worker,
            _("Cleanups and scans wait for a worker. Keep this running on the server:"),
            "manage.py qcluster",
        )


def scan_steps(links: Links, scan: BucketScan | None) -> Iterator[SetupStep]:
    if links.can_view("bucketscan"):
        begin = links.add_url("bucketscan")
        step = _("Run a scan to find leftover files and to learn what is stored.")
        yield SetupStep(
            _("Scan the bucket"),
            scan is not None,
            add_group_hint(links, "add_bucketscan", step),
            url=begin and f"{begin}?purpose={BucketScan.Purpose.BACKFILL}",
        )


def alert_steps(links: Links) -> Iterator[SetupStep]:
    if links.can_view("alert"):
        yield SetupStep(
            _("Set up alerts"),
            bool(list_recipients()),
            _("Set NOTIFY_EMAILS or NOTIFY_WEBHOOK_URL. Then send a test message."),
            url=links.list_url("alert"),
        )
