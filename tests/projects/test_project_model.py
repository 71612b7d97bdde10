"""Whose rows own objects: an adopter's model may have numbers, UUIDs or any text for ids."""

from collections.abc import Callable
from typing import NamedTuple, Self
from unicodedata import normalize
from uuid import UUID

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, User
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, models, transaction
from django.utils import timezone
from pytest_django import Settings

from storage_audit import project_model
from storage_audit.cleanup import delete_projects, requests, runner, vanished_projects
from storage_audit.cleanup.delete_projects import delete_project
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.project_model import ProjectExists
from storage_audit.projects.admin.columns import annotate_storage
from storage_audit.signals import remember_project_id, request_project_cleanup
from tests.admin_client import confirm_action, superuser_client
from tests.builders import track_keys
from tests.real_bucket import Bucket

pytestmark = pytest.mark.usefixtures("transactional_db")
DIGITS = "0123456789abcdef0123456789abcdef"
CANONICAL = str(UUID(DIGITS))


def project() -> models.Model:
    return Project.objects.create(pk="proj_1")


def number() -> models.Model:
    return Group.objects.create(pk=7, name="Seven")


def uuid() -> models.Model:
    return Cleanup.objects.create(pk=UUID(DIGITS), bucket="b", status="clean")


class Case(NamedTuple):
    make: Callable[[], models.Model]
    model: str
    field: str
    project_id: str
    no_ids: list[str]


CASES = [
    Case(project, "storage_audit.Project", "pk", "proj_1", ["proj_10", "PROJ_1", "", "proj_1\0"]),
    Case(number, "auth.Group", "pk", "7", ["07", "7.0", " 7", "seven", "9" * 30, "-7", "٧"]),
    Case(number, "auth.Group", "name", "Seven", ["seven", "7", "Seven ", "S" * 999]),
    Case(
        uuid,
        "storage_audit.Cleanup",
        "pk",
        CANONICAL,
        [DIGITS, CANONICAL.upper(), "{" + CANONICAL + "}", "x"],
    ),
]


@pytest.fixture(params=CASES, ids=["project", "number", "text", "uuid"])
def case(request: pytest.FixtureRequest, settings: Settings) -> Case:
    chosen: Case = request.param
    settings.STORAGE_AUDIT_PROJECT_MODEL = chosen.model
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "PROJECT_ID_FIELD": chosen.field}
    return chosen


def test_an_id_is_the_text_that_stands_in_keys(case: Case) -> None:
    owner, project_id, others = case.make(), case.project_id, case.no_ids
    assert project_model.id_of(owner) == project_id
    assert project_model.living_ids([project_id, *others]) == {project_id}
    assert project_model.is_alive(project_id)
    assert not any(map(project_model.is_alive, others))
    assert not project_model.is_alive(None)
    with transaction.atomic():
        assert project_model.lock_project(project_id) == owner
        assert not any(map(project_model.lock_project, others))
    found = project_model.annotated_rows().values_list("storage_audit_id", flat=True)
    assert list(found) == [project_id]


def test_the_sweep_remembers_and_misses_it(case: Case) -> None:
    owner, project_id = case.make(), case.project_id
    KnownProject.objects.all().delete()
    assert vanished_projects.check_vanished_projects() == 0
    assert [known.pk for known in KnownProject.objects.all()] == [project_id]
    type(owner)._base_manager.all()._raw_delete(connection.alias)
    assert vanished_projects.check_vanished_projects() == 1
    cleanup = Cleanup.objects.exclude(status="clean").get()
    assert (cleanup.project_id, cleanup.status) == (project_id, "blocked")


def test_its_storage_is_summed_up(case: Case) -> None:
    owner, project_id = case.make(), case.project_id
    track_keys("a", "b", project=project_id)
    track_keys("c", project=case.no_ids[0])
    shown = annotate_storage(type(owner)._base_manager.all()).get()
    assert (shown.storage_audit_object_count, shown.storage_audit_id) == (2, project_id)


def test_an_instance_may_hold_another_spelling_of_its_id(settings: Settings) -> None:
    settings.STORAGE_AUDIT_PROJECT_MODEL = "storage_audit.Cleanup"
    assert project_model.id_of(Cleanup(pk=DIGITS)) == CANONICAL
    settings.STORAGE_AUDIT_PROJECT_MODEL = "auth.Group"
    assert project_model.id_of(Group(pk="007")) == "7"


def problems(settings: Settings, model: str, field: str) -> list[str]:
    settings.STORAGE_AUDIT_PROJECT_MODEL = model
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "PROJECT_ID_FIELD": field}
    return [str(each.msg) for each in run_checks() if each.id == "storage_audit.E004"]


def test_a_field_that_does_not_tell_projects_apart_is_an_error(settings: Settings) -> None:
    assert problems(settings, "storage_audit.Project", "pk") == []
    assert problems(settings, "auth.Group", "name") == []
    assert (
        "no such field of storage_audit.Project"
        in problems(settings, "storage_audit.Project", "title")[0]
    )
    assert "'slug'" in problems(settings, "storage_audit.Project", "slug")[0]


@pytest.mark.parametrize("label", ["nowhere.Model", "auth.Clip", "Project", ""])
def test_a_model_that_is_not_there_stops_the_start(label: str, settings: Settings) -> None:
    settings.STORAGE_AUDIT_PROJECT_MODEL = label
    with pytest.raises(ImproperlyConfigured, match="STORAGE_AUDIT_PROJECT_MODEL"):
        project_model.get_model()


def test_a_row_that_its_own_field_would_refuse_is_alive(settings: Settings) -> None:
    """save() asks no validator, so such rows exist; without this their files could be deleted."""
    settings.STORAGE_AUDIT_PROJECT_MODEL = "auth.User"
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "PROJECT_ID_FIELD": "username"}
    User.objects.create(username="Ann & Ben")
    assert project_model.is_alive("Ann & Ben")


def test_an_id_that_the_pattern_does_not_know_is_not_called_clean(bucket: Bucket) -> None:
    """Nothing of it was listed, so nothing of it was seen gone."""
    cleanup = recorded("7", trigger="deleted")
    assert runner.run_to_end(cleanup.pk).status != "clean"


def test_a_field_that_the_database_writes_otherwise_is_an_error(settings: Settings) -> None:
    """Python says True, SQLite 1; and 1.50 is 1.5, and a date has other punctuation."""
    assert problems(settings, "storage_audit.DatabaseIdentity", "only") != []


def recorded(project_id: str, **values: str) -> Cleanup:
    """The cleanup of a deletion that is on record."""
    now = timezone.now()
    KnownProject.objects.record_deleted(project_id, now, KnownProject.Evidence.DELETED)
    [cleanup] = Cleanup.objects.request_for_project(project_id, deleted_at=now, **values)
    return cleanup


def test_such_an_id_stays_blocked_until_the_setting_is_mended(
    bucket: Bucket, settings: Settings
) -> None:
    bucket.put("old/7.mp4", "old/8.mp4")
    for project_id in ("7", "8"):
        R2Object.objects.create(
            bucket=bucket.name,
            key=f"old/{project_id}.mp4",
            project_id=project_id,
            source="upload",
            state="stored",
        )
    cleanup = recorded("7", trigger="deleted")
    blocked = runner.run_to_end(cleanup.pk)
    assert blocked.status == "blocked"
    assert "7 is not a valid project ID" in blocked.message
    requests.approve_or_retry(blocked)
    blocked = runner.run_to_end(cleanup.pk)
    assert blocked.status == "blocked"
    settings.STORAGE_AUDIT = {
        **settings.STORAGE_AUDIT,
        "PROJECT_ID_PATTERN": "[0-9]+",
        "KEY_FORMATS": {"old": "old/{project}.{ext}"},
    }
    requests.approve_or_retry(blocked)
    assert runner.run_to_end(cleanup.pk).status == "clean"
    assert bucket.keys() == {"old/8.mp4"}


def test_a_row_that_every_manager_hides_is_alive(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with Meta.base_manager_name. Softly deleted rows would be found gone without a signal."""
    settings.STORAGE_AUDIT_PROJECT_MODEL = "auth.Group"
    number()
    hiding = models.Manager.from_queryset(Nothing)()
    hiding.model = Group
    monkeypatch.setattr(Group._meta, "base_manager", hiding)
    assert not Group._base_manager.exists()
    assert project_model.is_alive("7")
    assert project_model.annotated_rows().get().storage_audit_id == "7"


class Nothing(models.QuerySet[Group]):
    def exists(self) -> bool:
        return False

    def filter(self, *args: object, **kwargs: object) -> Self:
        return self.none()


def test_ids_may_have_a_collation_of_their_own(settings: Settings) -> None:
    settings.STORAGE_AUDIT_PROJECT_MODEL = "auth.Group"
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "PROJECT_ID_FIELD": "name"}
    number()
    collate("POSIX")
    try:
        assert vanished_projects.check_vanished_projects() == 0
        assert annotate_storage(Group.objects.all()).get().storage_audit_id == "Seven"
    finally:
        collate("default")


def collate(collation: str) -> None:
    """SQLite needs none: of two collations it takes the left one's."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            column = "ALTER TABLE auth_group ALTER name TYPE varchar(150)"
            cursor.execute(f'{column} COLLATE "{collation}"')


def test_forcing_a_deletion_does_not_make_it_clean(bucket: Bucket) -> None:
    cleanup = recorded("7", trigger="forced", limits_waived_by="anna")
    assert runner.run_to_end(cleanup.pk).status == "blocked"


def test_a_model_that_keeps_its_row_when_it_is_deleted_cannot_be_forced(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project.objects.create(pk="proj_1", title="Kept")
    monkeypatch.setattr(Project, "delete", lambda self: self.save())
    shown = confirm_action(superuser_client(), "project", "force_delete", "proj_1")
    assert "proj_1 was not deleted" in shown
    assert not LogEntry.objects.exists()
    with pytest.raises(ProjectExists, match="proj_1 was not deleted"):
        delete_project(project)


def test_force_delete_of_projects_that_are_gone_by_now_says_so(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    Project.objects.create(pk="proj_1")
    monkeypatch.setattr(delete_projects, "lock_project_row", lambda owner: None)
    shown = confirm_action(superuser_client(), "project", "force_delete", "proj_1")
    assert "none of the selected projects is there any more." in shown
    assert not LogEntry.objects.exists()


def named(settings: Settings, **entries: object) -> None:
    """Groups own objects by their names."""
    settings.STORAGE_AUDIT_PROJECT_MODEL = "auth.Group"
    settings.STORAGE_AUDIT = {
        **settings.STORAGE_AUDIT,
        "PROJECT_ID_FIELD": "name",
        "PROJECT_ID_PATTERN": "[^/]+",
        **entries,
    }


def test_a_live_project_keeps_its_files_in_any_spelling(bucket: Bucket, settings: Settings) -> None:
    named(settings, KEY_FORMATS={"flat": "clips/{project}_{filename}"})
    Group.objects.create(name=normalize("NFD", "a_é"))
    bucket.put("clips/a_é_take.mp4")
    (cleanup,) = requests.declare_deleted("a")
    assert runner.run_to_end(cleanup.pk).status == "clean_with_kept"
    assert bucket.keys() == {"clips/a_é_take.mp4"}


def clean_up_after(group: Group) -> Cleanup:
    """As the signals of a model do that owns objects from the start."""
    remember_project_id(group)
    group.delete()
    request_project_cleanup(group)
    return runner.run_to_end(Cleanup.objects.latest("created_at").pk)


def test_cleanup_waits_while_an_id_with_other_code_points_may_use_its_files(
    bucket: Bucket, settings: Settings
) -> None:
    named(settings, KEY_FORMATS={"clips": "clips/{project}/{filename}"})
    for project_id, other in [("\u00e9", "e\u0301"), ("pK", "p\u212a"), ("p\u212a", "pK")]:
        bucket.put(key := f"clips/{project_id}/take.mp4")
        owner, namesake = (Group.objects.create(name=name) for name in (project_id, other))
        cleanup = clean_up_after(owner)
        assert cleanup.status == "blocked"
        assert f"Project {other} exists." in cleanup.message
        assert bucket.facts(key)
        namesake.delete()


def test_another_id_does_not_end_a_cleanup_as_superseded(
    bucket: Bucket, settings: Settings
) -> None:
    named(settings, KEY_FORMATS={"clips": "clips/{project}/{filename}"})
    bucket.put("clips/pK/take.mp4")
    Group.objects.create(name="pk")
    assert clean_up_after(Group.objects.create(name="pK")).status == "clean"
    assert not bucket.keys()


def test_an_id_that_is_not_in_nfc_is_not_called_clean(bucket: Bucket, settings: Settings) -> None:
    named(settings, KEY_FORMATS={"clips": "clips/{project}/{filename}"})
    owner = Group.objects.create(name=normalize("NFD", "é"))
    assert clean_up_after(owner).status == "blocked"


def test_no_key_format_reaches_the_marker(bucket: Bucket, settings: Settings) -> None:
    named(settings, KEY_FORMATS={"all": "{project}/{filename}"})
    (cleanup,) = requests.declare_deleted(".storage_audit")
    runner.run_to_end(cleanup.pk)
    assert bucket_marker.MARKER_KEY in bucket.r2.keys(bucket.name)


def test_the_row_that_is_deleted_says_its_id_and_not_the_memory(settings: Settings) -> None:
    named(settings)
    mine, _other = Group.objects.create(name="mine"), Group.objects.create(name="other")
    mine.name = "other"
    remember_project_id(mine)
    Group.objects.filter(pk=mine.pk)._raw_delete(connection.alias)
    request_project_cleanup(mine)
    assert [each.project_id for each in Cleanup.objects.all()] == ["mine"]


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ("admin.LogEntry", "user"),
        ("admin.LogEntry", "user_id"),
        ("auth.User", "groups"),
        ("auth.User", "logentry"),
        ("storage_audit.Cleanup", "parent_id"),
    ],
)
def test_a_relation_is_no_id(model: str, field: str, settings: Settings) -> None:
    assert problems(settings, model, field) != []


def test_forcing_what_other_rows_protect_says_so(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project.objects.create(pk="proj_1")

    def protected(self: Project) -> None:
        raise models.ProtectedError("Cannot delete it: others need it.", {project})

    monkeypatch.setattr(Project, "delete", protected)
    assert "others need it" in confirm_action(
        superuser_client(), "project", "force_delete", "proj_1"
    )
    assert Project.objects.exists()
    assert not LogEntry.objects.exists()
