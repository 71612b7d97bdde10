from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone

from storage_audit.display_formats import format_time


@pytest.mark.parametrize(
    ("age", "shown"),
    [
        (timedelta(seconds=-5), "2 Dec 2026, 20:49 UTC"),
        (timedelta(seconds=59), "just now"),
        (timedelta(minutes=1), "1\xa0minute ago"),
        (timedelta(hours=23, minutes=59), "23\xa0hours ago"),
        (timedelta(days=1), "2 Dec 2026, 20:49 UTC"),
    ],
)
def test_recent_times_are_relative_and_exact_on_hover(
    age: timedelta, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = datetime(2026, 12, 2, 20, 49, 17, tzinfo=UTC)
    monkeypatch.setattr(timezone, "now", lambda: moment + age)
    html = format_time(moment)
    assert html == (
        '<time datetime="2026-12-02T20:49:17+00:00" title="2 Dec 2026, 20:49:17 UTC">'
        f"{shown}</time>"
    )
