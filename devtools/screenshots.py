"""Shoot every page of the demo's admin, wide and narrow, in light and dark colours."""

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from playwright.sync_api import Browser, Page

from devtools.chromium import running_browser
from devtools.demo.site import USER, Site, running_site, web_server
from devtools.processes import stop_on_signals
from devtools.staff import act_on_all, log_in

Visit = Callable[[Page, str], Iterator[str]]
COLOR_SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
HEIGHT_OF_WIDTH = {1280: 800, 390: 844}
# Page, width, height and colours of each picture.
DOCS_PICTURES: dict[str, tuple[str, int, int, Literal["light", "dark"]]] = {
    "dashboard": ("app", 1280, 1400, "light"),
    "dashboard-phone": ("app", 390, 1400, "dark"),
    "cleanup": ("cleanup-clean", 1280, 1100, "light"),
    "why": ("why-kept", 1280, 1000, "light"),
    "plan": ("cleanup-planned", 1280, 1300, "light"),
    "certificate": ("certificate", 1280, 1200, "light"),
}
CONFIRMATION_PAGES = {
    "project-delete-many": ("project-list", "Delete selected projects"),
    "project-force": ("project-list", "Force-delete"),
    "r2object-delete-many": ("r2object-list", "Delete selected files"),
    "r2object-untrack": ("r2object-list", "Untrack, keep the files"),
    "cleanup-force": ("cleanup-list", "Force-delete"),
    "finding-ignore": ("finding-list", "Ignore"),
    "finding-delete-orphans": ("finding-list", "Delete leftover files"),
    "finding-assign": ("finding-list", "Assign to a project"),
    "apitoken-revoke": ("apitoken-list", "Revoke"),
    "finding-rename": ("finding-list", "Rename files with old names"),
}
# What a button of another page leads to. Nothing is done yet.
DECISION_PAGES = {
    "cleanup-cancel": ("cleanup-held", "Cancel, keep the files"),
    "cleanup-erase": ("cleanup-held", "Erase now"),
    "bucketscan-estimate": ("bucketscan-add", "Estimate the cost"),
    "cleanup-again": ("cleanup-cancelled", "Clean up again"),
}
# Shot again while deletions are paused.
PAUSED_PAGES = ("app", "cleanup-list", "cleanup-pending", "cleanup-retrying", "cleanup-held")
GRACE_HOURS = "72"
EPILOG = """\
It needs Chromium or Chrome, as the tests do.

examples:
  make screenshots ARGS=/tmp/pictures
  make screenshots ARGS=/tmp/pictures PYTHON=python3.13 VENV=.venv-3.13

exit codes:
  0  the folder holds every picture
  1  the demo did not start, or a page could not be shot; the last lines say which
  2  wrong usage; make itself exits with 2 for any failure

Next: look at them. README.md, docs/admin.md and docs/certificates.md show those of the folder
"docs": copy these to docs/images.
"""


def command_line() -> ArgumentParser:
    parser = ArgumentParser(
        prog="make screenshots",
        usage="make screenshots ARGS=FOLDER",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="for the pictures; made if it is not there")
    return parser


def main(folder: Path) -> None:
    with (
        stop_on_signals(),
        TemporaryDirectory() as temporary,
        running_site(Path(temporary)) as site,
    ):
        pages = prepare_pages(site)
        # The pages that confirm a deletion say more with it.
        os.environ["GRACE_HOURS"] = GRACE_HOURS
        with web_server(Path(temporary)) as (address, _web):
            held_site = replace(site, address=address)
            with running_browser() as browser:
                shoot_all(browser, held_site, partial(visit_pages, pages=pages), folder)
                for name in DOCS_PICTURES:
                    shoot_for_docs(browser, site, pages, name, folder / "docs")
            # Between two browsers, in whose event loop Django asks no database.
            paused = pause_pages(pages)
            with running_browser() as browser:
                shoot_all(browser, held_site, partial(visit_paused, pages=paused), folder)


def prepare_pages(site: Site) -> dict[str, str]:
    # Their models can be imported only now that Django is set up.
    from devtools.demo import states, story

    if not story.run_story(site):
        sys.exit(1)
    site.worker.stop()
    return states.page_addresses(states.make_states(site.r2))


def pause_pages(pages: dict[str, str]) -> dict[str, str]:
    """Pause deletions; the pages that show it."""
    from storage_audit.cleanup import pause_deletions, runner
    from storage_audit.cleanup.admin import pause_page
    from storage_audit.cleanup.models import Cleanup
    from storage_audit.request_origin import Origin, use_origin

    with use_origin(Origin(USER, "web, 127.0.0.1")):
        pause_deletions.pause_deletions("Files are missing, and we do not know why yet.")
    # They meet the pause, as with a worker.
    for cleanup in Cleanup.objects.filter(status__in=["pending", "retrying"], held_until=None):
        runner.run_to_end(cleanup.pk)
    shown = {f"{name}-paused": pages[name] for name in PAUSED_PAGES}
    return {**shown, "resume": pause_page.page_url("resume", None)}


def shoot_all(browser: Browser, site: Site, visit: Visit, folder: Path) -> None:
    for (width, height), scheme in product(HEIGHT_OF_WIDTH.items(), COLOR_SCHEMES):
        with browser.new_context(
            base_url=site.address,
            viewport={"width": width, "height": height},
            color_scheme=scheme,
        ) as context:
            page = context.new_page()
            for name in visit(page, site.password):
                path = folder / f"{name}-{width}-{scheme}.png"
                page.screenshot(path=path, full_page=True)


def shoot_for_docs(
    browser: Browser, site: Site, pages: dict[str, str], name: str, folder: Path
) -> None:
    page_name, width, height, scheme = DOCS_PICTURES[name]
    with browser.new_context(
        base_url=site.address,
        viewport={"width": width, "height": height},
        color_scheme=scheme,
    ) as context:
        page = context.new_page()
        log_in(page, USER, site.password)
        page.goto(pages[page_name])
        page.screenshot(path=folder / f"{name}.png")


def visit_pages(page: Page, password: str, pages: dict[str, str]) -> Iterator[str]:
    """Go to one page after the other; gives the name of each."""
    page.goto("/")
    yield "login"
    log_in(page, USER, password)
    yield "index"
    for name, address in pages.items():
        # Swagger UI fetches what it shows.
        page.goto(address, wait_until="networkidle")
        yield name
    for name, (start, action) in CONFIRMATION_PAGES.items():
        page.goto(pages[start])
        act_on_all(page, action)
        yield name
    for name, (start, button) in DECISION_PAGES.items():
        page.goto(pages[start])
        # Some buttons are below "More actions".
        page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        page.get_by_role("button", name=button, exact=True).click()
        page.wait_for_load_state()
        yield name
    page.goto(pages["apitoken-add"])
    page.get_by_label("Name:").fill("Nightly export")
    page.get_by_role("button", name="Save").click()
    page.wait_for_load_state()
    yield "apitoken-made"


def visit_paused(page: Page, password: str, pages: dict[str, str]) -> Iterator[str]:
    log_in(page, USER, password)
    for name, address in pages.items():
        page.goto(address)
        yield name


if __name__ == "__main__":
    main(command_line().parse_args().folder.absolute())
