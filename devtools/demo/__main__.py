"""Delete one of six projects, prove which files are gone and which stay, then serve the admin."""

import os
import shlex
import shutil
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from devtools.demo.browser import Refused
from devtools.demo.site import ROOT, USER, queue_worker, running_site
from devtools.processes import StartError, stop_on_signals

DEMO_FOLDER = ROOT / ".local" / "demo"
LOCK = "demo.lock"

EPILOG = """\
It runs on 127.0.0.1 only, with a local R2 and SQLite. It uses none of your accounts.

examples:
  make demo
  make demo ARGS=--once
  make demo ARGS="--folder /tmp/second-demo"

exit codes:
  0  with --once: all files of the deleted project are gone, and all others are unchanged
  1  they are not, or something did not start; see the last lines
  2  wrong usage; make itself exits with 2 for any failure
  128 and the signal's number, such as 130 for Ctrl-C: stopped

Next: open the admin. The demo prints its address, a password, and what to try there.
"""
INVITATION = """
The admin is at   {site.address}/admin/
User name         {user}
Password          {site.password}

What to try next:
  * Open the overview. It shows what needs attention, and leads to the leftover files:
    {site.address}/admin/storage_audit/
  * Delete proj_10 in the admin, and watch its cleanup.
  * Select proj_autumn-sale and choose "Dry-run cleanup" to preview which files would be deleted.
  * Compare the bucket with the database for proj_10, in another terminal:
    (. {exports} && {python} manage.py verify_cleanup proj_10)

To stop: Ctrl-C. The next demo starts from scratch. Logs: {site.folder}
"""


def command_line() -> ArgumentParser:
    parser = ArgumentParser(
        prog="make demo",
        usage='make demo [ARGS="[-h] [--once] [--folder FOLDER]"]',
        description=__doc__,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--once", action="store_true", help="end after the proof, without serving the admin"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=DEMO_FOLDER,
        help="folder of the demo; its files from an earlier demo are removed first, and a folder"
        f" with other files is refused (default: {DEMO_FOLDER.relative_to(ROOT)})",
    )
    return parser


def main() -> None:
    options = command_line().parse_args()
    # Passwords, keys and the database are nobody else's to read.
    os.umask(0o077)
    try:
        with stop_on_signals(), lock_folder(options.folder.resolve()) as folder:
            run_demo(folder, once=options.once)
    except (StartError, Refused, OSError) as error:
        sys.exit(f"The demo failed. Everything that it started is stopped.\n{error}")


@contextmanager
def lock_folder(folder: Path) -> Iterator[Path]:
    """Lock the folder and remove an earlier demo's files. Raises StartError if another demo runs in
    the folder, or it has other files."""
    lock_file = folder / LOCK
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not lock_file.exists():
        raise StartError(f"{folder} has files that no demo made. Choose another --folder.")
    with lock_file.open("w") as lock:
        try:
            flock(lock, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            raise StartError(f"Another demo is running in {folder}. Stop it first.") from None
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != lock_file:
                path.unlink()
        yield folder


def run_demo(folder: Path, *, once: bool) -> None:
    """Exit 1 when the story does not end as it should; serve the admin unless `once`."""
    print("Starting a local R2, a queue worker and the admin ...", flush=True)
    with running_site(folder) as site:
        # Its models can be imported only now that Django is set up.
        from devtools.demo.states import make_states
        from devtools.demo.story import run_story

        if not run_story(site):
            sys.exit(1)
        if once:
            return
        print("\nAdding more problems for you to find ...", flush=True)
        site.worker.stop()
        make_states(site.r2)
        with queue_worker(folder) as worker:
            exports = shlex.quote(str(site.exports_path))
            python = shlex.quote(os.path.relpath(sys.executable, ROOT))
            print(
                INVITATION.format(site=site, user=USER, exports=exports, python=python), flush=True
            )
            replace(site, worker=worker).serve()


if __name__ == "__main__":
    main()
