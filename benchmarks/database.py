"""The database that all write to: a PostgreSQL of the run's own, as it comes."""

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2

from benchmarks.keys import PROJECT_KEYS
from devtools.postgres import Server

ROWS, FINDINGS = "storage_audit_r2object", "storage_audit_finding"
PROJECT_IDS = (
    f"SELECT 'proj_' || lpad(n::text, 6, '0') FROM generate_series(0, %s / {PROJECT_KEYS}) AS n"
)
# What a person would call a query, and not the frame of a transaction.
QUERY = re.compile(
    r"LOG:  (?:statement|execute [^:]+): "
    r"(?!BEGIN|COMMIT|ROLLBACK|SAVEPOINT|RELEASE|START|SET |SHOW )"
)


class Database:
    def __init__(self, server: Server, folder: Path) -> None:
        self.url = server.url
        self.log = folder / "data" / "log"
        self.connection = psycopg2.connect(self.url)
        self.connection.autocommit = True
        self.kept: tuple[int, int] | None = None

    def close(self) -> None:
        self.connection.close()

    def ask(self, sql: str, *values: object) -> int:
        """Run it; the first number that it gives, if any."""
        with self.connection.cursor() as cursor:
            cursor.execute(sql, values)
            row = cursor.fetchone() if cursor.description else None
            return int(row[0] or 0) if row and isinstance(row[0], int) else 0

    def version(self) -> str:
        version = self.connection.info.server_version
        return f"PostgreSQL {version // 10000}.{version % 10000}"

    def add_projects(self, keys: int) -> None:
        """The projects of so many keys, as the application knows them."""
        for table, columns, values in (
            ("project", "title, created_at", "'', now()"),
            ("knownproject", "first_seen_at, evidence", "now(), 'saved'"),
        ):
            self.ask(
                f"INSERT INTO storage_audit_{table} (id, {columns}) SELECT id, {values}"
                f" FROM ({PROJECT_IDS}) AS ids (id) ON CONFLICT DO NOTHING",
                keys,
            )

    def add_project(self, project_id: str) -> None:
        self.ask(
            "INSERT INTO storage_audit_project (id, title, created_at) VALUES (%s, '', now())",
            project_id,
        )

    def remove_project(self, project_id: str) -> None:
        """Past the application, so that nothing follows until somebody asks for it."""
        self.ask("DELETE FROM storage_audit_project WHERE id = %s", project_id)

    def state(self) -> tuple[int, int]:
        """How many tracking rows there are, and how often any was ever written."""
        self.ask("SELECT 1 FROM pg_stat_force_next_flush()")
        written = self.ask(
            "SELECT n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_user_tables WHERE relname = %s",
            ROWS,
        )
        return self.ask(f"SELECT count(*) FROM {ROWS}"), written

    def empty(self) -> None:
        """Also of findings: to resolve a million of them is none of the work of the next row."""
        self.ask(f"TRUNCATE {ROWS}, {FINDINGS}")

    def keep(self) -> None:
        """Remember the tracking rows as they are."""
        self.ask("DROP TABLE IF EXISTS kept")
        self.ask(f"CREATE TABLE kept AS TABLE {ROWS}")
        self._settle()

    def restore(self) -> None:
        """Make them again what they were, unless nothing was written since."""
        if self.state() != self.kept:
            self.empty()
            self.ask(f"INSERT INTO {ROWS} SELECT * FROM kept")
            self._settle()

    def _settle(self) -> None:
        # What autovacuum would do some time later, and then perhaps while somebody is timed.
        self.ask(f"VACUUM ANALYZE {ROWS}")
        self.ask("CHECKPOINT")
        self.kept = self.state()

    @contextmanager
    def logged(self) -> Iterator[list[str]]:
        """Within, each statement is written down; after it, the list has them."""
        statements = list[str]()
        self._log_statements("all")
        start = self.log.stat().st_size
        try:
            yield statements
        finally:
            self._log_statements("none")
            with closing(self.log.open(errors="replace")) as log:
                log.seek(start)
                statements += [line for line in log if QUERY.search(line)]

    def _log_statements(self, which: str) -> None:
        self.ask(f"ALTER SYSTEM SET log_statement = '{which}'")
        self.ask("SELECT 1 FROM pg_reload_conf()")
