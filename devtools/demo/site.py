"""A whole AutoShorts site on the loopback interface: local R2 with Cloudflare's API before it,
database, queue worker, admin."""

import logging
import os
import secrets
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

import django
from django.core.management import call_command

from devtools import wrangler
from devtools.cloudflare_api import CloudflareApi, cloudflare_api
from devtools.demo.browser import Browser
from devtools.environment import WITHOUT_ENV_FILE
from devtools.local_r2 import LocalR2
from devtools.processes import Child, StartError, free_port

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "autoshorts-media"
USER = "admin"

# Another process can take a port between our check and the web server's start.
START_ATTEMPTS = 3
PORT_TAKEN = "Connection in use"


@dataclass(frozen=True)
class Site:
    folder: Path
    exports_path: Path
    r2: LocalR2
    worker: Child
    web: Child
    address: str
    password: str

    def serve(self) -> NoReturn:
        """Block until a process stops unexpectedly, and raise StartError."""
        processes = [self.r2.process, self.worker, self.web]
        while all(process.is_running for process in processes):
            time.sleep(0.5)
        dead = next(process for process in processes if not process.is_running)
        raise StartError(f"The {dead.name} stopped unexpectedly.\n{dead.tail()}")


@contextmanager
def running_site(folder: Path) -> Iterator[Site]:
    """Set Django up in this process too, and replace the environment of the process for that."""
    with ExitStack() as stack:
        r2 = stack.enter_context(LocalR2(folder / "r2", [BUCKET]))
        api = stack.enter_context(cloudflare_api(r2))
        variables = demo_environment(folder, r2, api)
        exports = write_exports(folder / "environment", variables)
        replace_environment(variables, home=folder)
        password = set_up_django()
        worker = stack.enter_context(queue_worker(folder))
        address, web = stack.enter_context(web_server(folder))
        yield Site(folder, exports, r2, worker, web, address, password)


def demo_environment(folder: Path, r2: LocalR2, api: CloudflareApi) -> dict[str, str]:
    return {
        **WITHOUT_ENV_FILE,
        **r2.environment,
        **api.environment,
        "WRANGLER_PATH": str(wrangler.write_program(folder)),
        "DJANGO_SETTINGS_MODULE": "devtools.demo.settings",
        "SECRET_KEY": secrets.token_urlsafe(50),
        "ALLOWED_HOSTS": "127.0.0.1,localhost",
        "HTTPS": "false",
        "LOG_FORMAT": "text",
        "DATABASE_URL": "sqlite:///" + quote(str(folder / "db.sqlite3")),
    }


def write_exports(path: Path, variables: dict[str, str]) -> Path:
    """For a person's shell, to run manage.py beside the demo."""
    path.write_text("".join(f"export {k}={shlex.quote(v)}\n" for k, v in variables.items()))
    return path


def replace_environment(variables: dict[str, str], home: Path) -> None:
    """Keep only the caller's PATH: no AWS profile, no proxy, no R2 variables."""
    path = os.environ.get("PATH", os.defpath)
    os.environ.clear()
    os.environ.update(variables, PATH=path, HOME=str(home))


def set_up_django() -> str:
    """Make the database and the bucket's marker; return the password of a new superuser."""
    django.setup()
    # The story uses print; django-q2 would log each task that it enqueues.
    logging.disable(logging.INFO)
    call_command("migrate", verbosity=0)
    from django.contrib.auth.models import User

    from storage_audit.ownership import bucket_connection

    bucket_connection.connect_bucket(BUCKET)
    password = secrets.token_urlsafe(12)
    User.objects.create_superuser(USER, password=password)
    return password


def queue_worker(folder: Path) -> Child:
    argv = [sys.executable, "manage.py", "qcluster"]
    log = folder / "worker.log"
    return Child("queue worker", argv, env=os.environ, log=log, cwd=ROOT, grace=15)


@contextmanager
def web_server(folder: Path) -> Iterator[tuple[str, Child]]:
    """Give the address with the process that answers there."""
    for attempt in range(1, START_ATTEMPTS + 1):
        port = free_port(8000)
        address = f"http://127.0.0.1:{port}"
        argv = [sys.executable, "-m", "gunicorn", "autoshorts.wsgi", "--no-control-socket"]
        argv += ["--bind", f"127.0.0.1:{port}", "--threads", "8"]
        with Child("web server", argv, env=os.environ, log=folder / "web.log", cwd=ROOT) as web:
            try:
                web.wait_until(partial(is_web_ready, web, address))
            except StartError:
                if attempt == START_ATTEMPTS or PORT_TAKEN not in web.tail():
                    raise
                continue
            yield address, web
            return


def is_web_ready(web: Child, address: str) -> bool:
    # Before that, another program may be listening there.
    if "Listening at" not in web.tail():
        return False
    try:
        return bool(Browser(address).get("/admin/login/"))
    except OSError:
        return False
