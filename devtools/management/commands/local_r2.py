import re
import shlex
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

from django.core.management.base import CommandError

from devtools import wrangler
from devtools.cloudflare_api import cloudflare_api
from devtools.local_r2 import LocalR2
from devtools.processes import StartError, stop_on_signals
from storage_audit.management.documented import DocumentedCommand


def parse_port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise ArgumentTypeError("a port is a number from 0 to 65535")
    return int(text)


def parse_bucket_name(text: str) -> str:
    """https://developers.cloudflare.com/r2/buckets/create-buckets/"""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]", text):
        raise ArgumentTypeError(
            "a bucket name has 3 to 63 letters a-z, digits and hyphens, and no hyphen at its ends"
        )
    return text


class Command(DocumentedCommand):
    help = (
        "Runs Cloudflare's own local R2 on 127.0.0.1 until Ctrl-C, with the part of Cloudflare's"
        " API that wrangler uses before it, and prints the variables with which the project reaches"
        " both. Objects stay in its folder for next time."
    )
    epilog = """
    examples:
      python manage.py local_r2
      python manage.py local_r2 --folder /tmp/r2 --port 9000 --bucket my-bucket

    exit codes:
      0  never: it runs until it is stopped
      1  it did not start, or stopped unexpectedly; the last lines of its log follow
      2  wrong usage
      128 and the signal's number, such as 130 for Ctrl-C: stopped

    Next: paste the printed lines into another shell, set SECRET_KEY and ALLOWED_HOSTS there, and
    run migrate and connect_bucket.
    """
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--folder",
            type=Path,
            default=Path(".local/r2"),
            help="where its objects and credentials are kept (default: %(default)s)",
        )
        parser.add_argument(
            "--port",
            type=parse_port,
            default=8787,
            help="the port to listen on; when it is taken, any free one (default: %(default)s)",
        )
        parser.add_argument(
            "--bucket",
            type=parse_bucket_name,
            default="autoshorts-media",
            help="the bucket that it has (default: %(default)s)",
        )

    def handle(self, *, folder: Path, port: int, bucket: str, **options: object) -> None:
        try:
            with (
                stop_on_signals(),
                LocalR2(folder, [bucket], port=port) as r2,
                cloudflare_api(r2) as api,
            ):
                self.stdout.write(f"Local R2 keeps its objects in {r2.folder}. Stop it: Ctrl-C.")
                program = {"WRANGLER_PATH": str(wrangler.write_program(r2.folder))}
                for name, value in (r2.environment | api.environment | program).items():
                    self.stdout.write(f"export {name}={shlex.quote(value)}")
                self.stdout.flush()
                r2.process.wait()
                raise CommandError(f"The local R2 stopped unexpectedly.\n{r2.process.tail()}")
        except (StartError, OSError) as error:
            raise CommandError(str(error)) from error
