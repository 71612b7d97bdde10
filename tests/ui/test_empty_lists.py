"""An empty list says so, and what the next step is."""

import pytest

from tests.admin_client import admin_url, page_text, superuser_client
from tests.builders import track_files

pytestmark = pytest.mark.django_db
NEXT_STEPS = {
    "cleanup": "No cleanup yet. Deleting a project starts one.",
    "bucketscan": "No scan yet. Press “Start a scan”.",
    "finding": "No findings. A reconcile scan looks for differences.",
    "r2object": "No files yet. A backfill scan records the files of the bucket.",
    "healthreport": "No health check yet. Run one with “Check now”.",
    "alert": "No alerts so far.",
}


@pytest.mark.parametrize("model", NEXT_STEPS)
def test_empty_list_gives_the_next_step(model: str) -> None:
    shown = page_text(superuser_client().get(admin_url(model)))
    assert f'<div class="audit-empty"><p>{NEXT_STEPS[model]}</p></div>' in shown


def test_search_without_a_match_leads_back_to_the_whole_list() -> None:
    track_files("proj_1", 1)
    shown = page_text(superuser_client().get(admin_url("r2object") + "?q=nothing"))
    assert 'Nothing matches. <a href="?">Show the whole list</a>' in shown
    assert NEXT_STEPS["r2object"] not in shown


def test_list_with_rows_says_nothing_about_empty_lists() -> None:
    track_files("proj_1", 1)
    shown = page_text(superuser_client().get(admin_url("r2object")))
    assert "audit-empty" not in shown
