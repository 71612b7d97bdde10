from argparse import ArgumentParser
from pathlib import Path

from django.core.management.base import BaseCommand, CommandError

from devtools.local_r2 import LocalR2
from devtools.processes import StartError, stop_on_signals


class Command(BaseCommand):
    help = "Runs Cloudflare's own local R2 until Ctrl-C. Objects stay in its folder for next time."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--folder", type=Path, default=Path(".local/r2"))
        parser.add_argument("--port", type=int, default=8787, help="another one if it is taken")
        parser.add_argument("--bucket", default="autoshorts-media")

    def handle(self, *, folder: Path, port: int, bucket: str, **options: object) -> None:
        try:
            with stop_on_signals(), LocalR2(folder, [bucket], port=port) as r2:
                self.stdout.write(f"Local R2 keeps its objects in {r2.folder}. Stop it: Ctrl-C.")
                for name, value in r2.environment.items():
                    self.stdout.write(f"export {name}={value}")
                self.stdout.flush()
                r2.process.wait()
                raise CommandError(f"The local R2 ended by itself.\n{r2.process.tail()}")
        except StartError as error:
            raise CommandError(str(error)) from error
