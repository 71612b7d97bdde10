"""The application, run by its own commands."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, Contender, Failed
from devtools.environment import made_up_environment

# A bucket may be smaller than that of the benchmark before.
COMMAND_OPTIONS = ["--accept-fewer", "--json"]
BACKFILL, RECONCILE = ["backfill_r2", *COMMAND_OPTIONS], ["reconcile_r2", *COMMAND_OPTIONS]
MANAGE = [sys.executable, "manage.py"]


class Application:
    """On one store and one database."""

    def __init__(self, store: Mapping[str, str], database_url: str, home: Path) -> None:
        self.environment = {
            **made_up_environment(),
            **store,
            "DATABASE_URL": database_url,
            "DJANGO_SETTINGS_MODULE": "autoshorts.settings",
            "HTTPS": "false",
            "LOG_FORMAT": "text",
            "CLEANUP_LIMIT_OBJECTS": str(10**9),
            "HOME": str(home),
        }

    def manage(self, *argv: str) -> str:
        """Run a command that is not measured. Raises Failed."""
        done = subprocess.run(
            [*MANAGE, *argv], env=self.environment, cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise Failed(f"manage.py {argv[0]} failed\n{done.stderr}")
        return done.stdout

    def connect_bucket(self) -> None:
        self.manage("connect_bucket", "--take-over")

    def make_contender(
        self,
        name: str,
        argv: Sequence[str],
        keys: int,
        check: Callable[[dict[str, Any]], None],
        *,
        prepare: Callable[[], object] = lambda: None,
        target: float | None = None,
    ) -> Contender:
        return Contender(
            name=name,
            argv=argv,
            environment=self.environment,
            keys=keys,
            prepare=prepare,
            check=lambda output: check(json.loads(output)),
            target=target,
            is_ours=True,
        )


def require_facts(facts: Mapping[str, Any], **expected: object) -> None:
    """Raises Failed when it did not do or see what it is timed for."""
    seen = {name: facts.get(name) for name in expected}
    if seen != expected:
        raise Failed(f"ours: {seen} instead of {expected}: {json.dumps(facts)[:2000]}")
