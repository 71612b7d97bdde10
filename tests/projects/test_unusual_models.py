"""Projects whose models, fields or databases are of unusual kinds are deleted as all others are."""

from typing import Any

import pytest
from django.db import models
from django.db.models.query_utils import DeferredAttribute
from pytest_django import Settings

from storage_audit.cleanup.delete_projects import delete_project, delete_projects
from storage_audit.project_model import ProjectExists
from tests.owner_models import create_table

pytestmark = pytest.mark.usefixtures("transactional_db")


class SetOnce(DeferredAttribute):
    """As the field of django-fsm-2 with protected=True, which only its transitions may set."""

    def __set__(self, row: Any, value: Any) -> None:
        if "state" in vars(row):
            raise AttributeError("Direct state modification is not allowed")
        vars(row)["state"] = value


class ProtectedField(models.TextField):  # type: ignore[type-arg]
    descriptor_class = SetOnce


def test_project_with_a_field_that_nothing_may_set_again_is_deleted(settings: Settings) -> None:
    class Movie(models.Model):  # noqa: DJ008
        state = ProtectedField(default="new")

        class Meta:
            app_label = "storage_audit"

        def refresh_from_db(  # type: ignore[override]
            self, using: Any = None, fields: Any = None
        ) -> None:
            """Written before Django had another argument."""
            super().refresh_from_db(using, fields)

    settings.STORAGE_AUDIT_PROJECT_MODEL = "storage_audit.Movie"
    with create_table(Movie) as movie:
        movie.objects.create()
        assert delete_project(movie.objects.get())
        assert not movie.objects.exists()


def test_own_delete_reads_no_rows_that_were_read_before(settings: Settings) -> None:
    class Shelf(models.Model):  # noqa: DJ008
        parent = models.ForeignKey("self", models.CASCADE, null=True, related_name="parts")

        class Meta:
            app_label = "storage_audit"

        def delete(self: Any, using: Any = None, keep_parents: bool = False) -> Any:
            if list(self.parts.all()):
                raise models.ProtectedError("It has parts.", set())
            return models.Model.delete(self)

    settings.STORAGE_AUDIT_PROJECT_MODEL = "storage_audit.Shelf"
    with create_table(Shelf) as shelf:
        whole = shelf.objects.create()
        part = shelf.objects.create(parent=whole)
        read = list(shelf.objects.prefetch_related("parts").order_by("-pk"))
        assert delete_projects(read, list).deleted == [str(part.pk), str(whole.pk)]


@pytest.fixture
def works(settings: Settings) -> Any:
    """A project model with two children, as polymorphic lists have."""

    class Work(models.Model):  # noqa: DJ008
        class Meta:
            app_label = "storage_audit"

    class Film(Work):  # noqa: DJ008
        class Meta:
            app_label = "storage_audit"

    class Song(Work):  # noqa: DJ008
        class Meta:
            app_label = "storage_audit"

    settings.STORAGE_AUDIT_PROJECT_MODEL = "storage_audit.Work"
    with create_table(Work) as work, create_table(Film) as film, create_table(Song) as song:
        yield work, film, song


def test_selected_rows_of_several_child_models_are_deleted(works: Any) -> None:
    work, film, song = works
    rows = [film.objects.create(), song.objects.create(), work.objects.create()]
    deletion = delete_projects(rows, list)
    assert (len(deletion.deleted), len(deletion.cleanups), deletion.kept) == (3, 3, [])
    assert not work.objects.exists() and not film.objects.exists() and not song.objects.exists()


def test_row_of_a_child_model_that_is_gone_keeps_its_project(works: Any) -> None:
    work, film, _song = works
    row = film.objects.create()
    film.objects.get().delete(keep_parents=True)
    with pytest.raises(ProjectExists, match="was not deleted: it is no longer a film."):
        delete_project(row)
    assert work.objects.exists()


def test_row_of_a_child_model_that_is_gone_keeps_a_selection_of_several_models(works: Any) -> None:
    work, film, song = works
    rows = [film.objects.create(), song.objects.create()]
    film.objects.get().delete(keep_parents=True)
    assert "it is no longer a film." in delete_projects(rows, list).kept[0]
    assert work.objects.count() == 2


def test_project_is_deleted_though_the_row_that_orders_it_is_gone(settings: Settings) -> None:
    class Studio(models.Model):  # noqa: DJ008
        name = models.TextField()

        class Meta:
            app_label = "storage_audit"

    class Reel(models.Model):  # noqa: DJ008
        studio = models.ForeignKey(Studio, models.DO_NOTHING, db_constraint=False)

        class Meta:
            app_label = "storage_audit"
            ordering = ("studio__name",)

    settings.STORAGE_AUDIT_PROJECT_MODEL = "storage_audit.Reel"
    with create_table(Studio) as studio, create_table(Reel) as reel:
        row = reel.objects.create(studio=studio.objects.create(name="a"))
        studio.objects.all().delete()
        assert delete_project(row)
        # In the order of its model the row was never listed.
        assert not reel.objects.order_by().exists()


class WritesElsewhere:
    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "primary" if model.__name__ == "Show" else None


def test_deletion_asks_no_router_for_its_database(settings: Settings) -> None:
    """Another alias of the same database would wait for our lock. There is none such here."""

    class Show(models.Model):  # noqa: DJ008
        class Meta:
            app_label = "storage_audit"

    settings.STORAGE_AUDIT_PROJECT_MODEL = "storage_audit.Show"
    with create_table(Show) as show:
        owners = [show.objects.create() for _number in range(3)]
        settings.DATABASE_ROUTERS = [WritesElsewhere()]
        assert delete_project(owners.pop())
        assert len(delete_projects(owners, list).deleted) == 2
