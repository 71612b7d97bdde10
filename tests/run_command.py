"""Running management commands in this process."""

import json
import re
from io import StringIO
from typing import Any

from django.core.management import load_command_class

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def run_command(name: str, *arguments: str, stderr: StringIO | None = None) -> tuple[str, str, int]:
    """Standard output, standard error and exit status; each id of ours shown as ID."""
    out, err, code = StringIO(), stderr or StringIO(), 0
    command: Any = load_command_class("storage_audit", name)
    command.__init__(stdout=out, stderr=err, no_color=True)
    try:
        command.run_from_argv(["manage.py", name, *arguments])
    except SystemExit as end:
        code = int(end.code or 0)
    return UUID.sub("ID", out.getvalue()), UUID.sub("ID", err.getvalue()), code


def run_json(name: str, *arguments: str) -> tuple[Any, int]:
    out, _err, code = run_command(name, *arguments, "--json")
    return json.loads(out), code
