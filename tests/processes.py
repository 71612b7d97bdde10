"""Other processes on the test database: commands, the web server, and what systemd runs."""

import os
import sys
import time
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import ProxyHandler, Request, build_opener

from django.db import connection

from devtools.environment import made_up_environment
from devtools.processes import Child, free_port
from tests.paths import ROOT

UNITS_FOLDER = ROOT / "deploy" / "systemd"
HOST_HEADER = {"host": "example.com"}


@contextmanager
def run_site(database_url: str, log: Path) -> Iterator[str]:
    """The address of the web server on this database, as in production but for its port."""
    port = free_port(0)
    argv = [sys.executable, "-m", "gunicorn", "--config", "deploy/gunicorn.conf.py"]
    argv += ["--bind", f"127.0.0.1:{port}", "autoshorts.wsgi"]
    environment = os.environ | made_up_environment() | {"DATABASE_URL": database_url}
    environment["BEHIND_PROXY"] = "true"
    with Child("gunicorn", argv, env=environment, log=log, cwd=ROOT) as web:
        web.wait_until(lambda: "Booting worker" in web.tail())
        yield f"http://127.0.0.1:{port}"


def fetch_page(address: str, headers: dict[str, str] = HOST_HEADER) -> tuple[int, str]:
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(Request(address, headers=headers), timeout=20) as response:
            return response.status, response.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def database_url() -> str:
    """The test database, as another process reaches it."""
    given = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{given['NAME']}"
    host = quote(str(given["HOST"]), safe="")
    password = f":{quote(given['PASSWORD'])}" if given["PASSWORD"] else ""
    port = f":{given['PORT']}" if given["PORT"] else ""
    return f"postgres://{given['USER']}{password}@{host}{port}/{given['NAME']}"


class Command(Child):
    """`manage.py` in a process of its own that lists one shard at a time."""

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        environment = os.environ | {
            "DATABASE_URL": database_url(),
            "SCAN_CONCURRENCY": "1",
            **variables,
        }
        environment["DJANGO_SETTINGS_MODULE"] = "autoshorts.settings"
        command = [sys.executable, str(ROOT / "manage.py"), *arguments]
        log = folder / f"command-{time.monotonic_ns()}.log"
        super().__init__("command", command, env=environment, log=log, cwd=ROOT)


def read_service(name: str) -> dict[str, str]:
    """The [Service] section of a unit, over what systemd does when nothing is said."""
    unit = ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNITS_FOLDER / f"autoshorts-{name}.service")
    return {"KillMode": "control-group", "KillSignal": "SIGTERM", **unit["Service"]}
