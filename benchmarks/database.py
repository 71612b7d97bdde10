"""The database of a run: its own PostgreSQL with default settings."""

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2

from benchmarks.keys import PROJECT_KEYS
from devtools.postgres import Server

ROW_TABLE, FINDING_TABLE = "storage_audit_r2object", "storage_audit_finding"
PROJECT_IDS = (
    f"SELECT 'proj_' || lpad(n::text, 6, '0') FROM generate_series(0, %s / {PROJECT_KEYS}) AS n"
)
# Queries, without the commands that begin or end a transaction.
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
        self.saved_stats: tuple[int, int] | None = None

    def close(self) -> None:
        self.connection.close()

    def execute(self, sql: str, *values: object) -> int:
        """Run the statement; give its first number, if it has one."""
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
            ("knownproject", "first_seen_at, evidence, kept_for", "now(), 'saved', ''"),
        ):
            self.execute(
                f"INSERT INTO storage_audit_{table} (id, {columns}) SELECT id, {values}"
                f" FROM ({PROJECT_IDS}) AS ids (id) ON CONFLICT DO NOTHING",
                keys,
            )

    def add_project(self, project_id: str) -> None:
        self.execute(
            "INSERT INTO storage_audit_project (id, title, created_at) VALUES (%s, '', now())",
            project_id,
        )

    def remove_project(self, project_id: str) -> None:
        """Directly in the database, so that no cleanup follows by itself."""
        self.execute("DELETE FROM storage_audit_project WHERE id = %s", project_id)

    def row_stats(self) -> tuple[int, int]:
        """The number of tracking rows, and of writes to them ever."""
        self.execute("SELECT 1 FROM pg_stat_force_next_flush()")
        written = self.execute(
            "SELECT n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_user_tables WHERE relname = %s",
            ROW_TABLE,
        )
        return self.execute(f"SELECT count(*) FROM {ROW_TABLE}"), written

    def empty_tables(self) -> None:
        """Also of findings, as resolving a million of them is not part of the next measurement."""
        self.execute(f"TRUNCATE {ROW_TABLE}, {FINDING_TABLE}")

    def save_rows(self) -> None:
        """Save a copy of the tracking rows."""
        self.execute("DROP TABLE IF EXISTS kept")
        self.execute(f"CREATE TABLE kept AS TABLE {ROW_TABLE}")
        self._vacuum()

    def restore_rows(self) -> None:
        """Restore the copy, unless nothing was written since."""
        if self.row_stats() != self.saved_stats:
            self.empty_tables()
            self.execute(f"INSERT INTO {ROW_TABLE} SELECT * FROM kept")
            self._vacuum()

    def _vacuum(self) -> None:
        # Otherwise autovacuum would do it later, perhaps during a measurement.
        self.execute(f"VACUUM ANALYZE {ROW_TABLE}")
        self.execute("CHECKPOINT")
        self.saved_stats = self.row_stats()

    @contextmanager
    def log_queries(self) -> Iterator[list[str]]:
        """Log each statement within the block; afterwards the list has them."""
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
        self.execute(f"ALTER SYSTEM SET log_statement = '{which}'")
        self.execute("SELECT 1 FROM pg_reload_conf()")
