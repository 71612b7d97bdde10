"""What a scan writes of plain objects without a closer look is what a closer look would write."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from django.utils import timezone
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pytest_django import Settings

from storage_audit.bucket import listing
from storage_audit.bucket.errors import InvalidResponse
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.conf import conf
from storage_audit.models import KnownProject, R2Object
from storage_audit.ownership.bucket_marker import StoreTraits
from storage_audit.ownership.key_formats import (
    DEFAULT_KINDS,
    DEFAULT_TEMPLATES,
    SAMPLE_NAME,
    KeyFormats,
)
from storage_audit.ownership.key_template import ParsedKey
from storage_audit.scan import fast_path
from storage_audit.scan.diff_lines import Line
from storage_audit.scan.fast_path import SortedObjects
from storage_audit.scan.models import BucketScan
from storage_audit.tracking import rows
from tests.scan import listing_in_memory
from tests.scan.listing_in_memory import (
    Listing,
    add_projects,
    make_entry,
    nth_key,
    read_findings,
    run_backfill,
    track_listed,
)
from tests.strange_keys import HARD_TEXTS, KEYS, TRAPS

FOLDERS = [
    "projects/proj_1/scenes/s1/media",
    "projects/proj_1/scenes/s 1\\é/media",
    "projects/proj_1/scenes/s1/media/more/of it",
    "projects/proj_1/scenes/s1/media//",
    "projects/proj_1/scenes/a_media.b/media",
    "projects/proj_proj_1/scenes/s1/media",
    "projects/proj_gone/scenes/s1/media",
    "projects/proj_vanished/scenes/s1/media",
    "projects/proj_never/scenes/s1/media",
    "audio/proj_1/s1",
    "audio/proj_1/s1/scenes/x/media",
    "proj_1",
    "proj_1_a/proj_2",
    "/projects/proj_1/scenes/s1/media",
    ".storage_audit",
]
NAMES = [
    "a.mp4",
    "A-b_c.MP4",
    "a.b.mp4",
    "a.",
    ".a",
    "a",
    "é.mp4",
    "a.mp\u212a",
    "x_media.mp4",
    "proj_1_s1_media.mp4",
    "a b.mp4",
    "a\tb.mp4",
    "a\n.mp4",
    "a.mp4\n",
    "a." + "x" * 40,
    "a." + "x" * 41,
]
STRANGE = [*HARD_TEXTS, *KEYS, *TRAPS, "proj_1_s1_media.mp4", "proj_1_proj_2_s1_media.mp4", "a.mp4"]
ALL = [*STRANGE, *(f"{folder}/{name}" for folder in FOLDERS for name in NAMES)]
PLAIN = FOLDERS[0] + "/a.mp4"

SortOut = Callable[..., SortedObjects]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    listing_in_memory.remove_pauses(monkeypatch)


@pytest.fixture
def owners(db: None) -> None:
    add_projects("proj_1", "proj_2", "proj_1_a", "proj_proj_1")
    KnownProject.objects.create(pk="proj_vanished", evidence="saved")
    KnownProject.objects.create(
        pk="proj_gone", evidence="deleted", deleted_at=datetime(2026, 1, 1, tzinfo=UTC)
    )


def no_plain(bucket: str, objects: Sequence[Line], tracked: object) -> SortedObjects:
    return SortedObjects([], [], list(objects))


def written() -> dict[str, dict[str, Any]]:
    varies = {"id", "created_at", "updated_at"}
    return {
        row["key"]: {name: value for name, value in row.items() if name not in varies}
        for row in R2Object.objects.values()
    }


def said(found: BucketScan) -> tuple[Any, ...]:
    figures = ["status", "message", "listed", "listed_bytes", "added", "updated", "unchanged"]
    kinds = ["orphaned", "unrecognised", "ambiguous", "misnamed", "missing", "unstorable"]
    return tuple(getattr(found, name) for name in figures + kinds)


def both_ways(patch: pytest.MonkeyPatch, **scope: Any) -> list[list[str]]:
    """Backfill with and without a short way; what went it, by batch."""
    went, real = list[list[str]](), fast_path.sort_objects

    def sort_out(*args: Any) -> SortedObjects:
        found = real(*args)
        went.append(found.keys)
        return found

    before_keys = written().keys()
    before = R2Object.objects.filter(key__in=before_keys).order_by("key").values()
    as_they_were, results = list(before), []
    for way in (sort_out, no_plain):
        R2Object.objects.exclude(key__in=before_keys).delete_without_signals()
        patch.setattr(fast_path, "sort_objects", way)
        found = run_backfill(**scope)
        results.append((said(found), written(), read_findings()))
    assert results[0] == results[1]
    assert list(before.all()) == as_they_were
    return went


@pytest.mark.parametrize("folds", [True, False])
@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.usefixtures("owners")
def test_rows_figures_and_findings_are_those_of_a_closer_check(
    monkeypatch: pytest.MonkeyPatch, folds: bool, dry_run: bool
) -> None:
    Listing(*ALL, page=1000).use(
        monkeypatch, StoreTraits(folds_unicode=folds, lists_in_key_order=True)
    )
    [went] = both_ways(monkeypatch, dry_run=dry_run)
    assert PLAIN in went and FOLDERS[6] + "/a.mp4" not in went
    assert went == sorted(went)
    expected = set() if dry_run else {key for key in ALL if ".storage_audit" not in key}
    assert folds or written().keys() == expected


@pytest.mark.usefixtures("owners")
def test_folders_of_two_projects_are_nobodys(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    templates = {"one": "proj_2/{project}/{filename}", "two": "{project}/{scene}/{filename}"}
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "KEY_FORMATS": templates}
    keys = ["proj_2/proj_1/a.mp4", "proj_2/s1/a.mp4"]
    Listing(*keys, page=10).use(monkeypatch)
    assert both_ways(monkeypatch) == [[keys[1]]]
    assert read_findings() == {("ambiguous", keys[0])}


TIMES = {
    "2026-01-01T00:00:00Z": True,
    "2026-01-01T00:00:00+00:00": True,
    "2026-01-01T23:59:59.999Z": True,
    "2026-01-01T23:59:59.999999Z": True,
    "2026-01-01T23:59:59.9999999Z": False,
    "2026-01-01T23:59:59.123456+00:00": False,
    "2026-02-30T00:00:00Z": False,
    "2026-01-01T24:00:00Z": False,
    "2026-01-01T00:00:60Z": False,
    "0000-01-01T00:00:00Z": False,
}


@pytest.mark.parametrize(("time", "is_plain"), TIMES.items())
@pytest.mark.usefixtures("owners")
def test_times_are_read_as_they_always_were(
    monkeypatch: pytest.MonkeyPatch, time: str, is_plain: bool
) -> None:
    bucket = Listing(PLAIN)
    bucket.entries[PLAIN] = make_entry(PLAIN)._replace(last_modified=time)
    bucket.use(monkeypatch)
    [went] = both_ways(monkeypatch)
    assert (went == [PLAIN]) is is_plain


@pytest.mark.parametrize("etag", ["é", "a\\tb", "a\\", "\\N", "a\tb", "a\x7fb", ""])
@pytest.mark.usefixtures("owners")
def test_etags_are_written_as_they_are(monkeypatch: pytest.MonkeyPatch, etag: str) -> None:
    bucket = Listing(PLAIN, page=10)
    bucket.entries[PLAIN] = make_entry(PLAIN)._replace(etag=etag)
    bucket.use(monkeypatch)
    [went] = both_ways(monkeypatch)
    assert (went == []) is bool(etag)
    assert written()[PLAIN]["etag"] == etag


@pytest.mark.usefixtures("owners")
def test_what_has_a_row_or_is_to_be_deleted_gets_a_closer_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Listing(*map(nth_key, range(6)), page=10).use(monkeypatch)
    track_listed(nth_key(0), nth_key(1))
    track_listed(nth_key(2), state=R2Object.State.UPLOADING, updated_at=timezone.now())
    cleanup = Cleanup.objects.create(kind=Cleanup.Kind.OBJECTS, bucket=conf().bucket)
    cleanup.items.create(key=nth_key(4), identity=nth_key(4), found_in="tracked")
    marked = {"outcome": CleanupItem.Outcome.KEPT}
    cleanup.items.create(key=nth_key(5), identity=nth_key(5), found_in="tracked", **marked)
    assert both_ways(monkeypatch) == [[nth_key(3), nth_key(5)]]
    assert written().keys() == {nth_key(n) for n in (0, 1, 2, 3, 5)}


@pytest.mark.usefixtures("owners")
def test_a_plain_object_that_is_gone_by_the_second_check_has_no_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = Listing(*map(nth_key, range(9)), page=3)
    bucket.use(monkeypatch)
    real = rows.find_being_deleted

    def gone(*args: Any) -> set[str]:
        bucket.entries.pop(nth_key(4), None)
        return {*real(*args), nth_key(7)}

    monkeypatch.setattr(rows, "find_being_deleted", gone)
    found = run_backfill()
    assert (found.status, found.added, found.unchanged) == ("complete", 7, 2)
    assert written().keys() == {nth_key(n) for n in range(9)} - {nth_key(4), nth_key(7)}
    assert found.requests == len(bucket.asked_pages)


@pytest.mark.usefixtures("owners")
def test_a_store_that_is_a_tree_of_folders_betrays_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for a folder without a name it does not show what it has shown."""
    Listing(PLAIN, FOLDERS[3] + "/a.mp4", page=10).use(monkeypatch)

    def see_in(bucket: str, folder: str) -> None:
        raise InvalidResponse(folder)

    monkeypatch.setattr(listing, "check_folder_listed", see_in)
    assert run_backfill().message == FOLDERS[3]
    assert written() == {}


# Whose a key is

SETS: list[dict[str, str]] = [
    DEFAULT_TEMPLATES,
    {"one": "{project}/{filename}"},
    {"one": "{project}/{scene}"},
    {"one": "{project}/{scene}/media.{ext}"},
    {"one": "{project}/{filename}/raw"},
    {"one": "{project}/s-{scene}/{filename}"},
    {"one": "{project}/s-{filename}"},
    {"one": "{project}_{scene}.{ext}", "two": "{project}/{filename}"},
    {"one": "{project}-{filename}", "two": "video/{project}/{filename}"},
    {"one": "{kind}/{project}/{scene}/a_{filename}"},
    {"one": "v{project}//{filename}", "two": "{project}/{scene}/{filename}"},
    {"one": "{project}/{filename}.{ext}"},
    {"one": "{project}-{filename}"},
    {"one": "{project}--{filename}.{scene}"},
    {"one": "{project}/{filename}+"},
    {"one": "{project}+{filename}", "two": "{project}+{scene}_raw.{ext}"},
]
IDS = ["proj_[a-z0-9_]+", "[a-z0-9]+", "[a-z/0-9]+", ".+"]
Case = tuple[KeyFormats, str, str]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Key formats, a folder and a name, put together of what stands in the templates."""
    templates, project_id = draw(st.sampled_from(SETS)), draw(st.sampled_from(IDS))
    said = {part for text in templates.values() for part in re.split(r"\{\w+\}", text)}
    parts = sorted(said | {part for text in said for part in text.split("/")} - {""})
    pieces = st.sampled_from([*parts, *DEFAULT_KINDS[:1], "proj_1", "a", "b", "/", "é"])
    folder = "".join(draw(st.lists(pieces, min_size=1, max_size=8)))
    name = "".join(draw(st.lists(pieces, min_size=1, max_size=3)))
    key_formats = KeyFormats(templates, project_id=project_id, kinds=DEFAULT_KINDS, current="")
    return key_formats, folder, name + draw(st.sampled_from(["", ".Mp4", ".a"]))


def with_any_id(template: str) -> KeyFormats:
    return KeyFormats({"one": template}, project_id=".+", kinds=DEFAULT_KINDS, current="")


@pytest.mark.slow
@hypothesis_settings(max_examples=1000)
@given(cases())
@example((with_any_id("{project}-{filename}"), "a-b", "b-a.a"))
@example((with_any_id("{project}--{filename}.{scene}"), "a--b", "x.y"))
def test_files_of_a_folder_are_read_as_that_folder_is(case: Case) -> None:
    key_formats, folder, name = case
    plain_name = key_formats.plain_name.fullmatch(name)
    if not plain_name or not (ways := key_formats.parse_folder(folder)):
        return
    expected = [replaced(parsed_key, SAMPLE_NAME, name) for parsed_key in ways]
    assert expected == list(key_formats.parse_key(f"{folder}/{name}"))
    assert {parsed_key.file_type for parsed_key in expected} == {plain_name[1].lower()}


def replaced(parsed_key: ParsedKey, name: str, by: str) -> ParsedKey:
    filename = parsed_key.fields["filename"]
    assert filename.endswith(name)
    fields = {**parsed_key.fields, "filename": filename.removesuffix(name) + by}
    return replace(parsed_key, fields=fields)


@pytest.mark.slow
@hypothesis_settings(max_examples=500)
@given(cases())
def test_many_keys_name_the_projects_that_each_names_alone(case: Case) -> None:
    key_formats, folder, name = case
    keys = [f"{folder}/{name}", f"{folder}/{SAMPLE_NAME}", f"{folder}{name}", name]
    for key, found in key_formats.parse_keys(keys).items():
        alone = key_formats.parse_key(key)
        assert [(r.key_format, r.project) for r in found] == [
            (r.key_format, r.project) for r in alone
        ]


def test_the_usual_key_formats_have_a_fast_path() -> None:
    key_formats = KeyFormats(DEFAULT_TEMPLATES, project_id=IDS[0], kinds=DEFAULT_KINDS, current="")
    for folder in (FOLDERS[0], "audio/proj_1/s1"):
        assert len(key_formats.parse_folder(folder)) == 1
    assert key_formats.plain_name.fullmatch("clip_01-a.mp4")
    assert not key_formats.plain_name.fullmatch("x_media.mp4")
