"""The page of one alert: what happened and since when, and where to act on it."""

from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User

from storage_audit.alerts.alert_text import ALERT_MEANINGS
from storage_audit.alerts.models import Alert
from storage_audit.ui.links import cleanup_url
from tests.admin_client import admin_url, page_text, staff_client, superuser_client
from tests.builders import create_cleanup

pytestmark = pytest.mark.django_db
BEGAN, ENDED = datetime(2026, 11, 30, 20, 49, tzinfo=UTC), datetime(2026, 12, 1, 8, 0, tzinfo=UTC)


def create_alert(kind: str, status: str = "", **values: Any) -> Alert:
    cleanup = create_cleanup(status, project_id="proj_9", requested_by="anna") if status else None
    facts = {"summary": "3 files are too many.", "began_at": BEGAN, **values}
    return Alert.objects.create(kind=kind, cleanup=cleanup, **facts)


def shown_of(alert: Alert, client: Any = None) -> str:
    return page_text((client or superuser_client()).get(admin_url("alert", "change", alert.pk)))


def test_an_open_alert_says_what_happened_who_asked_why_and_since_when() -> None:
    alert = create_alert("blocked", "blocked")
    shown = shown_of(alert)
    assert '<h2 id="audit-answer">Needs approval: deletion of proj_9</h2>' in shown
    for sentence in (
        str(ALERT_MEANINGS[Alert.Kind.BLOCKED]),
        "Reason: 3 files are too many.",
        "Open since 30 Nov 2026, 20:49 UTC.",
    ):
        assert shown.count(f"<p>{sentence}</p>") == 1
    assert "<p>Requested by anna, " in shown
    link = f'<a class="button" href="{cleanup_url(alert.cleanup_id)}">Open the cleanup</a>'
    assert link in shown
    client = staff_client("view_alert")
    User.objects.get(username="ben").user_permissions.remove(
        Permission.objects.get(codename="view_cleanup")
    )
    assert link not in shown_of(alert, client)


def test_the_time_of_a_request_that_needed_approval_at_once_is_shown_once() -> None:
    alert = create_alert("blocked", "blocked")
    assert alert.cleanup
    Alert.objects.update(began_at=alert.cleanup.created_at)
    shown = shown_of(alert)
    assert "<p>Requested by anna, " in shown and "Open since" not in shown
    assert str(alert) == "Needs approval"


def test_a_resolved_alert_says_how_it_ended_and_asks_for_nothing() -> None:
    shown = shown_of(create_alert("blocked", "clean", ended_at=ENDED))
    assert '<h2 id="audit-answer">Resolved: deletion of proj_9</h2>' in shown
    lasted = "Needs approval from 30 Nov 2026, 20:49 UTC to 1 Dec 2026, 08:00 UTC."
    assert f"{lasted} The deletion is now: clean." in shown
    assert str(ALERT_MEANINGS[Alert.Kind.BLOCKED]) not in shown and "Open since" not in shown


def test_an_alert_of_many_findings_says_the_number_once_and_leads_to_them() -> None:
    shown = shown_of(create_alert("findings", summary="120 findings are open."))
    assert shown.count("120 findings are open") == 1
    assert "Reason:" not in shown and ">Open the findings</a>" in shown
