"""Foreign keys from a site's own tables to R2 objects."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.core.checks import run_checks
from django.core.files.storage import default_storage
from django.db import connection, models, transaction
from django.http import HttpRequest

from devtools.http_reply import Reply
from storage_audit import locking
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import R2Object
from storage_audit.ui.model_admin import ModelAdmin
from tests.admin_client import confirm_action, page_text, staff_client, superuser_client
from tests.faults.kinds import error_xml
from tests.faults.matching import is_delete_single, rule_for
from tests.faults.proxy import FaultyStore
from tests.promises import run_until_idle
from tests.real_bucket import Bucket

CASCADE = {"on_delete": models.CASCADE, "db_constraint": False}
PROTECTED_RELATION = {"on_delete": models.PROTECT, "db_constraint": False}
SET_NULL = {"on_delete": models.SET_NULL, "null": True, "db_constraint": False}
CONSTRAINED = {"on_delete": models.SET_NULL, "null": True}


class PosterAdmin(ModelAdmin[Any]):
    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return obj is None or obj.title == "free"


@pytest.fixture
def poster(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, transactional_db: None
) -> Iterator[Any]:
    """A model with a foreign key to R2 objects, and an admin that lets nobody delete most rows."""

    class Poster(models.Model):
        title = models.TextField()
        file: Any = models.ForeignKey(R2Object, **request.param)

        class Meta:
            app_label = "storage_audit"

        def __str__(self) -> str:
            return f"the {self.title} poster"

    registry: Any = admin.site._registry
    monkeypatch.setitem(registry, Poster, PosterAdmin(Poster, admin.site))
    try:
        with connection.schema_editor() as editor:
            editor.create_model(Poster)
        yield Poster
        models.QuerySet(Poster).delete()
        with connection.schema_editor() as editor:
            editor.delete_model(Poster)
    finally:
        del apps.all_models["storage_audit"]["poster"]
        apps.clear_cache()


def with_poster(bucket: Bucket, poster: Any, title: str) -> R2Object:
    key = bucket.upload("proj_1")
    row = R2Object.objects.get(key=key)
    poster.objects.create(title=title, file=row)
    return row


@pytest.mark.parametrize("poster", [CASCADE], indirect=True)
@pytest.mark.parametrize("title", ["free", "kept"])
def test_deletion_takes_another_row_along_only_if_the_person_may_delete_it(
    bucket: Bucket, poster: Any, title: str
) -> None:
    row = with_poster(bucket, poster, title)
    shown = confirm_action(staff_client("delete_r2object"), "r2object", "delete_selected", row.pk)
    is_kept = title == "kept"
    assert poster.objects.exists() == R2Object.objects.exists() == is_kept
    assert Cleanup.objects.exists() != is_kept
    if is_kept:
        assert "your account doesn't have permission" in shown.replace("&#x27;", "'")


@pytest.mark.parametrize("poster", [CASCADE], indirect=True)
def test_page_lists_the_rows_that_go_with_an_object(bucket: Bucket, poster: Any) -> None:
    row = with_poster(bucket, poster, "free")
    url = f"/admin/storage_audit/r2object/{row.pk}/delete/"
    shown = page_text(superuser_client().get(url))
    assert "the free poster" in shown and "Posters: 1" in shown
    assert "Files: 1 file," in shown


@pytest.mark.parametrize("poster", [PROTECTED_RELATION], indirect=True)
def test_object_that_another_row_protects_is_not_deleted(bucket: Bucket, poster: Any) -> None:
    row = with_poster(bucket, poster, "free")
    shown = confirm_action(superuser_client(), "r2object", "delete_selected", row.pk)
    assert "the free poster" in shown
    assert R2Object.objects.exists() and not Cleanup.objects.exists()


@pytest.mark.parametrize("poster", [CONSTRAINED], indirect=True)
def test_object_that_a_constraint_keeps_is_not_untracked(bucket: Bucket, poster: Any) -> None:
    row = with_poster(bucket, poster, "free")
    shown = confirm_action(superuser_client(), "r2object", "untrack", row.pk)
    assert "Nothing was untracked" in shown
    assert R2Object.objects.exists()


@pytest.mark.parametrize("poster", [CASCADE, PROTECTED_RELATION, SET_NULL], indirect=True)
@pytest.mark.parametrize("is_answered", [True, False])
def test_row_stays_that_refers_to_a_file_which_the_application_deletes(
    bucket: Bucket, store: FaultyStore, poster: Any, is_answered: bool
) -> None:
    row = with_poster(bucket, poster, "free")
    if not is_answered:
        store.rules.append(rule_for(is_delete_single, Reply(500, error_xml("InternalError"))))
    default_storage.delete(row.key)
    if not is_answered:
        assert run_until_idle(Cleanup.objects.get()).status == "clean"
    assert (bucket.keys(), R2Object.objects.count()) == (set(), 0)
    assert poster.objects.get().file_id == row.pk


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("poster", [CASCADE], indirect=True)
def test_cleanup_takes_over_a_file_whose_transaction_holds_a_row_that_refers_to_it(
    bucket: Bucket, store: FaultyStore, poster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking, "LOCK_TIMEOUT_MS", 200)
    row = with_poster(bucket, poster, "free")
    store.rules.append(rule_for(is_delete_single, Reply(500, error_xml("InternalError"))))
    with transaction.atomic():
        poster.objects.update(title="held")
        default_storage.delete(row.key)
    assert run_until_idle(Cleanup.objects.get()).status == "clean"
    assert poster.objects.get().file_id == row.pk


def check_relations() -> list[str]:
    return [each.msg for each in run_checks() if each.id == "storage_audit.E008"]


@pytest.mark.parametrize(
    ("poster", "is_error"), [(CONSTRAINED, True), (CASCADE, False)], indirect=["poster"]
)
def test_constraint_that_would_stop_cleanups_is_an_error(poster: Any, is_error: bool) -> None:
    assert [f"{poster._meta.label}.file" in text for text in check_relations()] == [True] * is_error
