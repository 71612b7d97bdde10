"""Why?: one sentence for each state that an object or a project can be in, with the next step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import permutations
from typing import Any
from unicodedata import normalize

import pytest
from django.db import transaction
from django.utils import timezone
from pytest_django import Settings

from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup.models import Cleanup
from storage_audit.findings.models import Finding
from storage_audit.lookup import project_rules
from storage_audit.lookup.facts import FULL_ACCESS, Explanation, LiveResult, LookupAccess
from storage_audit.lookup.parse_query import KeyCandidate
from storage_audit.lookup.search import explain_object, look_up
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.scan.models import BucketScan
from tests.builders import add_items, create_cleanup, create_row
from tests.promises import create_projects, record_deleted_projects

KEY = "projects/proj_1/scenes/s1/media/a.mp4"
# Could be proj_1's, and proj_1_x's.
SHARED = "proj_1_x_s1_media.mp4"
AGO, LONG_AGO = timezone.now() - timedelta(hours=1), timezone.now() - timedelta(days=2)
SCAN = "2026-08-21 10:00:00"


@pytest.fixture(autouse=True)
def our_bucket(settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"BUCKET": "tests"}


def item(key: str = KEY, cleanup: Cleanup | None = None, **facts: Any) -> None:
    given = {"key": key, "identity": key, "changed_at": AGO, **facts}
    add_items(cleanup or create_cleanup("clean", project_id="proj_1"), 1, **given)


def finding(key: str = KEY, **facts: Any) -> None:
    scan = BucketScan.objects.create(bucket="tests")
    seen = {"first_scan": scan, "last_scan": scan, "last_seen_at": f"{SCAN}+00:00"}
    Finding.objects.create(**{"bucket": "tests", "key": key, **seen, **facts})


def answer(key: str = KEY) -> Explanation:
    return explain_object(look_up(key).objects[0])


def why(key: str = KEY) -> str:
    return answer(key).text


def nothing() -> None:
    """Nobody knows of it."""


def being_uploaded() -> None:
    create_projects("proj_1")
    create_row(KEY, state="uploading", project_id="proj_1")


def blocked() -> None:
    record_deleted_projects("proj_1")
    item(cleanup=create_cleanup("blocked", project_id="proj_1", message="2 are more than 1."))


def blocked_before_listing() -> None:
    record_deleted_projects("proj_1")
    create_cleanup("blocked", project_id="proj_1", message="The table is empty.")


def blocked_with_another_plan() -> None:
    record_deleted_projects("proj_1")
    create_cleanup("blocked", project_id="proj_1", message="2 are more than 1.", planned_at=AGO)


def uploaded_after_the_plan() -> None:
    blocked_with_another_plan()
    create_row(KEY, project_id="proj_1")


def being_deleted() -> None:
    record_deleted_projects("proj_1")
    create_row(KEY, state="deleting", project_id="proj_1")
    item(cleanup=create_cleanup("running", project_id="proj_1"), outcome="deleting")


def gone() -> None:
    record_deleted_projects("proj_1")
    cleanup = create_cleanup(
        "clean", project_id="proj_1", listed_prefixes=["audio/proj_1/", "projects/proj_1/"]
    )
    item(cleanup=cleanup, outcome="deleted", range_index=1)


def gone_and_confirmed() -> None:
    gone()
    parent = Cleanup.objects.get()
    item(
        cleanup=create_cleanup("clean", project_id="proj_1", parent=parent),
        outcome="already_gone",
    )


def gone_by_itself() -> None:
    item(outcome="already_gone")


def uploaded_again() -> None:
    create_projects("proj_1")
    item(outcome="deleted")
    create_row(KEY, project_id="proj_1")


def back_by_other_means() -> None:
    item(outcome="deleted", changed_at=LONG_AGO)
    finding(kind="orphaned", last_seen_at=AGO)


def tracked_again_by_a_backfill() -> None:
    item(outcome="deleted")
    create_row(KEY, source="backfill", project_id="proj_1")


def refused() -> None:
    cleanup = create_cleanup("failed", project_id="proj_1", next_attempt_at=None)
    item(cleanup=cleanup, outcome="failed", reason="Still in the bucket.")


def kept() -> None:
    create_projects("proj_1_x")
    item(SHARED, outcome="kept", reason="It could also belong to the live project proj_1_x.")


def would_be_kept() -> None:
    create_projects("proj_1_x")
    cleanup = create_cleanup("planned", project_id="proj_1", dry_run=True)
    item(SHARED, cleanup, outcome="kept", reason="In doubt.")


def left_by_a_verification() -> None:
    cleanup = create_cleanup("differs", project_id="proj_1", kind="verify")
    item(cleanup=cleanup, outcome="failed", reason="In the bucket, but not tracked.")


def planned() -> None:
    item(cleanup=create_cleanup("planned", project_id="proj_1", dry_run=True))


def ignored() -> None:
    facts = {"decided_by": "anna", "decided_at": AGO, "note": "Ours."}
    finding("stranger", kind="unrecognised", state="ignored", **facts)


def upload_failed() -> None:
    create_projects("proj_1")
    create_row(KEY, state="upload_failed", project_id="proj_1")


def upload_that_never_ended() -> None:
    create_projects("proj_1")
    create_row(KEY, state="uploading", project_id="proj_1", updated_at=LONG_AGO)


def of_the_living() -> None:
    create_projects("proj_1")
    create_row(KEY, project_id="proj_1")


def named_like_the_living() -> None:
    create_projects("proj_1")


def vanished() -> None:
    KnownProject.objects.create(pk="proj_1", evidence="saved")
    create_row(KEY, project_id="proj_1")


def leftover() -> None:
    record_deleted_projects("proj_1")
    create_row(KEY, project_id="proj_1")


def never_found() -> None:
    record_deleted_projects("proj_1")
    create_cleanup("clean", project_id="proj_1", planned_at=AGO)


def pruned() -> None:
    record_deleted_projects("proj_1")
    archive = {"pruned_at": AGO, "archive": "old.jsonl.gz", "archive_digest": "d"}
    create_cleanup("clean", project_id="proj_1", **archive)


def ended_after_it_was_sent() -> None:
    record_deleted_projects("proj_1")
    cleanup = create_cleanup("superseded", project_id="proj_1", next_attempt_at=None)
    item(cleanup=cleanup, outcome="failed", reason="Sent before the id lived again.")


def ended_before_listing() -> None:
    record_deleted_projects("proj_1")
    create_cleanup("superseded", project_id="proj_1")


def row_alone_left() -> None:
    record_deleted_projects("proj_1")
    create_row(KEY, project_id="proj_1", created_at=LONG_AGO)
    item(outcome="already_gone")


def kept_for_a_project_that_lives_again() -> None:
    create_projects("proj_1")
    item(outcome="kept", reason="The project lives again.")


def of_nobody_ever_known() -> None:
    create_row(KEY, project_id="proj_1")


CASES: list[tuple[Callable[[], None], str, list[str]]] = [
    (nothing, KEY, ["We know nothing of this key.", "Look into the bucket."]),
    (
        nothing,
        "stranger",
        ["No key format reads this key, so no cleanup may", "look into the bucket"],
    ),
    (nothing, ".storage_audit/installation.json", ["of this application itself", "Leave it"]),
    (being_uploaded, KEY, ["An upload to it is under way", "Look again"]),
    (blocked, KEY, ["is blocked: 2 are more than 1.", "approve it"]),
    (blocked_before_listing, KEY, ["is blocked: The table is empty.", "approve it"]),
    (blocked_with_another_plan, KEY, ["is blocked, and its plan does not have", "Look into the"]),
    (uploaded_after_the_plan, KEY, ["so it does not delete it", "Once that cleanup is over"]),
    (being_deleted, KEY, ["is to delete it, and is running.", "Its page says"]),
    (gone, KEY, ["Deleted by", f"seen gone on {AGO:%Y-%m-%d %H:%M:%S}", "of projects/proj_1/."]),
    (gone_and_confirmed, KEY, ["Deleted by cleanup", "complete listing of projects"]),
    (gone_by_itself, KEY, ["not there any more when cleanup", "confirmed gone on", "its place."]),
    (uploaded_again, KEY, ["It was uploaded again on", "for proj_1.", "Before: Deleted by"]),
    (back_by_other_means, KEY, ["in the bucket again", "Verify the cleanup", "Before: Deleted"]),
    (tracked_again_by_a_backfill, KEY, ["in the bucket again", "Verify the cleanup"]),
    (refused, KEY, ["could not delete it: Still in the bucket.", "lets you try again"]),
    (kept, SHARED, ["kept it: It could also belong to the live project proj_1_x.", "verify"]),
    (would_be_kept, SHARED, ["A cleanup would keep it", "In doubt.", "Settle that"]),
    (left_by_a_verification, KEY, ["Verification", "but not tracked.", "Look into the bucket"]),
    (planned, KEY, ["Dry run", "deleted nothing", "Running that plan"]),
    (ignored, "stranger", ["anna said on", "that it may stay: Ours.", "Reopen"]),
    (upload_failed, KEY, ["Its last upload did not end well", "upload it again"]),
    (upload_that_never_ended, KEY, ["Its last upload did not end well"]),
    (of_the_living, KEY, ["the live project proj_1 (uploaded for proj_1", "delete its row"]),
    (named_like_the_living, KEY, ["It may belong to the live project proj_1", "begin a backfill"]),
    (vanished, KEY, ["proj_1 is gone, but nobody said that it was deleted", "clean up after"]),
    (leftover, KEY, ["proj_1 was deleted on", "this is a leftover file", "Verify"]),
    (never_found, KEY, ["of the deleted project proj_1 found no such object", "Look into"]),
    (pruned, KEY, ["is long over, and its items are in the file old.jsonl.gz", "look into"]),
    (ended_after_it_was_sent, KEY, ["could not delete it: Sent", "verify the project to see"]),
    (ended_before_listing, KEY, ["We know nothing of this key.", "Look into the bucket."]),
    (row_alone_left, KEY, ["proj_1 was deleted on", "the row alone is left", "clean up after"]),
    (kept_for_a_project_that_lives_again, KEY, ["It may belong to the live project proj_1,"]),
    (of_nobody_ever_known, KEY, ["no project that it may belong to was ever known: proj_1"]),
]


@pytest.mark.parametrize(
    ("world", "key", "said"), CASES, ids=[f"{world.__name__}-{key}" for world, key, _ in CASES]
)
def test_sentence_says_why_it_is_there_or_when_it_went_and_what_to_do(
    db: None, world: Callable[[], None], key: str, said: list[str]
) -> None:
    world()
    sentence = why(key)
    assert all(part in sentence for part in said), sentence


@pytest.mark.parametrize(
    "sight", [LookupAccess(False, True), LookupAccess(True, False), LookupAccess(False, False)]
)
@pytest.mark.parametrize("world", [world for world, *_ in CASES], ids=lambda world: world.__name__)
def test_sentence_tells_nothing_of_what_the_person_may_not_see(
    db: None, world: Callable[[], None], sight: LookupAccess
) -> None:
    world()
    for key in (KEY, SHARED, "stranger"):
        before = sentences_of(key, sight)
        with undone():
            if not sight.rows:
                R2Object.objects.all().delete_without_signals()
            if not sight.findings:
                Finding.objects.all().delete()
            assert sentences_of(key, sight) == before
        for said in before:
            assert "nothing of this key" not in said and "Nothing here" not in said
            assert sight.rows or "No row" not in said


@pytest.mark.parametrize("table", ["rows", "findings"])
def test_name_of_a_bucket_is_known_only_by_what_the_person_may_see(db: None, table: str) -> None:
    if table == "rows":
        create_row(KEY, bucket="other")
    else:
        finding(KEY, bucket="other")
    seen, hidden = (
        look_up(f"other/{KEY}", LookupAccess()._replace(**{table: may_see})).query.keys
        for may_see in (True, False)
    )
    assert KeyCandidate(KEY, "other") in seen and KeyCandidate(KEY, "other") not in hidden


STILL = "Whether it is so still, you may not see: "


@pytest.mark.parametrize(
    "sight", [LookupAccess(False, True), LookupAccess(True, False), LookupAccess(False, False)]
)
@pytest.mark.parametrize(
    ("world", "key"), [(gone, KEY), (gone_by_itself, KEY), (refused, KEY), (kept, SHARED)]
)
def test_last_word_is_not_called_the_latest_to_whom_may_not_see_later_ones(
    db: None, world: Callable[[], None], key: str, sight: LookupAccess
) -> None:
    world()
    by_tables, gone_items, there = sentences_of(key, sight)
    assert by_tables.endswith(f" {STILL}look into the bucket.")
    assert STILL not in gone_items and STILL not in why(key)
    is_back = there.startswith("It is in the bucket again")
    assert is_back or there.endswith(f" {STILL}ask somebody who may see all.")
    [facts] = look_up(key, sight).objects
    in_vain = replace(facts, live_result=LiveResult(AGO, error="No answer."))
    assert explain_object(in_vain).text == by_tables


def sentences_of(key: str, sight: LookupAccess) -> list[str]:
    """By the tables, and after a look that showed it, or showed it absent."""
    [facts] = look_up(key, sight).objects
    there = ListedObject(key, 1, "e", AGO)
    looks = (None, LiveResult(AGO), LiveResult(AGO, there))
    return [explain_object(replace(facts, live_result=seen)).text for seen in looks]


@contextmanager
def undone() -> Iterator[None]:
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


NEXT = {
    "orphaned": "Delete the orphan",
    "missing": "remove the row",
    "untracked": "Track it",
    "changed": "Track it",
    "ambiguous": "Assign it",
    "unrecognised": "Ignore it, assign it",
    "misnamed": "Rename it",
    "unstorable": "Delete it in the Cloudflare dashboard",
    "unfinished": "Abort it",
}


@pytest.mark.parametrize("kind", Finding.Kind.values)
def test_an_open_finding_says_what_can_be_done_about_it(db: None, kind: str) -> None:
    create_projects("proj_1")
    finding(kind=kind)
    sentence = why()
    assert SCAN in sentence and NEXT[kind] in sentence


def test_an_object_of_projects_none_of_which_lives_is_not_to_be_assigned(db: None) -> None:
    finding(SHARED, kind="ambiguous", last_modified=LONG_AGO)
    record_deleted_projects("proj_1")
    KnownProject.objects.create(pk="proj_1_x", evidence="saved")
    said = answer(SHARED)
    assert SCAN in said.text and "nobody said that proj_1_x was deleted" in said.text
    assert said.project_to_declare == "proj_1_x" and said.finding
    KnownProject.objects.filter(pk="proj_1_x").update(evidence="deleted", deleted_at=AGO)
    said = answer(SHARED)
    assert (
        SCAN in said.text and f"clean up after {said.project_to_declare} as a deleted" in said.text
    )
    assert said.project_to_declare in ("proj_1", "proj_1_x")
    Finding.objects.update(last_modified=timezone.now())
    said = answer(SHARED)
    assert SCAN in said.text and "none of which lives" in said.text and not said.project_to_declare
    assert "is younger than the deletion, so later checks keep it too. Run a scan" in said.text


def test_file_kept_as_younger_than_the_deletion_is_not_said_to_go_with_the_next_cleanup(
    db: None,
) -> None:
    record_deleted_projects("proj_1")
    item(SHARED, outcome="kept", reason="Too young.", last_modified=timezone.now())
    [of_deleted, _of_unknown] = look_up(SHARED).objects[0].verdicts
    assert "is younger than the deletion" in of_deleted.verdict.reason


def test_dry_run_that_keeps_a_file_names_the_next_step_for_a_live_and_a_deleted_project(
    db: None,
) -> None:
    create_projects("proj_1")
    plan = create_cleanup("planned", project_id="proj_1", dry_run=True)
    item(SHARED, plan, outcome="kept", reason="In doubt.")
    assert "In doubt. Settle that before the project is deleted." in why(SHARED)
    Project.objects.filter(pk="proj_1")._raw_delete("default")
    KnownProject.objects.update_or_create(
        pk="proj_1", defaults={"evidence": "deleted", "deleted_at": AGO}
    )
    assert "In doubt. Once that is settled, clean up after the project again." in why(SHARED)


@pytest.mark.parametrize("age", [AGO, LONG_AGO])
@pytest.mark.parametrize("evidence", ["deleted", "vanished"])
def test_without_rows_nothing_is_promised_of_an_object_of_projects_none_of_which_lives(
    db: None, age: datetime, evidence: str
) -> None:
    finding(SHARED, kind="ambiguous", last_modified=age)
    record_deleted_projects("proj_1", "proj_1_x")
    KnownProject.objects.filter(pk="proj_1").update(evidence=evidence)
    [facts] = look_up(SHARED, LookupAccess(rows=False)).objects
    said = explain_object(facts)
    assert f"It could be several projects’; a scan found it on {SCAN}. Its finding" in said.text
    assert said.finding and not said.project_to_declare


def test_an_object_is_called_untracked_by_the_scan_that_saw_no_row(db: None) -> None:
    create_projects("proj_1")
    finding(kind="untracked")
    create_row(KEY, project_id="proj_1")
    [facts] = look_up(KEY, LookupAccess(rows=False)).objects
    assert f"by the scan of {SCAN}, which saw no row" in explain_object(facts).text
    assert "saw no row" not in why()


@pytest.mark.parametrize("world", [vanished, leftover, row_alone_left, never_found])
def test_whoever_is_to_clean_up_after_a_project_is_told_which(
    db: None, world: Callable[[], None]
) -> None:
    world()
    said = answer()
    assert "clean up after" in said.text and said.project_to_declare == "proj_1"


def test_what_needs_no_declaration_leads_to_none(db: None) -> None:
    pruned()
    assert not answer().project_to_declare
    assert not answer("stranger").project_to_declare


@pytest.mark.parametrize(
    "world",
    [world for world, _key, _said in CASES if not world.__name__.startswith("gone")],
    ids=lambda world: world.__name__,
)
def test_gone_is_said_of_nothing_that_no_verification_has_settled(
    db: None, world: Callable[[], None]
) -> None:
    world()
    for key in (KEY, SHARED, "stranger"):
        now, _mark, _before = why(key).partition("Before:")
        assert not any(word in now for word in ("seen gone", "confirmed gone", "Deleted by"))


def test_a_newer_row_or_listing_takes_the_word_gone_back(db: None) -> None:
    gone()
    assert "seen gone" in why()
    finding(kind="untracked", last_seen_at=AGO - timedelta(minutes=1))
    assert "seen gone" in why()
    Finding.objects.update(last_seen_at=AGO + timedelta(minutes=1))
    assert why().startswith("It is in the bucket again")
    Finding.objects.all().delete()
    create_row(KEY, project_id="proj_1", created_at=LONG_AGO)
    assert not why().startswith("Deleted")


def test_file_that_was_tracked_and_untracked_since_is_not_called_gone(db: None) -> None:
    """Its finding is resolved, by a person. A scan resolves those that it did not see."""
    gone()
    finding(kind="untracked", last_seen_at=AGO + timedelta(minutes=1))
    Finding.objects.all().resolve("tracked", "zoe")
    assert why().startswith("It is in the bucket again")
    Finding.objects.update(state="open")
    Finding.objects.all().resolve("A complete scan did not see it again.")
    assert why().startswith("Deleted")


@pytest.mark.parametrize("world", [gone, gone_by_itself])
def test_only_a_bucket_check_says_that_a_file_is_still_gone(
    db: None, world: Callable[[], None]
) -> None:
    """The row of a later upload may have been untracked."""
    world()
    by_tables, gone_items, _there = sentences_of(KEY, FULL_ACCESS)
    assert by_tables == f"{gone_items} It may have come back since: look into the bucket."


@pytest.mark.parametrize("kinds", list(permutations(["orphaned", "unfinished"])))
def test_an_upload_seen_beside_an_object_does_not_hide_it(db: None, kinds: tuple[str, ...]) -> None:
    for kind in kinds:
        finding(kind=kind)
    assert "Delete the orphan" in why()
    item(outcome="deleted", changed_at=f"{SCAN}+00:00")
    assert "seen gone" in why()
    Finding.objects.update(last_seen_at=timezone.now())
    assert why().startswith("It is in the bucket again")


@pytest.mark.parametrize("escaped", [True, False])
def test_an_object_that_is_shown_as_another_is_called_is_told_apart(
    db: None, escaped: bool
) -> None:
    key = r"projects/proj_1/scenes/s1/media/a\xff.mp4"
    item(key, outcome="already_gone", escaped=escaped)
    [facts] = look_up(key).objects
    assert facts.candidate.escaped == escaped and "confirmed gone" in explain_object(facts).text
    finding(key, kind="unstorable" if not escaped else "orphaned", escaped=not escaped)
    named, unnamed = look_up(key).objects
    assert unnamed.candidate.key == "projects/proj_1/scenes/s1/media/a\udcff.mp4"
    gone, there = (unnamed, named) if escaped else (named, unnamed)
    assert "confirmed gone" in explain_object(gone).text and not gone.findings
    assert "a scan found it" in explain_object(there).text and not there.items


@pytest.mark.parametrize("outcome", ["deleted", "already_gone"])
def test_gone_is_said_of_the_same_spelling_unless_the_bucket_folds_them(
    db: None, outcome: str
) -> None:
    key = "projects/proj_1/scenes/s1/media/é.mp4"
    composed, other = normalize("NFC", key), normalize("NFD", key)
    record_deleted_projects("proj_1")
    item(other, outcome="failed", reason="No answer.", changed_at=LONG_AGO)
    assert "No answer." in why(composed)
    item(other, outcome=outcome)
    assert "by a complete listing" in why(other)
    assert "that looks the same and is spelled with other" in why(composed)
    assert "look into the bucket" in why(composed)
    item(other, outcome=outcome, identity=composed)
    assert "by a complete listing" in why(composed)


def test_a_plan_that_has_the_key_in_another_spelling_is_not_said_to_be_without_it(
    db: None,
) -> None:
    key = "projects/proj_1/scenes/s1/media/é.mp4"
    composed, other = normalize("NFC", key), normalize("NFD", key)
    record_deleted_projects("proj_1")
    cleanup = create_cleanup("running", project_id="proj_1", step="verify", planned_at=AGO)
    item(composed, cleanup, outcome="deleted")
    assert "that looks the same and is spelled with other" in why(other)
    [facts] = look_up(other).objects
    there = replace(facts, live_result=LiveResult(AGO, ListedObject(other, 1, "e", AGO)))
    assert "its plan does not have this, so" in explain_object(there).text
    create_row(other, project_id="proj_1")
    assert "its plan does not have this, so" in why(other)


def test_the_latest_evidence_counts_whichever_cleanup_is_older(db: None) -> None:
    """A plan is asked for before the look that finds it open, and is run after that."""
    record_deleted_projects("proj_1")
    older = create_cleanup("clean", project_id="proj_1")
    look = create_cleanup("differs", project_id="proj_1", kind="verify")
    item(cleanup=look, outcome="failed", reason="In the bucket.", changed_at=LONG_AGO)
    item(cleanup=older, outcome="deleted")
    assert why().startswith(f"Deleted by cleanup {older.pk}")
    look.items.update(changed_at=timezone.now())
    assert "In the bucket." in why()


# Projects


def answer_of(project_id: str) -> Explanation:
    told = look_up(project_id).project
    assert told
    return project_rules.explain_project(told)


def why_project(project_id: str = "proj_1") -> str:
    return answer_of(project_id).text


def totals_of(**figures: int) -> dict[str, Any]:
    count = sum(figures.values())
    return {"found": count, "planned_at": AGO, "finished_at": AGO, **figures}


def test_a_live_project_keeps_its_objects(db: None) -> None:
    of_the_living()
    assert "Project proj_1 lives, and its 1 tracked object stays" in why_project()


def test_a_deleted_project_says_by_whom_what_went_and_what_stays(db: None) -> None:
    record_deleted_projects("proj_1")
    figures = totals_of(deleted=11, already_gone=1, kept=1)
    cleanup = create_cleanup("clean_with_kept", project_id="proj_1", requested_by="anna", **figures)
    item(SHARED, cleanup, outcome="kept", reason="In doubt.")
    sentence = why_project()
    assert "proj_1 was deleted on" in sentence and " by anna. 12 objects were seen gone" in sentence
    assert f"on {AGO:%Y-%m-%d %H:%M:%S}. 1 object stays: In doubt. Decide on each" in sentence
    assert "from its finding" in sentence and "the cleanup’s page" not in sentence


def test_results_of_a_later_check_count_for_what_stays(db: None) -> None:
    record_deleted_projects("proj_1")
    first = create_cleanup("clean_with_kept", project_id="proj_1", **totals_of(deleted=3, kept=2))
    item(SHARED, first, outcome="kept", reason="Too young.")
    assert "2 objects stay, the first because: Too young." in why_project()
    later = {"parent": first, **totals_of(kept=1, deleted=1)}
    look = create_cleanup("clean_with_kept", project_id="proj_1", **later)
    Cleanup.objects.filter(pk=look.pk).update(finished_at=AGO + timedelta(minutes=1))
    item(SHARED, look, outcome="kept", reason="In doubt.")
    sentence = why_project()
    assert "By the last check, which ended on " in sentence
    assert "1 object stays: In doubt. Decide on each" in sentence and "Too young" not in sentence
    look = create_cleanup("clean", project_id="proj_1", parent=first, **totals_of(deleted=1))
    Cleanup.objects.filter(pk=look.pk).update(finished_at=AGO + timedelta(minutes=2))
    sentence = why_project()
    assert "2 objects were kept then, and none is left by the last check" in sentence
    assert "3 objects were seen gone" in sentence
    assert "stays" not in sentence and "Decide" not in sentence
    create_cleanup("clean_with_kept", project_id="proj_1", bucket="other", **totals_of(kept=4))
    assert "In bucket other:" in why_project()


@pytest.mark.parametrize(
    ("status", "look", "next_step"),
    [
        ("differs", {"kind": "verify", "next_attempt_at": None}, "Clean up after the project"),
        ("retrying", {}, "The cleanup’s page says what stands in the way"),
        ("failed", {}, "The cleanup’s page says what stands in the way"),
    ],
)
@pytest.mark.parametrize("figures", [{"kept": 2}, {"deleted": 3}, {}], ids=str)
def test_leftovers_of_a_later_check_are_reported_though_the_cleanup_is_over(
    db: None, status: str, look: dict[str, Any], next_step: str, figures: dict[str, int]
) -> None:
    record_deleted_projects("proj_1")
    over = "clean_with_kept" if figures.get("kept") else "clean"
    first = create_cleanup(over, project_id="proj_1", **totals_of(**figures))
    for n, (ended, left) in enumerate([("clean", 0), (status, 2), ("clean", 0)], start=1):
        given = {"parent": first, **totals_of(failed=left), **(look if left else {})}
        given["finished_at"] = AGO + timedelta(minutes=n)
        later = create_cleanup(ended, project_id="proj_1", **given)
        if left:
            item(cleanup=later, outcome="failed", reason="In the bucket.")
            said = answer_of("proj_1")
            assert "By the last check, which ended on " in said.text and next_step in said.text
            assert "2 objects stay, the first because: In the bucket." in said.text
            assert "none is left" not in said.text and "found no" not in said.text
            assert said.cleanup == later and bool(said.project_to_declare) == (look != {})
        else:
            assert "2 objects stay" not in why_project()


def test_partial_verification_does_not_count_for_the_project(db: None) -> None:
    record_deleted_projects("proj_1")
    first = create_cleanup("clean_with_kept", project_id="proj_1", **totals_of(kept=2))
    for given in (
        {"parent": create_cleanup("clean", kind="orphans", project_id=None), "kind": "verify"},
        {"bucket": "other", "parent": first},
        {"kind": "verify", "status": "superseded"},
        {"kind": "verify", "status": "retrying", "found": 1, "failed": 1},
        {"status": "retrying", "dry_run": True, "found": 1, "failed": 1},
    ):
        later: dict[str, Any] = {
            "finished_at": timezone.now(),
            "planned_at": AGO,
            "status": "clean",
            **given,
        }
        create_cleanup(project_id="proj_1", **later)
        assert "2 objects stay, the first because:" in why_project()


def test_a_cleanup_that_is_not_over_says_what_it_waits_for(db: None) -> None:
    blocked()
    assert "Nothing is deleted until a person decides." in why_project()


def test_a_cleanup_has_found_nothing_only_once_it_has_listed_everything(db: None) -> None:
    record_deleted_projects("proj_1")
    trouble = {"finished_at": AGO, "message": "The bucket could not be listed."}
    cleanup = create_cleanup("retrying", project_id="proj_1", **trouble)
    assert "found no" not in why_project() and "could not be listed." in why_project()
    Cleanup.objects.update(status="clean", planned_at=AGO)
    assert "Its cleanup found no objects." in why_project()
    create_cleanup("clean", project_id="proj_1", bucket="other", **totals_of())
    assert "Its cleanups found no objects." in why_project()
    create_cleanup("clean", project_id="proj_1", bucket="third", **totals_of(deleted=2))
    assert "In bucket third: 2 objects were seen gone" in why_project()
    create_cleanup(
        "failed", project_id="proj_1", bucket="fourth", **totals_of(failed=5), message="No answer."
    )
    assert (
        "In bucket fourth: 5 objects stay, the first because: No answer. The cleanup’s page says"
        in why_project()
    )
    assert "from its finding" not in why_project()
    Cleanup.objects.filter(pk=cleanup.pk).update(status="blocked")
    assert "In bucket tests: Nothing is deleted until a person decides." in why_project()
    create_cleanup("clean", project_id="proj_1", **totals_of(deleted=3))
    assert "In bucket fourth:" in why_project()


def test_a_project_without_a_signal_or_a_cleanup_says_so(db: None) -> None:
    assert "No project proj_1 was ever known here." in why_project()
    assert answer_of("proj_1").project_to_declare == "proj_1"
    KnownProject.objects.create(pk="proj_1", evidence="seen")
    assert "nobody said that it was deleted" in why_project()
    assert answer_of("proj_1").project_to_declare == "proj_1"
    KnownProject.objects.all().delete()
    record_deleted_projects("proj_1")
    assert "No cleanup of it is on record." in why_project()
    assert answer_of("proj_1").project_to_declare == "proj_1"
