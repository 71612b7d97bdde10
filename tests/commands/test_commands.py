"""The commands as a shell runs them: what they print, and how they exit."""

import re
from typing import Any, NoReturn
from uuid import uuid4

import pytest
from django.db import transaction
from django.utils import timezone
from django_q.models import OrmQ
from pytest_django import Settings

from storage_audit.bucket.listing import KeyIdentity
from storage_audit.cleanup import plan, runner, vanished_projects
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.cleanup.plan import discover_objects
from storage_audit.management import scan_command
from storage_audit.models import DatabaseIdentity, KnownProject, Project, R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.redaction import printable_text
from storage_audit.scan import worker
from storage_audit.scan.models import BucketScan
from tests.promises import create_projects
from tests.real_bucket import Bucket
from tests.run_command import Terminal, run_command, run_json

OLD = ["projects/proj_1/scenes/s1/media/old.mp4", "proj_1_s1_media.mp4"]
NOT_VERIFIED = (
    "CommandError: Found differences, or could not finish: see above. Verification: ID.\n"
)
NO_ANSWER = "Could not connect to the endpoint URL"


def delete(project_id: str) -> Cleanup:
    Project.objects.get(pk=project_id).delete()
    return Cleanup.objects.latest("created_at")


@pytest.fixture
def unreachable(bucket: Bucket, settings: Settings) -> None:
    """Nothing listens on the address of the store."""
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "ENDPOINT_URL": "http://127.0.0.1:9"}


def test_backfill_reports_what_it_found(bucket: Bucket) -> None:
    Project.objects.create(pk="proj_1")
    bucket.put(*OLD, "README.txt", "evil\x1b[2J", body=b"12345")
    assert run_command("backfill_r2") == (
        "4 objects (20 bytes) in bucket tests: 4 tracked, 0 updated, 0 unchanged.\n"
        "2 unrecognised files:\n"
        "  README.txt (no key format matches)\n"
        "  evil\\x1b[2J (no key format matches)\n"
        "To act on these findings, use the admin or manage.py findings.\n",
        "",
        0,
    )
    assert BucketScan.objects.get().requested_by


def test_backfill_as_a_dry_run_exits_with_0_and_writes_nothing(bucket: Bucket) -> None:
    bucket.put("README.txt", body=b"12345")
    assert run_command("backfill_r2", "--dry-run", "--prefix", "READ") == (
        "1 object (5 bytes) in bucket tests: 1 would be tracked, 0 would be updated, 0 unchanged.\n"
        "1 unrecognised file:\n"
        "  README.txt (no key format matches)\n",
        "",
        0,
    )
    assert not R2Object.objects.exists()


def test_backfill_shows_the_first_of_many_and_prints_json(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_command, "SAMPLES_PER_KIND", 1)
    bucket.put("README.txt", "b", "\u202e")
    out, _err, _code = run_command("backfill_r2")
    assert "  README.txt (no key format matches)\n  and 2 more\n" in out
    facts, code = run_json("backfill_r2")
    assert code == 0
    assert facts.pop("scan_id") == "ID"
    assert facts == {
        "bucket": "tests",
        "purpose": "backfill",
        "prefix": "",
        "project_id": None,
        "since": None,
        "dry_run": False,
        "status": "complete",
        "in_key_order": True,
        "is_partial": False,
        "message": "",
        "requests": 1,
        "listed": 3,
        "listed_bytes": 21,
        "added": 0,
        "updated": 0,
        "unchanged": 3,
        "orphaned": 0,
        "missing": 0,
        "untracked": 0,
        "changed": 0,
        "ambiguous": 0,
        "unrecognised": 3,
        "misnamed": 0,
        "unstorable": 0,
        "unfinished": 0,
        "samples": [
            {
                "kind": "unrecognised",
                "key": "README.txt",
                "project_id": None,
                "evidence": "no key format matches",
            }
        ],
    }


def test_backfill_shows_progress_on_a_terminal_only(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(scan_command, "monotonic", lambda: float(next(ticks)))
    bucket.put("README.txt")
    terminal = Terminal()
    run_command("backfill_r2", stderr=terminal)
    assert terminal.getvalue() == "\r1 object, 1/s\x1b[K\r\x1b[K"
    assert run_command("backfill_r2")[1] == ""
    ticks = iter(range(0, 1000, 11))
    assert run_command("backfill_r2")[1] == "1 object, 0/s\n"


def test_backfill_that_cannot_reach_the_bucket_exits_with_1(unreachable: None) -> None:
    out, err, code = run_command("backfill_r2")
    assert code == 1
    assert out == "0 objects (0 bytes) in bucket tests: 0 tracked, 0 updated, 0 unchanged.\n"
    assert re.fullmatch(
        rf"CommandError: Scan ID failed: .*{NO_ANSWER}.* To continue within an hour:"
        r" manage\.py backfill_r2 --resume ID\n",
        err,
    )
    assert BucketScan.objects.get().status == "failed"


def test_backfill_that_is_interrupted_says_how_to_go_on(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("README.txt")

    def interrupted(scan: BucketScan, identity: KeyIdentity) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "conclude_scan", interrupted)
    assert run_command("backfill_r2") == (
        "",
        "CommandError: Interrupted after 1 object. Objects tracked so far stay tracked. To continue"
        " within an hour: manage.py backfill_r2 --resume ID\n",
        130,
    )
    assert BucketScan.objects.get().status == "stopped"


@pytest.mark.parametrize(
    "arguments",
    [
        ["backfill_r2", "--prefix", "\0"],
        ["backfill_r2", "--bucket", "x"],
        ["cleanup_project"],
        ["cleanup_project", "1"],
        ["cleanup_project", "proj_proj_1", "--declare-deleted"],
        ["cleanup_project", "proj_1", "--run-plan", "1"],
        ["cleanup_project", "proj_1", "--dry-run", "--declare-deleted"],
        ["cleanup_project", "proj_1", "--run-plan", str(uuid4())],
        ["verify_cleanup"],
        ["verify_cleanup", "proj_1"],
        ["verify_cleanup", str(uuid4())],
    ],
)
def test_wrong_use_exits_with_2_and_asks_for_nothing(
    bucket: Bucket, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, err, code = run_command(*arguments)
    assert (out, code) == ("", 2)
    assert err or "error: " in capsys.readouterr().err
    assert not Cleanup.objects.exists()
    assert not KnownProject.objects.exists()


def test_cleanup_of_a_live_project_is_refused(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    for option in ("--sync", "--declare-deleted"):
        assert run_command("cleanup_project", "proj_1", option) == (
            "",
            "CommandError: Project proj_1 exists, so nothing was deleted. Delete the project in the"
            " admin, or use --dry-run.\n",
            2,
        )
    assert bucket.keys() == {key}


def test_cleanup_of_an_id_that_nobody_knows_asks_for_a_declaration(bucket: Bucket) -> None:
    bucket.put(*OLD)
    _out, err, code = run_command("cleanup_project", "proj_1", "--sync")
    assert code == 2
    assert "--declare-deleted" in err
    assert run_command("cleanup_project", "proj_1", "--sync", "--declare-deleted") == (
        "Cleanup ID, project proj_1, bucket tests: clean.\n"
        "Found 2: 2 deleted, 0 already gone, 0 kept, 0 failed.\n",
        "",
        0,
    )
    assert bucket.keys() == set()
    cleanup = Cleanup.objects.get(parent=None)
    assert cleanup.trigger == "declared"
    assert cleanup.requested_by
    assert cleanup.origin.startswith("command on ")


def test_cleanup_leaves_the_work_to_the_queue_unless_told_otherwise(
    bucket: Bucket, settings: Settings
) -> None:
    Project.objects.create(pk="proj_1")
    delete("proj_1")
    OrmQ.objects.all().delete()
    bucket.put(*OLD)
    assert run_command("cleanup_project", "proj_1") == (
        "Cleanup ID, project proj_1, bucket tests: queued. Usually starts within a minute.\n"
        "To follow: manage.py deletion_log ID --follow\n",
        "",
        0,
    )
    assert OrmQ.objects.count() == 1
    assert bucket.keys() == set(OLD)
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "SYNC": True}
    out, _err, code = run_command("cleanup_project", "proj_1")
    assert code == 0
    assert "2 deleted" in out
    assert bucket.keys() == set()


def test_cleanup_that_checks_again_later_says_how_it_goes_on(
    bucket: Bucket, with_pauses: None
) -> None:
    bucket.r2.remove(bucket.upload("proj_1"))
    delete("proj_1")
    out, err, code = run_command("cleanup_project", "proj_1", "--sync")
    assert code == 1 and "Not finished" in err
    assert "again in a minute" in out and "sweep_cleanups --sync" in out


def test_cleanup_that_keeps_objects_exits_with_0_and_warns(bucket: Bucket) -> None:
    for project_id in ("proj_1", "proj_1_x"):
        Project.objects.create(pk=project_id)
    bucket.put("proj_1_x_s1_media.mp4", OLD[0])
    delete("proj_1")
    assert run_command("cleanup_project", "proj_1", "--sync") == (
        "Cleanup ID, project proj_1, bucket tests: clean, some kept.\n"
        "Found 2: 1 deleted, 0 already gone, 1 kept, 0 failed.\n"
        "  kept: proj_1_x_s1_media.mp4: The name also fits an existing project: proj_1_x."
        " It will be deleted with that project.\n",
        "Cleanup ID kept 1 file for you to decide on in the admin.\n",
        0,
    )


def test_cleanup_that_leaves_something_exits_with_1_and_names_its_deletion_id(
    bucket: Bucket,
) -> None:
    key = "projects/proj_1/scenes/s1/media/a\n/../b.mp4"
    bucket.put(key)
    out, err, code = run_command("cleanup_project", "proj_1", "--sync", "--declare-deleted")
    assert (err, code) == ("CommandError: Not finished: cleanup ID.\n", 1)
    assert "  failed: projects/proj_1/scenes/s1/media/a\\n/../b.mp4: " in out
    assert "Undeletable" in out
    facts, code = run_json("cleanup_project", "proj_1", "--sync")
    assert code == 1
    [cleanup] = facts["cleanups"]
    assert (cleanup["status"], cleanup["objects"]["failed"]) == ("retrying", 1)
    assert cleanup["staying"][0]["key"] == key


def test_cleanup_that_cannot_reach_the_bucket_exits_with_1(unreachable: None) -> None:
    out, err, code = run_command("cleanup_project", "proj_1", "--sync", "--declare-deleted")
    assert (err, code) == ("CommandError: Not finished: cleanup ID.\n", 1)
    assert NO_ANSWER in out


def test_cleanup_waits_while_another_one_of_the_project_is_worked_on(bucket: Bucket) -> None:
    Project.objects.create(pk="proj_1")
    cleanup = delete("proj_1")
    runner.run_to_end(cleanup.pk)
    bucket.put(*OLD)
    check = cleanup.children.earliest("next_attempt_at")
    Cleanup.objects.filter(pk=check.pk).update(next_attempt_at=timezone.now())
    with transaction.atomic():
        assert check.acquire_lease()
    out, err, code = run_command("cleanup_project", "proj_1", "--sync")
    assert "Waiting for another cleanup of this project." in out
    assert (err, code) == ("CommandError: Not finished: cleanup ID.\n", 1)
    assert bucket.keys() == set(OLD)


def test_a_dry_run_shows_what_would_go_and_its_plan_can_be_run(bucket: Bucket) -> None:
    Project.objects.create(pk="proj_1_x")
    bucket.put(*OLD, "proj_1_x_s1_media.mp4")
    assert run_command("cleanup_project", "proj_1", "--dry-run") == (
        "Cleanup ID, project proj_1, bucket tests: preview.\n"
        "Would delete 2 files.\n"
        "  to be deleted: proj_1_s1_media.mp4: name fits proj_1 by key format flat\n"
        "  to be deleted: projects/proj_1/scenes/s1/media/old.mp4: name fits proj_1 by key format"
        " hierarchical\n"
        "Would keep 1 file.\n"
        "  kept: proj_1_x_s1_media.mp4: The name also fits an existing project: proj_1_x."
        " It will be deleted with that project.\n"
        "To delete exactly these files: manage.py cleanup_project proj_1 --run-plan ID"
        " --declare-deleted\n",
        "",
        0,
    )
    assert len(bucket.keys()) == 3
    bucket.put("audio/proj_1/s1/later.mp3")
    plan = str(Cleanup.objects.get().pk)
    assert run_command("cleanup_project", "proj_2", "--run-plan", plan)[2] == 2
    _out, err, code = run_command("cleanup_project", "proj_1", "--run-plan", plan, "--sync")
    assert (code, len(bucket.keys())) == (2, 4)
    assert "No deletion of project proj_1 is recorded, so nothing was deleted." in err
    out, _err, code = run_command(
        "cleanup_project", "proj_1", "--run-plan", plan, "--sync", "--declare-deleted"
    )
    assert code == 0
    assert "2 deleted" in out
    assert bucket.keys() == {"proj_1_x_s1_media.mp4", "audio/proj_1/s1/later.mp3"}
    assert run_command("cleanup_project", "proj_1", "--run-plan", plan)[2] == 2


def test_plan_of_a_project_gone_without_a_signal_runs_as_its_hint_says(bucket: Bucket) -> None:
    create_projects("proj_1", "proj_3")
    bucket.upload("proj_1")
    Project.objects.filter(pk="proj_1")._raw_delete("default")
    out, _err, _code = run_command("cleanup_project", "proj_1", "--dry-run")
    plan = str(Cleanup.objects.get(status="planned").pk)
    assert "cleanup_project proj_1 --run-plan ID --declare-deleted\n" in out
    declared = ("--run-plan", plan, "--sync", "--declare-deleted")
    assert run_command("cleanup_project", "proj_1", "--run-plan", plan, "--sync")[2] == 2
    assert run_command("cleanup_project", "proj_2", *declared)[2] == 2
    assert not KnownProject.objects.deletion_reported().exists() and bucket.keys()
    out, err, code = run_command("cleanup_project", "proj_1", *declared)
    assert ("1 deleted" in out, err, code) == (True, "", 0)
    assert not bucket.keys()


def test_plan_beside_a_cleanup_that_waits_names_that_cleanup(bucket: Bucket) -> None:
    create_projects("proj_1", "proj_3")
    bucket.upload("proj_1")
    Project.objects.filter(pk="proj_1")._raw_delete("default")
    vanished_projects.check_vanished_projects()
    out, _err, _code = run_command("cleanup_project", "proj_1", "--dry-run")
    assert "This preview can't run yet: cleanup ID of the project is still open." in out
    assert "--run-plan" not in out
    plan = str(Cleanup.objects.get(status="planned").pk)
    assert run_command("cleanup_project", "proj_1", "--run-plan", plan, "--declare-deleted")[2] == 2
    assert not KnownProject.objects.deletion_reported().exists() and bucket.keys()


def test_plan_that_is_refused_declares_nothing_deleted(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1", "proj_3")
    bucket.upload("proj_1")
    Project.objects.filter(pk="proj_1")._raw_delete("default")
    run_command("cleanup_project", "proj_1", "--dry-run")

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise IllegalTransition("This plan has expired.")

    monkeypatch.setattr(Cleanup, "run_plan", refuse)
    plan = str(Cleanup.objects.get().pk)
    _out, err, code = run_command(
        "cleanup_project", "proj_1", "--run-plan", plan, "--declare-deleted"
    )
    assert ("This plan has expired." in err, code) == (True, 2)
    assert not KnownProject.objects.deletion_reported().exists() and bucket.keys()


def test_a_dry_run_of_a_live_project_says_how_to_go_on(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    out, _err, code = run_command("cleanup_project", "proj_1", "--dry-run")
    assert code == 0
    assert out.endswith(
        "The project exists. To delete these files, delete the project in the admin.\n"
    )
    facts, code = run_json("cleanup_project", "proj_1", "--dry-run")
    assert code == 0
    assert facts["cleanups"][0]["would_delete"] == [key]
    assert facts["cleanups"][0]["objects"]["to_delete"] == 1
    assert bucket.keys() == {key}


def test_verify_of_a_live_project_in_step_exits_with_0(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    assert run_command("verify_cleanup", "proj_1") == (
        "proj_1 in bucket tests: 1 as expected, 0 missing, 0 untracked.\n",
        "",
        0,
    )


def test_verify_shows_what_is_missing_and_untracked_and_exits_with_1(bucket: Bucket) -> None:
    missing = bucket.upload("proj_1")
    bucket.upload("proj_1", "kept.mp4")
    bucket.r2.remove(missing, bucket.name)
    bucket.put(OLD[1])
    assert run_command("verify_cleanup", "proj_1") == (
        "proj_1 in bucket tests: 1 as expected, 1 missing, 1 untracked.\n"
        "  failed: proj_1_s1_media.mp4: In the bucket, but not tracked. Run a backfill.\n"
        f"  failed: {missing}: Tracked, but missing from the bucket."
        " Upload the file again, or untrack it.\n",
        NOT_VERIFIED,
        1,
    )
    facts, code = run_json("verify_cleanup", "proj_1")
    assert code == 1
    assert facts["checks"][0]["message"] == "1 as expected, 1 missing, 1 untracked."


def test_verify_of_a_deletion_id_shows_what_came_back(bucket: Bucket) -> None:
    Project.objects.create(pk="proj_1")
    bucket.put(*OLD)
    deletion_id = str(runner.run_to_end(delete("proj_1").pk).pk)
    assert run_command("verify_cleanup", deletion_id) == (
        "proj_1 in bucket tests: 0 leftover, 2 confirmed gone.\n",
        "",
        0,
    )
    bucket.put(OLD[1])
    assert run_command("verify_cleanup", deletion_id) == (
        "proj_1 in bucket tests: 1 leftover, 1 confirmed gone.\n"
        "  failed: proj_1_s1_media.mp4: Still in the bucket. Clean up the project again.\n",
        NOT_VERIFIED,
        1,
    )


@pytest.mark.parametrize("subject", ["\udcff", "proj_\0"])
def test_verify_of_what_is_no_text_exits_with_2(
    db: None, subject: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("verify_cleanup", subject) == ("", "", 2)
    assert "it must be UTF-8 without NUL" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["x" * 300, "a\0b", "nowhere"])
def test_prune_into_what_can_be_no_folder_exits_with_2(db: None, folder: str) -> None:
    out, err, code = run_command("prune_cleanups", "--to", folder)
    assert (out, code) == ("", 2)
    assert "There is no folder" in err


def test_verify_that_cannot_reach_the_bucket_exits_with_1(unreachable: None) -> None:
    Project.objects.create(pk="proj_1")
    out, err, code = run_command("verify_cleanup", "proj_1")
    assert (err, code) == (NOT_VERIFIED, 1)
    assert NO_ANSWER in out


def test_sweep_enqueues_what_was_forgotten_and_detects_what_vanished(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    bucket.upload("proj_2")
    delete("proj_1")
    OrmQ.objects.all().delete()
    Cleanup.objects.update(enqueued_at=None)
    Project.objects.filter(pk="proj_2")._raw_delete("default")
    assert run_command("sweep_cleanups") == (
        "Projects that disappeared: 1.\n"
        "Their files are kept until you decide on them in the admin.\n"
        "Cleanups queued: 1.\n",
        "",
        0,
    )
    assert OrmQ.objects.count() == 1


def test_sweep_without_a_worker_runs_what_is_due(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    delete("proj_1")
    assert run_command("sweep_cleanups", "--sync") == (
        "Projects that disappeared: 0.\nID: clean.\nCleanups run: 1.\n",
        "",
        0,
    )
    assert bucket.keys() == set()


def test_sweep_goes_on_after_a_cleanup_that_breaks(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for project_id in ("proj_1", "proj_2"):
        bucket.upload(project_id)
        delete(project_id)

    def breaks_on_the_first(work: Any) -> None:
        if work.cleanup.project_id == "proj_1":
            raise RuntimeError
        discover_objects(work)

    monkeypatch.setattr(plan, "discover_objects", breaks_on_the_first)
    out, err, code = run_command("sweep_cleanups", "--sync")
    assert code == 1
    assert out.endswith("ID: clean.\nCleanups run: 2.\n")
    assert err == (
        "CommandError: Stopped with an error and will be retried: ID. The log has the details.\n"
    )


def test_connecting_says_whose_the_bucket_is_now(bucket: Bucket) -> None:
    bucket.wipe()
    assert run_command("connect_bucket") == (
        "Bucket tests belongs to database ID.\n"
        "The store treats Unicode spellings of a key as different objects.\n"
        "Next: run manage.py backfill_r2 to track the files in the bucket.\n",
        "",
        0,
    )


def test_connecting_takes_a_bucket_from_another_database_only_when_told_to(bucket: Bucket) -> None:
    DatabaseIdentity.objects.all().delete()
    assert run_command("connect_bucket") == (
        "",
        "CommandError: Bucket tests belongs to another database. If that one is gone for good, add"
        " --take-over.\n",
        1,
    )
    assert run_command("connect_bucket", "--take-over")[2] == 0
    bucket_marker.check_bucket(bucket.name)


def test_connecting_that_cannot_reach_the_bucket_is_one_line_and_exits_with_1(
    unreachable: None,
) -> None:
    out, err, code = run_command("connect_bucket")
    assert (out, code) == ("", 1)
    assert re.fullmatch(rf"CommandError: .*{NO_ANSWER}.*\n", err)


def test_connecting_a_bucket_that_the_store_does_not_have_exits_with_2(
    bucket: Bucket, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "BUCKET": "nowhere"}
    assert run_command("connect_bucket") == (
        "",
        "CommandError: The store has no bucket nowhere. Create it, or correct the bucket or the"
        " address in the settings.\n",
        2,
    )


def test_keys_are_printed_so_that_a_terminal_obeys_nothing() -> None:
    assert printable_text("é 🦊") == "é 🦊"
    assert printable_text("\x1b[2J\r\n\0") == "\\x1b[2J\\r\\n\\x00"
    assert printable_text("\u202e\u2028\udcff") == "\\u202e\\u2028\\udcff"
