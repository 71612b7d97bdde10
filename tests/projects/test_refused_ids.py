"""Rows of projects whose ids the setting PROJECT_ID_PATTERN refuses: what could be theirs is
kept."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from unicodedata import normalize

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import transaction
from django.utils import timezone
from pytest_django import Settings

from storage_audit import project_model
from storage_audit.alerts import alert_rules
from storage_audit.alerts.models import Alert
from storage_audit.bucket.multipart import MultipartUpload
from storage_audit.cleanup import project_uploads
from storage_audit.cleanup.worker_turn import Turn
from storage_audit.dashboard import daily_figures
from storage_audit.findings.models import Finding
from storage_audit.lookup.search import look_up
from storage_audit.models import Project, R2Object
from storage_audit.ownership import ownership_rule
from storage_audit.ownership.key_formats import KeyFormats
from storage_audit.ownership.ownership_rule import get_key_formats, living_owners
from tests.promises import (
    act_before_batch,
    check_promises,
    clean_up_project,
    create_projects,
    read_outcomes,
    read_reason,
    record_deleted_projects,
    request_cleanup,
)
from tests.real_bucket import Bucket
from tests.scan.listing_in_memory import read_findings, run_backfill
from tests.site_settings import run_system_checks

OWN = "projects/proj_1/scenes/s1/media/own.mp4"
DOUBLED = "projects/proj_proj_1/scenes/s1/media/a.mp4"
# A refused id, and a key that could be its, and that without it would be of proj_1 alone.
COULD_BE = {
    "proj_proj_1": DOUBLED,
    "proj_proj_1 in a content key": "audio/proj_proj_1/s1/a.mp3",
    "proj_proj_1 in a flat key": "proj_proj_1_s1_media.mp4",
    "1": OWN,
    "proj": "proj_1_s1_media.mp4",
    "proj_1/x": "audio/proj_1/x/s1/a.mp3",
    "proj_proj_1_é": "proj_proj_1_e\u0301_s1_media.mp4",
}


def accept(settings: Settings, project_id: str) -> None:
    """As check W007 advises."""
    assert not get_key_formats().is_project_id(project_id)
    any_id = r"proj_[A-Za-z0-9][A-Za-z0-9_-]*"
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"PROJECT_ID_PATTERN": any_id}
    assert get_key_formats().is_project_id(project_id)


def past_all_checks(*ids: str) -> None:
    Project.objects.bulk_create(Project(pk=project_id) for project_id in ids)


@pytest.mark.parametrize("case", COULD_BE)
def test_a_key_that_a_refused_id_could_name_is_kept(bucket: Bucket, case: str) -> None:
    refused, key = case.partition(" in ")[0], COULD_BE[case]
    create_projects("proj_1")
    past_all_checks(refused)
    other = "audio/proj_1/s1/other.txt" if refused != "1" else "README"
    bucket.put(key, other)
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup)[key] == "kept"
    assert refused in normalize("NFC", read_reason(cleanup, key))
    assert "PROJECT_ID_PATTERN does not accept" in read_reason(cleanup, key)
    assert key in bucket.facts()
    assert read_outcomes(cleanup).get(other) in ("deleted", None)
    check_promises(bucket)


def test_a_refused_id_that_comes_after_the_plan_keeps_its_key(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    bucket.put(DOUBLED, OWN)
    act_before_batch(monkeypatch, partial(past_all_checks, "proj_proj_1"))
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == {DOUBLED: "kept", OWN: "deleted"}
    assert bucket.keys() == {DOUBLED}


def test_an_upload_of_a_refused_id_is_no_evidence_for_another_project(bucket: Bucket) -> None:
    create_projects("proj_1")
    past_all_checks("proj_proj_1")
    default_storage.save(DOUBLED, ContentFile(b"the other's own"))
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == {DOUBLED: "kept"}
    assert "proj_proj_1" in read_reason(cleanup, DOUBLED)
    assert bucket.keys() == {DOUBLED}


@pytest.mark.parametrize("scan", [None, run_backfill])
def test_an_upload_of_a_refused_id_is_kept_once_that_id_is_accepted(
    bucket: Bucket, settings: Settings, scan: Callable[[], object] | None
) -> None:
    """Under the settings of then, the key could name proj_1 alone, and so does its row."""
    create_projects("proj_1")
    past_all_checks("proj_proj_1")
    default_storage.save(DOUBLED, ContentFile(b"the other's own"))
    accept(settings, "proj_proj_1")
    if scan:
        R2Object.objects.update(updated_at=timezone.now() - timedelta(hours=1))
        scan()
        assert read_findings() == {("ambiguous", DOUBLED)}
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == {DOUBLED: "kept"}
    assert "The name also fits an existing project: proj_proj_1." in read_reason(cleanup, DOUBLED)
    assert bucket.keys() == {DOUBLED}


def test_an_upload_of_a_refused_id_goes_once_that_id_is_accepted_and_lives_no_more(
    bucket: Bucket, settings: Settings
) -> None:
    create_projects("proj_1")
    default_storage.save(DOUBLED, ContentFile(b"of proj_1"))
    accept(settings, "proj_proj_1")
    record_deleted_projects("proj_proj_1")
    assert read_outcomes(clean_up_project("proj_1")) == {DOUBLED: "deleted"}


@pytest.mark.parametrize("has_row", [False, True])
def test_the_blocked_cleanup_of_a_refused_id_covers_what_could_be_its(
    bucket: Bucket, settings: Settings, has_row: bool
) -> None:
    create_projects("proj_1")
    past_all_checks("proj_proj_1")
    store = default_storage.save if has_row else lambda key, file: bucket.put(key)
    store(DOUBLED, ContentFile(b"the other's own"))
    blocked = clean_up_project("proj_proj_1")
    assert "proj_proj_1 is not a valid project ID" in blocked.message
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == {DOUBLED: "kept"}
    assert (
        f"Cleanup {blocked.pk} covers this file, and its status is needs approval"
        in read_reason(cleanup, DOUBLED)
    )
    default_storage.delete(DOUBLED)
    assert bucket.keys() == {DOUBLED}


def test_once_the_refused_id_is_gone_its_key_is_cleaned_up(bucket: Bucket) -> None:
    create_projects("proj_1")
    past_all_checks("proj_proj_1")
    bucket.put(DOUBLED)
    Project.objects.get(pk="proj_proj_1").delete()
    assert read_outcomes(clean_up_project("proj_1")) == {DOUBLED: "deleted"}


def test_an_unfinished_upload_of_a_refused_id_is_not_aborted(bucket: Bucket) -> None:
    create_projects("proj_1")
    past_all_checks("proj_proj_1")
    cleanup = request_cleanup("proj_1")
    with transaction.atomic():
        assert cleanup.acquire_lease()
    project = Turn.start(cleanup)
    long_ago = timezone.now() - timedelta(days=30)
    uploads = [MultipartUpload(key, "id", long_ago) for key in (DOUBLED, OWN)]
    owned = project_uploads.find_owned_uploads(project, uploads)
    assert [upload.key for upload, _reason in owned] == [OWN]


@pytest.mark.parametrize("tracked", [False, True])
def test_a_scan_takes_what_a_refused_id_could_name_for_ambiguous(
    bucket: Bucket, tracked: bool
) -> None:
    record_deleted_projects("proj_1")
    past_all_checks("proj_proj_1", "2")
    create_projects("proj_2")
    in_plain_folder = OWN.replace("proj_1", "proj_2")
    bucket.put(in_plain_folder)
    if tracked:
        default_storage.save(DOUBLED, ContentFile(b"the other's own"))
    else:
        bucket.put(DOUBLED)
    run_backfill()
    assert read_findings() == {("ambiguous", DOUBLED), ("ambiguous", in_plain_folder)}
    assert "proj_proj_1" in Finding.objects.get(key=DOUBLED).evidence


def test_why_names_the_refused_id(bucket: Bucket) -> None:
    record_deleted_projects("proj_1")
    past_all_checks("proj_proj_1")
    bucket.put(DOUBLED)
    [facts] = look_up(DOUBLED).objects
    [judgement] = facts.verdicts
    assert judgement.verdict.ownership.value == "kept"
    assert "proj_proj_1" in judgement.verdict.reason


# What staff are told


@pytest.mark.django_db
def test_check_names_refused_ids_and_says_what_to_do() -> None:
    create_projects("proj_1", "proj_2")
    past_all_checks("proj_proj_1", "a\x1b[2J")
    warning = run_system_checks(databases=["default"])["storage_audit.W007"]
    assert warning.msg.endswith("these project IDs: a\\x1b[2J, proj_proj_1.")
    assert warning.hint is not None and "PROJECT_ID_PATTERN" in warning.hint
    Project.objects.filter(pk__startswith="a").delete()
    Project.objects.get(pk="proj_proj_1").delete()
    assert "storage_audit.W007" not in run_system_checks(databases=["default"])


@pytest.mark.django_db
def test_all_ids_are_read_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project_model, "IDS_PER_QUERY", 2)
    create_projects("proj_1", "proj_3", "proj_2", "proj_5")
    past_all_checks(*(f"{n}" for n in range(7)), "z")
    assert sorted(project_model.iterate_ids()) == sorted(
        [*"0123456z", "proj_1", "proj_2", "proj_3", "proj_5"]
    )
    refused = ownership_rule.refused_ids()
    assert len(refused) == ownership_rule.MAX_IDS_SHOWN + 1
    assert ownership_rule.refused_ids_text(refused).endswith("4 and more.")


@pytest.mark.django_db
def test_alert_begins_and_ends_with_refused_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    def notice_after_an_hour() -> list[Alert]:
        monkeypatch.setattr(daily_figures, "FIGURES_EVERY", timedelta(0))
        daily_figures.take_figures()
        alert_rules.update_alerts(daily_figures.latest_refused_ids())
        return list(Alert.objects.open().filter(kind="ids"))

    assert not notice_after_an_hour()
    past_all_checks("proj_proj_1")
    [alert] = notice_after_an_hour()
    assert "proj_proj_1" in alert.summary
    assert notice_after_an_hour() == [alert]
    Project.objects.get(pk="proj_proj_1").delete()
    assert not notice_after_an_hour()


@pytest.mark.django_db
@pytest.mark.parametrize("odd", ["a\0b", "a\udc80b", "a'b", "a\\b", "{a}", "a" * 900])
def test_any_text_can_be_asked_for(odd: str) -> None:
    past_all_checks("proj_proj_1")
    keys = [f"audio/proj_1/{odd}/s/f.mp3", DOUBLED]
    assert living_owners(map(get_key_formats().parse_key, keys)) == {"proj_proj_1"}


def test_a_doubled_name_can_also_be_of_the_id_with_the_prefix() -> None:
    """Though no other format reads it so."""
    templates = {"new": "clips/{project}/{filename}", "old": "old/proj_{project}/{filename}"}
    mine = KeyFormats(templates, project_id="proj_[a-z0-9_]+", kinds=(), current="new")
    found = mine.parse_key("old/proj_proj_1/f")
    assert (found.projects, found.refused_ids) == (
        frozenset({"proj_1"}),
        frozenset({"proj_proj_1"}),
    )


def test_keys_of_a_folder_share_what_else_they_could_name() -> None:
    keys = [f"audio/proj_1/x/s{n % 2}/{n}.mp3" for n in range(100)]
    found = get_key_formats().parse_keys(keys)
    assert len(set(map(id, found.values()))) == 2
    assert all(of_key.refused_ids >= {"proj_1/x", "1"} for of_key in found.values())
