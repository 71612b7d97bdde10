"""What a project has, found in three ways; each key that not all find has the right reason."""

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from unicodedata import normalize

import pytest
from django.core.management import call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from storage_audit.bucket import listing, s3
from storage_audit.bucket.errors import DeadlinePassed, StoreError
from storage_audit.bucket.s3 import ListedObject
from storage_audit.debug import admin as comparison_page
from storage_audit.debug import comparison_result, discovery_comparison
from storage_audit.debug.comparison_result import (
    Comparison,
    DifferenceReason,
    DiscoveryMethod,
    KeySample,
)
from storage_audit.debug.discovery_comparison import compare_bucket, possible_buckets
from storage_audit.models import Project, R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import CannotConclude
from tests.admin_client import admin_url, page_text, staff_client, superuser_client
from tests.database import dump_everything
from tests.faults.kinds import FAULT_KINDS
from tests.faults.matching import is_listing_under, rule_for
from tests.faults.proxy import FaultyStore
from tests.keys import NFC, NFD
from tests.promises import (
    FLAT_KEY,
    HIERARCHICAL_KEY,
    clean_up_project,
    create_projects,
    record_deleted_projects,
    track_key,
)
from tests.real_bucket import Bucket, fold_unicode
from tests.run_command import run_command, run_json
from tests.times import AHEAD

TRACKED, LISTED, PARSED = DiscoveryMethod
BOTH_NAMES = "proj_1_a_s1_media.mp4"
OUTSIDE = "exports/proj_1.zip"
UNREAD = "projects/proj_1/scenes/s1/notes.txt"
MARK = timezone.now() - timedelta(days=1)


def read_differences(
    found: Comparison,
) -> dict[str, tuple[tuple[DiscoveryMethod, ...], tuple[DifferenceReason, ...]]]:
    return {
        example.key: (difference.found, difference.reasons)
        for difference in found.differences
        for example in difference.examples
    }


def also_listed(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    real = listing.object_pages

    def pages(bucket: str, prefix: str, after: str = "") -> Iterator[list[ListedObject]]:
        more = [ListedObject(key, 1, "e", MARK)] if prefix and key.startswith(prefix) else []
        for found in real(bucket, prefix, after):
            yield [*found, *more]

    monkeypatch.setattr(listing, "object_pages", pages)


def counts(found: Comparison) -> dict[DiscoveryMethod, int]:
    return {way: keys.count for way, keys in found.keys_by_method.items()}


def test_a_project_that_is_in_step_agrees_whether_it_lives_or_not(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    bucket.upload("proj_10")
    found = compare_bucket("proj_1")
    assert found.agrees and not found.differences
    assert {way: keys.first for way, keys in found.keys_by_method.items()} == dict.fromkeys(
        DiscoveryMethod, [key]
    )
    Project.objects.get(pk="proj_1").delete()
    assert compare_bucket("proj_1").keys_by_method == found.keys_by_method
    bucket.put(unread := "projects/proj_unknown/scenes/s1/notes.txt")
    nothing = compare_bucket("proj_unknown")
    assert nothing.agrees and counts(nothing) == dict.fromkeys(DiscoveryMethod, 0)
    assert read_differences(nothing) == {
        unread: ((), (DifferenceReason.NEVER_TRACKED, DifferenceReason.NO_KEY_FORMAT))
    }


def test_each_key_that_not_all_find_says_why(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1", "proj_1_a", "proj_2")
    record_deleted_projects("proj_3")
    paths = {name: f"projects/proj_1/scenes/s1/media/{name}.mp4" for name in "abcdefgh"}
    others = "projects/proj_2/scenes/s1/media/mine.mp4"
    bucket.put(*(paths[name] for name in "abcd"), BOTH_NAMES, OUTSIDE, UNREAD, others)
    # R2 has no such keys, so the listing of one is made up.
    also_listed(monkeypatch, "projects/proj_1/scenes/s1/media/i\udcff.mp4")
    track_key(bucket, paths["b"], "proj_2")
    track_key(bucket, paths["c"], "proj_3")
    track_key(bucket, paths["d"], "proj_2", "backfill")
    track_key(bucket, BOTH_NAMES, None, "backfill")
    track_key(bucket, OUTSIDE, "proj_1")
    track_key(bucket, others, "proj_1", "backfill", updated_at=MARK)
    states = {"e": "stored", "f": "uploading", "g": "upload_failed", "h": "deleting"}
    lately = timezone.now() - timedelta(minutes=5)
    for name, row_state in states.items():
        at = lately if row_state in ("uploading", "deleting") else MARK
        track_key(bucket, paths[name], "proj_1", state=row_state, updated_at=at)
    found = compare_bucket("proj_1")
    assert read_differences(found) == {
        paths["a"]: ((LISTED, PARSED), (DifferenceReason.NEVER_TRACKED,)),
        "projects/proj_1/scenes/s1/media/i\\xff.mp4": (
            (LISTED, PARSED),
            (DifferenceReason.NEVER_TRACKED,),
        ),
        paths["b"]: ((PARSED,), (DifferenceReason.LIVE_UPLOAD,)),
        paths["c"]: ((PARSED,), (DifferenceReason.OTHERS_UPLOAD,)),
        paths["d"]: ((PARSED,), (DifferenceReason.OTHERS_ROW, DifferenceReason.AMBIGUOUS)),
        BOTH_NAMES: ((PARSED,), (DifferenceReason.NOBODYS_ROW, DifferenceReason.AMBIGUOUS)),
        UNREAD: ((), (DifferenceReason.NEVER_TRACKED, DifferenceReason.NO_KEY_FORMAT)),
        OUTSIDE: ((TRACKED, LISTED), (DifferenceReason.OUTSIDE,)),
        others: ((TRACKED,), (DifferenceReason.OTHERS_KEY, DifferenceReason.OUTSIDE)),
        paths["e"]: ((TRACKED,), (DifferenceReason.GONE,)),
        paths["f"]: ((TRACKED,), (DifferenceReason.IN_PROGRESS,)),
        paths["g"]: ((TRACKED,), (DifferenceReason.NEVER_STORED,)),
        paths["h"]: ((TRACKED,), (DifferenceReason.IN_PROGRESS,)),
    }
    assert counts(found) == {TRACKED: 6, LISTED: 3, PARSED: 6}
    assert found.only_listed.first == [OUTSIDE]
    assert sorted(found.only_parsed.first) == sorted([*(paths[name] for name in "bcd"), BOTH_NAMES])
    assert not found.agrees
    reasons = (DifferenceReason.NOBODYS_ROW, DifferenceReason.AMBIGUOUS)
    doubt = next(d for d in found.differences if d.reasons == reasons)
    assert "existing project: proj_1_a" in doubt.examples[0].evidence
    # Processes that were killed have nothing in hand.
    R2Object.objects.filter(updated_at=lately).update(updated_at=MARK)
    left = read_differences(compare_bucket("proj_1"))
    assert left[paths["f"]] == ((TRACKED,), (DifferenceReason.NEVER_STORED,))
    assert left[paths["h"]] == ((TRACKED,), (DifferenceReason.GONE,))
    R2Object.objects.filter(key=paths["e"]).update(updated_at=timezone.now() + AHEAD)
    assert read_differences(compare_bucket("proj_1"))[paths["e"]] == (
        (TRACKED,),
        (DifferenceReason.IN_PROGRESS,),
    )


def test_what_the_application_finds_is_what_a_cleanup_deletes(bucket: Bucket) -> None:
    create_projects("proj_1", "proj_1_a")
    bucket.put(HIERARCHICAL_KEY, FLAT_KEY, BOTH_NAMES, OUTSIDE, UNREAD)
    track_key(bucket, OUTSIDE, "proj_1")
    found = set(compare_bucket("proj_1").keys_by_method[LISTED].first)
    before = bucket.keys()
    clean_up_project("proj_1")
    assert before - bucket.keys() == found == {HIERARCHICAL_KEY, FLAT_KEY, OUTSIDE}


@pytest.mark.parametrize("folds", [False, True])
def test_another_spelling_is_no_other_object_and_none_that_is_gone(
    bucket: Bucket, folds: bool
) -> None:
    create_projects("proj_1", "proj_2")
    if folds:
        fold_unicode(bucket)
    others = "projects/proj_1/scenes/s/media/ü.mp4"
    bucket.put(NFC, others)
    track_key(bucket, normalize("NFD", others), "proj_2")
    track_key(bucket, NFD, "proj_1", updated_at=MARK)
    gone = normalize("NFD", "projects/proj_1/scenes/s/media/ö.mp4")
    track_key(bucket, gone, "proj_1", updated_at=MARK)
    assert read_differences(compare_bucket("proj_1")) == {
        NFC: ((LISTED, PARSED), (DifferenceReason.SPELLING,)),
        NFD: ((TRACKED,), (DifferenceReason.SPELLING,)),
        gone: ((TRACKED,), (DifferenceReason.GONE,)),
        others: (
            ((PARSED,), (DifferenceReason.LIVE_UPLOAD,))
            if folds
            else ((LISTED, PARSED), (DifferenceReason.NEVER_TRACKED,))
        ),
    }


@pytest.mark.parametrize(
    ("behind", "is_there", "why"),
    [
        (timedelta(0), False, DifferenceReason.IN_PROGRESS),
        (AHEAD, True, DifferenceReason.IN_PROGRESS),
        (AHEAD, False, DifferenceReason.GONE),
    ],
)
def test_a_row_that_changed_meanwhile_is_not_called_gone(
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    behind: timedelta,
    is_there: bool,
    why: DifferenceReason,
) -> None:
    """By the clock of the web server that wrote it, this may have been earlier."""
    create_projects("proj_1")
    real = listing.object_pages

    def pages(*args: Any) -> Iterator[Any]:
        yield from real(*args)
        R2Object.objects.all().delete_without_signals()
        track_key(bucket, HIERARCHICAL_KEY, "proj_1", updated_at=timezone.now() - behind)
        if is_there and args[1] == "projects/proj_1/scenes/":
            bucket.put(HIERARCHICAL_KEY)

    monkeypatch.setattr(listing, "object_pages", pages)
    assert read_differences(compare_bucket("proj_1")) == {HIERARCHICAL_KEY: ((TRACKED,), (why,))}


def test_counts_are_exact_where_only_the_first_keys_are_kept(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, less in [(s3, "PAGE_SIZE", 3), (discovery_comparison, "MAX_LONE_KEYS", 2)]:
        monkeypatch.setattr(module, name, less)
    for name in ("MAX_KEYS_KEPT", "MAX_EXAMPLES_KEPT"):
        monkeypatch.setattr(comparison_result, name, 2)
    create_projects("proj_1")
    keys = [f"projects/proj_1/scenes/s1/media/{n:02}.mp4" for n in range(11)]
    bucket.put(*keys[:7])
    for key in [*keys[::2], "exports/a", "exports/b", "exports/c"]:
        track_key(bucket, key, "proj_1", updated_at=MARK)
    found = compare_bucket("proj_1")
    assert counts(found) == {TRACKED: 9, LISTED: 7, PARSED: 7}
    assert found.keys_by_method[PARSED].first == keys[:2]
    causes = {d.reasons: (d.count, [e.key for e in d.examples]) for d in found.differences}
    assert causes == {
        (DifferenceReason.NEVER_TRACKED,): (3, [keys[1], keys[3]]),
        (DifferenceReason.GONE,): (5, [keys[8], keys[10]]),
    }


def test_a_comparison_that_fails_anywhere_shows_no_result(
    store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.upload("proj_1")
    store.rules.append(
        rule_for(is_listing_under("proj_proj_1_"), FAULT_KINDS["access-denied"].answer)
    )
    with pytest.raises(StoreError, match="AccessDenied"):
        compare_bucket("proj_1")
    store.rules.clear()
    # A store that now and then lists nothing at all.
    marker = bucket_marker.find_marker(bucket.name)
    listed = iter([marker, marker, None, marker])
    monkeypatch.setattr(bucket_marker, "find_marker", lambda bucket: next(listed))
    with pytest.raises(StoreError, match="does not list the marker"):
        compare_bucket("proj_1")


def test_it_takes_no_longer_than_it_may(bucket: Bucket) -> None:
    with pytest.raises(DeadlinePassed):
        compare_bucket("proj_1", seconds=-1)


def test_a_bucket_of_somebody_else_is_not_compared(bucket: Bucket) -> None:
    bucket.r2.remove(bucket_marker.MARKER_KEY, bucket.name)
    with pytest.raises(CannotConclude, match="no marker"):
        compare_bucket("proj_1")
    with pytest.raises(CannotConclude, match="is not a project ID"):
        compare_bucket("p/../q")


def test_opening_pages_changes_nothing(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    bucket.put(HIERARCHICAL_KEY)
    before = dump_everything(bucket)
    compare_bucket("proj_1")
    assert dump_everything(bucket) == before


def test_every_bucket_with_rows_of_the_project_is_compared(bucket: Bucket) -> None:
    track_key(Bucket(bucket.r2, "before"), HIERARCHICAL_KEY, "proj_1")
    assert possible_buckets("proj_1") == ["before", "tests"]


def test_keys_of_several_buckets_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison_result, "MAX_KEYS_KEPT", 3)
    both = KeySample(2, ["a", "b"]) + KeySample(9, ["c", "d"])
    assert (both.count, both.first) == (11, ["a", "b", "c"])


def test_the_command_shows_both_discoveries_and_the_reasons(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    assert run_command("compare_discovery", "proj_1") == (
        "proj_1 in bucket tests: 1 tracked, 1 found by cleanup rules, 1 found by name"
        " alone.\nAll three find the same files.\n",
        "",
        0,
    )
    bucket.put("projects/proj_1/scenes/s1/media/evil\x1b[2J.mp4")
    track_key(bucket, FLAT_KEY, "proj_1", updated_at=MARK)
    assert run_command("compare_discovery", "proj_1") == (
        "proj_1 in bucket tests: 2 tracked, 2 found by cleanup rules, 2 found by name"
        " alone.\n"
        "1 only tracked: The file is missing from the bucket.\n"
        f"  {FLAT_KEY} (upload)\n"
        "1 found in two ways, but not tracked: Run a backfill to track it.\n"
        "  projects/proj_1/scenes/s1/media/evil\\x1b[2J.mp4 (name fits proj_1 by key format"
        " hierarchical.)\n",
        "CommandError: The results differ. See the reasons above.\n",
        1,
    )
    facts, code = run_json("compare_discovery", "proj_1")
    [compared] = facts["comparisons"]
    assert (code, compared["agrees"], compared["listed"], compared["parsed"]) == (1, False, 2, 2)
    assert [d["reasons"] for d in compared["differences"]] == [["gone"], ["never_tracked"]]
    assert run_command("compare_discovery", "p/../q")[2] == 2
    call_command("backfill_r2")
    R2Object.objects.filter(key=FLAT_KEY).delete()
    assert run_command("compare_discovery", "proj_1")[2] == 0


def test_the_page_of_a_project_leads_to_the_same(bucket: Bucket) -> None:
    create_projects("proj_1")
    bucket.put("projects/proj_1/scenes/s1/media/<b>evil\x1b.mp4")
    track_key(bucket, FLAT_KEY, "proj_1", updated_at=MARK)
    client = staff_client("verify_cleanup")
    [address] = re.findall('href="(/[^"]*/compare/[^"]*)"', project_page(client))
    shown = page_text(client.get(address))
    assert "The three ways do not agree" in shown and "?purpose=backfill" not in shown
    assert "?purpose=backfill" in page_text(superuser_client().get(address))
    assert "Run a backfill to track it." in shown and "The file is missing" in shown
    assert "&lt;b&gt;evil\\x1b.mp4" in shown and "<b>" not in shown
    R2Object.objects.all().delete_without_signals()
    bucket.wipe()
    assert "holds no marker of this database" in page_text(client.get(address))
    assert "The three ways do not agree" not in page_text(client.get(address))
    client.logout()
    assert client.get(address).status_code == 302


def project_page(client: Client) -> str:
    return page_text(client.get(admin_url("project", "change", "proj_1")))


def test_only_who_may_verify_is_led_there(bucket: Bucket) -> None:
    create_projects("proj_1")
    client = staff_client("dry_run_cleanup")
    assert "/compare/" not in project_page(client)
    assert "/compare/" not in page_text(client.get(admin_url("cleanup")))
    assert client.get(reverse("admin:storage_audit_compare")).status_code == 403


def test_the_page_lists_no_longer_than_a_person_waits(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, address = staff_client("verify_cleanup"), reverse("admin:storage_audit_compare")
    assert "is not a project ID" in page_text(client.get(address, {"project_id": "p/../q"}))
    agreed = page_text(client.get(address, {"project_id": "proj_gone"}))
    assert "All three find the same files" in agreed
    monkeypatch.setattr(comparison_page, "COMPARE_TIMEOUT_SECONDS", -1.0)
    shown = page_text(client.get(address, {"project_id": "proj_gone"}))
    assert "Run <code>manage.py compare_discovery proj_gone</code> instead" in shown
