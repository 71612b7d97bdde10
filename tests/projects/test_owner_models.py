"""Models of projects that inherit, order or compare in ways of their own."""

from collections.abc import Iterator
from threading import Event
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core import serializers
from django.core.exceptions import ImproperlyConfigured
from django.db import models, transaction
from pytest_django import Settings

from storage_audit import project_model
from storage_audit.cleanup.delete_projects import delete_project_by_id
from storage_audit.cleanup.models import Cleanup
from storage_audit.findings import track_files
from storage_audit.findings.action_result import ActionRefused
from storage_audit.findings.models import Finding
from storage_audit.models import KnownProject, Project
from storage_audit.projects.admin.columns import annotate_storage
from tests.api_client import client_with_token
from tests.builders import track_keys
from tests.database import THREAD_TIMEOUT_SECONDS, run_in_thread
from tests.owner_models import assert_cleanup_waits, create_table
from tests.promises import Status, create_projects, request_cleanup, run_again
from tests.real_bucket import Bucket

pytestmark = pytest.mark.usefixtures("transactional_db")


@pytest.fixture
def child() -> Iterator[Any]:
    class Film(Project):
        class Meta:
            app_label = "storage_audit"

    with create_table(Film) as film:
        yield film


@pytest.fixture
def child_of_two(settings: Settings) -> Iterator[Any]:
    class Medium(models.Model):  # noqa: DJ008
        number = models.IntegerField(primary_key=True)

        class Meta:
            app_label = "storage_audit"

    class Work(models.Model):  # noqa: DJ008
        code = models.TextField(primary_key=True)

        class Meta:
            app_label = "storage_audit"

    class Video(Medium, Work):  # noqa: DJ008
        class Meta:
            app_label = "storage_audit"

    settings.STORAGE_AUDIT_PROJECT_MODEL = "storage_audit.Work"
    with create_table(Medium), create_table(Work), create_table(Video) as video:
        yield video


@pytest.fixture
def ordered(settings: Settings) -> Iterator[Any]:
    class Play(models.Model):  # noqa: DJ008
        id = models.TextField(primary_key=True)
        author = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
        object_count = models.IntegerField(default=7)

        class Meta:
            app_label = "storage_audit"
            ordering = ["author__username"]

    settings.STORAGE_AUDIT_PROJECT_MODEL = "storage_audit.Play"
    with create_table(Play) as play:
        yield play


@pytest.fixture
def ignoring_case(settings: Settings) -> Iterator[Any]:
    class Song(models.Model):  # noqa: DJ008
        id = models.CharField(primary_key=True, max_length=50, db_collation="NOCASE")

        class Meta:
            app_label = "storage_audit"

    settings.STORAGE_AUDIT_PROJECT_MODEL = "storage_audit.Song"
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"PROJECT_ID_PATTERN": "[A-Za-z]+"}
    with create_table(Song) as song:
        yield song


def test_project_created_again_as_a_child_and_not_yet_committed_keeps_what_it_uploads(
    bucket: Bucket, child: Any
) -> None:
    create_projects("proj_2")
    old = bucket.upload("proj_1", "old.mp4")
    cleanup = request_cleanup("proj_1")
    uploaded, may_commit, new = Event(), Event(), set[str]()

    def create() -> None:
        with transaction.atomic():
            child.objects.create(pk="proj_1", id="proj_1")
            new.add(bucket.upload("proj_1", "new.mp4"))
            uploaded.set()
            assert may_commit.wait(THREAD_TIMEOUT_SECONDS)

    with run_in_thread(create):
        assert uploaded.wait(THREAD_TIMEOUT_SECONDS)
        try:
            assert_cleanup_waits(cleanup)
        finally:
            may_commit.set()
    assert run_again(cleanup).status == Status.SUPERSEDED
    assert bucket.keys() == {old, *new}


def test_saving_a_child_makes_the_id_of_its_project_known(child_of_two: Any) -> None:
    child_of_two.objects.create(number=7, code="proj_1")
    assert [known.pk for known in KnownProject.objects.all()] == ["proj_1"]


def test_pages_of_a_child_name_the_project_and_not_the_other_parent(child_of_two: Any) -> None:
    child_of_two.objects.create(number=7, code="proj_1")
    track_keys("a", project="proj_1")
    shown = annotate_storage(child_of_two.objects.all()).get()
    assert (shown.storage_audit_id, shown.storage_audit_object_count) == ("proj_1", 1)


def test_pages_of_a_model_that_is_no_project_are_refused(child_of_two: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="Project is neither the project model"):
        annotate_storage(models.QuerySet(Project))


def test_deleting_a_child_starts_one_cleanup(child: Any) -> None:
    child.objects.create(pk="proj_1", id="proj_1").delete()
    assert [each.project_id for each in Cleanup.objects.all()] == ["proj_1"]


@pytest.fixture
def by_title(settings: Settings) -> None:
    """The title stands in keys."""
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"PROJECT_ID_FIELD": "title"}


def test_child_in_a_fixture_makes_only_the_id_of_its_project_known(
    by_title: None, child: Any
) -> None:
    film = child(id="proj_1", project_ptr_id="proj_1", title="Seven")
    fixture = serializers.serialize("json", [film, Project(id="proj_1", title="Seven")])
    with transaction.atomic():  # as loaddata does
        for row in serializers.deserialize("json", fixture):
            row.save()
    assert child.objects.get().title == "Seven"
    assert [known.pk for known in KnownProject.objects.all()] == ["Seven"]


def test_saving_some_fields_makes_no_id_known_that_no_row_has(by_title: None) -> None:
    project = Project.objects.create(id="proj_1", title="Seven")
    KnownProject.objects.all().delete()
    project.title = "Eight"
    project.save(update_fields=["created_at"])
    assert [known.pk for known in KnownProject.objects.all()] == ["Seven"]


def test_project_is_locked_and_deleted_whatever_its_model_orders_by(ordered: Any) -> None:
    ordered.objects.create(id="proj_1")
    assert [each.project_id for each in delete_project_by_id("proj_1")] == ["proj_1"]
    assert not ordered.objects.exists()


def test_model_may_have_a_field_named_as_a_figure_of_ours(ordered: Any) -> None:
    ordered.objects.create(id="proj_1")
    track_keys("a", "b", project="proj_1")
    shown = annotate_storage(ordered.objects.all()).get()
    assert (shown.object_count, shown.storage_audit_object_count) == (7, 2)


@pytest.mark.only_on("sqlite")  # PostgreSQL needs ICU for such a collation
def test_id_with_other_case_names_no_project(ignoring_case: Any) -> None:
    ignoring_case.objects.create(id="Alpha")
    answer = client_with_token().request("DELETE", "/projects/alpha")
    assert answer.status_code == 404
    with pytest.raises(ActionRefused, match="There is no project alpha"):
        track_files.assign_objects(Finding.objects.none(), "alpha")
    with transaction.atomic():
        assert project_model.lock_project("alpha") is None
        assert project_model.lock_project("Alpha") == ignoring_case.objects.get()
