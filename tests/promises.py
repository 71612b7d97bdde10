"""What the tests of cleanups do and demand again and again."""

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from storage_audit.bucket import deleters, listing
from storage_audit.bucket.deleters import Sent
from storage_audit.cleanup import delete_batches, requests, retention, runner, verify
from storage_audit.cleanup.delete_pipeline import Planned, Proof
from storage_audit.cleanup.delete_projects import delete_project_by_id
from storage_audit.cleanup.models import CleanupItem, CleanupOperation
from storage_audit.cleanup.turn import Work
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.origin import Origin, acting_as
from tests.faults.kinds import changed
from tests.faults.matching import is_delete_batch, is_listing, keys_sent, on
from tests.faults.pages import contents, with_contents
from tests.faults.proxy import FaultyStore
from tests.real_bucket import Bucket

Status = CleanupOperation.Status
FLAT, HIERARCHICAL = "proj_1_s1_media.mp4", "projects/proj_1/scenes/s1/media/old.mp4"


def alive(*ids: str) -> None:
    for project_id in ids:
        Project.objects.create(pk=project_id)


def deleted(*ids: str) -> None:
    """Projects that were deleted, and whose own cleanups are no part of the test."""
    for project_id in ids:
        KnownProject.objects.create(pk=project_id, evidence="deleted", deleted_at=timezone.now())


def requested(project_id: str) -> CleanupOperation:
    """Delete the project; the cleanup that this makes, not yet run."""
    Project.objects.get(pk=project_id).delete()
    return CleanupOperation.objects.filter(project_id=project_id).latest("created_at")


def force_delete(project_id: str, user: str) -> list[CleanupOperation]:
    with acting_as(Origin(user, "a test", forced=True)):
        return delete_project_by_id(project_id)


def run(operation: CleanupOperation) -> CleanupOperation:
    """Do what workers would do until nothing is to be done now."""
    return runner.run(operation.pk)


def delete(project_id: str) -> CleanupOperation:
    return run(requested(project_id))


def send(
    strategy: str, bucket: str, keys: list[str], *, until: float, size: int = 1, calls: int = 1
) -> Sent:
    """Ask the store for these deletions, and nobody whether they may be."""
    with ThreadPoolExecutor(calls) as pool:
        return deleters.delete(
            strategy, bucket, keys, until=until, size=size, pool=pool, stop=Event()
        )


def make_due(operation: CleanupOperation) -> CleanupOperation:
    """Let the time of the next attempt come."""
    assert operation.next_attempt_at is not None
    CleanupOperation.objects.filter(pk=operation.pk).update(next_attempt_at=timezone.now())
    return operation


def again(operation: CleanupOperation) -> CleanupOperation:
    return run(make_due(operation))


def let_the_pause_end(operation: CleanupOperation) -> CleanupOperation:
    """The one before a cleanup looks again for files that are missing."""
    operation.refresh_from_db()
    assert operation.status == Status.RUNNING and operation.lease_until is None
    assert run(make_due(operation)).status == Status.RUNNING
    return again(skip_pause(operation))


def skip_pauses() -> None:
    """The same where the worker is another process, and has the whole minute."""
    waiting = {"status": Status.RUNNING, "lease_until": None, "cursor__has_key": "again_at"}
    for operation in CleanupOperation.objects.filter(**waiting, next_attempt_at__gt=timezone.now()):
        make_due(skip_pause(operation))
        requests.enqueue(operation.pk)


def skip_pause(operation: CleanupOperation) -> CleanupOperation:
    cursor = {**operation.cursor, "again_at": timezone.now().isoformat()}
    CleanupOperation.objects.filter(pk=operation.pk).update(cursor=cursor)
    return operation


def late_check(operation: CleanupOperation) -> CleanupOperation:
    """Run the first of the late checks that follow the operation."""
    return again(operation.children.order_by("next_attempt_at")[0])


def outcomes(operation: CleanupOperation) -> dict[str, str]:
    return dict(operation.items.values_list("key", "outcome"))


def reason(operation: CleanupOperation, key: str) -> str:
    return operation.items.get(key=key).reason


def hide(store: FaultyStore, key: str) -> None:
    """From now on no listing shows it, until the rules are cleared."""
    name = key.rpartition("/")[2]

    def without(xml: str) -> str:
        return with_contents(xml, [entry for entry in contents(xml) if name not in entry])

    store.rules.append(on(is_listing, changed(without)))


def track(
    bucket: Bucket, key: str, project_id: str | None, source: str = "upload", **values: Any
) -> R2Object:
    """A tracking row, whether or not there is such an object."""
    facts = {"bucket": bucket.name, "state": "stored", "source": source, **values}
    return R2Object.objects.create(key=key, project_id=project_id, **facts)


def give(bucket: Bucket, key: str, project_id: str, *, spelled: str = "") -> R2Object:
    """A row by which a person gave the object that is there to the project."""
    facts = list_facts(bucket)[key]
    return track(bucket, spelled or key, project_id, "adopted", **facts)


def list_facts(bucket: Bucket) -> dict[str, dict[str, Any]]:
    """What a row says of each object."""
    listed = (each for page in listing.pages(bucket.name, "") for each in page)
    return {
        each.key: {"size": each.size, "etag": each.etag, "last_modified": each.last_modified}
        for each in listed
    }


def check(bucket: Bucket) -> None:
    """What must hold at any moment: nothing is called gone that is there, and books close."""
    there = bucket.keys()
    for item in CleanupItem.objects.filter(outcome__in=["deleted", "already_absent"]):
        assert item.key not in there, f"{item.key} is called {item.outcome}, and is there"
    for operation in CleanupOperation.objects.filter(status__in=CleanupOperation.CLOSED):
        check_books(operation)


def check_books(operation: CleanupOperation) -> None:
    operation.refresh_from_db()
    found, size = counted(operation, ("deleted", "already_absent", "protected", "failed"))
    assert (operation.found, operation.found_bytes) == (found, size)
    assert operation.found == operation.items.count()
    assert operation.deleted == operation.items.filter(outcome="deleted").count()
    assert operation.protected == operation.items.filter(outcome="protected").count()


def counted(operation: CleanupOperation, names: Iterable[str]) -> tuple[int, int]:
    figures = [(getattr(operation, n), getattr(operation, f"{n}_bytes")) for n in names]
    return sum(n for n, _size in figures), sum(size for _n, size in figures)


def between_plan_and_batch(patch: pytest.MonkeyPatch, *effects: Callable[[], object]) -> None:
    """Let these happen once, after the plan is frozen and before its first batch is proved."""
    original, todo = delete_batches.prove, list(effects)

    def prove(work: Work, batch: list[Planned]) -> Proof:
        while todo:
            todo.pop(0)()
        return original(work, batch)

    patch.setattr(delete_batches, "prove", prove)


def between_batch_and_verification(
    patch: pytest.MonkeyPatch, *effects: Callable[[], object]
) -> None:
    """Let these happen once, after the first look at what was deleted has begun."""
    original, todo = verify.look_at_keys, list(effects)

    def look_at_keys(work: Work) -> None:
        while todo:
            todo.pop(0)()
        original(work)

    patch.setattr(verify, "look_at_keys", look_at_keys)


def fill_project(bucket: Bucket, count: int) -> list[str]:
    """The files of a project."""
    alive("proj_1")
    keys = [f"projects/proj_1/scenes/s1/media/{n:03}.mp4" for n in range(count)]
    bucket.put(*keys)
    return keys


def prune_cleanups(
    folder: Path, older_than: timedelta = timedelta(days=400)
) -> list[CleanupOperation]:
    return list(retention.prune(folder, timezone.now() - older_than))


def acquire_lease(operation: CleanupOperation) -> bool:
    with transaction.atomic():
        return operation.claim()


def dump_cleanup(operation: CleanupOperation) -> dict[str, object]:
    """All that is stored of it."""
    return {
        "operation": CleanupOperation.objects.values().get(pk=operation.pk),
        "items": list(CleanupItem.objects.order_by("pk").values()),
        "events": operation.events.count(),
    }


def verify_project(project_id: str) -> CleanupOperation:
    (operation,) = requests.verify_project(project_id)
    return run(operation)


def take_over_lease(operation: CleanupOperation, **values: Any) -> CleanupOperation:
    """Let the lease of a worker that died end, so that the next one may go on."""
    past = timezone.now() - timedelta(seconds=1)
    CleanupOperation.objects.filter(lease_until__isnull=False).update(lease_until=past)
    CleanupOperation.objects.filter(pk=operation.pk).update(next_attempt_at=past, **values)
    return run(operation)


def list_gone(operation: CleanupOperation) -> set[str]:
    return {key for key, out in outcomes(operation).items() if out in ("deleted", "already_absent")}


def count_sent(store: FaultyStore) -> Counter[str]:
    """How often the store was asked to delete each key."""
    calls = store.asked(is_delete_batch)
    return Counter(key for call in calls for key in keys_sent(call))
