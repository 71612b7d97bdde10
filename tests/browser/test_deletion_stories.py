"""What a deletion costs a person, from the list of projects to “gone”: clicks and words."""

from playwright.sync_api import Page, expect

from storage_audit.models import Project
from tests.admin_client import admin_url as path
from tests.browser.staff import (
    CLEAN_MESSAGE,
    CLICKS,
    COUNT_CLICKS,
    count_words,
    log_in_as_superuser,
)
from tests.queue.clusters import Cluster
from tests.real_bucket import Bucket

MAX_CLICKS, MAX_WORDS = 3, 250


def test_project_is_deleted_and_seen_gone_in_three_clicks(
    page: Page, bucket: Bucket, worker: Cluster
) -> None:
    Project.objects.create(pk="proj_1", title="Autumn sale")
    for number in range(10):
        bucket.upload("proj_1", f"take-{number}.mp4")
    other = bucket.upload("proj_10")
    log_in_as_superuser(page)
    page.add_init_script(COUNT_CLICKS)
    page.goto(path("project"))
    words = [count_words(page)]
    page.get_by_role("link", name="Delete Autumn sale (proj_1)").click()
    expect(page.get_by_role("heading", name="Delete “Autumn sale (proj_1)”?")).to_be_visible()
    words.append(count_words(page))
    page.get_by_role("button", name="Delete project and 10 files").click()
    # The page of the cleanup says so without being loaded again by a person.
    expect(page.get_by_role("heading", name=CLEAN_MESSAGE)).to_be_visible(timeout=60_000)
    words.append(count_words(page))
    assert page.get_by_text("uccessfully").count() == 0
    assert bucket.keys() == {other}
    assert 0 < page.evaluate(CLICKS) <= MAX_CLICKS
    assert sum(words) <= MAX_WORDS, words
