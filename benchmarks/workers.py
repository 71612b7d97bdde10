"""So many processes, with so many lanes each, that work on one scan: the first begins it, the
others join it.

python -m benchmarks.workers 2 8 reconcile_r2 --json
"""

import os
import subprocess
import sys
import time

import psycopg2

from benchmarks.ours import MANAGE


def running_scan() -> str:
    """The id of the scan that is running, as soon as one is."""
    connection = psycopg2.connect(os.environ["DATABASE_URL"])
    connection.autocommit = True
    with connection.cursor() as cursor:
        for _attempt in range(3000):
            cursor.execute("SELECT id FROM storage_audit_bucketscan WHERE status = 'running'")
            if row := cursor.fetchone():
                return str(row[0])
            time.sleep(0.01)
    raise TimeoutError("no scan began")


def main(count: int, lanes: int, argv: list[str]) -> int:
    os.environ["SCAN_LANES"] = str(lanes)
    processes = [subprocess.Popen([*MANAGE, *argv])]
    if count > 1:
        join = [*MANAGE, argv[0], "--resume", running_scan()]
        processes += [subprocess.Popen(join, stdout=subprocess.DEVNULL) for _ in range(1, count)]
    return max(process.wait() for process in processes)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
