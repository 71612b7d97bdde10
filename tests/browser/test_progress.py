"""A page that is watched tells how far a cleanup is, and that it has ended."""

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from devtools.http_reply import Reply
from devtools.local_r2 import LocalR2
from storage_audit.cleanup import bulk, runner
from storage_audit.cleanup.models import BulkJob, Cleanup
from storage_audit.models import Project
from tests.admin_client import admin_url as path
from tests.browser.staff import CLEAN_MESSAGE, log_in_as_superuser
from tests.faults.matching import is_delete_batch, rule_for
from tests.faults.proxy import FaultyStore, Forward, Request, faulty_store
from tests.queue.clusters import Cluster
from tests.real_bucket import Bucket

KEYS = [f"projects/proj_1/scenes/s1/media/{n:03}.mp4" for n in range(300)]
WIDTHS = """() => Object.fromEntries(
  [...document.querySelectorAll("#totals rect[data-name]")]
    .map(part => [part.dataset.name, parseFloat(part.getAttribute("width"))]))"""


@pytest.fixture
def network(local_r2: LocalR2) -> Iterator[FaultyStore]:
    """Between a worker and the store."""
    with faulty_store(local_r2.environment["R2_ENDPOINT_URL"]) as running:
        yield running


@pytest.fixture
def requested(bucket: Bucket) -> Cleanup:
    Project.objects.create(pk="proj_1")
    bucket.put(*KEYS)
    Project.objects.get().delete()
    return Cleanup.objects.get()


def widths(page: Page) -> dict[str, float]:
    found: dict[str, float] = page.evaluate(WIDTHS)
    return {name: width for name, width in found.items() if width}


def test_bar_moves_and_ends_while_the_page_stays(
    page: Page, requested: Cleanup, network: FaultyStore, tmp_path: Path
) -> None:
    may_go_on = Event()

    def hold(request: Request, forward: Forward) -> Reply:
        may_go_on.wait(timeout=60)
        return forward()

    # A call takes 250 objects.
    network.rules.append(rule_for(is_delete_batch, lambda request, forward: forward(), hold))
    log_in_as_superuser(page)
    page.goto(path("cleanup", "change", requested.pk))
    expect(page.get_by_role("heading", name="Waiting to start.")).to_be_visible()
    page.evaluate("window.stays = true")
    with Cluster(tmp_path, R2_ENDPOINT_URL=network.url):
        expect(page.locator("#audit-sentence")).to_contain_text("Deleting: 250 of 300 files")
        expect(page.locator("#audit-announcement")).to_have_text("Deleting.")
        expect(page.locator("progress")).to_have_js_property("value", 250)
        assert widths(page) == {"deleting": 83.33, "to_delete": 16.67}
        expect(page.locator('#totals div[data-name="deleting"]')).to_contain_text("250")
        may_go_on.set()
        expect(page.get_by_role("heading", name=CLEAN_MESSAGE)).to_be_visible()
    expect(page.locator("#audit-announcement")).to_contain_text("Clean. ")
    expect(page.locator('#totals div[data-name="deleted"]')).to_contain_text("300")
    expect(page.locator("progress")).to_have_count(0)
    assert widths(page) == {"deleted": 100}
    assert page.evaluate("window.stays")


def test_page_without_scripts_loads_itself_again_until_the_end(
    browser: Browser, address: str, requested: Cleanup, worker: Cluster
) -> None:
    with browser.new_context(base_url=address, java_script_enabled=False) as context:
        page = context.new_page()
        log_in_as_superuser(page)
        page.goto(path("cleanup", "change", requested.pk))
        expect(page.get_by_role("heading", name=CLEAN_MESSAGE)).to_be_visible()
        expect(page.locator('#totals div[data-name="deleted"]')).to_contain_text("300")


def test_page_says_that_nobody_answers_it_or_that_one_is_signed_out(
    page: Page, requested: Cleanup, complaints: list[str]
) -> None:
    def fail(route: Route) -> None:
        route.fulfill(status=502, body="<p>Bad gateway")

    log_in_as_superuser(page)
    page.goto(path("cleanup", "change", requested.pk))
    expect(page.get_by_role("heading", name="Waiting to start.")).to_be_visible()
    unreachable = page.get_by_text("Can't reach the server. Trying again.")
    expect(unreachable).to_be_hidden()
    page.route("**/progress/", fail)
    expect(unreachable).to_be_visible()
    page.unroute("**/progress/")
    expect(unreachable).to_be_hidden()
    page.context.clear_cookies()
    expect(page.get_by_role("link", name="Log in again")).to_be_visible()
    asked = list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_role("link", name="Log in again").click()
    expect(page.get_by_label("Username")).to_be_visible()
    assert not [url for url in asked if "/progress/" in url]
    # Of the answers that the route made.
    complaints.clear()


@pytest.fixture
def bulk_job(bucket: Bucket) -> BulkJob:
    Project.objects.bulk_create(Project(pk=f"proj_{n}") for n in range(2))
    return BulkJob.objects.request(BulkJob.Action.VERIFY, ["proj_0", "proj_1"])


def test_page_of_a_bulk_job_ends_without_being_loaded_again_and_reads_aloud_only_that(
    page: Page, bulk_job: BulkJob
) -> None:
    log_in_as_superuser(page)
    page.goto(path("bulkjob", "change", bulk_job.pk))
    expect(page.get_by_text("0 of 2 projects are started.")).to_be_visible()
    expect(page.get_by_role("status").get_by_text("projects")).to_have_count(0)
    page.evaluate("window.stays = true")
    made = bulk.process_next_projects(bulk_job)
    rows = page.locator("#bulk-job-lines tbody tr")
    expect(rows.filter(has_text="waiting")).to_have_count(1)
    page.get_by_role("link", name="waiting").focus()
    ended = page.get_by_role("status").get_by_text("Finished.")
    expect(ended).to_be_hidden()
    for cleanup in made:
        runner.run_to_end(cleanup.pk)
    expect(ended).to_be_visible()
    expect(page.get_by_text("Done. Each project was verified.")).to_be_visible()
    expect(rows.filter(has_text="clean")).to_have_count(1)
    expect(page.locator("#content-main")).to_be_focused()
    assert page.evaluate("window.stays")


def test_page_of_a_bulk_job_says_that_nobody_answers_it_or_that_one_is_signed_out(
    page: Page, bulk_job: BulkJob, complaints: list[str]
) -> None:
    def fail(route: Route) -> None:
        route.fulfill(status=200, body="<p>Back soon")

    log_in_as_superuser(page)
    page.goto(path("bulkjob", "change", bulk_job.pk))
    said = page.get_by_text("0 of 2 projects are started.")
    unreachable = page.get_by_text("Can't reach the server. Trying again.")
    expect(unreachable).to_be_hidden()
    page.route("**/bulkjob/**", fail)
    expect(unreachable).to_be_visible()
    page.unroute("**/bulkjob/**")
    expect(unreachable).to_be_hidden()
    expect(said).to_be_visible()
    page.context.clear_cookies()
    expect(page.get_by_role("link", name="Log in again")).to_be_visible()
    expect(said).to_be_visible()
