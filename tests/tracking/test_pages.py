"""Files in the admin: deleting a row deletes its object, untracking keeps it."""

import pytest
from django.contrib.admin.models import LogEntry
from django.core.files.storage import default_storage
from django_q.models import OrmQ

from storage_audit.cleanup import runner
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import KnownProject, R2Object
from storage_audit.tracking.admin.file_scope import file_deletion_page
from tests.admin_client import (
    admin_url,
    confirm_action,
    confirmation_fields,
    count_queries,
    is_page_of,
    page_text,
    run_action,
    staff_client,
    superuser_client,
)
from tests.builders import create_finding, create_row, track_files
from tests.keys import ESCAPED, HOSTILE, NFC, NFD
from tests.real_bucket import Bucket


def test_rows_whose_project_is_gone_are_listed_with_its_id(db: None) -> None:
    create_row("projects/proj_gone/scenes/s1/media/a.mp4", project_id="proj_gone")
    shown = page_text(superuser_client().get(admin_url("r2object")))
    assert '<td class="field-owner">proj_gone</td>' in shown
    assert "1 file" in shown


def test_search_is_by_the_beginning_of_the_key_to_the_byte(db: None) -> None:
    for key in ("proj_1_a", "PROJ_1_b", "proj_10_c", "projX1_d", "x/proj_1_e"):
        create_row(key)
    shown = page_text(superuser_client().get(admin_url("r2object"), {"q": "proj_1_"}))
    assert "proj_1_a" in shown
    for other in ("PROJ_1_b", "proj_10_c", "projX1_d", "x/proj_1_e"):
        assert other not in shown


@pytest.mark.parametrize("column", range(1, 8))
def test_every_column_sorts(db: None, column: int) -> None:
    create_row("a", project_id="proj_gone")
    assert "proj_gone" in page_text(
        superuser_client().get(admin_url("r2object"), {"o": str(column)})
    )


def test_list_of_50_rows_costs_as_many_queries_as_of_one(db: None) -> None:
    client = superuser_client()
    track_files("proj_1", 1)
    one = count_queries(client, admin_url("r2object"))
    track_files("proj_2", 50)
    assert count_queries(client, admin_url("r2object")) == one


@pytest.mark.parametrize("action", ["delete_selected", "untrack"])
def test_confirmation_shows_hostile_keys_escaped(db: None, action: str) -> None:
    shown = run_action(superuser_client(), "r2object", action, create_row(HOSTILE).pk)
    assert ESCAPED in shown
    assert "<script>alert" not in shown


def test_list_and_page_show_hostile_keys_escaped(db: None) -> None:
    client, hostile = superuser_client(), create_row(HOSTILE)
    for url in (admin_url("r2object"), admin_url("r2object", "change", hostile.pk)):
        shown = page_text(client.get(url))
        assert ESCAPED in shown
        assert "<script>alert" not in shown


def test_confirmation_says_that_the_very_objects_go_with_count_and_bytes(db: None) -> None:
    rows = [create_row("a", size=1000), create_row("b", size=2000)]
    shown = run_action(superuser_client(), "r2object", "delete_selected", *[r.pk for r in rows])
    assert "This deletes 2 files (2.9 KB) from R2, even if their projects exist." in shown
    assert "You can't undo this." in shown and "<h1>Delete 2 files?</h1>" in shown
    assert "in bucket" not in shown and 'value="Delete 2 files"' in shown
    assert R2Object.objects.count() == 2


def test_confirmation_says_what_goes_from_each_of_several_buckets(db: None) -> None:
    create_row("a", size=1000, project_id="proj_1")
    assert file_deletion_page(R2Object.objects.all(), ())["lines"] == ["Project: proj_1."]
    create_row("b", size=500, bucket="other")
    assert file_deletion_page(R2Object.objects.all(), ())["lines"] == [
        "Projects: proj_1, unknown.",
        "1 file, 500\xa0bytes in bucket other will be deleted from R2",
        "1 file, 1000\xa0bytes in bucket tests will be deleted from R2",
    ]


def test_confirmation_of_many_rows_lists_the_first_and_counts_the_rest(db: None) -> None:
    track_files("proj_1", 200)
    client = superuser_client()
    across = {"select_across": "1", "index": "0"}
    shown = run_action(client, "r2object", "delete_selected", "all", **across)
    assert "This deletes 200 files (" in shown and "Project: proj_1." in shown
    assert shown.count('<code class="audit-key">') == 10
    assert "10 of 200 files are shown." in shown
    assert shown.count("_selected_action") == 1


@pytest.mark.parametrize("action", ["delete_selected", "untrack"])
def test_page_asks_again_when_the_object_is_another_by_now(bucket: Bucket, action: str) -> None:
    key = bucket.upload("proj_1", body=b"old")
    row, client = R2Object.objects.get(), superuser_client()
    asked = run_action(client, "r2object", action, row.pk)
    with default_storage.open(key, "w") as file:
        file.write(b"new and longer")
    again = run_action(client, "r2object", action, row.pk, **confirmation_fields(asked))
    assert "Nothing was done: your selection changed" in again
    assert R2Object.objects.exists() and not Cleanup.objects.exists()
    if action == "delete_selected":
        assert "This deletes 1 file (14 bytes) from R2" in again
    run_action(client, "r2object", action, row.pk, **confirmation_fields(again))
    assert Cleanup.objects.exists() or not R2Object.objects.exists()


def test_page_of_one_object_asks_again_when_it_is_another_by_now(bucket: Bucket) -> None:
    key = bucket.upload("proj_1", body=b"old")
    client, url = superuser_client(), admin_url("r2object", "delete", R2Object.objects.get().pk)
    asked = page_text(client.get(url))
    with default_storage.open(key, "w") as file:
        file.write(b"new and longer")
    again = page_text(client.post(url, confirmation_fields(asked), follow=True))
    assert "Nothing was done: your selection changed" in again and "14 bytes" in again
    assert not Cleanup.objects.exists()
    assert "Deleting 1 file now." in page_text(
        client.post(url, confirmation_fields(again), follow=True)
    )
    assert Cleanup.objects.exists()


def test_deletion_of_rows_deletes_these_objects_and_no_other(bucket: Bucket) -> None:
    bucket.upload("proj_1", "a.mp4")
    kept = bucket.upload("proj_1", "b.mp4")
    gone = R2Object.objects.get(key__endswith="a.mp4")
    shown = confirm_action(superuser_client(), "r2object", "delete_selected", gone.pk)
    cleanup = Cleanup.objects.get()
    assert is_page_of(cleanup, shown)
    assert runner.run_to_end(cleanup.pk).status == Cleanup.Status.CLEAN
    assert bucket.keys() == {kept}


def test_untracking_forgets_rows_and_keeps_objects(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    shown = confirm_action(superuser_client(), "r2object", "untrack", R2Object.objects.get().pk)
    assert "Untracked 1 file. It is still in R2" in shown
    assert not R2Object.objects.exists()
    assert not Cleanup.objects.exists()
    assert not OrmQ.objects.exists()
    assert bucket.keys() == {key}
    assert "Untracked" in LogEntry.objects.get().change_message


def test_rows_in_the_hands_of_an_upload_or_a_cleanup_are_not_untracked(db: None) -> None:
    rows = [create_row("a", state="uploading"), create_row("b", state="deleting"), create_row("c")]
    confirm_action(superuser_client(), "r2object", "untrack", *[r.pk for r in rows])
    assert sorted(R2Object.objects.values_list("key", flat=True)) == ["a", "b"]


@pytest.mark.parametrize("kind", ["changed", "missing"])
def test_row_of_an_ignored_file_is_not_untracked(db: None, kind: str) -> None:
    rows = [create_row(name) for name in "abcd"]
    kept = create_finding("a", kind=kind, state="ignored")
    create_finding("b", kind=kind)
    create_finding("c", kind="unfinished", state="ignored")
    create_finding("d", kind=kind, state="ignored", bucket="another")
    shown = confirm_action(superuser_client(), "r2object", "untrack", *[row.pk for row in rows])
    assert "Untracked 3 files." in shown and "1 file stays tracked:" in shown
    told = f"Somebody ignored finding {kept.pk} about this file. Reopen that finding first."
    assert told in shown
    assert R2Object.objects.get().key == "a"


@pytest.mark.parametrize("tracked", [NFC, NFD], ids=["NFC", "NFD"])
def test_row_of_a_file_ignored_in_another_spelling_is_not_untracked(db: None, tracked: str) -> None:
    row = create_row(tracked)
    create_finding(NFD if tracked == NFC else NFC, kind="changed", state="ignored")
    shown = confirm_action(superuser_client(), "r2object", "untrack", row.pk)
    assert "1 file stays tracked:" in shown and "Reopen that finding first." in shown
    assert R2Object.objects.exists()


@pytest.mark.parametrize("action", ["delete_selected", "untrack"])
def test_nothing_is_done_to_rows_without_the_permission_to_delete(db: None, action: str) -> None:
    tracked = create_row("a")
    confirm_action(staff_client("force_cleanup", "delete_project"), "r2object", action, tracked.pk)
    assert R2Object.objects.exists()
    assert not Cleanup.objects.exists()


@pytest.mark.parametrize("action", ["delete_selected", "untrack"])
def test_the_permission_to_delete_rows_suffices(db: None, action: str) -> None:
    confirm_action(staff_client("delete_r2object"), "r2object", action, create_row("a").pk)
    assert not R2Object.objects.exists()


def test_rows_cannot_be_added_or_edited(db: None) -> None:
    client, tracked = superuser_client(), create_row("a")
    assert client.post(admin_url("r2object", "add"), {"key": "b"}).status_code == 403
    url = admin_url("r2object", "change", tracked.pk)
    assert client.post(url, {"key": "b"}).status_code == 403
    assert R2Object.objects.get().key == "a"


def test_findings_are_searched_by_the_beginning_of_the_key(db: None) -> None:
    for key in ("stray/" + HOSTILE, "other.txt"):
        create_finding(key)
    shown = page_text(superuser_client().get(admin_url("finding"), {"q": "stray/"}))
    assert ESCAPED in shown
    assert "other.txt" not in shown


@pytest.mark.parametrize("model", ["finding", "knownproject"])
def test_what_was_found_is_read_only(db: None, model: str) -> None:
    known = KnownProject.objects.create(pk="proj_1", evidence="saved")
    pk = {"finding": create_finding("a"), "knownproject": known}[model].pk
    client = superuser_client()
    page_text(client.get(admin_url(model)))
    page_text(client.get(admin_url(model, "change", pk)))
    assert client.post(admin_url(model, "add"), {}).status_code == 403
    assert client.post(admin_url(model, "change", pk), {}).status_code == 403
    assert client.post(admin_url(model, "delete", pk), {"post": "yes"}).status_code == 403


def test_page_of_one_file_says_what_its_buttons_do_to_it(db: None) -> None:
    row = create_row("a/1")
    shown = page_text(superuser_client().get(admin_url("r2object", "change", row.pk)))
    assert 'value="Untrack, keep the file"' in shown and "keep the files" not in shown
    assert "<strong>Untrack, keep the file:</strong> Forgets what is recorded about it." in shown
    assert "<strong>Delete:</strong> Deletes the file from R2." in shown


def test_page_that_confirms_a_deletion_is_named_in_its_breadcrumb(db: None) -> None:
    rows = [create_row("a/1"), create_row("a/2")]
    shown = run_action(superuser_client(), "r2object", "delete_selected", *[r.pk for r in rows])
    assert '<li aria-current="page">Delete 2 files?</li>' in shown
