"""Models of projects that inherit, order or compare in ways of their own."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import pytest
from django.core import serializers
from django.db import connection, models, transaction
from pytest_django import Settings

from storage_audit import signals
from storage_audit.models import CleanupOperation, KnownProject, Project
from tests.conftest import Bucket
from tests.promises import Status, again, alive, requested
from tests.test_races import SECONDS, meanwhile, work_on
from tests.test_signals import forget_model

pytestmark = pytest.mark.usefixtures("transactional_db")


@contextmanager
def table_of(model: type[models.Model]) -> Iterator[Any]:
    """The model, as one that an application defines, with its table."""
    try:
        with connection.schema_editor() as editor:
            editor.create_model(model)
        try:
            signals.connect()
            yield model
        finally:
            with connection.schema_editor() as editor:
                editor.delete_model(model)
    finally:
        forget_model(model)


@pytest.fixture
def child() -> Iterator[Any]:
    class Film(Project):
        class Meta:
            app_label = "storage_audit"

    with table_of(Film) as film:
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
    with table_of(Medium), table_of(Work), table_of(Video) as video:
        yield video


def test_project_created_again_as_a_child_and_not_yet_committed_keeps_what_it_uploads(
    bucket: Bucket, child: Any
) -> None:
    alive("proj_2")
    old = bucket.upload("proj_1", "old.mp4")
    operation = requested("proj_1")
    uploaded, may_commit, new = Event(), Event(), set[str]()

    def create() -> None:
        with transaction.atomic():
            child.objects.create(pk="proj_1", id="proj_1")
            new.add(bucket.upload("proj_1", "new.mp4"))
            uploaded.set()
            assert may_commit.wait(SECONDS)

    with meanwhile(create):
        assert uploaded.wait(SECONDS)
        try:
            work_on(operation)
        finally:
            may_commit.set()
    assert again(operation).status == Status.SUPERSEDED
    assert bucket.keys() == {old, *new}


def test_saving_a_child_makes_the_id_of_its_project_known(child_of_two: Any) -> None:
    child_of_two.objects.create(number=7, code="proj_1")
    assert [known.pk for known in KnownProject.objects.all()] == ["proj_1"]


def test_deleting_a_child_starts_one_cleanup(child: Any) -> None:
    child.objects.create(pk="proj_1", id="proj_1").delete()
    assert [each.project_id for each in CleanupOperation.objects.all()] == ["proj_1"]


@pytest.fixture
def by_title(settings: Settings) -> None:
    """The title stands in keys."""
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"PROJECT_FIELD": "title"}


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
