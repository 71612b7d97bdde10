"""Files that only rows name which an undo would restore."""

from datetime import timedelta
from typing import Any

import pytest
from pytest_django.fixtures import Settings

from storage_audit.cleanup import end_deletions, runner
from storage_audit.cleanup.models import Cleanup, SnapshotFile
from storage_audit.models import Project
from tests.held import delete_held, run_after_hold
from tests.owner_models import library_rows
from tests.promises import (
    Status,
    act_before_batch,
    create_projects,
    read_outcomes,
    read_reason,
    run_until_idle,
)
from tests.real_bucket import Bucket

pytestmark = pytest.mark.database


def set_grace(settings: Settings, hours: int) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "GRACE": timedelta(hours=hours)}


def delete_held_with_copy(settings: Settings, key: str) -> Any:
    """Delete a project with a row that names this file of another project, so that this can still
    be undone. Returns the row's key."""
    clip = library_rows("Clip").create(project_id="proj_1", file=key)
    set_grace(settings, 72)
    pk = clip.pk
    delete_held("proj_1")
    set_grace(settings, 0)
    return pk


def test_file_that_a_restorable_row_names_is_kept(library: Bucket, settings: Settings) -> None:
    create_projects("proj_1", "proj_2")
    key, other = library.upload("proj_2", "a.mp4"), library.upload("proj_2", "b.mp4")
    pk = delete_held_with_copy(settings, key)
    Project.objects.get(pk="proj_2").delete()
    cleanup = runner.run_to_end(Cleanup.objects.get(project_id="proj_2", parent=None).pk)
    assert read_outcomes(cleanup) == {key: "kept", other: "deleted"}
    row = f"library.Clip {pk}, field file (deleted, but that can still be undone)"
    assert read_reason(cleanup, key).startswith(f"Kept, because {row} uses it.")
    end_deletions.undo_deletion(Cleanup.objects.get(project_id="proj_1", parent=None))
    assert library_rows("Clip").get().file.open().read() == b"take"
    assert not SnapshotFile.objects.exists()


def test_file_of_a_row_that_becomes_restorable_after_the_plan_is_kept(
    library: Bucket, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1", "proj_2")
    key = library.upload("proj_2")
    Project.objects.get(pk="proj_2").delete()
    cleanup = Cleanup.objects.get()
    act_before_batch(monkeypatch, lambda: delete_held_with_copy(settings, key))
    run_until_idle(cleanup)
    assert read_outcomes(cleanup) == {key: "kept"}
    assert library.keys() == {key}


def test_own_rows_of_a_deletion_keep_none_of_its_files(library: Bucket, settings: Settings) -> None:
    set_grace(settings, 72)
    create_projects("proj_1")
    key = library.upload("proj_1")
    library_rows("Clip").create(project_id="proj_1", file=key)
    cleanup = delete_held()
    assert SnapshotFile.objects.filter(key=key).exists()
    assert cleanup.items.planned().count() == 1
    assert run_after_hold(cleanup).status == Status.CLEAN
    assert not library.keys()
