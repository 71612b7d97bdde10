"""Why?: an answer for each state that an object or a project can be in, with the next step."""

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
from storage_audit.display_formats import format_utc
from storage_audit.findings.models import Finding
from storage_audit.lookup.cards import Card
from storage_audit.lookup.facts import FULL_ACCESS, LiveResult, LookupAccess
from storage_audit.lookup.object_rules import OBJECT_RULES, OBJECT_TEXTS, explain_object
from storage_audit.lookup.parse_query import KeyCandidate
from storage_audit.lookup.project_rules import PROJECT_RULES, PROJECT_TEXTS, explain_project
from storage_audit.lookup.rules import Explanation
from storage_audit.lookup.search import look_up
from storage_audit.models import KnownProject, R2Object
from storage_audit.ownership.key_template import MAX_WAYS
from storage_audit.scan.models import BucketScan
from tests.builders import add_items, create_cleanup, create_row
from tests.promises import create_projects, record_deleted_projects

KEY = "projects/proj_1/scenes/s1/media/a.mp4"
# Could be proj_1's, and proj_1_x's.
SHARED = "proj_1_x_s1_media.mp4"
AGO, LONG_AGO = timezone.now() - timedelta(hours=1), timezone.now() - timedelta(days=2)
SCANNED_AT = "2026-08-21 10:00:00"
SCAN = "21 Aug 2026, 10:00 UTC"
AGO_TEXT = format_utc(AGO)
# Could be the key of more projects than are judged.
OF_TOO_MANY = "proj_1_s" + "_a" * MAX_WAYS + "_media.mp4"


@pytest.fixture(autouse=True)
def our_bucket(settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"BUCKET": "tests"}


def item(key: str = KEY, cleanup: Cleanup | None = None, **facts: Any) -> None:
    given = {"key": key, "identity": key, "changed_at": AGO, **facts}
    add_items(cleanup or create_cleanup("clean", project_id="proj_1"), 1, **given)


def finding(key: str = KEY, **facts: Any) -> None:
    scan = BucketScan.objects.create(bucket="tests")
    seen = {"first_scan": scan, "last_scan": scan, "last_seen_at": f"{SCANNED_AT}+00:00"}
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


def tried_again_soon() -> None:
    cleanup = create_cleanup("retrying", project_id="proj_1", next_attempt_at=AGO)
    item(cleanup=cleanup, outcome="failed", store_answer="No answer.")


def kept() -> None:
    create_projects("proj_1_x")
    item(SHARED, outcome="kept", reason="The name also fits an existing project: proj_1_x.")


def would_be_kept() -> None:
    create_projects("proj_1_x")
    cleanup = create_cleanup("planned", project_id="proj_1", dry_run=True)
    item(SHARED, cleanup, outcome="kept", reason="In doubt.")


def would_be_kept_of_the_deleted() -> None:
    record_deleted_projects("proj_1")
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


# The rule that answers, and what its sentence says of this world.
CASES: list[tuple[Callable[[], None], str, str, list[str]]] = [
    (nothing, KEY, "unknown", []),
    (nothing, "stranger", "no_record", ["We have no record of this file."]),
    (nothing, OF_TOO_MANY, "too_many_owners", []),
    (nothing, ".storage_audit/installation.json", "own_object", []),
    (being_uploaded, KEY, "being_uploaded", []),
    (blocked, KEY, "blocked", ["2 are more than 1."]),
    (blocked_before_listing, KEY, "blocked", ["The table is empty."]),
    (
        blocked_with_another_plan,
        KEY,
        "not_in_plan_if_there",
        ["proj_1 has the status needs approval"],
    ),
    (uploaded_after_the_plan, KEY, "not_in_plan", ["proj_1 has the status needs approval"]),
    (being_deleted, KEY, "being_deleted", ["is running"]),
    (gone, KEY, "gone", ["Deleted, and", f"on {AGO_TEXT}", "of projects/proj_1/."]),
    (gone_and_confirmed, KEY, "gone", ["Deleted, and", "of projects/proj_1/."]),
    (gone_by_itself, KEY, "gone", ["Already gone when the cleanup", "of its folder."]),
    (uploaded_again, KEY, "uploaded_again", ["for proj_1.", "Before that: Deleted"]),
    (back_by_other_means, KEY, "back", ["Before that: Deleted"]),
    (tracked_again_by_a_backfill, KEY, "back", ["Before that: Deleted"]),
    (refused, KEY, "failed", ["Still in the bucket."]),
    (tried_again_soon, KEY, "failed_and_retried", [f"on {AGO_TEXT}.", "No answer."]),
    (ended_after_it_was_sent, KEY, "failed_and_ended", ["Sent before the id lived again."]),
    (kept, SHARED, "kept", ["The name also fits an existing project: proj_1_x."]),
    (would_be_kept, SHARED, "would_be_kept", ["name also fits an existing project: proj_1_x."]),
    (would_be_kept_of_the_deleted, SHARED, "would_be_kept_of_deleted", ["In doubt."]),
    (left_by_a_verification, KEY, "differs", ["In the bucket, but not tracked."]),
    (planned, KEY, "dry_run", []),
    (ignored, "stranger", "ignored", ["anna chose on", "“Ours.”"]),
    (upload_failed, KEY, "upload_not_ended", []),
    (upload_that_never_ended, KEY, "upload_not_ended", []),
    (
        of_the_living,
        KEY,
        "of_live_project",
        ["which still exists (uploaded for proj_1"],
    ),
    (named_like_the_living, KEY, "maybe_of_live_project", ["project proj_1,"]),
    (kept_for_a_project_that_lives_again, KEY, "maybe_of_live_project", ["project proj_1,"]),
    (vanished, KEY, "of_vanished_project", ["Project proj_1 "]),
    (leftover, KEY, "left_over", ["proj_1 was deleted on"]),
    (row_alone_left, KEY, "row_left_over", ["proj_1 was deleted on"]),
    (never_found, KEY, "not_found", ["project proj_1 "]),
    (pruned, KEY, "archived", ["old.jsonl.gz"]),
    (ended_before_listing, KEY, "unknown", []),
    (of_nobody_ever_known, KEY, "of_unknown_project", [": proj_1."]),
]


@pytest.mark.parametrize(
    ("world", "key", "code", "values"),
    CASES,
    ids=[f"{world.__name__}-{code}" for world, _key, code, _values in CASES],
)
def test_first_rule_that_fits_says_why_it_is_there_or_when_it_went(
    db: None, world: Callable[[], None], key: str, code: str, values: list[str]
) -> None:
    world()
    said = answer(key)
    assert said.code == code
    assert all(value in said.text for value in values), said.text


def test_each_rule_has_its_text() -> None:
    for rules, texts in ((OBJECT_RULES, OBJECT_TEXTS), (PROJECT_RULES, PROJECT_TEXTS)):
        assert [rule.code for rule in rules] == list(dict.fromkeys(rule.code for rule in rules))
        assert {rule.code for rule in rules} == set(texts)


@pytest.mark.parametrize(
    "sight", [LookupAccess(False, True), LookupAccess(True, False), LookupAccess(False, False)]
)
@pytest.mark.parametrize("world", [world for world, *_ in CASES], ids=lambda world: world.__name__)
def test_card_tells_nothing_of_what_the_person_may_not_see(
    db: None, world: Callable[[], None], sight: LookupAccess
) -> None:
    world()
    for key in (KEY, SHARED, "stranger"):
        before = cards_of(key, sight)
        with undone():
            if not sight.rows:
                R2Object.objects.all().delete_without_signals()
            if not sight.findings:
                Finding.objects.all().delete()
            assert cards_of(key, sight) == before
        for said, _card, _reply in before:
            assert "We have no record" not in said
            assert sight.rows or "no record of it" not in said


def cards_of(key: str, sight: LookupAccess) -> list[tuple[str, Card | None, str]]:
    return [(said.text, said.card, said.reply) for said in explanations_of(key, sight)]


@pytest.mark.parametrize("table", ["rows", "findings"])
def test_name_of_a_bucket_is_known_only_by_what_the_person_may_see(db: None, table: str) -> None:
    if table == "rows":
        create_row(KEY, bucket="other")
    else:
        finding(KEY, bucket="other")
    seen, hidden = (
        look_up(f"other/{KEY}", access).query.keys
        for access in (LookupAccess(), LookupAccess(table != "rows", table != "findings"))
    )
    assert KeyCandidate(KEY, "other") in seen and KeyCandidate(KEY, "other") not in hidden


MAYBE_CHANGED = "You can't see all records, so this may have changed."


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
    assert by_tables.endswith(f" {MAYBE_CHANGED} Check the bucket.")
    assert MAYBE_CHANGED not in gone_items and MAYBE_CHANGED not in why(key)
    is_back = there.startswith("Back in the bucket")
    assert is_back or there.endswith(f" {MAYBE_CHANGED} Ask somebody who can.")
    [facts] = look_up(key, sight).objects
    in_vain = replace(facts, live_result=LiveResult(AGO, error="No answer."))
    assert explain_object(in_vain).text == by_tables


def sentences_of(key: str, sight: LookupAccess) -> list[str]:
    return [said.text for said in explanations_of(key, sight)]


def explanations_of(key: str, sight: LookupAccess) -> list[Explanation]:
    """By the tables, and after a look that showed it absent, or showed it."""
    [facts] = look_up(key, sight).objects
    there = ListedObject(key, 1, "e", AGO)
    looks = (None, LiveResult(AGO), LiveResult(AGO, there))
    return [explain_object(replace(facts, live_result=seen)) for seen in looks]


NO_ROWS = LookupAccess(rows=False)


@pytest.mark.parametrize(
    ("world", "sight", "codes"),
    [
        (nothing, FULL_ACCESS, "unknown gone_unexplained of_unknown_project"),
        (
            nothing,
            NO_ROWS,
            "unknown_in_partial_view gone_in_partial_view there_in_partial_view",
        ),
        (gone, NO_ROWS, "gone gone back_in_partial_view"),
        (being_deleted, FULL_ACCESS, "being_deleted gone_before_its_cleanup being_deleted"),
        (leftover, FULL_ACCESS, "left_over gone_but_tracked left_over"),
    ],
)
def test_look_into_the_bucket_changes_which_rule_fits(
    db: None, world: Callable[[], None], sight: LookupAccess, codes: str
) -> None:
    world()
    assert [said.code for said in explanations_of(KEY, sight)] == codes.split()


@contextmanager
def undone() -> Iterator[None]:
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


@pytest.mark.parametrize("kind", Finding.Kind.values)
def test_an_open_finding_says_what_can_be_done_about_it(db: None, kind: str) -> None:
    create_projects("proj_1")
    finding(kind=kind)
    said = answer()
    assert said.code == kind and SCAN in said.text and said.finding


def test_an_object_of_projects_none_of_which_lives_is_not_to_be_assigned(db: None) -> None:
    finding(SHARED, kind="ambiguous", last_modified=LONG_AGO)
    record_deleted_projects("proj_1")
    KnownProject.objects.create(pk="proj_1_x", evidence="saved")
    said = answer(SHARED)
    assert SCAN in said.text and "no deletion of proj_1_x was reported" in said.text
    assert said.project_to_declare == "proj_1_x" and said.finding
    KnownProject.objects.filter(pk="proj_1_x").update(evidence="deleted", deleted_at=AGO)
    said = answer(SHARED)
    assert SCAN in said.text and f"clean up the files of {said.project_to_declare}" in said.text
    assert said.project_to_declare in ("proj_1", "proj_1_x")
    Finding.objects.update(last_modified=timezone.now())
    said = answer(SHARED)
    assert SCAN in said.text and said.text.startswith("The name fits several projects")
    assert "is newer than the deletion. Run a scan" in said.text and not said.project_to_declare
    # The same doubt is not told a second time in other words.
    assert said.text.count("fits several projects") == 1


def test_kept_file_has_the_reason_of_now_when_the_project_of_then_is_deleted(db: None) -> None:
    record_deleted_projects("proj_1", "proj_1_x")
    reason = "The name also fits an existing project: proj_1_x."
    item(SHARED, outcome="kept", reason=reason, last_modified=timezone.now())
    said = answer(SHARED)
    assert said.code == "kept" and "the file is newer than the deletion." in said.text
    assert "existing project" not in said.text


def test_file_kept_as_younger_than_the_deletion_is_not_said_to_go_with_the_next_cleanup(
    db: None,
) -> None:
    record_deleted_projects("proj_1")
    item(SHARED, outcome="kept", reason="Too young.", last_modified=timezone.now())
    [of_deleted, _of_unknown] = look_up(SHARED).objects[0].verdicts
    assert "is newer than the deletion" in of_deleted.verdict.reason


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
    assert f"A scan found the file on {SCAN}. Open its finding" in said.text
    assert said.finding and not said.project_to_declare


def test_an_object_is_called_untracked_by_the_scan_that_saw_no_row(db: None) -> None:
    create_projects("proj_1")
    finding(kind="untracked")
    create_row(KEY, project_id="proj_1")
    [facts] = look_up(KEY, LookupAccess(rows=False)).objects
    assert f"The scan of {SCAN} found this file, but no record of it" in explain_object(facts).text
    assert "no record of it" not in why()


@pytest.mark.parametrize("world", [vanished, leftover, row_alone_left, never_found])
def test_whoever_is_to_clean_up_after_a_project_is_told_which(
    db: None, world: Callable[[], None]
) -> None:
    world()
    said = answer()
    assert "clean up" in said.text and said.project_to_declare == "proj_1"


def test_what_needs_no_declaration_leads_to_none(db: None) -> None:
    pruned()
    assert not answer().project_to_declare
    assert not answer("stranger").project_to_declare


@pytest.mark.parametrize(
    "world",
    [world for world, *_ in CASES if not world.__name__.startswith("gone")],
    ids=lambda world: world.__name__,
)
def test_gone_is_said_of_nothing_that_no_verification_has_settled(
    db: None, world: Callable[[], None]
) -> None:
    world()
    for key in (KEY, SHARED, "stranger"):
        now, _mark, _before = why(key).partition("Before that:")
        assert not any(word in now for word in ("confirmed gone", "Already gone", "Deleted"))
        assert answer(key).card is not Card.GONE


def test_a_newer_row_or_listing_takes_the_word_gone_back(db: None) -> None:
    gone()
    assert "confirmed gone" in why()
    finding(kind="untracked", last_seen_at=AGO - timedelta(minutes=1))
    assert "confirmed gone" in why()
    Finding.objects.update(last_seen_at=AGO + timedelta(minutes=1))
    assert why().startswith("Back in the bucket")
    Finding.objects.all().delete()
    create_row(KEY, project_id="proj_1", created_at=LONG_AGO)
    assert not why().startswith("Deleted")


def test_file_that_was_tracked_and_untracked_since_is_not_called_gone(db: None) -> None:
    """Its finding is resolved, by a person. A scan resolves those that it did not see."""
    gone()
    finding(kind="untracked", last_seen_at=AGO + timedelta(minutes=1))
    Finding.objects.all().resolve("tracked", "zoe")
    assert why().startswith("Back in the bucket")
    Finding.objects.update(state="open")
    Finding.objects.all().resolve("A later complete scan did not find it again.")
    assert why().startswith("Deleted")


@pytest.mark.parametrize("world", [gone, gone_by_itself])
def test_only_a_bucket_check_says_that_a_file_is_still_gone(
    db: None, world: Callable[[], None]
) -> None:
    """The row of a later upload may have been untracked."""
    world()
    by_tables, gone_items, _there = sentences_of(KEY, FULL_ACCESS)
    assert by_tables == f"{gone_items} To rule out a later upload, check the bucket."


@pytest.mark.parametrize("kinds", list(permutations(["orphaned", "unfinished"])))
def test_an_upload_seen_beside_an_object_does_not_hide_it(db: None, kinds: tuple[str, ...]) -> None:
    for kind in kinds:
        finding(kind=kind)
    assert "Delete it from its finding" in why()
    item(outcome="deleted", changed_at=f"{SCANNED_AT}+00:00")
    assert "confirmed gone" in why()
    Finding.objects.update(last_seen_at=timezone.now())
    assert why().startswith("Back in the bucket")


@pytest.mark.parametrize("escaped", [True, False])
def test_an_object_that_is_shown_as_another_is_called_is_told_apart(
    db: None, escaped: bool
) -> None:
    key = r"projects/proj_1/scenes/s1/media/a\xff.mp4"
    item(key, outcome="already_gone", escaped=escaped)
    [facts] = look_up(key).objects
    assert facts.candidate.escaped == escaped and "Already gone" in explain_object(facts).text
    finding(key, kind="unstorable" if not escaped else "orphaned", escaped=not escaped)
    named, unnamed = look_up(key).objects
    assert unnamed.candidate.key == "projects/proj_1/scenes/s1/media/a\udcff.mp4"
    gone, there = (unnamed, named) if escaped else (named, unnamed)
    assert "Already gone" in explain_object(gone).text and not gone.findings
    assert "scan found it" in explain_object(there).text and not there.items


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
    assert "by a full listing" in why(other)
    assert "that looks the same but uses different Unicode" in why(composed)
    assert "Check the bucket" in why(composed)
    item(other, outcome=outcome, identity=composed)
    assert "by a full listing" in why(composed)


def test_a_plan_that_has_the_key_in_another_spelling_is_not_said_to_be_without_it(
    db: None,
) -> None:
    key = "projects/proj_1/scenes/s1/media/é.mp4"
    composed, other = normalize("NFC", key), normalize("NFD", key)
    record_deleted_projects("proj_1")
    cleanup = create_cleanup("running", project_id="proj_1", step="verify", planned_at=AGO)
    item(composed, cleanup, outcome="deleted")
    assert "that looks the same but uses different Unicode" in why(other)
    [facts] = look_up(other).objects
    there = replace(facts, live_result=LiveResult(AGO, ListedObject(other, 1, "e", AGO)))
    assert "its plan does not include this file. When" in explain_object(there).text
    create_row(other, project_id="proj_1")
    assert "its plan does not include this file. When" in why(other)


def test_the_latest_evidence_counts_whichever_cleanup_is_older(db: None) -> None:
    """A plan is asked for before the look that finds it open, and is run after that."""
    record_deleted_projects("proj_1")
    older = create_cleanup("clean", project_id="proj_1")
    look = create_cleanup("differs", project_id="proj_1", kind="verify")
    item(cleanup=look, outcome="failed", reason="In the bucket.", changed_at=LONG_AGO)
    item(cleanup=older, outcome="deleted")
    assert why().startswith("Deleted, and") and answer().cleanup == older
    look.items.update(changed_at=timezone.now())
    assert "In the bucket." in why()


# Projects


def answer_of(project_id: str) -> Explanation:
    told = look_up(project_id).project
    assert told
    return explain_project(told)


def why_project(project_id: str = "proj_1") -> str:
    return answer_of(project_id).text


def totals_of(**figures: int) -> dict[str, Any]:
    count = sum(figures.values())
    return {"found": count, "planned_at": AGO, "finished_at": AGO, **figures}


def test_a_live_project_keeps_its_objects(db: None) -> None:
    of_the_living()
    assert "Project proj_1 exists, and so does its 1 recorded file." in why_project()


def test_a_deleted_project_says_by_whom_what_went_and_what_stays(db: None) -> None:
    record_deleted_projects("proj_1")
    figures = totals_of(deleted=11, already_gone=1, kept=1)
    cleanup = create_cleanup("clean_with_kept", project_id="proj_1", requested_by="anna", **figures)
    item(SHARED, cleanup, outcome="kept", reason="In doubt.")
    sentence = why_project()
    assert (
        "proj_1 was deleted on" in sentence and " by anna. 12 files are gone, confirmed" in sentence
    )
    assert f"on {AGO_TEXT}. 1 file is left: In doubt. Decide on each" in sentence
    assert "from its finding" in sentence and "Open the cleanup" not in sentence


def test_results_of_a_later_check_count_for_what_stays(db: None) -> None:
    record_deleted_projects("proj_1")
    first = create_cleanup("clean_with_kept", project_id="proj_1", **totals_of(deleted=3, kept=2))
    item(SHARED, first, outcome="kept", reason="Too young.")
    assert "2 files are left. The first one's reason: Too young." in why_project()
    later = {"parent": first, **totals_of(kept=1, deleted=1)}
    look = create_cleanup("clean_with_kept", project_id="proj_1", **later)
    Cleanup.objects.filter(pk=look.pk).update(finished_at=AGO + timedelta(minutes=1))
    item(SHARED, look, outcome="kept", reason="In doubt.")
    sentence = why_project()
    assert "The last check ended on " in sentence
    assert "1 file is left: In doubt. Decide on each" in sentence and "Too young" not in sentence
    look = create_cleanup("clean", project_id="proj_1", parent=first, **totals_of(deleted=1))
    Cleanup.objects.filter(pk=look.pk).update(finished_at=AGO + timedelta(minutes=2))
    sentence = why_project()
    assert "2 files were kept at first. The last check, on " in sentence
    assert "3 files are gone, confirmed" in sentence
    assert "left:" not in sentence and "Decide" not in sentence
    create_cleanup("clean_with_kept", project_id="proj_1", bucket="other", **totals_of(kept=4))
    assert "In bucket other:" in why_project()


@pytest.mark.parametrize(
    ("status", "look", "next_step"),
    [
        ("differs", {"kind": "verify", "next_attempt_at": None}, "Clean up the project again."),
        ("retrying", {}, "Open the cleanup to see why"),
        ("failed", {}, "Open the cleanup to see why"),
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
            assert "The last check ended on " in said.text and next_step in said.text
            assert "2 files are left. The first one's reason: In the bucket." in said.text
            assert "none left" not in said.text and "found no" not in said.text
            assert said.cleanup == later and bool(said.project_to_declare) == (look != {})
        else:
            assert "2 files are left" not in why_project()


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
        assert "2 files are left. The first one's reason:" in why_project()


def test_a_cleanup_that_is_not_over_says_what_it_waits_for(db: None) -> None:
    blocked()
    assert "Needs approval. No file is deleted until a person decides." in why_project()


def test_a_cleanup_has_found_nothing_only_once_it_has_listed_everything(db: None) -> None:
    record_deleted_projects("proj_1")
    trouble = {"finished_at": AGO, "message": "The bucket could not be listed."}
    cleanup = create_cleanup("retrying", project_id="proj_1", **trouble)
    assert "found no" not in why_project() and "could not be listed." in why_project()
    Cleanup.objects.update(status="clean", planned_at=AGO)
    assert "The cleanup found no files." in why_project()
    create_cleanup("clean", project_id="proj_1", bucket="other", **totals_of())
    assert "The cleanup found no files." in why_project()
    create_cleanup("clean", project_id="proj_1", bucket="third", **totals_of(deleted=2))
    assert "In bucket third: 2 files are gone, confirmed" in why_project()
    create_cleanup(
        "failed", project_id="proj_1", bucket="fourth", **totals_of(failed=5), message="No answer."
    )
    assert (
        "In bucket fourth: 5 files are left. The first one's reason: No answer. Open the cleanup"
        in why_project()
    )
    assert "from its finding" not in why_project()
    Cleanup.objects.filter(pk=cleanup.pk).update(status="blocked")
    assert (
        "In bucket tests: Needs approval. No file is deleted until a person decides."
        in why_project()
    )
    create_cleanup("clean", project_id="proj_1", **totals_of(deleted=3))
    assert "In bucket fourth:" in why_project()


def test_a_project_without_a_signal_or_a_cleanup_says_so(db: None) -> None:
    assert "We never knew a project proj_1." in why_project()
    assert answer_of("proj_1").project_to_declare == "proj_1"
    KnownProject.objects.create(pk="proj_1", evidence="seen")
    assert "no deletion was reported" in why_project()
    assert answer_of("proj_1").project_to_declare == "proj_1"
    KnownProject.objects.all().delete()
    record_deleted_projects("proj_1")
    assert "we have no record of a cleanup" in why_project()
    assert answer_of("proj_1").project_to_declare == "proj_1"
