"""What storage costs, what was freed, and the month before."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.utils import timezone
from django.utils.formats import date_format
from pytest_django import Settings

from storage_audit.dashboard.models import DailyFigures
from tests.admin_client import DASHBOARD, page_text, superuser_client
from tests.builders import create_cleanup, create_scan
from tests.dashboard.tiles import allowed, tile

GB = 10**9


@pytest.fixture(autouse=True)
def price(db: None, settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"PRICE_PER_GB": 0.5, "CURRENCY": "€"}


def record(days_ago: int, gigabytes: int) -> DailyFigures:
    now = timezone.now()
    return DailyFigures.objects.create(
        day=timezone.localdate() - timedelta(days=days_ago),
        taken_at=now - timedelta(days=days_ago),
        tracked=gigabytes,
        tracked_bytes=gigabytes * GB,
        leftover=0,
        leftover_bytes=0,
    )


def free(days_ago: int, gigabytes: int, **values: Any) -> None:
    amount = {"deleted": 1, "found": 1, "deleted_bytes": gigabytes * GB}
    ended = timezone.now() - timedelta(days=days_ago)
    create_cleanup("clean", finished_at=ended, found_bytes=gigabytes * GB, **amount | values)


def cost_tile(title: str) -> tuple[str, str]:
    return tile(page_text(superuser_client().get(DASHBOARD)), title)[1:]


def test_cost_is_unknown_before_the_first_count(db: None) -> None:
    create_scan()
    figure, text = cost_tile("Storage cost")
    assert figure == "unknown"
    assert "Files are counted once an hour." in text


@pytest.mark.parametrize(
    "then, trend",
    [
        (10, "↓ 5.6 GB less than on {} (€3.00 a month less)."),
        (3, "↑ 953.7 MB more than on {} (€0.50 a month more)."),
        (4, "Unchanged since {}."),
    ],
)
def test_cost_is_compared_with_the_count_a_month_before(db: None, then: int, trend: str) -> None:
    create_scan()
    record(0, 4)
    record(29, 99)
    before = record(31, then)
    record(50, 77)
    figure, text = cost_tile("Storage cost")
    assert figure == "€2.00 a month"
    assert "4 files, 3.7 GB" in text
    assert trend.format(date_format(before.day, "j M Y")) in text


def test_cost_without_a_count_a_month_before_is_not_compared(db: None) -> None:
    create_scan()
    record(0, 4)
    record(29, 99)
    assert "Not enough history yet to compare." in cost_tile("Storage cost")[1]


def test_freed_bytes_are_compared_with_the_30_days_before(db: None) -> None:
    record(60, 1)
    free(1, 2)
    free(29, 4)
    # The chart of 30 days begins 29 days before today, too.
    free(30, 7)
    free(31, 1)
    free(61, 16)
    figure, text = cost_tile("Freed in the last 30 days")
    assert figure == "5.6 GB"
    assert "Saves €3.00 a month." in text
    assert "The 30 days before: 7.5 GB." in text


def test_freed_bytes_are_not_compared_with_half_a_month(db: None) -> None:
    record(59, 1)
    free(31, 8)
    figure, text = cost_tile("Freed in the last 30 days")
    assert figure.split() == ["0", "bytes"]
    assert "Not enough history yet to compare." in text
    assert "days before" not in text


def test_cost_is_shown_to_who_may_see_the_files(db: None) -> None:
    record(0, 4)
    client = allowed("view_cleanup")
    assert "Storage cost" not in page_text(client.get(DASHBOARD))
    user = User.objects.get(username="ben")
    user.user_permissions.add(Permission.objects.get(codename="view_r2object"))
    assert "Storage cost" in page_text(client.get(DASHBOARD))


def test_count_that_is_long_ago_is_not_compared_with_itself(db: None) -> None:
    create_scan()
    record(45, 10)
    assert "Not enough history yet" in cost_tile("Storage cost")[1]
