"""Before anything ran: what to set up, and figures that nobody knows yet."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django_q.models import Schedule
from pytest_django import Settings

from storage_audit.dashboard import daily_figures
from storage_audit.models import DatabaseIdentity
from storage_audit.roles import VIEWER_PERMISSIONS
from storage_audit.scan.models import BucketScan
from tests.admin_client import DASHBOARD, page_text, superuser_client
from tests.builders import create_finding, create_row, create_scan
from tests.dashboard.tiles import allowed, tile

BEGIN_SCAN = f'href="{reverse("admin:storage_audit_bucketscan_add")}?purpose=backfill"'


def set_conf(settings: Settings, **values: Any) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | values


def start_worker() -> None:
    Schedule.objects.update(task="swept")


def read_checklist(client: Client) -> dict[str, str]:
    """What each line says below its title; nothing of a step that is done."""
    checklist = re.findall('<ol class="audit-setup">(.*?)</ol>', page_text(client.get(DASHBOARD)))
    lines = re.findall("<li>(.*?)</li>", "".join(checklist))
    parts = [re.sub("<.*?>", "|", each).split("|") for each in lines]
    texts = [[text.strip() for text in each if text.strip()] for each in parts]
    return {title: " ".join(more) for _state, title, *more in texts}


def test_first_run_lists_each_step_with_its_command_or_link(db: None) -> None:
    client = superuser_client()
    checklist = read_checklist(client)
    assert list(checklist) == [
        "Connect the bucket",
        "Start a worker",
        "Scan the bucket",
        "Set up alerts",
    ]
    assert checklist["Connect the bucket"].endswith("manage.py connect_bucket")
    assert checklist["Start a worker"].endswith("manage.py qcluster")
    shown = page_text(client.get(DASHBOARD))
    assert BEGIN_SCAN in shown
    assert f'<a href="{reverse("admin:storage_audit_alert_changelist")}">Set NOTIFY' in shown
    assert "Nothing else needs you." in shown


def test_each_step_is_done_once_and_the_checklist_goes_with_the_last(
    db: None, settings: Settings
) -> None:
    client = superuser_client()
    steps: dict[str, Callable[[], object]] = {
        "Connect the bucket": lambda: DatabaseIdentity.objects.create(fingerprint="f"),
        "Start a worker": start_worker,
        "Scan the bucket": create_scan,
        "Set up alerts": lambda: set_conf(settings, NOTIFY_EMAILS=("ann@example.com",)),
    }
    for title, take in steps.items():
        assert read_checklist(client)[title]
        take()
        checklist = read_checklist(client)
        assert not checklist.get(title)
    assert checklist == {}
    shown = page_text(client.get(DASHBOARD))
    assert "Finish setting up" not in shown and "Nothing needs you." in shown


@pytest.mark.parametrize("values", [{"status": "failed"}, {"prefix": "a/"}, {"bucket": "other"}])
def test_scan_of_less_than_the_whole_bucket_is_no_first_scan(
    db: None, values: dict[str, str]
) -> None:
    create_scan(**values)
    assert read_checklist(superuser_client())["Scan the bucket"]


def test_a_webhook_is_an_alert_channel_too(db: None, settings: Settings) -> None:
    secret = "whsec_" + "A" * 32
    address = "https://example.com/hook"
    set_conf(settings, NOTIFY_WEBHOOK_URL=address, NOTIFY_WEBHOOK_SECRET=secret)
    assert read_checklist(superuser_client())["Set up alerts"] == ""


def test_no_worker_is_asked_for_where_requests_do_the_work(db: None, settings: Settings) -> None:
    set_conf(settings, SYNC=True)
    assert "Start a worker" not in read_checklist(superuser_client())


def test_who_may_not_scan_reads_who_may(db: None) -> None:
    client = allowed(*VIEWER_PERMISSIONS)
    assert BEGIN_SCAN not in page_text(client.get(DASHBOARD))
    text = read_checklist(client)["Scan the bucket"]
    assert "Somebody in the group “Storage operator” may." in text


def test_checklist_has_only_what_a_person_may_look_into(db: None) -> None:
    assert list(read_checklist(allowed("view_cleanup"))) == ["Connect the bucket"]


def test_tiles_are_unknown_before_there_was_a_scan(db: None) -> None:
    create_row("a", size=2 * 10**9)
    daily_figures.take_figures()
    client = superuser_client()
    shown = page_text(client.get(DASHBOARD))
    for title in ("Storage cost", "Leftover files"):
        figure, text = tile(shown, title)[1:]
        assert figure == "unknown" and "The bucket has not been scanned yet." in text
        assert "$" not in text
    figure, text = tile(shown, "Worker and queue")[1:]
    assert figure == "not started" and "No worker has run yet." in text
    chart = shown.split("<h3>Leftover files</h3>")[1].split("</section>")[0]
    assert "<svg" not in chart and "No figures for these days yet" in chart
    create_scan()
    shown = page_text(client.get(DASHBOARD))
    assert tile(shown, "Storage cost")[1] == "$0.03 a month"
    assert tile(shown, "Leftover files")[1] == "0 files"


def test_leftover_files_of_a_scan_that_broke_off_are_counted(db: None) -> None:
    create_finding("a")
    BucketScan.objects.update(status="failed")
    assert tile(page_text(superuser_client().get(DASHBOARD)), "Leftover files")[1] == "1 file"
