"""Details of what is long over are exported, read again, and only then deleted; the rest stays."""

import gzip
import hashlib
import json
import os
import resource
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import product
from pathlib import Path
from random import Random
from threading import Event, Thread
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connection, transaction
from django.utils import timezone
from pytest_django.fixtures import Settings

from storage_audit.alerts.models import Alert
from storage_audit.cleanup import requests, retention
from storage_audit.cleanup.models import Cleanup, CleanupEvent, CleanupItem
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.cleanup.retention import Archive, ArchiveError
from storage_audit.conf import conf
from storage_audit.management.commands.prune_cleanups import Command
from storage_audit.models import KnownProject
from tests.admin_client import page_text, run_action, superuser_client, url_of_cleanup
from tests.paths import ROOT
from tests.processes import database_url, read_service
from tests.promises import clean_up_project, prune_cleanups, run_until_idle
from tests.real_bucket import Bucket
from tests.run_command import run_command

pytestmark = pytest.mark.usefixtures("transactional_db")
STRANGE = [
    "a\nb\r\t\x01\x7f",
    '"quoted", \\ and {"json": null}',
    "é e\u0301 🦊 \u2028 \ufeff",
    "=cmd()",
    "../../etc",
    "x" * 1024,
]
Status = Cleanup.Status
ENDED = {"clean", "clean_with_kept", "superseded", "undone", "cancelled"}
OPEN = sorted(set(Status.values) - ENDED)


def made(status: str = "clean", days: float = 401, keys: list[str] = STRANGE, **values: Any) -> Any:
    """A cleanup that ended so many days ago, with its items and a timeline."""
    facts: dict[str, Any] = {"kind": "project", "project_id": "proj_1", "bucket": "tests"}
    ended = timezone.now() - timedelta(days=days)
    totals = {"found": len(keys), "already_gone": len(keys)}
    facts |= {"finished_at": ended, "next_attempt_at": None, **totals, **values}
    cleanup = Cleanup.objects.request(status=status, trigger="deleted", **facts)
    CleanupItem.objects.bulk_create(
        CleanupItem(
            cleanup=cleanup,
            key=key,
            identity=key,
            size=2**53 + 1,
            etag=secrets.token_hex(16),
            last_modified=timezone.now(),
            found_in="both",
            outcome="already_gone",
        )
        for key in keys
    )
    cleanup.record("closed", "Clean.", keys=keys, share=0.1, none=None)
    return Cleanup.objects.get(pk=cleanup.pk)


def details(cleanup: Cleanup) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All columns of its items and events but the number of the row."""
    rows = [list(each.order_by("pk").values()) for each in (cleanup.items, cleanup.events)]
    for row in (row for group in rows for row in group):
        del row["id"]
    return rows[0], rows[1]


def lines(path: Path) -> list[Any]:
    with gzip.open(path, "rt") as packed:
        return [json.loads(line) for line in packed]


def assert_untouched(cleanup: Cleanup, before: object) -> None:
    assert details(cleanup) == before
    assert Cleanup.objects.get(pk=cleanup.pk).pruned_at is None


def test_cleanup_is_not_pruned_while_an_alert_of_it_is_open(tmp_path: Path) -> None:
    cleanup = made()
    Alert.objects.create(kind="lost", cleanup=cleanup, summary="1 file was deleted.")
    before = details(cleanup)
    assert prune_cleanups(tmp_path) == []
    assert_untouched(cleanup, before)
    Alert.objects.end()
    assert prune_cleanups(tmp_path) == [cleanup]


def test_details_go_to_an_archive_and_the_cleanup_stays(tmp_path: Path) -> None:
    KnownProject.objects.create(pk="proj_1", evidence="deleted", deleted_at=timezone.now())
    cleanup = made()
    [pruned] = prune_cleanups(tmp_path)
    assert pruned == cleanup
    assert details(cleanup) == ([], [])
    kept = Cleanup.objects.get()
    assert (kept.status, kept.found, kept.project_id) == ("clean", len(STRANGE), "proj_1")
    assert kept.pruned_at
    assert KnownProject.objects.exists()
    path = tmp_path / kept.archive
    assert hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest() == kept.archive_digest
    assert path.stat().st_mode & 0o777 == 0o600
    keys = [line["fields"]["key"] for line in lines(path) if line["model"].endswith("item")]
    assert keys == STRANGE


def test_an_archive_can_be_loaded_and_brings_back_every_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "ROWS_PER_BATCH", 2)
    cleanup = made()
    before, facts = details(cleanup), Cleanup.objects.values().get()
    [first] = prune_cleanups(tmp_path)
    # Rows that were made since, and may have the numbers of those that went.
    other = made(days=1)
    others = details(other)
    call_command("loaddata", tmp_path / first.archive, verbosity=0)
    assert_untouched(cleanup, before)
    assert Cleanup.objects.values().get(pk=cleanup.pk) == facts
    assert details(other) == others
    [second] = prune_cleanups(tmp_path)
    assert (second.archive, second.archive_digest) == (first.archive, first.archive_digest)


def test_a_row_of_a_restored_database_is_not_written_over_by_a_loaded_one(tmp_path: Path) -> None:
    cleanup = made()
    numbers = list(cleanup.items.values_list("pk", flat=True))
    prune_cleanups(tmp_path)
    other = made(days=1, keys=["other"], found=1, already_gone=1)
    other.items.update(id=numbers[0])
    call_command("loaddata", tmp_path / Cleanup.objects.pruned().get().archive)
    assert other.items.get().key == "other"
    assert cleanup.items.count() == len(STRANGE)


@pytest.mark.parametrize("status", OPEN)
def test_what_is_open_is_never_pruned(tmp_path: Path, status: str) -> None:
    cleanup = made(status, next_attempt_at=timezone.now())
    before = details(cleanup)
    assert prune_cleanups(tmp_path) == []
    assert_untouched(cleanup, before)
    assert not list(tmp_path.glob("*.gz"))


@pytest.mark.parametrize(
    ("status", "kind"),
    sorted(
        {*product(OPEN, ["project", "verify"])} - {("blocked", "verify"), ("differs", "verify")}
    ),
)
def test_what_something_open_follows_is_never_pruned(
    tmp_path: Path, status: str, kind: str
) -> None:
    cleanup = made()
    made(status, parent=cleanup, kind=kind, next_attempt_at=timezone.now())
    before = details(cleanup)
    assert prune_cleanups(tmp_path) == []
    assert_untouched(cleanup, before)


def test_what_ended_less_long_ago_is_not_pruned(tmp_path: Path) -> None:
    cleanup = made(days=399)
    before = details(cleanup)
    assert prune_cleanups(tmp_path) == []
    assert_untouched(cleanup, before)
    assert prune_cleanups(tmp_path, timedelta(days=398)) == [cleanup]


def test_a_verification_that_found_differences_is_over_and_holds_up_nothing(tmp_path: Path) -> None:
    cleanup = made("superseded")
    look = made("differs", parent=cleanup, kind="verify")
    assert set(prune_cleanups(tmp_path)) == {cleanup, look}


def test_a_stopped_verification_stays_and_holds_up_nothing(tmp_path: Path) -> None:
    cleanup = made()
    made("blocked", parent=cleanup, kind="verify")
    assert prune_cleanups(tmp_path) == [cleanup]


def test_a_real_cleanup_with_its_follow_ups_can_be_pruned(bucket: Bucket, tmp_path: Path) -> None:
    bucket.upload("proj_1")
    cleanup = clean_up_project("proj_1")
    now = timezone.now()
    assert prune_cleanups(tmp_path, timedelta(days=-1)) == []
    cleanup.children.update(next_attempt_at=now)
    for child in cleanup.children.all():
        run_until_idle(child)
    assert len(prune_cleanups(tmp_path, timedelta(days=-1))) == 1 + len(conf().follow_up_checks)
    assert list(retention.find_damaged_archives(tmp_path)) == []


# What goes wrong


@contextmanager
def small_files() -> Iterator[None]:
    """No file can grow beyond a kilobyte, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def after(patch: pytest.MonkeyPatch, name: str, effect: Callable[[Any], object]) -> None:
    """Let this happen to the result of a function of `retention`, before it is returned."""
    original = getattr(retention, name)

    def and_then(*args: Any) -> Any:
        result = original(*args)
        effect(result)
        return result

    patch.setattr(retention, name, and_then)


def test_a_full_disk_deletes_nothing(tmp_path: Path) -> None:
    cleanup = made(keys=[secrets.token_hex(100) for _n in range(50)])
    before = details(cleanup)
    with small_files(), pytest.raises(ArchiveError, match=f"{cleanup.pk} .*File too large"):
        prune_cleanups(tmp_path)
    assert_untouched(cleanup, before)
    assert not list(tmp_path.glob("*.gz"))
    assert prune_cleanups(tmp_path) == [cleanup]
    assert not list(tmp_path.glob("*.part"))


def test_a_cleanup_that_cannot_be_exported_holds_up_no_other(tmp_path: Path) -> None:
    first, second = made(days=500), made()
    before = details(first)
    (tmp_path / f"{first.pk}.part").mkdir()
    out, err, code = run_command("prune_cleanups", "--to", str(tmp_path))
    assert (out.count("archived to"), code) == (1, 1)
    assert "was not exported, so its details were kept: [Errno 21] Is a directory" in err
    assert_untouched(first, before)
    second.refresh_from_db()
    assert second.pruned_at


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 9)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def swap(path: Path) -> None:
    path.write_bytes(
        gzip.compress(gzip.decompress(path.read_bytes()).replace(b"proj_1", b"proj_2"))
    )


def flip(path: Path) -> None:
    """A bit of the checksum. Elsewhere a bit may be one that changes nothing: in a run of one
    letter it can move the place that is copied from."""
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)


def garble(path: Path) -> None:
    """Bits of the first block, behind a header that ends with the file's name: no block is of that
    type."""
    content = bytearray(path.read_bytes())
    content[content.index(0, 10) + 1] |= 0b110
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, empty, swap, flip, garble, Path.unlink])
def test_an_archive_that_does_not_hold_what_was_written_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    cleanup = made()
    before = details(cleanup)
    after(monkeypatch, "write_archive", lambda archive: damage(tmp_path / archive.name))
    with pytest.raises(ArchiveError, match=str(cleanup.pk)):
        prune_cleanups(tmp_path)
    assert_untouched(cleanup, before)


@pytest.mark.parametrize("rows", ["events", "items"])
def test_rows_that_the_archive_lacks_are_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: str
) -> None:
    cleanup = made()

    def add(archive: Archive) -> None:
        if rows == "events":
            cleanup.record("late", "A worker said this in the last moment.")
        else:
            cleanup.items.create(key="late", identity="late", found_in="listed")

    after(monkeypatch, "export_cleanup", add)
    with pytest.raises(ArchiveError, match=str(cleanup.pk)):
        prune_cleanups(tmp_path)
    assert (cleanup.items.count(), cleanup.events.count()) == (
        len(STRANGE) + (rows == "items"),
        2 + (rows == "events"),
    )
    monkeypatch.undo()
    assert prune_cleanups(tmp_path) == [cleanup]


def test_what_another_process_pruned_meanwhile_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleanup, elsewhere = made(), tmp_path / "elsewhere"
    elsewhere.mkdir()
    real, done = retention.export_cleanup, list[Cleanup]()

    def export(cleanup: Cleanup, folder: Path) -> Archive:
        if folder == tmp_path:
            done.extend(prune_cleanups(elsewhere))
        return real(cleanup, folder)

    monkeypatch.setattr(retention, "export_cleanup", export)
    assert prune_cleanups(tmp_path) == []
    assert done == [cleanup]
    assert list(retention.find_damaged_archives(elsewhere)) == []


def test_two_processes_do_not_write_into_one_folder(tmp_path: Path) -> None:
    cleanup = made()
    before = details(cleanup)
    with retention.lock_folder(tmp_path):
        out, err, code = run_command("prune_cleanups", "--to", str(tmp_path))
    assert code == 1
    assert "Another process is pruning into" in err
    assert out == "Cleanups pruned: 0.\n"
    assert_untouched(cleanup, before)


def test_a_verification_that_begins_meanwhile_keeps_the_details(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleanup, about_to, result = made(), Event(), list[Cleanup]()
    before = details(cleanup)
    after(monkeypatch, "export_cleanup", lambda archive: about_to.set())

    def in_a_thread() -> None:
        result.extend(prune_cleanups(tmp_path))
        connection.close()

    pruning = Thread(target=in_a_thread)
    with transaction.atomic():
        requests.request_cleanup_verification(cleanup)
        pruning.start()
        assert about_to.wait(60)
        # It waits for our commit. A second is enough for one that does not.
        pruning.join(1)
        assert not result
    pruning.join()
    assert result == []
    assert_untouched(cleanup, before)


# Killed at any moment

KILLED = """
import os, signal, sys
import django
django.setup()
from django.core.management import call_command
from storage_audit.cleanup import retention

folder, function, left = sys.argv[1], sys.argv[2], int(sys.argv[3])

def trace(frame, event, argument):
    global left
    if (frame.f_code.co_filename, frame.f_code.co_name) != (retention.__file__, function):
        return None
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return trace

sys.settrace(trace)
call_command("prune_cleanups", "--to", folder)
"""


def run_killed(folder: Path, function: str, after: int) -> int:
    """Run the command, and kill it after so many lines of this function; its exit status."""
    environment = {"DJANGO_SETTINGS_MODULE": "autoshorts.settings", "DATABASE_URL": database_url()}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), function, str(after)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def test_a_command_that_is_killed_again_and_again_loses_nothing_and_ends(tmp_path: Path) -> None:
    all_of = {each.pk: details(each) for each in (made(keys=["a", "b"]) for _n in range(30))}
    random = Random(4)
    for function in (
        "prune_cleanups",
        "lock_folder",
        "write_archive",
        "serialize_rows",
        "read_detached_rows",
        "sync_folder",
        "delete_details",
    ) * 2:
        assert run_killed(tmp_path, function, random.randint(1, 12)) == -signal.SIGKILL
        assert list(retention.find_damaged_archives(tmp_path)) == []
        for cleanup in Cleanup.objects.all():
            if not cleanup.pruned_at:
                assert details(cleanup) == all_of[cleanup.pk]
            else:
                assert details(cleanup) == ([], [])
                assert len(lines(tmp_path / cleanup.archive)) == 1 + 2 + 2
    assert 0 < Cleanup.objects.pruned().count() < 30
    assert run_killed(tmp_path, "nowhere", 0) == 0
    names = {path.name for path in tmp_path.iterdir()} - {".lock"}
    assert names == set(Cleanup.objects.values_list("archive", flat=True))
    assert len(names) == 30
    for cleanup in Cleanup.objects.all():
        call_command("loaddata", tmp_path / cleanup.archive, verbosity=0)
        assert details(cleanup) == all_of[cleanup.pk]


# What a person sees


def test_the_command_says_what_it_would_do_and_what_it_did(tmp_path: Path) -> None:
    to = ("--to", str(tmp_path))
    made()
    made(days=1)
    assert run_command("prune_cleanups", *to, "--dry-run") == (
        "Would archive and delete rows: 6 files and 2 timeline entries, of 1 cleanups.\n",
        "",
        0,
    )
    assert CleanupItem.objects.count() == 12
    assert CleanupEvent.objects.count() == 4
    assert list(tmp_path.iterdir()) == []
    out, err, code = run_command("prune_cleanups", *to)
    assert (err, code) == ("", 0)
    [pruned] = Cleanup.objects.pruned()
    suffix = pruned.archive.removeprefix(str(pruned.pk))
    assert out == f"ID: archived to ID{suffix}\nCleanups pruned: 1.\n"
    assert run_command("prune_cleanups", *to)[0] == "Cleanups pruned: 0.\n"


def test_the_command_reads_the_archives_again_when_asked(tmp_path: Path) -> None:
    to = ("--to", str(tmp_path), "--verify")
    cleanups = [made(), made(), made()]
    prune_cleanups(tmp_path)
    assert run_command("prune_cleanups", *to) == ("Intact archives: 3.\n", "", 0)
    paths = [tmp_path / Cleanup.objects.get(pk=each.pk).archive for each in cleanups]
    swap(paths[0])
    paths[1].unlink()
    out, err, code = run_command("prune_cleanups", *to)
    assert code == 1
    assert len(out.splitlines()) == 2
    assert "is damaged" in out
    assert "No such file" in out
    assert "2 archives are missing or damaged" in err


@pytest.mark.parametrize("days", ["0", "-1", "many", "1.5", "99999999999"])
def test_days_that_are_none_are_wrong_use(
    tmp_path: Path, days: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made()
    arguments = (f"--older-than={days}", "--to", str(tmp_path))
    assert run_command("prune_cleanups", *arguments)[2] == 2
    assert "must be a whole number of days from 1" in capsys.readouterr().err
    assert CleanupItem.objects.exists()


def test_a_folder_that_is_not_there_is_wrong_use_and_is_not_made(tmp_path: Path) -> None:
    made()
    _out, err, code = run_command("prune_cleanups", "--to", str(tmp_path / "not-mounted"))
    assert code == 2
    assert "Create it, or mount it." in err
    assert CleanupItem.objects.exists()
    assert not (tmp_path / "not-mounted").exists()


def test_the_settings_say_how_long(tmp_path: Path, settings: Settings) -> None:
    made(days=3)
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "RETENTION": timedelta(days=2)}
    assert run_command("prune_cleanups", "--to", str(tmp_path), "--older-than", "4")[0] == (
        "Cleanups pruned: 0.\n"
    )
    assert "Cleanups pruned: 1.\n" in run_command("prune_cleanups", "--to", str(tmp_path))[0]
    usual = settings.STORAGE_AUDIT
    # Until then its items say which keys are barred.
    longer = {"RETENTION": timedelta(days=2), "DELETION_TIMEOUT": timedelta(days=3)}
    for wrong in ({"RETENTION": timedelta(hours=23)}, longer):
        settings.STORAGE_AUDIT = {**usual, **wrong}
        with pytest.raises(ImproperlyConfigured, match="RETENTION"):
            conf()


def test_the_page_says_where_the_details_are_and_verifies_nothing_that_it_does_not_know(
    tmp_path: Path,
) -> None:
    cleanup = made()
    prune_cleanups(tmp_path)
    cleanup.refresh_from_db()
    client = superuser_client()
    shown = page_text(client.get(url_of_cleanup(cleanup)))
    assert f"were moved to the file {cleanup.archive}." in shown
    details = page_text(client.get(f"{url_of_cleanup(cleanup)}?tab=details"))
    assert cleanup.archive_digest in details
    told = run_action(client, "cleanup", "verify_cleanup", cleanup.pk)
    assert "was exported to" in told
    assert Cleanup.objects.count() == 1
    _out, err, code = run_command("verify_cleanup", str(cleanup.pk))
    assert code == 2
    assert cleanup.archive.removeprefix(str(cleanup.pk)) in err
    call_command("loaddata", tmp_path / cleanup.archive, verbosity=0)
    assert requests.request_cleanup_verification(cleanup).parent == cleanup


def test_a_verification_of_what_was_pruned_is_refused_by_its_follow_up_too(tmp_path: Path) -> None:
    look = made(kind="verify", parent=made())
    prune_cleanups(tmp_path)
    with pytest.raises(IllegalTransition, match=str(look.parent_id)):
        requests.request_cleanup_verification(look)


def test_the_timer_s_unit_calls_the_command_on_a_folder_that_systemd_makes() -> None:
    unit = read_service("prune")
    words = unit["ExecStart"].split()
    parsed = Command().create_parser(*words[1:3]).parse_args(words[3:])
    assert words[2] == "prune_cleanups"
    assert parsed.to == Path("/var/lib", unit["StateDirectory"])
