"""Record the README's animation: a project deleted in the real admin, and its certificate."""

import io
import os
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from PIL import Image
from playwright.sync_api import Locator, Page

from devtools.chromium import running_browser
from devtools.demo.site import USER, Site, running_site
from devtools.processes import stop_on_signals
from devtools.staff import log_in

# Wider than what the admin takes for a tablet.
WIDTH, HEIGHT = 1040, 660
ANIMATION = Path("docs/images/deletion.gif")
COLORS = 64
MAX_BYTES = 2_000_000
# Milliseconds that a picture stays: long enough to read it, or a moment of what moves.
READ, GLANCE, MOMENT = 2800, 1200, 250
PROJECT, TITLE, FILES = "proj_summer", "Summer sale", 240
# Seconds, for the whole cleanup.
TIMEOUT_SECONDS = 120
# The pointer is in no screenshot of a browser.
POINTER = """([x, y]) => {
  const dot = document.body.appendChild(document.createElement('div'))
  Object.assign(dot.style, {position: 'fixed', left: `${x - 11}px`, top: `${y - 11}px`,
    zIndex: 9999, width: '22px', height: '22px', borderRadius: '50%',
    background: 'rgba(255, 120, 0, .55)',
    border: '2px solid #fff', boxSizing: 'border-box'})
}"""
EPILOG = """\
It needs Chromium or Chrome, as the tests do.

examples:
  make animation
  make animation ARGS=/tmp/deletion.gif

exit codes:
  0  the file is written
  1  the demo did not start, the cleanup did not end, or the file is larger than 2 MB
  2  wrong usage; make itself exits with 2 for any failure

Next: look at it, and commit it. README.md shows docs/images/deletion.gif.
"""


@dataclass
class Recording:
    page: Page
    frames: list[Image.Image] = field(default_factory=list)
    milliseconds: list[int] = field(default_factory=list)

    def show(self, milliseconds: int) -> None:
        picture = Image.open(io.BytesIO(self.page.screenshot(caret="hide"))).convert("RGB")
        if self.frames and picture.tobytes() == self.frames[-1].tobytes():
            self.milliseconds[-1] += milliseconds
            return
        self.frames.append(picture)
        self.milliseconds.append(milliseconds)

    def click(self, what: Locator) -> None:
        what.scroll_into_view_if_needed()
        self.show(GLANCE)
        box = what.bounding_box()
        if box is None:
            raise RuntimeError(f"not on the page: {what}")
        self.page.evaluate(POINTER, [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2])
        self.show(2 * MOMENT)
        what.click()
        self.page.wait_for_load_state()

    def save(self, path: Path) -> None:
        # One palette for all: what does not change from picture to picture then takes no room.
        sheet = Image.new("RGB", (WIDTH, HEIGHT * len(self.frames)))
        for number, frame in enumerate(self.frames):
            sheet.paste(frame, (0, HEIGHT * number))
        palette = sheet.quantize(COLORS)
        first, *others = [
            frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in self.frames
        ]
        first.save(
            path,
            save_all=True,
            append_images=others,
            duration=self.milliseconds,
            loop=0,
            optimize=True,
        )


def command_line() -> ArgumentParser:
    parser = ArgumentParser(
        prog="make animation",
        usage="make animation [ARGS=FILE]",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    usual = f"usually {ANIMATION}"
    parser.add_argument("file", type=Path, nargs="?", default=ANIMATION, help=usual)
    return parser


def main(path: Path) -> None:
    with (
        stop_on_signals(),
        TemporaryDirectory() as temporary,
        running_site(Path(temporary)) as site,
    ):
        upload_project()
        with (
            running_browser() as browser,
            browser.new_context(
                base_url=site.address,
                viewport={"width": WIDTH, "height": HEIGHT},
                color_scheme="light",
                reduced_motion="reduce",
            ) as context,
        ):
            recording = Recording(context.new_page())
            record_deletion(recording, site)
    recording.save(path)
    if (size := os.path.getsize(path)) > MAX_BYTES:
        raise SystemExit(f"{path} has {size:,} bytes, and the limit is {MAX_BYTES:,}.")
    print(f"{path}: {len(recording.frames)} pictures, {size:,} bytes")


def upload_project() -> None:
    # Django is set up only now.
    from storage_audit.models import Project
    from storage_audit.storage import key_for

    for number, title in enumerate(["Launch day", "Who we are", "Autumn sale"]):
        Project.objects.create(pk=f"proj_{number}", title=title)
    Project.objects.create(pk=PROJECT, title=TITLE)
    for number in range(FILES):
        key = key_for(PROJECT, scene=f"s{number % 12 + 1}", filename=f"take-{number:03}.mp4")
        default_storage.save(key, ContentFile(os.urandom(20_000 + 61 * number)))


def record_deletion(recording: Recording, site: Site) -> None:
    page = recording.page
    log_in(page, USER, site.password)
    page.goto(f"/admin/storage_audit/project/{PROJECT}/change/")
    recording.click(page.get_by_role("link", name="Delete", exact=True))
    recording.show(READ)
    recording.click(page.locator("#content form input[type=submit]"))
    watch_cleanup(recording)
    recording.show(READ)
    recording.click(page.get_by_role("link", name="Deletion certificate"))
    recording.show(READ)


def watch_cleanup(recording: Recording) -> None:
    """The page that follows the deletion, until it says how it ended."""
    end = time.monotonic() + TIMEOUT_SECONDS
    answer = recording.page.locator(".audit-hero-good")
    while not answer.count():
        if time.monotonic() > end:
            raise RuntimeError(f"the cleanup did not end within {TIMEOUT_SECONDS} s")
        recording.show(MOMENT)
        recording.page.wait_for_timeout(MOMENT)


if __name__ == "__main__":
    main(command_line().parse_args().file.absolute())
