"""Shoot every page of the demo's admin, wide and narrow, in light and dark colours."""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from playwright.sync_api import Browser, Page

from devtools.chromium import running_browser
from devtools.demo.site import USER, Site, running_site
from devtools.processes import stop_on_signals
from devtools.staff import act_on_all, log_in

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
    "r2object-delete-many": ("r2object-list", "Delete selected R2 objects"),
    "r2object-untrack": ("r2object-list", "Untrack, keep the files"),
    "cleanup-force": ("cleanup-list", "Force-delete"),
    "finding-ignore": ("finding-list", "Ignore"),
    "finding-delete-orphans": ("finding-list", "Delete leftover files"),
    "finding-assign": ("finding-list", "Assign to a project"),
    "finding-rename": ("finding-list", "Rename files with old names"),
}
EPILOG = """\
It needs Chromium or Chrome, as the tests do.

examples:
  make screenshots ARGS=/tmp/pictures
  make screenshots ARGS=/tmp/pictures PYTHON=python3.13 VENV=.venv-3.13

exit codes:
  0  the folder holds every picture
  1  the demo did not start, or a page could not be shot; the last lines say which
  2  wrong use; and make says 2 for every code but 0

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
        with running_browser() as browser:
            shoot_all(browser, site, pages, folder)
            for name in DOCS_PICTURES:
                shoot_for_docs(browser, site, pages, name, folder / "docs")


def prepare_pages(site: Site) -> dict[str, str]:
    # Their models can be imported only now that Django is set up.
    from devtools.demo import states, story

    if not story.run_story(site):
        sys.exit(1)
    site.worker.stop()
    return states.page_addresses(states.make_states(site.r2))


def shoot_all(browser: Browser, site: Site, pages: dict[str, str], folder: Path) -> None:
    for (width, height), scheme in product(HEIGHT_OF_WIDTH.items(), COLOR_SCHEMES):
        with browser.new_context(
            base_url=site.address,
            viewport={"width": width, "height": height},
            color_scheme=scheme,
        ) as context:
            page = context.new_page()
            for number, name in enumerate(visit_pages(page, site.password, pages)):
                path = folder / f"{number:02}-{name}-{width}-{scheme}.png"
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


if __name__ == "__main__":
    main(command_line().parse_args().folder.absolute())
