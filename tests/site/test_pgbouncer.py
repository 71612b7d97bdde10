"""Behind PgBouncer in transaction mode each transaction may have another connection."""

import os
import shutil
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg2
import pytest
from django.core.checks import run_checks
from django.core.management import call_command
from django.db import connection

from devtools.processes import Child, find_program
from storage_audit import models, read_in_steps
from storage_audit.certificate import evidence
from storage_audit.cleanup.models import Cleanup
from storage_audit.debug import discovery_comparison
from storage_audit.debug.comparison_result import DiscoveryMethod
from storage_audit.models import Project, R2Object
from storage_audit.ownership import bucket_connection
from storage_audit.scan.models import BucketScan
from storage_audit.scan.start import start_scan
from storage_audit.scan.worker import work_on_scan
from tests.promises import Status, check_promises, run_until_idle
from tests.real_bucket import Bucket

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.only_on("postgresql")]
APP = Path(read_in_steps.__file__).parent
FILES = 5
CONFIGURATION = """
[databases]
* = {server}
[pgbouncer]
pool_mode = transaction
server_round_robin = 1
unix_socket_dir = {folder}
listen_addr =
listen_port = 6432
auth_type = any
{owner}
"""


@pytest.fixture
def pgbouncer(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The application reaches its database through it alone, and never twice in a row by the same
    connection."""
    server = connection.settings_dict
    facts = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}
    to_server = " ".join(f"{name}='{server[key]}'" for name, key in facts.items() if server[key])
    program = find_program("pgbouncer")
    assert program, "PgBouncer is missing."
    with TemporaryDirectory(prefix="pgbouncer-") as name:
        folder = Path(name)
        # It refuses to run as root. The owner of a socket's folder may reach the socket.
        owner = Path(server["HOST"]).owner() if server["HOST"].startswith("/") else "nobody"
        as_owner = f"user = {owner}" if os.geteuid() == 0 else ""
        if as_owner:
            shutil.chown(folder, owner)
        ini = folder / "pgbouncer.ini"
        ini.write_text(CONFIGURATION.format(server=to_server, folder=folder, owner=as_owner))
        ini.chmod(0o644)
        log = folder / "log"
        with Child("pgbouncer", [program, ini], env=dict(os.environ), log=log) as child:
            monkeypatch.setitem(server, "HOST", str(folder))
            monkeypatch.setitem(server, "PORT", "6432")
            connection.close()
            # Its socket is there before it listens.
            child.wait_until(partial(open_two, server), timeout=30)
            yield
            connection.close()
            monkeypatch.undo()


def open_two(server: dict[str, Any]) -> bool:
    """Have two connections to the server, which it keeps; False where it does not answer yet."""
    where = {"host": server["HOST"], "port": server["PORT"], "dbname": server["NAME"]}
    try:
        clients = [psycopg2.connect(**where, user=server["USER"] or None) for _ in range(2)]
    except psycopg2.OperationalError:
        return False
    for client in clients:
        client.cursor().execute("SELECT 1")  # It begins a transaction.
    for client in clients:
        client.rollback()
        client.close()
    return True


@pytest.mark.usefixtures("pgbouncer")
def test_cleanup_and_scans_work_behind_a_transaction_pooler(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in (read_in_steps, models):
        monkeypatch.setattr(module, "ROWS_PER_STEP", 2)
    bucket_connection.connect_bucket(
        bucket.name, take_over=True
    )  # The host is part of its identity.
    for project_id in ("proj_1", "proj_2"):
        for n in range(FILES):
            bucket.upload(project_id, f"{n}.mp4")
    R2Object.objects.all().delete_without_signals()
    list(work_on_scan(start_scan()))
    assert BucketScan.objects.get().status == BucketScan.Status.COMPLETE
    assert R2Object.objects.count() == 2 * FILES
    Project.objects.get(pk="proj_1").delete()
    cleanup = run_until_idle(Cleanup.objects.get())
    assert (cleanup.status, cleanup.deleted) == (Status.CLEAN, FILES)
    assert not bucket.facts("projects/proj_1/")
    check_promises(bucket)
    assert len(list(evidence.certificate_items(cleanup))) == FILES
    R2Object.objects.filter(key__endswith="0.mp4").delete_without_signals()
    bucket.r2.remove(R2Object.objects.earliest("key").key, bucket.name)
    found = discovery_comparison.compare_bucket("proj_2").keys_by_method
    assert (found[DiscoveryMethod.TRACKED].count, found[DiscoveryMethod.LISTED].count) == (
        FILES - 1,
        FILES - 1,
    )
    call_command("deletion_log", str(cleanup.pk), "--items")
    Cleanup.objects.exclude(pk=cleanup.pk).delete()
    Cleanup.objects.update(finished_at=cleanup.created_at - timedelta(days=500))
    call_command("prune_cleanups", "--to", str(tmp_path))
    assert Cleanup.objects.pruned().exists()


@pytest.mark.usefixtures("pgbouncer")
def test_pooler_with_server_side_cursors_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> list[str | None]:
        return [each.id for each in run_checks(databases=["default"])]

    assert "storage_audit.W008" in found()
    monkeypatch.setitem(connection.settings_dict, "DISABLE_SERVER_SIDE_CURSORS", True)
    assert "storage_audit.W008" not in found()


def test_all_large_reads_are_made_for_a_transaction_pooler() -> None:
    """Outside of a transaction it loses the cursor of Django's iterator()."""
    found = [path for path in APP.rglob("*.py") if ".iterator(" in path.read_text()]
    assert found == [APP / "read_in_steps.py"]
