"""Objects with misnamed keys that rows of other tables name: they keep their names."""

from unicodedata import normalize

import pytest
from pytest_django import Settings

from storage_audit.cleanup.models import Cleanup
from storage_audit.findings import rename
from storage_audit.findings.models import Finding
from storage_audit.findings.rename_plan import Renaming
from storage_audit.models import R2Object
from tests.findings.renamings import (
    A_NEW,
    A,
    Crash,
    assert_kept,
    create_misnamed,
    patch_before,
    raise_crash,
    rename_findings,
)
from tests.owner_models import drop_library_table, library_rows
from tests.promises import create_projects
from tests.real_bucket import Bucket


@pytest.fixture
def misnamed(library: Bucket) -> Finding:
    """An object of a live project, under a key with the prefix twice."""
    create_projects("proj_1")
    library.put(A)
    [finding] = create_misnamed(library, A)
    return finding


def planned(finding: Finding) -> list[Renaming]:
    return rename.plan_renames(Finding.objects.filter(pk=finding.pk))


@pytest.mark.parametrize(
    "name, field, entry",
    [
        ("Clip", "file", ""),
        ("Poster", "file", ""),
        ("Copy", "note", "library.Copy.note"),
        ("Copy", "data", "tests.library.models.keys_in_data"),
    ],
)
def test_object_that_a_row_names_keeps_its_name(
    library: Bucket, misnamed: Finding, settings: Settings, name: str, field: str, entry: str
) -> None:
    """Whether an index finds the row or not."""
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"REFERENCES": [entry] if entry else []}
    row = library_rows(name).create(**{field: {"key": A} if field == "data" else A})
    is_data = field == "data"
    said = f"data of copy {row.pk}" if is_data else f"library.{name} {row.pk}, field {field}"
    for [one] in (planned(misnamed), rename_findings(misnamed)):
        assert f"Used by {said}" in one.objection
        assert_kept(library, misnamed)
    row.delete()
    [one] = rename_findings(misnamed)
    assert not one.objection
    assert library.keys() == {A_NEW}


def test_object_that_a_row_names_in_another_spelling_keeps_its_name(library: Bucket) -> None:
    create_projects("proj_1")
    key = A.replace("a.mp4", "\u00e9.mp4")
    library.put(key)
    library_rows("Clip").create(file=normalize("NFD", key))
    [one] = rename_findings(*create_misnamed(library, key))
    assert "Used by library.Clip" in one.objection
    assert library.keys() == {key}


def test_object_that_a_row_names_since_the_plan_stays(
    library: Bucket, misnamed: Finding, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_before(monkeypatch, rename, "copy_objects", lambda: library_rows("Clip").create(file=A))
    [one] = rename_findings(misnamed)
    assert "Used by library.Clip" in one.objection
    # The copy is a file like any other.
    assert_kept(library, misnamed, A, A_NEW)
    assert R2Object.objects.get(key=A_NEW).state == "stored"


def test_old_object_that_a_row_names_after_the_renaming_stays(
    library: Bucket, misnamed: Finding, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_before(monkeypatch, rename, "finish_renames", raise_crash)
    with pytest.raises(Crash):
        rename_findings(misnamed)
    Cleanup.objects.all().delete()
    library_rows("Clip").create(file=A)
    [one] = rename_findings(misnamed)
    assert "Used by library.Clip" in one.objection
    assert_kept(library, misnamed, A, A_NEW)


def test_while_a_table_cannot_be_read_nothing_is_renamed(
    library: Bucket, misnamed: Finding
) -> None:
    drop_library_table("Poster")
    [one] = rename_findings(misnamed)
    assert "library.Poster.file" in one.objection and "can't be read" in one.objection
    assert_kept(library, misnamed)
