"""Whose an object is: `proj_1` never claims a key of `proj_10`, and doubt protects."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st
from pytest_django import Settings

from storage_audit.bucket.listing import exact_key
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup.open_decisions import find_uncertain_keys, possible_owners
from storage_audit.clocks import clock_skew
from storage_audit.findings.models import Finding
from storage_audit.findings.orphans import delete_objects
from storage_audit.models import R2Object
from storage_audit.ownership.attribution import Owner, OwnerProblem, find_owner
from storage_audit.ownership.key_template import ParsedKeys
from storage_audit.ownership.ownership_rule import (
    MAX_OWNER_LENGTH,
    MAX_OWNERS_SHOWN,
    DeletedProject,
    Ownership,
    Verdict,
    get_key_formats,
    judge_ownership,
    key_formats_version,
    rival_reason,
    shorten_list,
    too_young_reason,
)
from storage_audit.ownership.row_evidence import is_assigned, is_unconfirmed, may_be_outdated
from tests.promises import (
    FLAT_KEY,
    Status,
    act_before_batch,
    check_promises,
    clean_up_project,
    create_projects,
    read_outcomes,
    read_reason,
    record_deleted_projects,
    request_cleanup,
    run_follow_up,
    run_until_idle,
    track_key,
)
from tests.real_bucket import Bucket
from tests.scan.listing_in_memory import age_scans, complete_reconcile
from tests.times import DELETED_AT, OLDER, YOUNGER

ONE = "projects/proj_1/scenes/s1/media/a.mp4"
SEVERAL = "proj_1_x_s1_media.mp4"
ODD = "somewhere/else.bin"
OWNED, ELSEWHERE, KEPT = Ownership.OWNED, Ownership.OTHER_PROJECT, Ownership.IN_DOUBT


def row(project_id: str | None, source: str = "upload") -> R2Object:
    return R2Object(project_id=project_id, source=source)


def verdict(
    key: str,
    tracked: R2Object | None = None,
    *,
    project_id: str = "proj_1",
    time: datetime | None = OLDER,
    living: Sequence[str] = (),
) -> Verdict:
    rows = [tracked] if tracked else []
    return judge_ownership(
        DeletedProject(project_id, DELETED_AT),
        get_key_formats().parse_key(key),
        rows,
        time,
        set(living),
    )


@pytest.mark.parametrize(
    "key, tracked, time, living, claim",
    [
        # An upload row that names a project decides, whatever the key says.
        (ONE, row("proj_1"), OLDER, [], OWNED),
        (ODD, row("proj_1"), OLDER, [], OWNED),
        (SEVERAL, row("proj_1"), OLDER, ["proj_1"], OWNED),
        (SEVERAL, row("proj_1"), OLDER, [], OWNED),
        # Unless it is from other settings, as the key can be read as a live project's today.
        (SEVERAL, row("proj_1"), OLDER, ["proj_1_x"], KEPT),
        (ONE, row("proj_2"), OLDER, ["proj_1"], ELSEWHERE),
        (SEVERAL, row("proj_1"), YOUNGER, [], OWNED),
        (ONE, row("proj_2"), OLDER, [], ELSEWHERE),
        (SEVERAL, row("proj_1_x"), OLDER, [], ELSEWHERE),
        # An upload row that names none decides nothing.
        (ONE, row(None), OLDER, [], OWNED),
        (SEVERAL, row(None), OLDER, ["proj_1_x"], KEPT),
        (ODD, row(None), OLDER, [], KEPT),
        # A backfilled row is a reading written down: it grants nothing, and keeps the object.
        (ODD, row("proj_1", "backfill"), OLDER, [], KEPT),
        (SEVERAL, row("proj_1", "backfill"), OLDER, ["proj_1_x"], KEPT),
        (SEVERAL, row("proj_1_x", "backfill"), OLDER, [], OWNED),
        (ONE, row("proj_2", "backfill"), OLDER, [], OWNED),
        (ONE, row("proj_2", "backfill"), OLDER, ["proj_2"], KEPT),
        ("projects/proj_2/scenes/s/media/a", row("proj_1", "backfill"), OLDER, [], KEPT),
        # One reading.
        (ONE, None, OLDER, [], OWNED),
        (ONE, None, YOUNGER, [], OWNED),
        (ONE, None, OLDER, ["proj_1"], OWNED),
        ("projects/proj_proj_1/scenes/s1/media/a.mp4", None, OLDER, [], OWNED),
        ("audio/proj_1/s1/a.mp3", None, OLDER, [], OWNED),
        (FLAT_KEY, None, OLDER, [], OWNED),
        ("projects/proj_10/scenes/s1/media/a.mp4", None, OLDER, [], ELSEWHERE),
        ("projects/proj_1_x/scenes/s1/media/a.mp4", None, OLDER, [], ELSEWHERE),
        ("audio/proj_10/s1/a.mp3", None, OLDER, [], ELSEWHERE),
        ("proj_10_s1_media.mp4", None, OLDER, [], ELSEWHERE),
        # Several readings.
        (SEVERAL, None, OLDER, [], OWNED),
        (SEVERAL, None, None, [], OWNED),
        (SEVERAL, None, OLDER, ["proj_1"], OWNED),
        (SEVERAL, None, OLDER, ["proj_1_x"], KEPT),
        (SEVERAL, None, YOUNGER, [], KEPT),
        (SEVERAL, None, DELETED_AT, [], KEPT),
        # None.
        (ODD, None, OLDER, [], KEPT),
        ("proj_1_notes.txt", None, OLDER, [], KEPT),
        ("projects/proj_1/scenes/s1/readme", None, OLDER, [], KEPT),
    ],
)
def test_each_rule(
    key: str, tracked: R2Object | None, time: datetime | None, living: list[str], claim: Ownership
) -> None:
    found = verdict(key, tracked, time=time, living=living)
    assert found.ownership is claim
    assert found.evidence
    assert bool(found.reason) == (claim is KEPT)


def test_reason_names_the_live_project_that_the_key_could_belong_to() -> None:
    assert "proj_1_x" in verdict(SEVERAL, living=["proj_1_x"]).reason


# What rows say, and what they leave open

UPLOAD = UUID(int=1)
OBJECT = ListedObject("k", 1, "x", OLDER)
ANOTHER = OBJECT._replace(etag="y")


def described(source: str = "assigned", project_id: str = "proj_1", **other: Any) -> R2Object:
    """A row of that object."""
    facts: dict[str, Any] = {"size": 1, "etag": "x", "last_modified": OLDER}
    return R2Object(project_id=project_id, source=source, **facts | other)


# Each with the object, and whether a person said whose this one is.
GIVEN: list[tuple[list[R2Object], ListedObject | None, bool]] = [
    ([described()], OBJECT, True),
    ([described(), described()], OBJECT, True),
    ([], OBJECT, False),
    ([described()], None, False),
    ([described()], ANOTHER, False),
    ([described(upload_id=UPLOAD)], OBJECT, False),
    ([described("upload")], OBJECT, False),
    ([described("backfill")], OBJECT, False),
    ([described(), described("upload")], OBJECT, False),
    ([described(), described(project_id="")], OBJECT, False),
]


@pytest.mark.parametrize("rows, stored, given", GIVEN)
def test_only_a_persons_decision_about_this_object_rules_out_other_owners(
    rows: list[R2Object], stored: ListedObject | None, given: bool
) -> None:
    assert is_assigned(rows, stored) is given
    parsed_keys = get_key_formats().parse_key(SEVERAL)
    told = any(row.source != "backfill" for row in rows)
    found = judge_rows(parsed_keys, rows, stored, ["proj_1", "proj_1_x", "proj_2"])
    assert found.ownership is (OWNED if given else KEPT)
    owners = {"proj_1"} if given else parsed_keys.owners
    assert possible_owners(parsed_keys, rows, stored) == (owners, False)
    key_of_nobody = judge_rows(ODD, rows, stored)
    adopted = any(row.source == "assigned" for row in rows)
    assert (key_of_nobody.ownership is OWNED) == (given or (told and not adopted))
    assert ("may not be the one that a person" in key_of_nobody.reason) == (adopted and not given)


@pytest.mark.parametrize("rows, stored, given", GIVEN)
def test_row_is_sure_of_an_object_that_was_uploaded_or_given_and_not_replaced(
    rows: list[R2Object], stored: ListedObject | None, given: bool
) -> None:
    uploaded = [row.source for row in rows] == ["upload"]
    assert may_be_outdated(rows, stored) == any(row.source == "assigned" for row in rows) - given
    assert not may_be_outdated([described("upload", upload_id=UPLOAD)], stored)
    assert may_be_outdated([described("upload", upload_id=UPLOAD, etag="")], stored)
    found = {"k": stored} if stored else {}
    assert (find_uncertain_keys("k", {"k": rows}, found, exact_key) == []) == (given or uploaded)


def judge_rows(
    key: str | ParsedKeys,
    rows: list[R2Object],
    stored: ListedObject | None,
    living: Sequence[str] = (),
) -> Verdict:
    parsed_keys = get_key_formats().parse_key(key) if isinstance(key, str) else key
    return judge_ownership(
        DeletedProject("proj_1", DELETED_AT), parsed_keys, rows, OLDER, set(living), stored
    )


def test_refused_id_that_lives_is_a_rival_of_all_but_the_assigned_project() -> None:
    assert "1" in get_key_formats().parse_key(ONE).refused_ids
    for rows, ownership in (
        ([], KEPT),
        ([described("upload")], KEPT),
        ([described("upload", "1")], ELSEWHERE),
        ([described()], OWNED),
    ):
        assert judge_rows(ONE, rows, OBJECT, ["1"]).ownership is ownership


def test_cleanup_of_each_project_that_key_or_row_names_may_take_an_object() -> None:
    parsed_keys, uploaded = get_key_formats().parse_key(ONE), [described("upload", "proj_2")]
    every = {"proj_2", *parsed_keys.owners}
    assert possible_owners(parsed_keys, uploaded, OBJECT) == (every, False)
    assert {"proj_1", "1"} <= parsed_keys.owners


def test_rows_of_two_projects_keep_the_object() -> None:
    found = judge_rows(ONE, [described(), described("upload", "proj_2")], OBJECT)
    assert found.ownership is KEPT
    assert "different projects for this file: proj_1, proj_2." in found.reason


def test_too_many_owners_keep_an_object_unless_a_person_gave_it() -> None:
    many = ParsedKeys(too_many=True)
    assert judge_rows(many, [described()], OBJECT).ownership is OWNED
    for rows in ([described("upload")], [described(upload_id=UPLOAD)]):
        assert "too many possible owners" in judge_rows(many, rows, OBJECT).reason
        assert find_owner(many, rows, {"proj_1"}, set(), OBJECT).problem == "ambiguous"
    assert find_owner(many, [described()], {"proj_1"}, set(), OBJECT).problem == "orphaned"


@pytest.mark.parametrize(
    "rows, living, said",
    [
        (
            [],
            "proj_1_x",
            "also fits an existing project: proj_1_x. It will be deleted with that project.",
        ),
        ([described("backfill")], "proj_1_x", "proj_1_x. It will be deleted with that project."),
        (
            [described("upload")],
            "proj_1_x",
            "also fits an existing project: proj_1_x. Assign the file to",
        ),
        ([described(etag="")], "proj_1_x", "after a person assigned the file, so the file may"),
        ([described(etag="")], "proj", "after a person assigned the file, so the file may"),
        (
            [described("upload")],
            "proj",
            "project: proj. But the setting PROJECT_ID_PATTERN does not accept",
        ),
        ([], "proj", "project: proj. But the setting PROJECT_ID_PATTERN does not accept"),
    ],
)
def test_reason_says_what_the_rows_leave_open(rows: list[R2Object], living: str, said: str) -> None:
    found = judge_rows(SEVERAL, rows, OBJECT, [living])
    assert found.ownership is KEPT
    assert said in found.reason
    assert found.reason == rival_reason([living], rows)


def test_one_refused_id_among_several_is_told() -> None:
    assert "PROJECT_ID_PATTERN does not accept" in rival_reason(["proj_1", "proj"])
    assert "proj, proj_1" in rival_reason(["proj_1", "proj"])


@pytest.mark.parametrize(
    "state, etag, upload_id, unconfirmed",
    [
        ("stored", "x", UPLOAD, False),
        ("stored", "", UPLOAD, True),
        ("uploading", "x", UPLOAD, True),
        ("upload_failed", "x", UPLOAD, True),
        ("deleting", "x", UPLOAD, False),
        ("deleting", "", UPLOAD, True),
        ("stored", "", None, False),
        ("uploading", "x", None, False),
        ("upload_failed", "", None, False),
    ],
)
def test_upload_is_unconfirmed_until_it_said_what_it_stored(
    state: str, etag: str, upload_id: UUID | None, unconfirmed: bool
) -> None:
    row = R2Object(state=state, etag=etag, upload_id=upload_id)
    assert is_unconfirmed(row) is unconfirmed


def attributed(key: str | ParsedKeys, row: R2Object, stored: ListedObject | None = OBJECT) -> Owner:
    parsed_keys = get_key_formats().parse_key(key) if isinstance(key, str) else key
    return find_owner(parsed_keys, [row], {"proj_1"}, {"proj_1"}, stored)


def test_scan_checks_again_a_key_that_another_project_may_own() -> None:
    assert attributed(SEVERAL, described()).unambiguous_under == key_formats_version()
    assert attributed(ONE, described("upload")).unambiguous_under == key_formats_version()
    for row in (described("upload"), described(upload_id=UPLOAD)):
        assert attributed(SEVERAL, row) == Owner("proj_1", get_key_formats().parse_key(SEVERAL)[0])


def test_scan_says_of_an_object_of_nobody_that_nobody_knows_it() -> None:
    another = described(upload_id=UPLOAD)
    assert attributed(ODD, another).problem == "unrecognised"
    assert attributed(ODD, another, None).problem == "unrecognised"
    assert attributed(ParsedKeys(too_many=True), another).problem == "ambiguous"
    for key, row, stored in (
        (ODD, described(), OBJECT),
        (ODD, described("upload"), OBJECT),
        (ONE, another, OBJECT),
    ):
        assert not attributed(key, row, stored).problem


@pytest.mark.parametrize(
    "row, key", [(described("backfill", "proj_2"), ONE), (described("upload"), ODD)]
)
def test_scan_calls_an_orphan_only_what_a_cleanup_of_its_project_would_delete(
    row: R2Object, key: str
) -> None:
    other = described("backfill", "proj_2")
    for living, problem in (
        (set[str](), "orphaned"),
        ({"proj_1"}, ""),
        ({"proj_2"}, "ambiguous"),
        # A backfill only repeated what the key says, so it does not take a file from the living.
        ({"proj_1", "proj_2"}, ""),
    ):
        parsed_keys = get_key_formats().parse_key(key)
        found = find_owner(parsed_keys, [row, other], {"proj_1", "proj_2"}, living, OBJECT)
        assert found.problem == problem
        assert ("names an existing project: proj_2" in found.evidence) == (problem == "ambiguous")


NOW, TICK = DELETED_AT + timedelta(days=1), timedelta(microseconds=1)


@pytest.fixture
def at_noon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timezone, "now", lambda: NOW)


@pytest.mark.usefixtures("at_noon")
def test_object_of_several_projects_is_too_young_from_these_moments_on(settings: Settings) -> None:
    commit = timedelta(hours=1)
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"COMMIT_TIMEOUT": commit}
    assert commit > clock_skew() > timedelta(0)
    for deleted_at, since, why in (
        (DELETED_AT, DELETED_AT, "is newer than the deletion"),
        (DELETED_AT, DELETED_AT - clock_skew(), "the clocks differ"),
        (NOW, NOW - commit, "and the file is new"),
    ):
        project = DeletedProject("proj_1", deleted_at)
        assert why in too_young_reason(project, since)
        assert why not in too_young_reason(project, since - TICK)
    assert not too_young_reason(
        DeletedProject("proj_1", DELETED_AT), DELETED_AT - clock_skew() - TICK
    )
    assert not too_young_reason(DeletedProject("proj_1", NOW), NOW - commit - TICK)


@pytest.mark.usefixtures("at_noon")
def test_every_object_of_several_projects_may_be_younger_than_an_unknown_deletion() -> None:
    for unknown in (None, NOW + clock_skew() + TICK):
        assert "the clocks differ" in too_young_reason(DeletedProject("proj_1", unknown), OLDER)
    assert not too_young_reason(DeletedProject("proj_1", NOW + clock_skew()), OLDER)


@pytest.mark.usefixtures("at_noon")
def test_commit_timeout_bounds_how_far_clocks_count_as_different(settings: Settings) -> None:
    short = timedelta(seconds=1)
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"COMMIT_TIMEOUT": short}
    project = DeletedProject("proj_1", DELETED_AT)
    assert "the clocks differ" in too_young_reason(project, DELETED_AT - short)
    assert not too_young_reason(project, DELETED_AT - short - TICK)


def test_stored_texts_are_few_and_short() -> None:
    assert shorten_list([]) == ""
    few = [f"{n}" for n in range(MAX_OWNERS_SHOWN)]
    assert shorten_list(few) == ", ".join(few)
    assert shorten_list([*few, "a", "b"], "; ") == "; ".join([*few, "2 more"])
    assert shorten_list([*few, "a"]) == ", ".join([*few, "1 more"])
    assert shorten_list(["a" * MAX_OWNER_LENGTH]) == "a" * MAX_OWNER_LENGTH
    assert (
        shorten_list(["a" * (MAX_OWNER_LENGTH + 1), "b"]) == "a" * (MAX_OWNER_LENGTH - 1) + "…, b"
    )


IDS = st.text("1x_-p", min_size=1, max_size=5).map("proj_".__add__)
PARTS = st.text("1x_-", min_size=1, max_size=4)


@st.composite
def keys(draw: st.DrawFn) -> str:
    project, scene, name = draw(IDS), draw(PARTS), draw(PARTS)
    double = draw(st.sampled_from(["", "proj_"]))
    return draw(
        st.sampled_from(
            [
                f"projects/{double}{project}/scenes/{scene}/media/{name}",
                f"audio/{double}{project}/{scene}/{name}",
                f"{double}{project}_{scene}_media.mp4",
                f"{double}{project}_{scene}",
            ]
        )
    )


@given(key=keys(), project_id=IDS, others=st.sets(IDS, max_size=3), younger=st.booleans())
def test_key_that_a_live_project_could_own_is_never_owned_by_a_deleted_one(
    key: str, project_id: str, others: set[str], younger: bool
) -> None:
    """The live projects are any of the readings and some that the key does not name."""
    names = {parsed_key.project for parsed_key in get_key_formats().parse_key(key)} - {project_id}
    time = YOUNGER if younger else OLDER
    for living in (names, others - {project_id}):
        found = verdict(key, project_id=project_id, time=time, living=sorted(living))
        if names & living:
            assert found.ownership is not OWNED
    backfilled = row(project_id, "backfill")
    found = verdict(key, backfilled, project_id=project_id, time=time, living=sorted(names))
    if names:
        assert found.ownership is not OWNED


@given(key=keys(), project_id=IDS, owner=IDS)
def test_upload_of_one_project_is_never_owned_by_another(
    key: str, project_id: str, owner: str
) -> None:
    found = verdict(key, row(owner), project_id=project_id)
    assert (found.ownership is OWNED) == (owner == project_id)


@given(key=keys(), project_id=IDS)
def test_what_is_owned_is_under_the_prefixes_that_are_listed(key: str, project_id: str) -> None:
    if (
        get_key_formats().is_project_id(project_id)
        and verdict(key, project_id=project_id).ownership is OWNED
    ):
        assert key.startswith(tuple(get_key_formats().prefixes_of(project_id)))


# End to end

FLAT_BOTH = ["proj_1_x_s1_media.mp4", "proj_proj_1_x_s1_media.mp4"]
SURE = ["proj_1_s1_media.mp4", "projects/proj_1/scenes/s1/media/a.mp4", "audio/proj_1/s/a.mp3"]
OF_OTHERS = [
    "proj_10_s1_media.mp4",
    "projects/proj_10/scenes/s1/media/a.mp4",
    "projects/proj_1_x/scenes/s1/media/a.mp4",
    "audio/proj_1_x/s/a.mp3",
    "audio/proj_10/s/a.mp3",
]


def test_keys_that_could_be_a_live_projects_stay_with_a_reason(bucket: Bucket) -> None:
    create_projects("proj_1", "proj_10", "proj_1_x")
    bucket.put(*SURE, *FLAT_BOTH, *OF_OTHERS)
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN_WITH_KEPT
    assert bucket.keys() == {*FLAT_BOTH, *OF_OTHERS}
    assert read_outcomes(cleanup) == dict.fromkeys(SURE, "deleted") | dict.fromkeys(
        FLAT_BOTH, "kept"
    )
    assert all("proj_1_x" in read_reason(cleanup, key) for key in FLAT_BOTH)
    check_promises(bucket)


def test_once_the_other_project_is_deleted_too_its_keys_go(bucket: Bucket) -> None:
    create_projects("proj_1", "proj_10", "proj_1_x")
    bucket.put(*SURE, *FLAT_BOTH, *OF_OTHERS)
    clean_up_project("proj_1")
    cleanup = clean_up_project("proj_1_x")
    assert cleanup.status == Status.CLEAN
    assert bucket.keys() == {key for key in OF_OTHERS if "proj_10" in key}
    check_promises(bucket)


def test_ambiguous_key_younger_than_the_deletion_stays(bucket: Bucket) -> None:
    record_deleted_projects("proj_1_x")
    create_projects("proj_1")
    cleanup = request_cleanup("proj_1")
    bucket.put(*SURE, *FLAT_BOTH)
    assert run_until_idle(cleanup).status == Status.CLEAN_WITH_KEPT
    assert bucket.keys() == set(FLAT_BOTH)
    check_promises(bucket)


def test_what_keeps_a_key_younger_than_the_deletion_says_what_deletes_it(
    bucket: Bucket, settings: Settings
) -> None:
    """As the time of the deletion stays the same, no later check deletes it."""
    at_once = dict.fromkeys(
        ["COMMIT_TIMEOUT", "ORPHAN_AGE", "ORPHAN_GAP"], timedelta(milliseconds=1)
    )
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | at_once
    create_projects("proj_1")
    cleanup = request_cleanup("proj_1")
    bucket.put(SEVERAL)
    run_until_idle(cleanup)
    for each in (cleanup, run_follow_up(cleanup)):
        assert "is newer than the deletion. Run a scan. If the file is" in read_reason(
            each, SEVERAL
        )
    age_scans(complete_reconcile(), timedelta(seconds=1))
    complete_reconcile()
    [deletion] = delete_objects(Finding.objects.filter(kind="orphaned")).cleanups
    assert run_until_idle(deletion).status == Status.CLEAN
    assert not bucket.keys()


def test_upload_row_of_another_project_keeps_a_key_under_the_prefix(bucket: Bucket) -> None:
    create_projects("proj_1", "proj_2")
    key = SURE[1]
    bucket.put(*SURE)
    track_key(bucket, key, "proj_2")
    cleanup = clean_up_project("proj_1")
    assert bucket.keys() == {key}
    assert key not in read_outcomes(cleanup)
    assert R2Object.objects.get(key=key).state == "stored"
    check_promises(bucket)


def test_project_created_after_the_plan_keeps_the_files_that_it_may_own(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    bucket.put(*SURE, *FLAT_BOTH)
    act_before_batch(monkeypatch, lambda: create_projects("proj_1_x"))
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN_WITH_KEPT
    assert bucket.keys() == set(FLAT_BOTH)
    assert all("proj_1_x" in read_reason(cleanup, key) for key in FLAT_BOTH)
    check_promises(bucket)


def test_upload_row_written_after_the_plan_keeps_its_object(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1", "proj_2")
    bucket.put(*SURE)
    act_before_batch(monkeypatch, lambda: track_key(bucket, SURE[1], "proj_2"))
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN_WITH_KEPT
    assert bucket.keys() == {SURE[1]}
    check_promises(bucket)


def test_upload_row_without_a_project_goes_with_its_object(bucket: Bucket) -> None:
    """Such as an upload to a key that may mean several projects."""
    record_deleted_projects("proj_1_x")
    create_projects("proj_1")
    for key in FLAT_BOTH:
        bucket.put(key)
        track_key(bucket, key, None)
    assert clean_up_project("proj_1").status == Status.CLEAN
    assert not bucket.keys()
    assert not R2Object.objects.exists()


def test_tracked_key_outside_every_key_format_is_deleted_and_verified(bucket: Bucket) -> None:
    create_projects("proj_1")
    bucket.put(ODD, "somewhere/else.binary", "somewhere")
    track_key(bucket, ODD, "proj_1")
    track_key(bucket, "gone/before.bin", "proj_1")
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == {ODD: "deleted", "gone/before.bin": "already_gone"}
    assert bucket.keys() == {"somewhere/else.binary", "somewhere"}
    assert not R2Object.objects.exists()
    check_promises(bucket)


def test_backfilled_key_outside_every_key_format_stays(bucket: Bucket) -> None:
    create_projects("proj_1", "proj_2")
    foreign = "projects/proj_2/scenes/s1/media/a.mp4"
    for key in (ODD, foreign):
        bucket.put(key)
        track_key(bucket, key, "proj_1", "backfill")
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN_WITH_KEPT
    assert read_outcomes(cleanup) == {ODD: "kept", foreign: "kept"}
    assert bucket.keys() == {ODD, foreign}
    assert R2Object.objects.filter(state="stored").count() == 2
    assert "appeared" not in read_reason(cleanup, foreign)
    check_promises(bucket)


def test_each_doubt_is_a_kind_of_finding() -> None:
    assert set(OwnerProblem.choices) < set(Finding.Kind.choices)
