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
from storage_audit.bucket.listing import nfc_key
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup.judge_objects import judge_listed
from storage_audit.cleanup.open_decisions import (
    PossibleOwners,
    find_covering,
    project_cleanup_filter,
)
from storage_audit.findings.models import Finding
from storage_audit.models import KnownProject, R2Object
from storage_audit.ownership.key_formats import DEFAULT_KINDS, KeyFormats
from storage_audit.ownership.key_template import MAX_WAYS
from storage_audit.ownership.ownership_rule import (
    DeletedProject,
    Ownership,
    evidence_of,
    get_key_formats,
    judge_ownership,
    known_ids,
    living_projects,
)
from storage_audit.tracking.recognise import recognise_objects
from tests.builders import create_cleanup, create_findings
from tests.findings.orphans import delete_orphans
from tests.promises import (
    check_promises,
    clean_up_project,
    create_projects,
    read_outcomes,
    read_reason,
    record_deleted_projects,
)
from tests.real_bucket import Bucket
from tests.scan.listing_in_memory import read_findings, run_backfill, run_reconcile
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
    flat = KeyFormats(
        {"flat": "{project}_{scene}"}, project_id=".+", kinds=DEFAULT_KINDS, current="flat"
    )
    most, more = "x" + "_x" * MAX_WAYS, "x" + "_x" * (MAX_WAYS + 1)
    assert len(flat.parse_key(most)) == MAX_WAYS
    assert flat.parse_key(more) == () and flat.parse_key(more).too_many
    with pytest.raises(ValueError, match="too many ways"):
        flat.build_key("x", scene="x_" * MAX_WAYS + "x")
    assert len(flat.parse_key("x_" * 20 + "x")) == 20
    assert flat.parse_key("x_" * 20 + "x" * 960).too_many


@pytest.mark.parametrize("project_id", ["proj_1", "proj_1_00000_a"])
def test_such_a_key_is_kept_with_the_reason(project_id: str) -> None:
    project, parsed_keys = (
        DeletedProject(project_id, timezone.now()),
        get_key_formats().parse_key(beyond(0)),
    )
    verdict = judge_ownership(project, parsed_keys, (), OLDER, set())
    assert verdict.ownership is Ownership.IN_DOUBT
    assert "too many possible owners" in verdict.reason


def test_stored_evidence_is_short() -> None:
    parsed_keys = get_key_formats().parse_key(at_the_bound(0))
    assert len(parsed_keys) > 5
    verdict = judge_ownership(
        DeletedProject("proj_1", timezone.now()), parsed_keys, (), OLDER, set(parsed_keys.owners)
    )
    assert max(len(verdict.evidence), len(verdict.reason)) < 3_000
    short = get_key_formats().parse_key(f"proj_{'a_' * 20}b_media.mp4")
    assert evidence_of(short).endswith(" or 10 more")


def test_cleanup_and_scans_keep_such_keys_and_go_on(bucket: Bucket) -> None:
    create_projects("proj_1", "proj_2")
    hostile = {make(n) for make in (beyond, at_the_bound, unread) for n in range(2)}
    bucket.put(OWN, *hostile)
    run_backfill()
    ambiguous = {("ambiguous", beyond(n)) for n in range(2)}
    assert ambiguous <= read_findings()
    assert ("orphaned", beyond(0)) not in read_findings()
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup)[OWN] == "deleted"
    assert read_outcomes(cleanup)[beyond(0)] == read_outcomes(cleanup)[unread(0)] == "kept"
    assert "too many possible owners" in read_reason(cleanup, beyond(0))
    assert {beyond(0), beyond(1), unread(0), unread(1)} <= bucket.facts().keys()
    check_promises(bucket)
    assert run_reconcile().status == "complete"
    assert ambiguous <= read_findings()


@pytest.mark.usefixtures("young_orphans_may_go")
def test_upload_stays_once_its_key_has_too_many_possible_owners_unless_a_person_gave_it(
    bucket: Bucket, settings: Settings
) -> None:
    before = {"dotted": "{project}.{filename}"}
    usual = settings.STORAGE_AUDIT | {
        "PROJECT_ID_PATTERN": "[a-z_]+",
        "CURRENT_KEY_FORMAT": "dotted",
    }
    settings.STORAGE_AUDIT = usual | {"KEY_FORMATS": before}
    owner = "a" + "_a" * MAX_WAYS + "_a"
    create_projects(owner, "a")
    key = default_storage.save(f"{owner}.mp4", ContentFile(b"x"))
    assert R2Object.objects.get().project_id == owner
    settings.STORAGE_AUDIT = usual | {"KEY_FORMATS": before | {"flat": "{project}_{scene}.{ext}"}}
    assert read_outcomes(clean_up_project(owner)) == {key: "kept"}
    [found] = create_findings(bucket, key, project_id=owner)
    orphans = delete_orphans([found])
    assert read_outcomes(orphans) == {key: "kept"}
    assert "No longer a leftover file: unclear owner" in read_reason(orphans, key)
    R2Object.objects.update(updated_at=OLDER)
    run_reconcile()
    assert read_findings() == {("ambiguous", key)}
    given = {"source": "assigned", "upload_id": None, "last_modified": found.last_modified}
    R2Object.objects.update(**given)
    Finding.objects.all().delete()
    orphans = delete_orphans(create_findings(bucket, key, project_id=owner))
    assert read_outcomes(orphans) == {key: "deleted"}


def shown(make: Callable[[int], str]) -> list[ListedObject]:
    long_ago = datetime(2026, 1, 1, tzinfo=UTC)
    return [ListedObject(make(n), 7, "etag", long_ago) for n in range(MANY)]


def judge_all(objects: list[ListedObject]) -> list[object]:
    project = DeletedProject("proj_1", timezone.now())
    return list(judge_listed("tests", objects, project, nfc_key, project_cleanup_filter("proj_1")))


def recognise_all(objects: list[ListedObject]) -> list[object]:
    return list(recognise_objects("tests", objects, (), nfc_key, timezone.now()))


@pytest.mark.django_db
@pytest.mark.parametrize(
    "look, make", [(judge_all, beyond), (judge_all, at_the_bound), (recognise_all, at_the_bound)]
)
def test_thousands_of_such_keys_take_little_memory(
    look: Callable[[list[ListedObject]], list[object]], make: Callable[[int], str]
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
    grammar = get_key_formats()
    assert count_calls(lambda: grammar.parse_key(make(0))) < 10 * MAX_WAYS


@pytest.mark.django_db
def test_cleanup_of_one_of_too_many_owners_is_found_in_a_few_calls_for_each_project() -> None:
    # Enough for the calls that the queries take not to count.
    count = 20_000
    ids = [f"proj_{n}" for n in range(count)]
    create_cleanup("blocked", kind="vanished", vanished_ids=ids)
    owners = {beyond(0): PossibleOwners(set(), too_many=True)}
    assert count_calls(lambda: find_covering("tests", owners)) < 5 * count


@pytest.mark.django_db
def test_ids_are_asked_for_a_few_hundred_at_a_time() -> None:
    record_deleted_projects("proj_1", "proj_499")
    create_projects("proj_300")
    ids = [f"proj_{n}" for n in range(MANY)] + [f"é_{n}" for n in range(MANY)]
    if connection.vendor == "sqlite":
        variables = 9  # SQLITE_LIMIT_VARIABLE_NUMBER
        before = connection.connection.setlimit(variables, 999)
        try:
            found = living_projects(ids), known_ids(ids)
        finally:
            connection.connection.setlimit(variables, before)
    else:
        found = living_projects(ids), known_ids(ids)
    assert found == ({"proj_300"}, {"proj_1", "proj_300", "proj_499"})
    assert project_model.living_ids(ids) == {"proj_300"}
    assert KnownProject.objects.maybe_alive_ids(ids) == {"proj_300"}
