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
from storage_audit.bucket.s3 import Listed
from storage_audit.debug import admin as comparison_page
from storage_audit.debug import discovery_comparison
from storage_audit.debug.discovery_comparison import Comparison, Keys, Way, Why, buckets_of, compare
from storage_audit.models import Project, R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import CannotConclude
from tests.admin_client import page, person, text_of
from tests.database import dump_everything
from tests.faults.kinds import KINDS
from tests.faults.matching import is_listing_under, on
from tests.faults.proxy import FaultyStore
from tests.keys import NFC, NFD
from tests.promises import FLAT, HIERARCHICAL, alive, delete, deleted, track
from tests.real_bucket import Bucket, fold_unicode
from tests.run_command import run_command, run_json
from tests.times import AHEAD

TRACKED, LISTED, PARSED = Way
BOTH_NAMES = "proj_1_a_s1_media.mp4"
OUTSIDE = "exports/proj_1.zip"
UNREAD = "projects/proj_1/scenes/s1/notes.txt"
MARK = timezone.now() - timedelta(days=1)


def differing(found: Comparison) -> dict[str, tuple[tuple[Way, ...], tuple[Why, ...]]]:
    return {
        example.key: (difference.found, difference.reasons)
        for difference in found.differences
        for example in difference.examples
    }


def also_listed(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    real = listing.pages

    def pages(bucket: str, prefix: str, after: str = "") -> Iterator[list[Listed]]:
        more = [Listed(key, 1, "e", MARK)] if prefix and key.startswith(prefix) else []
        for found in real(bucket, prefix, after):
            yield [*found, *more]

    monkeypatch.setattr(listing, "pages", pages)


def counts(found: Comparison) -> dict[Way, int]:
    return {way: keys.count for way, keys in found.found.items()}


def test_a_project_that_is_in_step_agrees_whether_it_lives_or_not(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    bucket.upload("proj_10")
    found = compare("proj_1")
    assert found.agrees and not found.differences
    assert {way: keys.first for way, keys in found.found.items()} == dict.fromkeys(Way, [key])
    Project.objects.get(pk="proj_1").delete()
    assert compare("proj_1").found == found.found
    bucket.put(unread := "projects/proj_unknown/scenes/s1/notes.txt")
    nothing = compare("proj_unknown")
    assert nothing.agrees and counts(nothing) == dict.fromkeys(Way, 0)
    assert differing(nothing) == {unread: ((), (Why.NEVER_TRACKED, Why.NO_LAYOUT))}


def test_each_key_that_not_all_find_says_why(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1", "proj_1_a", "proj_2")
    deleted("proj_3")
    paths = {name: f"projects/proj_1/scenes/s1/media/{name}.mp4" for name in "abcdefgh"}
    others = "projects/proj_2/scenes/s1/media/mine.mp4"
    bucket.put(*(paths[name] for name in "abcd"), BOTH_NAMES, OUTSIDE, UNREAD, others)
    # R2 has no such keys, so the listing of one is made up.
    also_listed(monkeypatch, "projects/proj_1/scenes/s1/media/i\udcff.mp4")
    track(bucket, paths["b"], "proj_2")
    track(bucket, paths["c"], "proj_3")
    track(bucket, paths["d"], "proj_2", "backfill")
    track(bucket, BOTH_NAMES, None, "backfill")
    track(bucket, OUTSIDE, "proj_1")
    track(bucket, others, "proj_1", "backfill", updated_at=MARK)
    states = {"e": "stored", "f": "uploading", "g": "upload_failed", "h": "deleting"}
    lately = timezone.now() - timedelta(minutes=5)
    for name, row_state in states.items():
        at = lately if row_state in ("uploading", "deleting") else MARK
        track(bucket, paths[name], "proj_1", state=row_state, updated_at=at)
    found = compare("proj_1")
    assert differing(found) == {
        paths["a"]: ((LISTED, PARSED), (Why.NEVER_TRACKED,)),
        "projects/proj_1/scenes/s1/media/i\\xff.mp4": ((LISTED, PARSED), (Why.NEVER_TRACKED,)),
        paths["b"]: ((PARSED,), (Why.LIVE_UPLOAD,)),
        paths["c"]: ((PARSED,), (Why.OTHERS_UPLOAD,)),
        paths["d"]: ((PARSED,), (Why.OTHERS_ROW, Why.AMBIGUOUS)),
        BOTH_NAMES: ((PARSED,), (Why.NOBODYS_ROW, Why.AMBIGUOUS)),
        UNREAD: ((), (Why.NEVER_TRACKED, Why.NO_LAYOUT)),
        OUTSIDE: ((TRACKED, LISTED), (Why.OUTSIDE,)),
        others: ((TRACKED,), (Why.OTHERS_KEY, Why.OUTSIDE)),
        paths["e"]: ((TRACKED,), (Why.GONE,)),
        paths["f"]: ((TRACKED,), (Why.IN_HAND,)),
        paths["g"]: ((TRACKED,), (Why.NEVER_STORED,)),
        paths["h"]: ((TRACKED,), (Why.IN_HAND,)),
    }
    assert counts(found) == {TRACKED: 6, LISTED: 3, PARSED: 6}
    assert found.only_listed.first == [OUTSIDE]
    assert sorted(found.only_parsed.first) == sorted([*(paths[name] for name in "bcd"), BOTH_NAMES])
    assert not found.agrees
    reasons = (Why.NOBODYS_ROW, Why.AMBIGUOUS)
    doubt = next(d for d in found.differences if d.reasons == reasons)
    assert "live project proj_1_a" in doubt.examples[0].evidence
    # Processes that were killed have nothing in hand.
    R2Object.objects.filter(updated_at=lately).update(updated_at=MARK)
    left = differing(compare("proj_1"))
    assert left[paths["f"]] == ((TRACKED,), (Why.NEVER_STORED,))
    assert left[paths["h"]] == ((TRACKED,), (Why.GONE,))
    R2Object.objects.filter(key=paths["e"]).update(updated_at=timezone.now() + AHEAD)
    assert differing(compare("proj_1"))[paths["e"]] == ((TRACKED,), (Why.IN_HAND,))


def test_what_the_application_finds_is_what_a_cleanup_deletes(bucket: Bucket) -> None:
    alive("proj_1", "proj_1_a")
    bucket.put(HIERARCHICAL, FLAT, BOTH_NAMES, OUTSIDE, UNREAD)
    track(bucket, OUTSIDE, "proj_1")
    found = set(compare("proj_1").found[LISTED].first)
    before = bucket.keys()
    delete("proj_1")
    assert before - bucket.keys() == found == {HIERARCHICAL, FLAT, OUTSIDE}


@pytest.mark.parametrize("folds", [False, True])
def test_another_spelling_is_no_other_object_and_none_that_is_gone(
    bucket: Bucket, folds: bool
) -> None:
    alive("proj_1", "proj_2")
    if folds:
        fold_unicode(bucket)
    others = "projects/proj_1/scenes/s/media/ü.mp4"
    bucket.put(NFC, others)
    track(bucket, normalize("NFD", others), "proj_2")
    track(bucket, NFD, "proj_1", updated_at=MARK)
    gone = normalize("NFD", "projects/proj_1/scenes/s/media/ö.mp4")
    track(bucket, gone, "proj_1", updated_at=MARK)
    assert differing(compare("proj_1")) == {
        NFC: ((LISTED, PARSED), (Why.SPELLING,)),
        NFD: ((TRACKED,), (Why.SPELLING,)),
        gone: ((TRACKED,), (Why.GONE,)),
        others: (
            ((PARSED,), (Why.LIVE_UPLOAD,)) if folds else ((LISTED, PARSED), (Why.NEVER_TRACKED,))
        ),
    }


@pytest.mark.parametrize(
    ("behind", "is_there", "why"),
    [
        (timedelta(0), False, Why.IN_HAND),
        (AHEAD, True, Why.IN_HAND),
        (AHEAD, False, Why.GONE),
    ],
)
def test_a_row_that_changed_meanwhile_is_not_called_gone(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, behind: timedelta, is_there: bool, why: Why
) -> None:
    """By the clock of the web server that wrote it, this may have been earlier."""
    alive("proj_1")
    real = listing.pages

    def pages(*args: Any) -> Iterator[Any]:
        yield from real(*args)
        R2Object.objects.all().forget()
        track(bucket, HIERARCHICAL, "proj_1", updated_at=timezone.now() - behind)
        if is_there and args[1] == "projects/proj_1/scenes/":
            bucket.put(HIERARCHICAL)

    monkeypatch.setattr(listing, "pages", pages)
    assert differing(compare("proj_1")) == {HIERARCHICAL: ((TRACKED,), (why,))}


def test_counts_are_exact_where_only_the_first_keys_are_kept(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, less in [(s3, "PAGE", 3), (discovery_comparison, "LONE_KEYS", 2)]:
        monkeypatch.setattr(module, name, less)
    for name in ("FIRST_KEYS", "EXAMPLES"):
        monkeypatch.setattr(discovery_comparison, name, 2)
    alive("proj_1")
    keys = [f"projects/proj_1/scenes/s1/media/{n:02}.mp4" for n in range(11)]
    bucket.put(*keys[:7])
    for key in [*keys[::2], "exports/a", "exports/b", "exports/c"]:
        track(bucket, key, "proj_1", updated_at=MARK)
    found = compare("proj_1")
    assert counts(found) == {TRACKED: 9, LISTED: 7, PARSED: 7}
    assert found.found[PARSED].first == keys[:2]
    causes = {d.reasons: (d.count, [e.key for e in d.examples]) for d in found.differences}
    assert causes == {
        (Why.NEVER_TRACKED,): (3, [keys[1], keys[3]]),
        (Why.GONE,): (5, [keys[8], keys[10]]),
    }


def test_a_look_that_fails_anywhere_says_nothing(
    store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.upload("proj_1")
    store.rules.append(on(is_listing_under("proj_proj_1_"), KINDS["access-denied"].answer))
    with pytest.raises(StoreError, match="AccessDenied"):
        compare("proj_1")
    store.rules.clear()
    # A store that now and then lists nothing at all.
    marker = bucket_marker.find_marker(bucket.name)
    listed = iter([marker, marker, None, marker])
    monkeypatch.setattr(bucket_marker, "find_marker", lambda bucket: next(listed))
    with pytest.raises(StoreError, match="do not show the marker"):
        compare("proj_1")


def test_it_takes_no_longer_than_it_may(bucket: Bucket) -> None:
    with pytest.raises(DeadlinePassed):
        compare("proj_1", seconds=-1)


def test_a_bucket_of_somebody_else_is_not_compared(bucket: Bucket) -> None:
    bucket.r2.remove(bucket_marker.MARKER, bucket.name)
    with pytest.raises(CannotConclude, match="no marker"):
        compare("proj_1")
    with pytest.raises(CannotConclude, match="is no project id"):
        compare("p/../q")


def test_looking_changes_nothing(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    bucket.put(HIERARCHICAL)
    before = dump_everything(bucket)
    compare("proj_1")
    assert dump_everything(bucket) == before


def test_every_bucket_with_rows_of_the_project_is_compared(bucket: Bucket) -> None:
    track(Bucket(bucket.r2, "before"), HIERARCHICAL, "proj_1")
    assert buckets_of("proj_1") == ["before", "tests"]


def test_keys_of_several_buckets_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery_comparison, "FIRST_KEYS", 3)
    both = Keys(2, ["a", "b"]) + Keys(9, ["c", "d"])
    assert (both.count, both.first) == (11, ["a", "b", "c"])


def test_the_command_shows_both_discoveries_and_the_reasons(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    assert run_command("compare_discovery", "proj_1") == (
        "proj_1 in bucket tests: 1 tracked, 1 found by the application, 1 named by the key"
        " itself.\nAll three find the same.\n",
        "",
        0,
    )
    bucket.put("projects/proj_1/scenes/s1/media/evil\x1b[2J.mp4")
    track(bucket, FLAT, "proj_1", updated_at=MARK)
    assert run_command("compare_discovery", "proj_1") == (
        "proj_1 in bucket tests: 2 tracked, 2 found by the application, 2 named by the key"
        " itself.\n"
        "1 only tracked: The object is gone from the bucket.\n"
        f"  {FLAT} (upload)\n"
        "1 found by the application and named by the key itself, but not tracked: No row tracks"
        " it: begin a backfill.\n"
        "  projects/proj_1/scenes/s1/media/evil\\x1b[2J.mp4 (hierarchical: proj_1.)\n",
        "CommandError: They differ; the reasons are above.\n",
        1,
    )
    facts, code = run_json("compare_discovery", "proj_1")
    [compared] = facts["comparisons"]
    assert (code, compared["agrees"], compared["listed"], compared["parsed"]) == (1, False, 2, 2)
    assert [d["reasons"] for d in compared["differences"]] == [["gone"], ["never_tracked"]]
    assert run_command("compare_discovery", "p/../q")[2] == 2
    call_command("backfill_r2")
    R2Object.objects.filter(key=FLAT).delete()
    assert run_command("compare_discovery", "proj_1")[2] == 0


def test_the_page_of_a_project_leads_to_the_same(bucket: Bucket) -> None:
    alive("proj_1")
    bucket.put("projects/proj_1/scenes/s1/media/<b>evil\x1b.mp4")
    track(bucket, FLAT, "proj_1", updated_at=MARK)
    client = person("verify_cleanup")
    [address] = re.findall('href="(/[^"]*/compare/[^"]*)"', project_page(client))
    shown = text_of(client.get(address))
    assert "They differ" in shown
    assert "No row tracks it: begin a backfill." in shown and "The object is gone" in shown
    assert "&lt;b&gt;evil\\x1b.mp4" in shown and "<b>" not in shown
    R2Object.objects.all().forget()
    bucket.wipe()
    assert "holds no marker of this installation" in text_of(client.get(address))
    assert "They differ" not in text_of(client.get(address))
    client.logout()
    assert client.get(address).status_code == 302


def project_page(client: Client) -> str:
    return text_of(client.get(page("project", "change", "proj_1")))


def test_only_who_may_verify_is_led_there(bucket: Bucket) -> None:
    alive("proj_1")
    client = person("dry_run_cleanup")
    assert "/compare/" not in project_page(client)
    assert "/compare/" not in text_of(client.get(page("cleanupoperation")))
    assert client.get(reverse("admin:storage_audit_compare")).status_code == 403


def test_the_page_lists_no_longer_than_a_person_waits(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, address = person("verify_cleanup"), reverse("admin:storage_audit_compare")
    assert "is not a project id" in text_of(client.get(address, {"project_id": "p/../q"}))
    agreed = text_of(client.get(address, {"project_id": "proj_gone"}))
    assert "All three find the same" in agreed
    monkeypatch.setattr(comparison_page, "SECONDS", -1.0)
    shown = text_of(client.get(address, {"project_id": "proj_gone"}))
    assert "Run <code>manage.py compare_discovery proj_gone</code> instead" in shown
