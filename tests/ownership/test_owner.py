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

from storage_audit.bucket.listing import exact
from storage_audit.bucket.s3 import Listed
from storage_audit.cleanup.open_decisions import possible_owners, unsure_among
from storage_audit.clocks import apart
from storage_audit.findings.models import Finding
from storage_audit.findings.orphans import delete_orphans
from storage_audit.models import R2Object
from storage_audit.ownership.attribution import Doubt, Owner, attribute
from storage_audit.ownership.key_format import Readings
from storage_audit.ownership.owner import (
    LONGEST,
    SHOWN,
    Claim,
    Deleted,
    Verdict,
    could_be,
    is_given,
    is_unconfirmed,
    judge,
    layouts,
    may_be_outdated,
    rivals_of,
    shorten,
    too_young,
    version,
)
from tests.promises import (
    FLAT,
    Status,
    alive,
    between_plan_and_batch,
    check,
    delete,
    deleted,
    late_check,
    outcomes,
    reason,
    requested,
    run,
    track,
)
from tests.real_bucket import Bucket
from tests.scan.listing_in_memory import complete, later
from tests.times import DELETED_AT, OLDER, YOUNGER

ONE = "projects/proj_1/scenes/s1/media/a.mp4"
SEVERAL = "proj_1_x_s1_media.mp4"
ODD = "somewhere/else.bin"
OWNED, ELSEWHERE, PROTECTED = Claim.OWNED, Claim.ELSEWHERE, Claim.PROTECTED


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
    return judge(Deleted(project_id, DELETED_AT), layouts().readings(key), rows, time, set(living))


@pytest.mark.parametrize(
    "key, tracked, time, living, claim",
    [
        # An upload row that names a project decides, whatever the key says.
        (ONE, row("proj_1"), OLDER, [], OWNED),
        (ODD, row("proj_1"), OLDER, [], OWNED),
        (SEVERAL, row("proj_1"), OLDER, ["proj_1"], OWNED),
        (SEVERAL, row("proj_1"), OLDER, [], OWNED),
        # Unless it is from other settings, as the key can be read as a live project's today.
        (SEVERAL, row("proj_1"), OLDER, ["proj_1_x"], PROTECTED),
        (ONE, row("proj_2"), OLDER, ["proj_1"], ELSEWHERE),
        (SEVERAL, row("proj_1"), YOUNGER, [], OWNED),
        (ONE, row("proj_2"), OLDER, [], ELSEWHERE),
        (SEVERAL, row("proj_1_x"), OLDER, [], ELSEWHERE),
        # An upload row that names none decides nothing.
        (ONE, row(None), OLDER, [], OWNED),
        (SEVERAL, row(None), OLDER, ["proj_1_x"], PROTECTED),
        (ODD, row(None), OLDER, [], PROTECTED),
        # A backfilled row is a reading written down: it grants nothing, and keeps the object.
        (ODD, row("proj_1", "backfill"), OLDER, [], PROTECTED),
        (SEVERAL, row("proj_1", "backfill"), OLDER, ["proj_1_x"], PROTECTED),
        (SEVERAL, row("proj_1_x", "backfill"), OLDER, [], OWNED),
        (ONE, row("proj_2", "backfill"), OLDER, [], OWNED),
        (ONE, row("proj_2", "backfill"), OLDER, ["proj_2"], PROTECTED),
        ("projects/proj_2/scenes/s/media/a", row("proj_1", "backfill"), OLDER, [], PROTECTED),
        # One reading.
        (ONE, None, OLDER, [], OWNED),
        (ONE, None, YOUNGER, [], OWNED),
        (ONE, None, OLDER, ["proj_1"], OWNED),
        ("projects/proj_proj_1/scenes/s1/media/a.mp4", None, OLDER, [], OWNED),
        ("audio/proj_1/s1/a.mp3", None, OLDER, [], OWNED),
        (FLAT, None, OLDER, [], OWNED),
        ("projects/proj_10/scenes/s1/media/a.mp4", None, OLDER, [], ELSEWHERE),
        ("projects/proj_1_x/scenes/s1/media/a.mp4", None, OLDER, [], ELSEWHERE),
        ("audio/proj_10/s1/a.mp3", None, OLDER, [], ELSEWHERE),
        ("proj_10_s1_media.mp4", None, OLDER, [], ELSEWHERE),
        # Several readings.
        (SEVERAL, None, OLDER, [], OWNED),
        (SEVERAL, None, None, [], OWNED),
        (SEVERAL, None, OLDER, ["proj_1"], OWNED),
        (SEVERAL, None, OLDER, ["proj_1_x"], PROTECTED),
        (SEVERAL, None, YOUNGER, [], PROTECTED),
        (SEVERAL, None, DELETED_AT, [], PROTECTED),
        # None.
        (ODD, None, OLDER, [], PROTECTED),
        ("proj_1_notes.txt", None, OLDER, [], PROTECTED),
        ("projects/proj_1/scenes/s1/readme", None, OLDER, [], PROTECTED),
    ],
)
def test_each_rule(
    key: str, tracked: R2Object | None, time: datetime | None, living: list[str], claim: Claim
) -> None:
    found = verdict(key, tracked, time=time, living=living)
    assert found.claim is claim
    assert found.evidence
    assert bool(found.reason) == (claim is PROTECTED)


def test_reason_names_the_live_project_that_the_key_could_belong_to() -> None:
    assert "proj_1_x" in verdict(SEVERAL, living=["proj_1_x"]).reason


# What rows say, and what they leave open

UPLOAD = UUID(int=1)
OBJECT = Listed("k", 1, "x", OLDER)
ANOTHER = OBJECT._replace(etag="y")


def described(source: str = "adopted", project_id: str = "proj_1", **other: Any) -> R2Object:
    """A row of that object."""
    facts: dict[str, Any] = {"size": 1, "etag": "x", "last_modified": OLDER}
    return R2Object(project_id=project_id, source=source, **facts | other)


# Each with the object, and whether a person said whose this one is.
GIVEN: list[tuple[list[R2Object], Listed | None, bool]] = [
    ([described()], OBJECT, True),
    ([described(), described()], OBJECT, True),
    ([], OBJECT, False),
    ([described()], None, False),
    ([described()], ANOTHER, False),
    ([described(upload_id=UPLOAD)], OBJECT, False),
    ([described("upload")], OBJECT, False),
    ([described("backfill")], OBJECT, False),
    ([described(), described("upload")], OBJECT, False),
]


@pytest.mark.parametrize("rows, stored, given", GIVEN)
def test_only_a_persons_decision_about_this_object_rules_out_other_owners(
    rows: list[R2Object], stored: Listed | None, given: bool
) -> None:
    assert is_given(rows, stored) is given
    readings, told = layouts().readings(SEVERAL), any(row.source != "backfill" for row in rows)
    living = {"proj_1", "proj_1_x", "proj_2"}
    rivals = {"proj_1_x"} if told and not given else set()
    assert rivals_of(readings, rows, living, stored) == rivals
    owners = {"proj_1"} if given else readings.owners
    assert possible_owners(readings, rows, stored) == (owners, False)
    key_of_nobody = judge_rows(ODD, rows, stored)
    adopted = any(row.source == "adopted" for row in rows)
    assert (key_of_nobody.claim is OWNED) == (given or (told and not adopted))
    assert ("not the one that a person adopted" in key_of_nobody.reason) == (adopted and not given)


@pytest.mark.parametrize("rows, stored, given", GIVEN)
def test_row_is_sure_of_an_object_that_was_uploaded_or_given_and_not_replaced(
    rows: list[R2Object], stored: Listed | None, given: bool
) -> None:
    uploaded = [row.source for row in rows] == ["upload"]
    assert may_be_outdated(rows, stored) == any(row.source == "adopted" for row in rows) - given
    assert not may_be_outdated([described("upload", upload_id=UPLOAD)], stored)
    assert may_be_outdated([described("upload", upload_id=UPLOAD, etag="")], stored)
    found = {"k": stored} if stored else {}
    assert (unsure_among("k", {"k": rows}, found, exact) == []) == (given or uploaded)


def judge_rows(
    key: str | Readings,
    rows: list[R2Object],
    stored: Listed | None,
    living: Sequence[str] = (),
) -> Verdict:
    readings = layouts().readings(key) if isinstance(key, str) else key
    return judge(Deleted("proj_1", DELETED_AT), readings, rows, OLDER, set(living), stored)


def test_refused_id_that_lives_is_a_rival_of_all_but_the_adopting_project() -> None:
    readings = layouts().readings(ONE)
    assert "1" in readings.others
    for rows, rivals in (
        ([], {"1"}),
        ([described("upload")], {"1"}),
        ([described("upload", "1")], set()),
        ([described()], set()),
    ):
        assert rivals_of(readings, rows, {"1"}, OBJECT) == rivals


def test_cleanup_of_each_project_that_key_or_row_names_may_take_an_object() -> None:
    readings, uploaded = layouts().readings(ONE), [described("upload", "proj_2")]
    every = {"proj_2", *readings.owners}
    assert possible_owners(readings, uploaded, OBJECT) == (every, False)
    assert {"proj_1", "1"} <= readings.owners


def test_rows_of_two_projects_keep_the_object() -> None:
    found = judge_rows(ONE, [described(), described("upload", "proj_2")], OBJECT)
    assert found.claim is PROTECTED
    assert "for different projects: proj_1, proj_2." in found.reason


def test_too_many_owners_keep_an_object_unless_a_person_gave_it() -> None:
    many = Readings(too_many=True)
    assert judge_rows(many, [described()], OBJECT).claim is OWNED
    for rows in ([described("upload")], [described(upload_id=UPLOAD)]):
        assert "too many possible owners" in judge_rows(many, rows, OBJECT).reason
        assert attribute(many, rows, {"proj_1"}, set(), OBJECT).difference == "ambiguous"
    assert attribute(many, [described()], {"proj_1"}, set(), OBJECT).difference == "orphaned"


@pytest.mark.parametrize(
    "rows, living, said",
    [
        ([], "proj_1_x", "also belong to the live project proj_1_x. It goes with that project."),
        ([described("backfill")], "proj_1_x", "proj_1_x. It goes with that project."),
        ([described("upload")], "proj_1_x", "also name the live project proj_1_x. Adopt it into"),
        ([described(etag="")], "proj_1_x", "after a person had adopted the file, so it could"),
        ([described(etag="")], "proj", "after a person had adopted the file, so it could"),
        ([described("upload")], "proj", "project proj. The setting PROJECT_ID does not accept"),
        ([], "proj", "project proj. The setting PROJECT_ID does not accept"),
    ],
)
def test_reason_says_what_the_rows_leave_open(rows: list[R2Object], living: str, said: str) -> None:
    found = judge_rows(SEVERAL, rows, OBJECT, [living])
    assert found.claim is PROTECTED
    assert said in found.reason
    assert found.reason == could_be([living], rows)


def test_one_refused_id_among_several_is_told() -> None:
    assert "PROJECT_ID does not accept" in could_be(["proj_1", "proj"])
    assert "proj, proj_1" in could_be(["proj_1", "proj"])


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


def attributed(key: str | Readings, row: R2Object, stored: Listed | None = OBJECT) -> Owner:
    readings = layouts().readings(key) if isinstance(key, str) else key
    return attribute(readings, [row], {"proj_1"}, {"proj_1"}, stored)


def test_scan_looks_again_at_a_key_of_which_another_project_can_come() -> None:
    assert attributed(SEVERAL, described()).plain_under == version()
    assert attributed(ONE, described("upload")).plain_under == version()
    for row in (described("upload"), described(upload_id=UPLOAD)):
        assert attributed(SEVERAL, row) == Owner("proj_1", layouts().readings(SEVERAL)[0])


def test_scan_says_of_an_object_of_nobody_that_nobody_knows_it() -> None:
    another = described(upload_id=UPLOAD)
    assert attributed(ODD, another).difference == "unrecognised"
    assert attributed(ODD, another, None).difference == "unrecognised"
    assert attributed(Readings(too_many=True), another).difference == "ambiguous"
    for key, row, stored in (
        (ODD, described(), OBJECT),
        (ODD, described("upload"), OBJECT),
        (ONE, another, OBJECT),
    ):
        assert not attributed(key, row, stored).difference


NOW, TICK = DELETED_AT + timedelta(days=1), timedelta(microseconds=1)


@pytest.fixture
def at_noon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timezone, "now", lambda: NOW)


@pytest.mark.usefixtures("at_noon")
def test_object_of_several_projects_is_too_young_from_these_moments_on(settings: Settings) -> None:
    commit = timedelta(hours=1)
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"COMMIT_TIMEOUT": commit}
    assert commit > apart() > timedelta(0)
    for deleted_at, since, why in (
        (DELETED_AT, DELETED_AT, "is younger than the deletion"),
        (DELETED_AT, DELETED_AT - apart(), "the clocks differ"),
        (NOW, NOW - commit, "may be just being created"),
    ):
        project = Deleted("proj_1", deleted_at)
        assert why in too_young(project, since)
        assert why not in too_young(project, since - TICK)
    assert not too_young(Deleted("proj_1", DELETED_AT), DELETED_AT - apart() - TICK)
    assert not too_young(Deleted("proj_1", NOW), NOW - commit - TICK)


@pytest.mark.usefixtures("at_noon")
def test_every_object_of_several_projects_may_be_younger_than_an_unknown_deletion() -> None:
    for unknown in (None, NOW + apart() + TICK):
        assert "the clocks differ" in too_young(Deleted("proj_1", unknown), OLDER)
    assert not too_young(Deleted("proj_1", NOW + apart()), OLDER)


@pytest.mark.usefixtures("at_noon")
def test_commit_timeout_bounds_how_far_clocks_count_as_different(settings: Settings) -> None:
    short = timedelta(seconds=1)
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"COMMIT_TIMEOUT": short}
    project = Deleted("proj_1", DELETED_AT)
    assert "the clocks differ" in too_young(project, DELETED_AT - short)
    assert not too_young(project, DELETED_AT - short - TICK)


def test_stored_texts_are_few_and_short() -> None:
    assert shorten([]) == ""
    few = [f"{n}" for n in range(SHOWN)]
    assert shorten(few) == ", ".join(few)
    assert shorten([*few, "a", "b"], "; ") == "; ".join([*few, "2 more"])
    assert shorten([*few, "a"]) == ", ".join([*few, "1 more"])
    assert shorten(["a" * LONGEST]) == "a" * LONGEST
    assert shorten(["a" * (LONGEST + 1), "b"]) == "a" * (LONGEST - 1) + "…, b"


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
    names = {reading.project for reading in layouts().readings(key)} - {project_id}
    time = YOUNGER if younger else OLDER
    for living in (names, others - {project_id}):
        found = verdict(key, project_id=project_id, time=time, living=sorted(living))
        if names & living:
            assert found.claim is not OWNED
    backfilled = row(project_id, "backfill")
    found = verdict(key, backfilled, project_id=project_id, time=time, living=sorted(names))
    if names:
        assert found.claim is not OWNED


@given(key=keys(), project_id=IDS, owner=IDS)
def test_upload_of_one_project_is_never_owned_by_another(
    key: str, project_id: str, owner: str
) -> None:
    found = verdict(key, row(owner), project_id=project_id)
    assert (found.claim is OWNED) == (owner == project_id)


@given(key=keys(), project_id=IDS)
def test_what_is_owned_is_under_the_prefixes_that_are_listed(key: str, project_id: str) -> None:
    if layouts().is_project_id(project_id) and verdict(key, project_id=project_id).claim is OWNED:
        assert key.startswith(tuple(layouts().prefixes(project_id)))


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
    alive("proj_1", "proj_10", "proj_1_x")
    bucket.put(*SURE, *FLAT_BOTH, *OF_OTHERS)
    operation = delete("proj_1")
    assert operation.status == Status.CLEAN_WITH_PROTECTED
    assert bucket.keys() == {*FLAT_BOTH, *OF_OTHERS}
    assert outcomes(operation) == dict.fromkeys(SURE, "deleted") | dict.fromkeys(
        FLAT_BOTH, "protected"
    )
    assert all("proj_1_x" in reason(operation, key) for key in FLAT_BOTH)
    check(bucket)


def test_once_the_other_project_is_deleted_too_its_keys_go(bucket: Bucket) -> None:
    alive("proj_1", "proj_10", "proj_1_x")
    bucket.put(*SURE, *FLAT_BOTH, *OF_OTHERS)
    delete("proj_1")
    operation = delete("proj_1_x")
    assert operation.status == Status.CLEAN
    assert bucket.keys() == {key for key in OF_OTHERS if "proj_10" in key}
    check(bucket)


def test_ambiguous_key_younger_than_the_deletion_stays(bucket: Bucket) -> None:
    deleted("proj_1_x")
    alive("proj_1")
    operation = requested("proj_1")
    bucket.put(*SURE, *FLAT_BOTH)
    assert run(operation).status == Status.CLEAN_WITH_PROTECTED
    assert bucket.keys() == set(FLAT_BOTH)
    check(bucket)


def test_what_keeps_a_key_younger_than_the_deletion_says_what_deletes_it(
    bucket: Bucket, settings: Settings
) -> None:
    """As the time of the deletion stays the same, no later check deletes it."""
    at_once = dict.fromkeys(
        ["COMMIT_TIMEOUT", "ORPHAN_AGE", "ORPHAN_GAP"], timedelta(milliseconds=1)
    )
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | at_once
    alive("proj_1")
    operation = requested("proj_1")
    bucket.put(SEVERAL)
    run(operation)
    for each in (operation, late_check(operation)):
        assert "later checks keep it too. Run a scan. If it calls" in reason(each, SEVERAL)
    later(complete(), timedelta(seconds=1))
    complete()
    [deletion] = delete_orphans(Finding.objects.filter(kind="orphaned")).operations
    assert run(deletion).status == Status.CLEAN
    assert not bucket.keys()


def test_upload_row_of_another_project_keeps_a_key_under_the_prefix(bucket: Bucket) -> None:
    alive("proj_1", "proj_2")
    key = SURE[1]
    bucket.put(*SURE)
    track(bucket, key, "proj_2")
    operation = delete("proj_1")
    assert bucket.keys() == {key}
    assert key not in outcomes(operation)
    assert R2Object.objects.get(key=key).state == "stored"
    check(bucket)


def test_other_project_born_after_the_plan_protects_its_readings(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1")
    bucket.put(*SURE, *FLAT_BOTH)
    between_plan_and_batch(monkeypatch, lambda: alive("proj_1_x"))
    operation = delete("proj_1")
    assert operation.status == Status.CLEAN_WITH_PROTECTED
    assert bucket.keys() == set(FLAT_BOTH)
    assert all("proj_1_x" in reason(operation, key) for key in FLAT_BOTH)
    check(bucket)


def test_upload_row_written_after_the_plan_protects_its_object(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1", "proj_2")
    bucket.put(*SURE)
    between_plan_and_batch(monkeypatch, lambda: track(bucket, SURE[1], "proj_2"))
    operation = delete("proj_1")
    assert operation.status == Status.CLEAN_WITH_PROTECTED
    assert bucket.keys() == {SURE[1]}
    check(bucket)


def test_upload_row_without_a_project_goes_with_its_object(bucket: Bucket) -> None:
    """Such as an upload to a key that may mean several projects."""
    deleted("proj_1_x")
    alive("proj_1")
    for key in FLAT_BOTH:
        bucket.put(key)
        track(bucket, key, None)
    assert delete("proj_1").status == Status.CLEAN
    assert not bucket.keys()
    assert not R2Object.objects.exists()


def test_tracked_key_outside_every_layout_is_deleted_and_verified(bucket: Bucket) -> None:
    alive("proj_1")
    bucket.put(ODD, "somewhere/else.binary", "somewhere")
    track(bucket, ODD, "proj_1")
    track(bucket, "gone/before.bin", "proj_1")
    operation = delete("proj_1")
    assert outcomes(operation) == {ODD: "deleted", "gone/before.bin": "already_absent"}
    assert bucket.keys() == {"somewhere/else.binary", "somewhere"}
    assert not R2Object.objects.exists()
    check(bucket)


def test_backfilled_key_outside_every_layout_stays(bucket: Bucket) -> None:
    alive("proj_1", "proj_2")
    foreign = "projects/proj_2/scenes/s1/media/a.mp4"
    for key in (ODD, foreign):
        bucket.put(key)
        track(bucket, key, "proj_1", "backfill")
    operation = delete("proj_1")
    assert operation.status == Status.CLEAN_WITH_PROTECTED
    assert outcomes(operation) == {ODD: "protected", foreign: "protected"}
    assert bucket.keys() == {ODD, foreign}
    assert R2Object.objects.filter(state="stored").count() == 2
    assert "appeared" not in reason(operation, foreign)
    check(bucket)


def test_each_doubt_is_a_kind_of_finding() -> None:
    assert set(Doubt.choices) < set(Finding.Kind.choices)
