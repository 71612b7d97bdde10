"""Keys that strangers made so that they could be read in hundreds of ways."""

import tracemalloc
from collections.abc import Callable
from cProfile import Profile
from datetime import UTC, datetime

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from storage_audit import project_model
from storage_audit.bucket.listing import nfc
from storage_audit.bucket.s3 import Listed
from storage_audit.cleanup.open_decisions import Owners, find_covering, of_project
from storage_audit.cleanup.plan import verdicts
from storage_audit.findings.models import Finding
from storage_audit.models import KnownProject, R2Object
from storage_audit.ownership.key_format import MOST_WAYS
from storage_audit.ownership.key_formats import DEFAULT_KINDS, Layouts
from storage_audit.ownership.owner import (
    Claim,
    Deleted,
    alive_of,
    evidence_of,
    judge,
    known_among,
    layouts,
)
from storage_audit.tracking.recognise import recognise
from tests.builders import create_cleanup, create_findings
from tests.findings.orphans import delete_orphans
from tests.promises import alive, check, delete, deleted, outcomes, reason
from tests.real_bucket import Bucket
from tests.scan.listing_in_memory import backfill, findings, reconcile
from tests.times import OLDER

pytestmark = pytest.mark.slow

MANY = 500
OWN = "projects/proj_1/scenes/s1/media/own.mp4"


def beyond(n: int) -> str:
    """Of 1,000 bytes, with some 480 readings."""
    return f"proj_1_{n:05}_{'a_' * 490}".ljust(990, "b")[:990] + "_media.mp4"


def at_the_bound(n: int) -> str:
    """Of 1,000 bytes, with as many readings as a key of that length may have."""
    return f"proj_1_{n:05}_{'a_' * 6}".ljust(990, "b") + "_media.mp4"


def unread(n: int) -> str:
    """Of 1,000 bytes, in which each try to read it fails only at its end."""
    return f"proj_1_{n:05}_{'a_' * 43}".ljust(992, "b") + "_media./"


def test_a_key_is_read_in_so_many_ways_and_no_more() -> None:
    flat = Layouts(
        {"flat": "{project}_{scene}"}, project_id=".+", kinds=DEFAULT_KINDS, current="flat"
    )
    most, more = "x" + "_x" * MOST_WAYS, "x" + "_x" * (MOST_WAYS + 1)
    assert len(flat.readings(most)) == MOST_WAYS
    assert flat.readings(more) == () and flat.readings(more).too_many
    with pytest.raises(ValueError, match="too many ways"):
        flat.build("x", scene="x_" * MOST_WAYS + "x")
    assert len(flat.readings("x_" * 20 + "x")) == 20
    assert flat.readings("x_" * 20 + "x" * 960).too_many


@pytest.mark.parametrize("project_id", ["proj_1", "proj_1_00000_a"])
def test_such_a_key_is_kept_with_the_reason(project_id: str) -> None:
    project, readings = Deleted(project_id, timezone.now()), layouts().readings(beyond(0))
    verdict = judge(project, readings, (), OLDER, set())
    assert verdict.claim is Claim.PROTECTED
    assert "too many possible owners" in verdict.reason


def test_stored_evidence_is_short() -> None:
    readings = layouts().readings(at_the_bound(0))
    assert len(readings) > 5
    verdict = judge(Deleted("proj_1", timezone.now()), readings, (), OLDER, readings.owners)
    assert max(len(verdict.evidence), len(verdict.reason)) < 3_000
    short = layouts().readings(f"proj_{'a_' * 20}b_media.mp4")
    assert evidence_of(short).endswith("; 10 more")


def test_cleanup_and_scans_keep_such_keys_and_go_on(bucket: Bucket) -> None:
    alive("proj_1", "proj_2")
    hostile = {make(n) for make in (beyond, at_the_bound, unread) for n in range(2)}
    bucket.put(OWN, *hostile)
    backfill()
    ambiguous = {("ambiguous", beyond(n)) for n in range(2)}
    assert ambiguous <= findings()
    assert ("orphaned", beyond(0)) not in findings()
    operation = delete("proj_1")
    assert outcomes(operation)[OWN] == "deleted"
    assert outcomes(operation)[beyond(0)] == outcomes(operation)[unread(0)] == "protected"
    assert "too many possible owners" in reason(operation, beyond(0))
    assert {beyond(0), beyond(1), unread(0), unread(1)} <= bucket.facts().keys()
    check(bucket)
    assert reconcile().status == "complete"
    assert ambiguous <= findings()


@pytest.mark.usefixtures("young_orphans_may_go")
def test_upload_stays_once_its_key_has_too_many_possible_owners_unless_a_person_gave_it(
    bucket: Bucket, settings: Settings
) -> None:
    before = {"dotted": "{project}.{filename}"}
    usual = settings.STORAGE_AUDIT | {"PROJECT_ID": "[a-z_]+", "CURRENT_LAYOUT": "dotted"}
    settings.STORAGE_AUDIT = usual | {"LAYOUTS": before}
    owner = "a" + "_a" * MOST_WAYS + "_a"
    alive(owner, "a")
    key = default_storage.save(f"{owner}.mp4", ContentFile(b"x"))
    assert R2Object.objects.get().project_id == owner
    settings.STORAGE_AUDIT = usual | {"LAYOUTS": before | {"flat": "{project}_{scene}.{ext}"}}
    assert outcomes(delete(owner)) == {key: "protected"}
    [found] = create_findings(bucket, key, project_id=owner)
    orphans = delete_orphans([found])
    assert outcomes(orphans) == {key: "protected"}
    assert "no orphan any more, but ambiguous" in reason(orphans, key)
    R2Object.objects.update(updated_at=OLDER)
    reconcile()
    assert findings() == {("ambiguous", key)}
    given = {"source": "adopted", "upload_id": None, "last_modified": found.last_modified}
    R2Object.objects.update(**given)
    Finding.objects.all().delete()
    orphans = delete_orphans(create_findings(bucket, key, project_id=owner))
    assert outcomes(orphans) == {key: "deleted"}


def shown(make: Callable[[int], str]) -> list[Listed]:
    long_ago = datetime(2026, 1, 1, tzinfo=UTC)
    return [Listed(make(n), 7, "etag", long_ago) for n in range(MANY)]


def judge_all(objects: list[Listed]) -> list[object]:
    project = Deleted("proj_1", timezone.now())
    return list(verdicts("tests", objects, project, nfc, of_project("proj_1")))


def recognise_all(objects: list[Listed]) -> list[object]:
    return list(recognise("tests", objects, (), nfc, timezone.now()))


@pytest.mark.django_db
@pytest.mark.parametrize(
    "look, make", [(judge_all, beyond), (judge_all, at_the_bound), (recognise_all, at_the_bound)]
)
def test_thousands_of_such_keys_take_little_memory(
    look: Callable[[list[Listed]], list[object]], make: Callable[[int], str]
) -> None:
    """Of 3,000 they are under 100 MiB."""
    objects = shown(make)
    assert {len(one.key) for one in objects} == {1000}
    tracemalloc.start()
    found = look(objects)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == MANY
    assert peak < 100 / 3_000 * MANY * 2**20


def count_calls(work: Callable[[], object]) -> int:
    """Of functions and methods, also of Python's own: as many on a busy machine as on an idle
    one."""
    profile = Profile()
    profile.runcall(work)
    return sum(entry.callcount for entry in profile.getstats())


@pytest.mark.parametrize("make", [beyond, at_the_bound, unread])
def test_such_a_key_is_read_in_a_few_calls_for_each_way(make: Callable[[int], str]) -> None:
    grammar = layouts()
    assert count_calls(lambda: grammar.readings(make(0))) < 10 * MOST_WAYS


@pytest.mark.django_db
def test_cleanup_of_one_of_too_many_owners_is_found_in_a_few_calls_for_each_project() -> None:
    # Enough for the calls that the queries take not to count.
    count = 20_000
    ids = [f"proj_{n}" for n in range(count)]
    create_cleanup("blocked", kind="vanished", cursor={"projects": ids})
    owners = {beyond(0): Owners(set(), too_many=True)}
    assert count_calls(lambda: find_covering("tests", owners)) < 5 * count


@pytest.mark.django_db
def test_ids_are_asked_for_a_few_hundred_at_a_time() -> None:
    deleted("proj_1", "proj_499")
    alive("proj_300")
    ids = [f"proj_{n}" for n in range(MANY)] + [f"é_{n}" for n in range(MANY)]
    if connection.vendor == "sqlite":
        variables = 9  # SQLITE_LIMIT_VARIABLE_NUMBER
        before = connection.connection.setlimit(variables, 999)
        try:
            found = alive_of(ids), known_among(ids)
        finally:
            connection.connection.setlimit(variables, before)
    else:
        found = alive_of(ids), known_among(ids)
    assert found == ({"proj_300"}, {"proj_1", "proj_300", "proj_499"})
    assert project_model.alive(ids) == {"proj_300"}
    assert KnownProject.objects.maybe_alive(ids) == {"proj_300"}
