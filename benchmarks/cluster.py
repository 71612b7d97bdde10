"""A cluster that works until no cleanup of a project is left: `python -m benchmarks.cluster`."""

import os
import sys
from contextlib import closing
from pathlib import Path

import psycopg2

from benchmarks.ours import MANAGE
from devtools.processes import Child, stop_on_signals

TIMEOUT_SECONDS = 3600
# Follow-up checks are due later.
LEFT = "SELECT count(*) FROM storage_audit_cleanup WHERE finished_at IS NULL AND parent_id IS NULL"


def main(log: Path) -> None:
    with (
        stop_on_signals(),
        closing(psycopg2.connect(os.environ["DATABASE_URL"])) as connection,
        Child("qcluster", [*MANAGE, "qcluster"], env=os.environ, log=log, grace=60) as cluster,
    ):
        connection.autocommit = True
        cursor = connection.cursor()

        def is_done() -> bool:
            cursor.execute(LEFT)
            return not any(cursor.fetchone() or ())

        cluster.wait_until(is_done, timeout=TIMEOUT_SECONDS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
