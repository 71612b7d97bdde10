"""Anything in any order, against a simple model of what must stay, what may go, and what goes."""

import os
from collections.abc import Iterator
from datetime import timedelta
from sys import exc_info
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings as django_settings
from django.db import connection, transaction
from django.test import override_settings
from django_q.models import OrmQ
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from devtools.local_r2 import LocalR2
from storage_audit.bucket import s3
from storage_audit.cleanup.models import Cleanup
from storage_audit.conf import conf
from storage_audit.models import DatabaseIdentity
from storage_audit.ownership import bucket_marker
from tests.faults.kinds import FAULT_KINDS
from tests.faults.matching import is_delete_batch, rule_for, run_before
from tests.faults.proxy import FaultyStore
from tests.network import faulty_network
from tests.real_bucket import Bucket
from tests.stateful.end import finish_play
from tests.stateful.play import Play
from tests.stateful.world import World

pytestmark = pytest.mark.database

# `proj_9` always lives: a table of projects that is empty stops everything.
BYSTANDER = "proj_9"
IDS = ["proj_1", "proj_1_x", "proj_10"]
KEYS = [
    *(f"projects/{id}/scenes/s1/media/a.mp4" for id in [*IDS, BYSTANDER]),
    *(f"{id}_s1_media.mp4" for id in [*IDS, BYSTANDER]),
    "projects/proj_proj_1/scenes/s1/media/a.mp4",
    "proj_proj_1_x_s1_media.mp4",
    "proj_1_x_media.mp4",
    "audio/proj_1/s1/\u00e9.mp3",
    "audio/proj_10/s1/a.mp3",
    "audio/proj_1_x/s1/a.mp3",
    "proj_1_notes.txt",
    "somewhere/else.bin",
]
TIMES = [timedelta(minutes=2), timedelta(minutes=40), timedelta(hours=2), timedelta(days=2)]
# The late ones only take time.
FAULTS = sorted(FAULT_KINDS.keys() - {"late-answer", "late-request"})
OF_DELETIONS = [name for name in FAULTS if FAULT_KINDS[name].fits is is_delete_batch]
FOREIGN = ["page-of-another-bucket", "page-of-another-prefix", "page-of-the-past", "page-malformed"]
SETTINGS = {
    "MEDIA_KINDS": ("audio",),
    "BATCH_SIZE": 2,
    "FOLLOW_UP_CHECKS": (timedelta(days=1),),
}

ids, keys, bodies = st.sampled_from(IDS), st.sampled_from(KEYS), st.sampled_from([b"1", b"22"])
places, lives = st.integers(0, 5), st.integers(0, 60)
# A fault, after how many of the requests that it fits it begins, and for how many it lasts.
troubles = st.one_of(
    st.tuples(st.sampled_from(FAULTS), st.integers(0, 20), st.integers(1, 4)),
    st.tuples(st.sampled_from(OF_DELETIONS), st.integers(0, 2), st.integers(1, 4)),
    st.tuples(st.sampled_from(FOREIGN), st.integers(0, 60), st.integers(1, 4)),
)
acts = st.one_of(
    st.tuples(st.sampled_from(["put", "save", "overwrite"]), st.tuples(keys, bodies)),
    st.tuples(st.sampled_from(["remove", "storage_delete", "delete_row"]), st.tuples(keys)),
    st.tuples(st.sampled_from(["create", "delete", "delete_forced"]), st.tuples(ids)),
    st.tuples(st.sampled_from(["undo", "cancel", "erase", "clean_up_again"]), st.tuples(ids)),
    st.tuples(st.sampled_from(["pause", "resume"]), st.just(())),
    st.tuples(st.just("hand_over"), st.tuples(keys, ids)),
    st.tuples(st.sampled_from(["sweep", "backfill"]), st.just(())),
    st.tuples(st.just("let_pass"), st.just((timedelta(minutes=2),))),
)


class Machine(RuleBasedStateMachine):
    bucket: Bucket
    store: FaultyStore
    world: World

    def __init__(self) -> None:
        super().__init__()
        self.play = Play(self.bucket, self.world)
        empty(self.bucket)
        # In place of that of the history before, behind that of the network itself.
        self.store.observers[1:] = [self.play.watch.see_request]
        self.set_grace(0)

    @initialize(gone=st.sets(ids, min_size=1))
    def begin(self, gone: set[str]) -> None:
        for id in [BYSTANDER, *IDS]:
            self.play.create(id)
        for key in KEYS:
            self.play.put(key, b"first")
        for id in sorted(gone):
            self.play.delete(id)

    # The world

    @rule(act=acts)
    def somebody_acts(self, act: tuple[str, tuple[Any, ...]]) -> None:
        getattr(self.play, act[0])(*act[1])

    @rule(time=st.sampled_from(TIMES))
    def let_pass(self, time: timedelta) -> None:
        self.play.let_pass(time)

    @rule(trouble=troubles)
    def trouble_begins(self, trouble: tuple[str, int, int]) -> None:
        self.trouble(*trouble)

    def trouble(self, fault: str, after: int, times: int) -> None:
        kind, spared = FAULT_KINDS[fault], [run_before()] * after
        self.store.rules.append(rule_for(kind.fits, *spared, kind.answer, times=after + times))
        self.play.store_has_trouble = True

    @precondition(lambda self: self.store.rules)
    @rule()
    def trouble_ends(self) -> None:
        self.heal()

    def heal(self) -> None:
        self.store.rules.clear()
        self.play.store_has_trouble = False

    @rule(id=ids, key=keys, body=bodies)
    def save_and_roll_back(self, id: str, key: str, body: bytes) -> None:
        self.play.save_and_roll_back(id, key, body)

    @rule(dies_after=lives)
    def backfill_and_die(self, dies_after: int) -> None:
        self.play.backfill(dies_after)

    # What people ask for

    @precondition(lambda self: self.play.model.living < {BYSTANDER, *IDS})
    @rule(id=ids)
    def create(self, id: str) -> None:
        self.play.create(id)

    @rule(id=ids)
    def delete(self, id: str) -> None:
        self.play.delete(id)

    @rule(id=ids)
    def delete_with_sql(self, id: str) -> None:
        self.play.delete_with_sql(id)

    @rule(id=ids, dies_after=st.integers(0, 8), forced=st.booleans())
    def delete_and_die(self, id: str, dies_after: int, forced: bool) -> None:
        self.play.delete(id, dies_after, forced=forced)

    @rule(id=ids)
    def delete_and_roll_back(self, id: str) -> None:
        self.play.delete_and_roll_back(id)

    @rule(key=keys, dies_after=st.integers(0, 8))
    def delete_row_and_die(self, key: str, dies_after: int) -> None:
        self.play.delete_row(key, dies_after)

    @rule(hours=st.sampled_from([0, 1, 24]))
    def set_grace(self, hours: int) -> None:
        grace = {"GRACE": timedelta(hours=hours)}
        django_settings.STORAGE_AUDIT = {**django_settings.STORAGE_AUDIT, **grace}
        conf.cache_clear()

    @rule(id=ids, ask=st.sampled_from(["undo", "cancel", "erase", "clean_up_again"]))
    def decide_on_deletion(self, id: str, ask: str) -> None:
        getattr(self.play, ask)(id)

    @rule(dies_after=st.integers(0, 8))
    def pause_and_die(self, dies_after: int) -> None:
        self.play.pause(dies_after)

    @precondition(lambda self: self.play.model.paused)
    @rule(dies_after=lives)
    def resume_and_die(self, dies_after: int) -> None:
        self.play.resume(dies_after)

    @rule(id=ids)
    def declare_deleted(self, id: str) -> None:
        self.play.declare_deleted(id)

    @rule(id=ids, ask=st.sampled_from(["dry_run", "verify"]))
    def ask(self, id: str, ask: str) -> None:
        getattr(self.play, ask)(id)

    @precondition(lambda self: Cleanup.objects.exists())
    @rule(place=places, ask=st.sampled_from(["decide", "verify_cleanup", "pause_cleanup"]))
    def ask_of_cleanup(self, place: int, ask: str) -> None:
        getattr(self.play, ask)(at(place, list(Cleanup.objects.order_by("created_at"))))

    @rule(strategy=st.sampled_from(["batch", "parallel", "sequential"]))
    def choose_strategy(self, strategy: str) -> None:
        Cleanup.objects.update(strategy=strategy)

    # Workers

    @rule(dies_after=st.integers(0, 8))
    def sweep_and_die(self, dies_after: int) -> None:
        self.play.sweep(dies_after)

    @precondition(lambda self: self.play.list_workable())
    @rule(place=places)
    def work(self, place: int) -> None:
        self.play.work(at(place, self.play.list_workable()))

    @precondition(lambda self: self.play.list_workable())
    @rule(place=places, dies_after=lives)
    def work_and_die(self, place: int, dies_after: int) -> None:
        self.play.work(at(place, self.play.list_workable()), dies_after)

    @precondition(lambda self: self.play.list_workable())
    @rule(place=places, trouble=troubles)
    def work_in_trouble(self, place: int, trouble: tuple[str, int, int]) -> None:
        self.trouble(*trouble)
        self.play.work(at(place, self.play.list_workable()))
        self.heal()

    @precondition(lambda self: self.play.list_workable())
    @rule(place=places)
    def work_while_paused(self, place: int) -> None:
        self.play.pause()
        self.play.lose_pause_objects()
        self.play.work(at(place, self.play.list_workable()))
        self.play.resume()

    @precondition(lambda self: self.play.list_workable())
    @rule(place=places)
    def work_in_a_hurry(self, place: int) -> None:
        self.play.work_in_a_hurry(at(place, self.play.list_workable()))

    @precondition(lambda self: self.play.list_workable())
    @rule(place=places, call=st.integers(1, 60), act=acts)
    def work_interrupted(self, place: int, call: int, act: tuple[str, tuple[Any, ...]]) -> None:
        self.play.work_interrupted(at(place, self.play.list_workable()), call, *act)

    @rule()
    def work_on_all(self) -> None:
        for cleanup in self.play.list_due():
            self.play.work_to_the_end(cleanup)

    @invariant()
    def holds(self) -> None:
        self.play.watch.check_all()

    def teardown(self) -> None:
        self.heal()
        if exc_info()[0] is None:
            finish_play(self.play)


def at(place: int, cleanups: list[Cleanup]) -> Cleanup:
    return cleanups[place % len(cleanups)]


def empty(bucket: Bucket) -> None:
    """Back to the start, but for the claim of the bucket."""
    for key in {*bucket.keys(), *bucket.facts(bucket_marker.PAUSE_KEY)}:
        bucket.r2.remove(key, bucket.name)
    tables = set(apps.get_app_config("storage_audit").get_models()) - {DatabaseIdentity}
    # Together, since the database asks for what is referred to when the transaction ends.
    with transaction.atomic():
        for model in [*tables, OrmQ]:
            model._default_manager.all()._raw_delete(connection.alias)


@pytest.fixture
def store(local_r2: LocalR2) -> Iterator[FaultyStore]:
    with (
        faulty_network(local_r2) as running,
        override_settings(STORAGE_AUDIT={**django_settings.STORAGE_AUDIT, **SETTINGS}),
    ):
        yield running


def test_any_order_of_events(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PAGE_SIZE", 5)
    here = {"bucket": bucket, "store": store, "world": World(monkeypatch)}
    is_long = settings.get_current_profile_name() == "crash"
    size = settings(
        max_examples=int(os.environ.get("HISTORIES", 60)) if is_long else 15,
        stateful_step_count=50 if is_long else 25,
    )
    run_state_machine_as_test(type("Machine", (Machine,), here), settings=size)
