"""What many leftover files cost a person, from the overview to their deletion: clicks and words."""

import pytest
from playwright.sync_api import Page, expect

from storage_audit.cleanup.models import Cleanup
from tests.admin_client import DASHBOARD
from tests.browser.staff import CLICKS, COUNT_CLICKS, count_words_in_view, log_in_as_superuser
from tests.builders import create_findings
from tests.real_bucket import Bucket

PROJECTS, FILES_EACH = 15, 20
MAX_CLICKS, MAX_WORDS = 5, 600


@pytest.fixture(autouse=True)
def young(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the web server: files that were put just now may be deleted."""
    monkeypatch.setenv("ORPHAN_AGE_HOURS", "0.00001")


def test_leftover_files_of_many_projects_are_deleted_in_five_clicks(
    page: Page, bucket: Bucket
) -> None:
    for project in range(PROJECTS):
        keys = [f"projects/proj_{project}/scenes/s1/media/{n}.mp4" for n in range(FILES_EACH)]
        for key in keys:
            bucket.put(key, "12345")
        create_findings(bucket, *keys, project_id=f"proj_{project}")
    page.set_viewport_size({"width": 1280, "height": 800})
    log_in_as_superuser(page)
    page.add_init_script(COUNT_CLICKS)
    page.goto(DASHBOARD)
    words = [count_words_in_view(page)]
    page.get_by_role("link", name="Leftover files look").click()
    expect(page.get_by_role("checkbox", name="proj_14")).to_be_visible()
    words.append(count_words_in_view(page))
    # Nothing that is pressed needs scrolling.
    delete = page.get_by_role("button", name="Delete leftover files")
    expect(delete).to_be_in_viewport(ratio=1)
    page.get_by_role("checkbox", name="All leftover files").check()
    delete.click()
    button = page.get_by_role("button", name=f"Delete {PROJECTS * FILES_EACH} files")
    expect(button).to_be_visible()
    words.append(count_words_in_view(page))
    button.click()
    expect(page.get_by_text("A cleanup is deleting 300 leftover files.")).to_be_visible()
    words.append(count_words_in_view(page))
    assert Cleanup.objects.get().items.count() == PROJECTS * FILES_EACH
    assert 0 < page.evaluate(CLICKS) <= MAX_CLICKS
    assert sum(words) <= MAX_WORDS, words
