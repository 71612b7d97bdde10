"""The whole of AutoShorts, each part a service that can be killed: store, database, two clusters,
web server; and the faulty network before the store."""

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import django
from django.core.management import call_command

from devtools.demo.site import BUCKET, USER, replace_environment
from devtools.environment import WITHOUT_ENV_FILE
from devtools.local_r2 import LocalR2
from devtools.postgres import running_server
from devtools.seaweedfs import SeaweedFS
from tests.crash.services import (
    Cluster,
    ObjectStore,
    PostgreSQL,
    Program,
    Service,
    Web,
    start_with_retries,
)
from tests.faults.proxy import FaultyStore, faulty_store

STORES = {"r2": LocalR2, "seaweedfs": SeaweedFS}


@dataclass
class Site:
    """`services` are in the order in which they are started."""

    folder: Path
    store: ObjectStore
    network: FaultyStore
    database: PostgreSQL | None
    clusters: list[Cluster]
    web: Web
    password: str

    @property
    def services(self) -> list[Service]:
        database = [self.database] if self.database else []
        return [self.store, *database, *self.clusters, self.web]

    def heal(self) -> None:
        """Start what does not run, and return when all of it is ready."""
        for service in self.services:
            if not service.is_ready():
                start_with_retries(service)

    def start_command(self, *argv: str) -> Program:
        """A `manage.py` command, started."""
        return self.start_program(argv[0], "manage.py", *argv)

    def start_program(self, name: str, *argv: str) -> Program:
        program = Program(name, [sys.executable, *argv], os.environ, self.folder)
        program.start()
        return program


@contextmanager
def running_site(folder: Path, store: str, database: str, strategy: str) -> Iterator[Site]:
    """Set Django up in this process too, and replace the environment of the process for that.

    SQLite takes one writer at a time: there it is one cluster, with one worker.
    """
    with ExitStack() as stack:
        objects = stack.enter_context(STORES[store](folder / "store", [BUCKET], port=0))
        variables = objects.environment
        network = stack.enter_context(faulty_store(variables["R2_ENDPOINT_URL"]))
        server = stack.enter_context(running_server()) if database == "postgresql" else None
        url = server.url if server else "sqlite:///" + quote(str(folder / "db.sqlite3"))
        replace_environment(
            {**crash_environment(variables, network.url, url), "CLEANUP_STRATEGY": strategy},
            home=folder,
        )
        password = set_up_django()
        names = ["cluster-1", "cluster-2"] if server else ["cluster-1"]
        clusters = [Cluster(name, os.environ, folder) for name in names]
        web = Web(os.environ, folder)
        site = Site(
            folder,
            ObjectStore(objects),
            network,
            PostgreSQL(server) if server else None,
            clusters,
            web,
            password,
        )
        for program in (*clusters, web):
            stack.callback(program.stop)
        site.heal()
        yield site


def crash_environment(store: dict[str, str], network: str, database: str) -> dict[str, str]:
    return {
        **WITHOUT_ENV_FILE,
        **store,
        "R2_ENDPOINT_URL": network,
        "DJANGO_SETTINGS_MODULE": "tests.crash.settings",
        "SECRET_KEY": secrets.token_urlsafe(50),
        "ALLOWED_HOSTS": "127.0.0.1",
        "HTTPS": "false",
        "DATABASE_URL": database,
    }


def set_up_django() -> str:
    """Make the tables and the bucket's marker; return the password of a new superuser."""
    django.setup()
    call_command("migrate", verbosity=0)
    from django.contrib.auth.models import User

    from storage_audit.ownership import bucket_connection

    bucket_connection.connect_bucket(BUCKET)
    password = secrets.token_urlsafe(12)
    User.objects.create_superuser(USER, password=password)
    return password
