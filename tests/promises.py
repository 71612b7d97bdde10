"""What the tests of cleanups do and demand again and again."""

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from storage_audit.bucket import deleters, listing
from storage_audit.bucket.deleters import SendResult
from storage_audit.cleanup import delete_batches, make_cleanups, requests, retention, runner, verify
from storage_audit.cleanup.delete_pipeline import PlannedItem, RecheckedBatch
from storage_audit.cleanup.delete_projects import delete_project_by_id
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.cleanup.worker_turn import Turn
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.request_origin import Origin, use_origin
from tests.faults.kinds import change_reply
from tests.faults.matching import is_delete_batch, is_listing, rule_for, sent_keys
from tests.faults.pages import find_entries, with_entries
from tests.faults.proxy import FaultyStore
from tests.real_bucket import Bucket

Status = Cleanup.Status
FLAT_KEY, HIERARCHICAL_KEY = "proj_1_s1_media.mp4", "projects/proj_1/scenes/s1/media/old.mp4"


def create_projects(*ids: str) -> None:
    for project_id in ids:
        Project.objects.create(pk=project_id)


def record_deleted_projects(*ids: str) -> None:
    """Projects that were deleted, and whose own cleanups are no part of the test."""
    for project_id in ids:
        KnownProject.objects.create(pk=project_id, evidence="deleted", deleted_at=timezone.now())


def request_cleanup(project_id: str) -> Cleanup:
    """Delete the project; the cleanup that this makes, not yet run."""
    Project.objects.get(pk=project_id).delete()
    return Cleanup.objects.filter(project_id=project_id).latest("created_at")


def force_delete(project_id: str, user: str) -> list[Cleanup]:
    with use_origin(Origin(user, "a test", forced=True)):
        return delete_project_by_id(project_id)


def run_until_idle(cleanup: Cleanup) -> Cleanup:
    """Do what workers would do until nothing is to be done now."""
    return runner.run_to_end(cleanup.pk)


def clean_up_project(project_id: str) -> Cleanup:
    return run_until_idle(request_cleanup(project_id))


def send_deletions(
    strategy: str, bucket: str, keys: list[str], *, until: float, size: int = 1, calls: int = 1
) -> SendResult:
    """Ask the store for these deletions, and nobody whether they may be."""
    with ThreadPoolExecutor(calls) as pool:
        return deleters.send_deletions(
            strategy, bucket, keys, until=until, size=size, pool=pool, stop=Event()
        )


def make_due(cleanup: Cleanup) -> Cleanup:
    """Let the time of the next attempt come."""
    assert cleanup.next_attempt_at is not None
    Cleanup.objects.filter(pk=cleanup.pk).update(next_attempt_at=timezone.now())
    return cleanup


def run_again(cleanup: Cleanup) -> Cleanup:
    return run_until_idle(make_due(cleanup))


def end_pause(cleanup: Cleanup) -> Cleanup:
    """The one before a cleanup looks again for files that are missing."""
    cleanup.refresh_from_db()
    assert cleanup.status == Status.RUNNING and cleanup.lease_until is None
    assert run_until_idle(make_due(cleanup)).status == Status.RUNNING
    return run_again(skip_pause(cleanup))


def skip_pauses() -> None:
    """The same where the worker is another process, and has the whole minute."""
    waiting = {"status": Status.RUNNING, "lease_until": None, "position__has_key": "confirm_at"}
    for cleanup in Cleanup.objects.filter(**waiting, next_attempt_at__gt=timezone.now()):
        make_due(skip_pause(cleanup))
        make_cleanups.enqueue_cleanup(cleanup.pk)


def skip_pause(cleanup: Cleanup) -> Cleanup:
    position = replace(cleanup.position, confirm_at=timezone.now())
    Cleanup.objects.filter(pk=cleanup.pk).update(position=position)
    return cleanup


def run_follow_up(cleanup: Cleanup) -> Cleanup:
    """Run the first of the follow-up checks that follow the cleanup."""
    return run_again(cleanup.children.order_by("next_attempt_at")[0])


def read_outcomes(cleanup: Cleanup) -> dict[str, str]:
    return dict(cleanup.items.values_list("key", "outcome"))


def read_reason(cleanup: Cleanup, key: str) -> str:
    return cleanup.items.get(key=key).reason


def hide_key(store: FaultyStore, key: str) -> None:
    """From now on no listing shows it, until the rules are cleared."""
    name = key.rpartition("/")[2]

    def without(xml: str) -> str:
        return with_entries(xml, [entry for entry in find_entries(xml) if name not in entry])

    store.rules.append(rule_for(is_listing, change_reply(without)))


def track_key(
    bucket: Bucket, key: str, project_id: str | None, source: str = "upload", **values: Any
) -> R2Object:
    """A tracking row, whether or not there is such an object."""
    facts = {"bucket": bucket.name, "state": "stored", "source": source, **values}
    return R2Object.objects.create(key=key, project_id=project_id, **facts)


def assign_object(bucket: Bucket, key: str, project_id: str, *, spelled: str = "") -> R2Object:
    """A row by which a person gave the object that is there to the project."""
    facts = list_facts(bucket)[key]
    return track_key(bucket, spelled or key, project_id, "assigned", **facts)


def list_facts(bucket: Bucket) -> dict[str, dict[str, Any]]:
    """What a row says of each object."""
    listed = (each for page in listing.object_pages(bucket.name, "") for each in page)
    return {
        each.key: {"size": each.size, "etag": each.etag, "last_modified": each.last_modified}
        for each in listed
    }


def check_promises(bucket: Bucket) -> None:
    """What must hold at any moment: nothing is called gone that is there, and totals close."""
    there = bucket.keys()
    for item in CleanupItem.objects.filter(outcome__in=["deleted", "already_gone"]):
        assert item.key not in there, f"{item.key} is called {item.outcome}, and is there"
    for cleanup in Cleanup.objects.filter(status__in=Cleanup.FINISHED):
        check_totals(cleanup)


def check_totals(cleanup: Cleanup) -> None:
    cleanup.refresh_from_db()
    found, size = sum_totals(cleanup, ("deleted", "already_gone", "kept", "failed"))
    assert (cleanup.found, cleanup.found_bytes) == (found, size)
    assert cleanup.found == cleanup.items.count()
    assert cleanup.deleted == cleanup.items.filter(outcome="deleted").count()
    assert cleanup.kept == cleanup.items.filter(outcome="kept").count()


def sum_totals(cleanup: Cleanup, names: Iterable[str]) -> tuple[int, int]:
    figures = [(getattr(cleanup, n), getattr(cleanup, f"{n}_bytes")) for n in names]
    return sum(n for n, _size in figures), sum(size for _n, size in figures)


def act_before_batch(patch: pytest.MonkeyPatch, *effects: Callable[[], object]) -> None:
    """Let these happen once, after the plan is frozen and before its first batch is proved."""
    original, todo = delete_batches.recheck_batch, list(effects)

    def prove(work: Turn, batch: list[PlannedItem]) -> RecheckedBatch:
        while todo:
            todo.pop(0)()
        return original(work, batch)

    patch.setattr(delete_batches, "recheck_batch", prove)


def act_before_verification(patch: pytest.MonkeyPatch, *effects: Callable[[], object]) -> None:
    """Let these happen once, after the first look at what was deleted has begun."""
    original, todo = verify.relist_lone_keys, list(effects)

    def look_at_keys(work: Turn) -> None:
        while todo:
            todo.pop(0)()
        original(work)

    patch.setattr(verify, "relist_lone_keys", look_at_keys)


def fill_project(bucket: Bucket, count: int) -> list[str]:
    """The files of a project."""
    create_projects("proj_1")
    keys = [f"projects/proj_1/scenes/s1/media/{n:03}.mp4" for n in range(count)]
    bucket.put(*keys)
    return keys


def prune_cleanups(folder: Path, older_than: timedelta = timedelta(days=400)) -> list[Cleanup]:
    return list(retention.prune_cleanups(folder, timezone.now() - older_than))


def acquire_lease(cleanup: Cleanup) -> bool:
    with transaction.atomic():
        return cleanup.acquire_lease()


def dump_cleanup(cleanup: Cleanup) -> dict[str, object]:
    """All that is stored of it."""
    return {
        "cleanup": Cleanup.objects.values().get(pk=cleanup.pk),
        "items": list(CleanupItem.objects.order_by("pk").values()),
        "events": cleanup.events.count(),
    }


def verify_project(project_id: str) -> Cleanup:
    (cleanup,) = requests.request_verification(project_id)
    return run_until_idle(cleanup)


def take_over_lease(cleanup: Cleanup, **values: Any) -> Cleanup:
    """Let the lease of a worker that died end, so that the next one may go on."""
    past = timezone.now() - timedelta(seconds=1)
    Cleanup.objects.filter(lease_until__isnull=False).update(lease_until=past)
    Cleanup.objects.filter(pk=cleanup.pk).update(next_attempt_at=past, **values)
    return run_until_idle(cleanup)


def list_gone(cleanup: Cleanup) -> set[str]:
    return {
        key for key, out in read_outcomes(cleanup).items() if out in ("deleted", "already_gone")
    }


def count_sent(store: FaultyStore) -> Counter[str]:
    """How often the store was asked to delete each key."""
    calls = store.find_requests(is_delete_batch)
    return Counter(key for call in calls for key in sent_keys(call))
