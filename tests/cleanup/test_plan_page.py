"""A dry run as a document: what would go and what stays, and what became of it once it was run."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from django.utils.html import escape
from pytest_django import Settings

from storage_audit.bucket import prices, request_stats
from storage_audit.cleanup import plan_summary, requests, runner
from storage_audit.cleanup.admin import plan_page
from storage_audit.cleanup.cleanup_text import PROJECT_EXISTS_TEXT
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.models.lease_and_status import LeaseLost
from storage_audit.display_formats import format_utc
from storage_audit.findings.orphans import delete_objects
from tests.admin_client import (
    admin_url,
    confirm_action,
    count_queries,
    page_text,
    read_totals,
    run_action,
    staff_client,
    superuser_client,
    url_of_cleanup,
)
from tests.builders import add_items, create_cleanup, create_findings, list_ids
from tests.held import delete_held, grant_grace
from tests.keys import ESCAPED, HOSTILE, KEY, OTHER_KEY
from tests.promises import (
    create_projects,
    read_outcomes,
    read_reason,
    run_again,
    run_until_idle,
    track_key,
)
from tests.real_bucket import Bucket

Status = Cleanup.Status
MEDIA = "projects/proj_1/scenes/s1/media/"
FLAT, AMBIGUOUS = "proj_1_s1_media.mp4", "proj_1_x_s1_media.mp4"
BUTTON = 'value="Run this plan'


def plan(project_id: str = "proj_1") -> Cleanup:
    """Of a project that is gone already, as that of a live one cannot be run."""
    return run_until_idle(requests.request_preview(project_id)[0])


def execute(cleanup: Cleanup) -> Cleanup:
    """Press the button, say yes, and let a worker take it."""
    assert BUTTON in shown(cleanup)
    confirm_action(superuser_client(), "cleanup", "force_delete", cleanup.pk)
    return runner.run_to_end(cleanup.pk)


def shown(cleanup: Cleanup) -> str:
    return page_text(superuser_client().get(f"{url_of_cleanup(cleanup)}?tab=plan"))


def named(part: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {row["name"]: (row["objects"], row["bytes"]) for row in part["rows"]}


def line(name: str, *cells: object) -> str:
    """A row of one of the plan's tables."""
    given = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<th scope="row"><code class="audit-key">{name}</code></th>{given}'


def test_plan_tells_folders_types_and_the_largest_to_the_byte(bucket: Bucket) -> None:
    bucket.put(f"{MEDIA}a.mp4", f"{MEDIA}b.MP4", body=b"x" * 3000)
    bucket.put("projects/proj_1/scenes/s2/media/deep/er/c.srt", body=b"four")
    bucket.put(FLAT, body=b"seven ..")
    bucket.put("audio/proj_1/s1/no-type", body=b"12345")
    cleanup = plan()
    summary = cleanup.plan_summary
    assert summary["go"] == {"objects": 5, "bytes": 6017}
    assert named(summary["folders"]) == {
        "projects/proj_1/scenes/s1/": (2, 6000),
        "projects/proj_1/scenes/s2/": (1, 4),
        "audio/proj_1/s1/": (1, 5),
        "": (1, 8),
    }
    assert named(summary["types"]) == {"mp4": (3, 6008), "srt": (1, 4), "audio": (1, 5)}
    assert [size for size, _key in summary["largest"]] == [3000, 3000, 8, 5, 4]
    text = shown(cleanup)
    assert line("projects/proj_1/scenes/s1/", 2, "5.9 KB") in text
    assert line("(no folder)", 1, "8 bytes") in text
    assert line("mp4", 3, "5.9 KB") in text
    assert line(FLAT, "8 bytes") in text
    assert "<dd>5 files, 5.9 KB</dd>" in text and "<dd>0 files, 0 bytes</dd>" in text
    assert "Nothing. All files can be deleted." in text


def test_plan_tells_what_would_stay_with_reasons_and_keys(bucket: Bucket) -> None:
    create_projects("proj_1_x")
    bucket.put(FLAT)
    bucket.put(AMBIGUOUS, body=b"four")
    track_key(bucket, f"{MEDIA}lost.mp4", "proj_1", size=5)
    cleanup = plan()
    assert read_outcomes(cleanup)[AMBIGUOUS] == "kept"
    text = shown(cleanup)
    assert "<dd>1 file, 7 bytes</dd>" in text and "<dd>1 file, 4 bytes</dd>" in text
    assert (
        "1 tracked file is not in the bucket: only its record is deleted."
        " It is counted above among those to be deleted."
    ) in text
    assert read_totals(text)["to_delete"][0] == "2"
    why = f"<strong>{read_reason(cleanup, AMBIGUOUS)}</strong> 1 file, 4 bytes,"
    assert f'{why} <a href="?outcome=kept#items">kept</a>' in text
    assert f'<li><code class="audit-key">{AMBIGUOUS}</code></li>' in text


def test_many_folders_and_types_are_cut_and_none_is_lost(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_summary, "ITEMS_PER_QUERY", 7)
    cleanup = create_cleanup("planned")
    for n in range(40):
        add_items(cleanup, 1, key=f"projects/proj_1/scenes/s{n}/media/a.t{n}")
    add_items(cleanup, 2, key="projects/proj_1/scenes/s7/media/b.t7", reason="")
    folders = plan_summary.summarise_plan(cleanup)["folders"]
    assert folders["rows"][0]["name"] == "projects/proj_1/scenes/s7/"
    assert (len(folders["rows"]), folders["others"], folders["objects"]) == (30, 10, 10)
    cleanup.found = 42
    cleanup.save()
    assert "… and 10 more, with 10 files, 100 bytes." in shown(cleanup)
    monkeypatch.setattr(plan_summary, "MAX_GROUPS", 20)
    summary = plan_summary.summarise_plan(cleanup)
    assert named(summary["folders"]) == {"projects/proj_1/scenes/": (42, 420)}
    assert sum(row["objects"] for row in summary["types"]["rows"]) == 42


# Run this plan


def test_running_a_plan_says_that_the_deletion_is_held_and_can_be_undone(
    bucket: Bucket, settings: Settings
) -> None:
    grant_grace(settings)
    create_projects("proj_1")
    delete_held()
    bucket.put(f"{MEDIA}late.mp4")
    cleanup = plan()
    client = superuser_client()
    page = page_text(client.get(admin_url("cleanup", "change", cleanup.pk)))
    asked = run_action(client, "cleanup", "force_delete", cleanup.pk)
    for text in (page, asked):
        assert "Deletes exactly these files when the hold ends, on" in text
        assert "You can undo the deletion until then." in text
        assert "undo this" not in text


def test_run_deletes_a_subset_and_lists_what_dropped_out_with_reasons(bucket: Bucket) -> None:
    keys = [f"{MEDIA}{n}.mp4" for n in range(4)]
    bucket.put(*keys, AMBIGUOUS, "proj_1_y_s1_media.mp4")
    create_projects("proj_1_y")
    cleanup = plan()
    assert cleanup.plan_summary["go"]["objects"] == 5
    bucket.put(keys[0], body=b"overwritten")
    bucket.r2.remove(keys[1], bucket.name)
    create_projects("proj_1_x")
    bucket.put(f"{MEDIA}late.mp4")
    cleanup = execute(cleanup)
    assert bucket.keys() == {
        keys[0],
        AMBIGUOUS,
        "proj_1_y_s1_media.mp4",
        f"{MEDIA}late.mp4",
    }
    text = shown(cleanup)
    for label, then, now in (
        ("Deleted", "5 files, 35 bytes", "2 files, 14 bytes"),
        ("Already gone", "0 files, 0 bytes", "1 file, 7 bytes"),
        ("Kept", "1 file, 7 bytes", "4 files, 28 bytes"),
        ("Failed", "0 files, 0 bytes", "0 files, 0 bytes"),
    ):
        assert f'<th scope="row">{label}</th><td>{then}</td><td>{now}</td>' in text
    assert dropped_on(text) == {
        keys[0]: read_reason(cleanup, keys[0]),
        keys[1]: "Not in the bucket any more.",
        AMBIGUOUS: (
            "The name also fits an existing project: proj_1_x. It will be deleted with that"
            " project."
        ),
        f"{MEDIA}late.mp4": read_reason(cleanup, f"{MEDIA}late.mp4"),
    }
    assert "overwritten after the plan" in read_reason(cleanup, keys[0])
    assert "1 of these is newer than the plan" in text
    assert "Run by anna." in text and BUTTON not in text


def dropped_on(text: str) -> dict[str, str]:
    """The keys that are listed as dropped out, each with its reason."""
    listed = text.split("Kept files")[1].split("<details>")[0]
    found = dict[str, str]()
    for part in listed.split("<li><strong>")[1:]:
        why, keys = part.split("</strong>", 1)
        found |= dict.fromkeys(re.findall('audit-key">(.*?)</code>', keys), why)
    return found


def test_plan_that_is_run_as_it_was_tells_that_and_costs_no_more_than_it_says(
    bucket: Bucket,
) -> None:
    bucket.put(*(f"{MEDIA}{n}.mp4" for n in range(20)), "audio/proj_1/s1/a.mp4")
    bucket.put(FLAT, body=b"the largest")
    for key in (f"{MEDIA}lost.mp4", "elsewhere"):
        track_key(bucket, key, "proj_1", size=5)
    cleanup = plan()
    with request_stats.take_counts():
        pass
    cleanup = execute(cleanup)
    with request_stats.take_counts() as taken:
        took = prices.cost_in_dollars((kind, n) for (kind, _result), n in taken.items())
    assert (cleanup.status, cleanup.already_gone) == (Status.CLEAN, 2)
    text = shown(cleanup)
    assert "Nothing. All planned files are gone." in text
    assert "What the plan said" in text and line(FLAT, "11 bytes") in text
    assert 0 < took <= prices.cost_in_dollars(cleanup.plan_summary["calls"].items()) < 2 * took


def test_what_failed_dropped_out_but_not_what_the_plan_could_not_name(db: None) -> None:
    planned_at = timezone.now() - timedelta(hours=1)
    cleanup = create_cleanup("pending", planned_at=planned_at, plan_summary={"go": 1})
    add_items(cleanup, 1, key="kept", outcome="failed", reason="Still in the bucket; no answer")
    add_items(cleanup, 1, key="nameless", outcome="failed", reason="No request", escaped=True)
    add_items(cleanup, 1, outcome="kept", reason="in doubt", changed_at=planned_at)
    add_items(cleanup, 1, outcome="already_gone", found_in="tracked")
    assert cleanup.acquire_lease()
    plan_summary.add_dropped_items(cleanup)
    [row] = cleanup.plan_summary["dropped"]["rows"]
    assert (row["name"], row["keys"]) == ("failed Still in the bucket; no answer", ["kept"])


def test_a_run_that_is_not_over_says_so(db: None) -> None:
    cleanup = create_cleanup("planned")
    cleanup.plan_summary = plan_summary.summarise_plan(cleanup)
    cleanup.save()
    requests.approve_or_retry(cleanup)
    text = shown(cleanup)
    assert "Not finished yet." in text and "Nothing. All planned" not in text


def test_plan_of_a_project_that_lives_again_says_why_it_all_stays(bucket: Bucket) -> None:
    bucket.put(FLAT)
    cleanup = plan()
    requests.approve_or_retry(cleanup)
    create_projects("proj_1")
    cleanup = run_until_idle(cleanup)
    assert cleanup.status == Status.SUPERSEDED and bucket.keys() == {FLAT}
    assert dropped_on(shown(cleanup)) == {FLAT: escape(cleanup.message)}


def test_what_was_sent_and_never_answered_before_the_project_lives_again_dropped_out(
    bucket: Bucket,
) -> None:
    bucket.put(FLAT)
    cleanup = plan()
    requests.approve_or_retry(cleanup)
    cleanup.items.update(outcome="deleting", calls=1, changed_at=timezone.now())
    create_projects("proj_1")
    cleanup = run_until_idle(cleanup)
    assert cleanup.status == Status.SUPERSEDED and bucket.keys() == {FLAT}
    text = shown(cleanup)
    assert dropped_on(text) == {FLAT: read_reason(cleanup, FLAT)}
    assert "Nothing. All planned files are gone." not in text


def test_plan_of_orphans_is_shown_run_and_told_of(bucket: Bucket, settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"ORPHAN_AGE": timedelta(microseconds=1)}
    bucket.put(KEY, OTHER_KEY)
    found = create_findings(bucket, KEY, OTHER_KEY)
    [cleanup] = delete_objects(list_ids(found), dry_run=True).cleanups
    cleanup = run_until_idle(cleanup)
    assert line("projects/proj_9/scenes/s1/", 2, "14 bytes") in shown(cleanup)
    bucket.put(OTHER_KEY, body=b"another")
    cleanup = execute(cleanup)
    assert bucket.keys() == {OTHER_KEY}
    assert dropped_on(shown(cleanup)) == {OTHER_KEY: read_reason(cleanup, OTHER_KEY)}


# Who may, and what stands in the way


def test_who_may_not_run_it_sees_the_button_disabled_with_the_reason(db: None) -> None:
    text = page_text(staff_client().get(url_of_cleanup(create_cleanup("planned", dry_run=True))))
    assert re.search(f'{BUTTON}[^"]*" disabled', text)
    assert "<small>You need permission. Ask an administrator to add you" in text


def test_plan_of_a_live_project_says_why_it_has_no_button(db: None) -> None:
    create_projects("proj_1")
    text = shown(create_cleanup("planned", project_id="proj_1", dry_run=True))
    assert BUTTON not in text and escape(str(PROJECT_EXISTS_TEXT)) in text


def test_a_plan_says_which_limit_would_stop_it(db: None) -> None:
    stopped = "A safety limit would stop this plan: 2 are more than 1."
    assert stopped in shown(create_cleanup("planned", message="2 are more than 1."))
    assert "A safety limit would" not in shown(create_cleanup("planned"))


def test_plan_of_yesterday_says_that_what_changed_drops_out(db: None) -> None:
    now, hint = timezone.now(), "This plan is more than a day old."
    assert hint not in shown(create_cleanup("planned", planned_at=now - timedelta(hours=23)))
    text = shown(
        create_cleanup("planned", planned_at=now - timedelta(hours=25), plan_digest="0" * 64)
    )
    assert hint in text and "0" * 64 in text
    assert f">{format_utc(now - timedelta(hours=25))}</time>" in text


# How it is made


def test_figures_are_written_under_the_lease_and_change_no_digest(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put(FLAT)
    before, original = [], plan_summary.summarise_plan

    def lose_the_lease(cleanup: Cleanup, *args: Any) -> dict[str, Any]:
        before.append(cleanup.plan_digest)
        Cleanup.objects.update(lease_until=timezone.now())
        return original(cleanup)

    monkeypatch.setattr(plan_summary, "summarise_plan", lose_the_lease)
    [cleanup] = requests.request_preview("proj_1")
    assert runner.run_turn(cleanup.pk) is None
    cleanup.refresh_from_db()
    assert (cleanup.status, cleanup.plan_summary) == (Status.RUNNING, {})
    monkeypatch.undo()
    cleanup = run_again(cleanup)
    assert cleanup.status == Status.PLANNED and cleanup.plan_summary["go"]["objects"] == 1
    assert before == [cleanup.plan_digest] == [plan_summary.hash_plan(cleanup)]


def test_the_lease_is_renewed_while_many_items_are_gone_through(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_summary, "ITEMS_PER_QUERY", 10)
    cleanup, renewed = create_cleanup("running"), list[bool]()
    add_items(cleanup, 40)
    plan_summary.summarise_plan(cleanup, lambda: renewed.append(True))
    assert len(renewed) == 4
    with pytest.raises(LeaseLost):
        plan_summary.summarise_plan(cleanup, cleanup.renew)


def test_a_plan_frozen_without_figures_is_summed_up_if_it_is_small(db: None) -> None:
    cleanup = create_cleanup("planned", found=3)
    add_items(cleanup, 3)
    assert "<dd>3 files, 30 bytes</dd>" in shown(cleanup)
    Cleanup.objects.update(found=plan_page.MAX_SUMMARISED_ITEMS + 1)
    text = shown(cleanup)
    assert "too large to be summed up here" in text and BUTTON in text


def test_keys_that_no_prefix_covers_cost_a_call_each_before_and_after(db: None) -> None:
    near, alone = create_cleanup("planned", listed_prefixes=["a/"]), create_cleanup("planned")
    add_items(near, 300, range_index=0)
    add_items(alone, 300)
    costs = [plan_summary.summarise_plan(each)["calls"]["ListObjectsV2"] for each in (near, alone)]
    assert costs[0] < 50 and 600 <= costs[1] < 650


def test_time_is_told_by_the_latest_cleanups_with_the_same_strategy(db: None) -> None:
    cleanup = create_cleanup("planned")
    usual = {"rate": 4000.0, "cleanups": 0}
    now = timezone.now()
    ended = {"started_at": now - timedelta(seconds=10), "finished_at": now}
    create_cleanup("clean", deleted=5000, found=5000, strategy="sequential", **ended)
    create_cleanup("clean", deleted=1, found=1, **ended)
    assert plan_summary.measure_speed(cleanup) == usual
    create_cleanup("clean", deleted=2000, found=2000, **ended)
    create_cleanup("clean_with_kept", deleted=4000, found=4000, **ended)
    assert plan_summary.measure_speed(cleanup) == {"rate": 300.0, "cleanups": 2}
    # One that an outage kept waiting for a day.
    waited = {"started_at": now - timedelta(days=1), "finished_at": now}
    create_cleanup("clean", deleted=2000, found=2000, **waited)
    assert plan_summary.measure_speed(cleanup) == {"rate": 200.0, "cleanups": 3}
    cleanup.strategy = "wrangler_sequential"
    assert plan_summary.measure_speed(cleanup)["rate"] <= 1


@pytest.mark.parametrize(
    ("objects", "said"),
    [(10, "less than a minute"), (60_000, "about 1 minute"), (36_000_000, "about 10 hours")],
)
def test_time_is_told_in_words(objects: int, said: str) -> None:
    summary = {"go": {"objects": objects}, "speed": {"rate": 1000.0, "cleanups": 2}}
    assert plan_page.estimated_time(summary) == said


def test_hostile_keys_and_reasons_are_shown_as_text(db: None) -> None:
    cleanup = create_cleanup("planned", found=2)
    add_items(cleanup, 1, key=f"{HOSTILE}/{HOSTILE}", identity="a")
    add_items(cleanup, 1, key=HOSTILE, identity="b", outcome="kept", reason=HOSTILE)
    text = shown(cleanup)
    assert f"<strong>{ESCAPED}</strong>" in text
    assert f'<li><code class="audit-key">{ESCAPED}</code></li>' in text
    folder, _slash, name = ESCAPED.rpartition("/")
    assert line(f"{folder}/{name}/{folder}/", 1, "10 bytes") in text
    assert line(f"{ESCAPED}/{ESCAPED}", "10 bytes") in text
    assert "<script>alert" not in text and "\u202e" not in text


def test_page_costs_the_same_for_a_small_and_a_large_plan_and_sums_nothing_up(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, costs, summarise = superuser_client(), list[int](), plan_summary.summarise_plan
    monkeypatch.setattr(plan_summary, "summarise_plan", None)
    for status in ("planned", "clean_with_kept"):
        for n in (1, 60):
            cleanup = create_cleanup(status, planned_at=timezone.now() - timedelta(hours=1))
            for i in range(n):
                key = f"projects/proj_1/scenes/s{i}/media/a.t{i}"
                add_items(cleanup, 1, key=key, outcome="kept", reason=f"in doubt {i}")
                add_items(cleanup, 1, key=f"{key}2")
            summary = summarise(cleanup)
            cleanup.plan_summary = summary | {"dropped": summary["reasons"]}
            cleanup.save()
            costs.append(count_queries(client, url_of_cleanup(cleanup)))
    assert costs[0] == costs[1] and costs[2] == costs[3]
