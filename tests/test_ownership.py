"""Whose an object is: `proj_1` never claims a key of `proj_10`, and doubt protects."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_django import Settings

from storage_audit.audit import decisions
from storage_audit.audit.ownership import Claim, Deleted, Verdict, judge, layouts
from storage_audit.models import Finding, R2Object
from tests.bucket import Bucket
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
from tests.scanning import complete, later
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
    [deletion] = decisions.delete_orphans(Finding.objects.filter(kind="orphaned")).operations
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
