"""A balancer leads a connection to another copy of the bucket: nothing is called gone for that."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from devtools.http_reply import Reply
from storage_audit.bucket import s3
from storage_audit.bucket.connections import KeptConnection
from storage_audit.cleanup import sighted_listing, verify
from storage_audit.cleanup.range_parts import Sighting
from storage_audit.cleanup.sighted_listing import (
    MAX_LISTINGS,
    MAX_PAGES,
    MAX_SECONDS,
    Reconnected,
    Witness,
)
from storage_audit.cleanup.worker_turn import Turn
from storage_audit.ownership.bucket_marker import MARKER_PREFIX
from tests.faults.kinds import change_reply, confirm_without_deleting
from tests.faults.matching import is_delete_batch, is_listing, is_listing_under, rule_for
from tests.faults.pages import copied_bucket_page, with_entries
from tests.faults.proxy import RESET_REPLY, FaultyStore, Forward, Request, Rule
from tests.promises import (
    FLAT_KEY,
    HIERARCHICAL_KEY,
    Status,
    check_promises,
    clean_up_project,
    create_projects,
    list_gone,
    read_outcomes,
    run_again,
    run_follow_up,
    track_key,
)
from tests.real_bucket import Bucket

OUTSIDE = "odd/place.mp4"
KEYS = [FLAT_KEY, HIERARCHICAL_KEY, OUTSIDE]
EMPTY = change_reply(lambda xml: with_entries(xml, []))
COPY = change_reply(copied_bucket_page)
is_marker_listing = is_listing_under(MARKER_PREFIX)
# A file under the first prefix that a connection lists, and one that is looked up on its own.
FILES = {
    "audio/proj_1/": "audio/proj_1/s1/a.mp4",
    "proj_1_": FLAT_KEY,
    "projects/proj_1/scenes/": HIERARCHICAL_KEY,
    "": OUTSIDE,
}


def keep_files(bucket: Bucket, store: FaultyStore, *keys: str) -> None:
    """The store says `Deleted` of the project's files, and keeps them."""
    create_projects("proj_1")
    bucket.put(*keys)
    if OUTSIDE in keys:
        track_key(bucket, OUTSIDE, "proj_1")
    store.rules.append(rule_for(is_delete_batch, confirm_without_deleting))


def act_before_relisting(patch: pytest.MonkeyPatch, effect: Callable[[], object]) -> None:
    """Let this happen once, before a verification lists anything, over new connections. The check
    of the marker at its end goes over another one, which leads to the right bucket."""
    original, todo = verify.relist_prefixes, [effect]

    def relist(work: Turn) -> None:
        while todo:
            s3.drop_connections()
            todo.pop()()
        original(work)

    patch.setattr(verify, "relist_prefixes", relist)
    check_anew_at_end(patch)


def check_anew_at_end(patch: pytest.MonkeyPatch) -> None:
    """Let other checks of the marker than those of a listing's connection go over a new one."""
    check_marker = Turn.check_marker

    def check_anew(work: Turn) -> None:
        s3.drop_connections()
        check_marker(work)

    patch.setattr(Turn, "check_marker", check_anew)


def on_connection(prefix: str, answer: Rule) -> Rule:
    """For the listings of the connection that lists this prefix, from then on."""
    astray = set[int]()

    def rule(request: Request, forward: Forward) -> Reply | None:
        if is_listing_under(prefix)(request) and not astray:
            astray.add(request.connection)
        is_astray = is_listing(request) and request.connection in astray
        return answer(request, forward) if is_astray else None

    return rule


def pages_then_reset(request: Request, forward: Forward) -> Reply | None:
    """An empty copy, whose connection breaks when it is asked for the marker."""
    return RESET_REPLY if is_marker_listing(request) else EMPTY(request, forward)


def close_after_answer(request: Request, forward: Forward) -> Reply:
    reply = forward()
    return replace(reply, headers=(*reply.headers, ("Connection", "close")))


@pytest.mark.parametrize("prefix", FILES)
@pytest.mark.parametrize("astray", [EMPTY, COPY, pages_then_reset], ids=["empty", "copy", "break"])
def test_connection_that_leads_elsewhere_has_nothing_called_gone(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch, astray: Rule, prefix: str
) -> None:
    keep_files(bucket, store, FILES[prefix])
    rule = on_connection(prefix, astray)
    act_before_relisting(monkeypatch, lambda: store.rules.append(rule))
    cleanup = clean_up_project("proj_1")
    assert cleanup.status in (Status.RETRYING, Status.BLOCKED)
    assert not list_gone(cleanup)
    store.rules.clear()
    check_promises(bucket)


def test_follow_up_check_is_not_clean_where_a_connection_leads_elsewhere(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with its plan if that shows nothing, so its plan lists as a verification does."""
    create_projects("proj_1")
    cleanup = clean_up_project("proj_1")
    bucket.put(HIERARCHICAL_KEY)
    check_anew_at_end(monkeypatch)
    s3.drop_connections()
    store.rules.append(on_connection("projects/proj_1/scenes/", EMPTY))
    check = run_follow_up(cleanup)
    assert check.status == Status.RETRYING
    store.rules.clear()
    check = run_again(check)
    assert (check.status, read_outcomes(check)) == (Status.CLEAN, {HIERARCHICAL_KEY: "deleted"})


def test_follow_up_check_that_finds_nothing_lists_once(bucket: Bucket, store: FaultyStore) -> None:
    create_projects("proj_1")
    cleanup = clean_up_project("proj_1")
    store.requests.clear()
    check = run_follow_up(cleanup)
    assert (check.status, check.items.count()) == (Status.CLEAN, 0)
    listed = [request.query["prefix"] for request in store.find_requests(is_listing)]
    assert sorted(set(listed) - {MARKER_PREFIX}) == sorted(check.listed_prefixes)
    assert len(listed) - listed.count(MARKER_PREFIX) == len(check.listed_prefixes)


def test_outage_before_the_marker_is_seen_has_nothing_called_gone(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each connection leads to an empty copy, which is down once all is listed."""
    keep_files(bucket, store, *KEYS)

    def answer(request: Request, forward: Forward) -> Reply | None:
        if not is_listing(request):
            return None
        return Reply(503) if is_marker_listing(request) else EMPTY(request, forward)

    act_before_relisting(monkeypatch, lambda: store.rules.append(answer))
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.RETRYING and not list_gone(cleanup)
    store.rules.clear()
    cleanup = run_again(cleanup)
    assert cleanup.status == Status.CLEAN
    assert read_outcomes(cleanup) == dict.fromkeys(KEYS, "deleted")


def test_store_that_closes_each_connection_shows_the_marker_after_each_page(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    bucket.put(*KEYS)
    monkeypatch.setattr(sighted_listing, "RANGES_PER_CONNECTION", 1)
    store.rules.append(close_after_answer)
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN
    listed = [request for request in store.requests if is_listing(request)]
    last = listed[-2 * len(cleanup.listed_prefixes) :]
    count = sum(map(is_marker_listing, last))
    assert count >= len(cleanup.listed_prefixes)
    check_promises(bucket)


# The witness alone


class FakeStore:
    """Answers each request over the connection of this number."""

    def __init__(self) -> None:
        self.kept, self.number, self.sightings = KeptConnection(), 1, 0

    def ask(self) -> None:
        self.kept.served.append(self.number)

    def see_marker(self) -> Sighting:
        self.ask()
        self.sightings += 1
        return None

    def list_page(self, witness: Witness) -> None:
        self.ask()
        witness.note_page()


def test_marker_is_seen_after_so_many_pages_and_at_the_end() -> None:
    fake = FakeStore()
    witness = Witness(fake.kept, fake.see_marker)
    for number in range(1, 2 * MAX_PAGES + 2):
        fake.list_page(witness)
        assert fake.sightings == number // MAX_PAGES
    witness.check()
    witness.check()
    assert fake.sightings == len(witness.sightings) == 3


def test_marker_is_seen_after_so_many_listings() -> None:
    fake = FakeStore()
    witness = Witness(fake.kept, fake.see_marker)
    for number in range(1, 2 * MAX_LISTINGS + 1):
        fake.list_page(witness)
        witness.note_listing()
        assert fake.sightings == number // MAX_LISTINGS


def test_marker_is_seen_after_so_many_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, now = FakeStore(), [0.0]
    monkeypatch.setattr(sighted_listing, "monotonic", lambda: now[0])
    witness = Witness(fake.kept, fake.see_marker)
    fake.list_page(witness)
    now[0] = MAX_SECONDS + 1
    fake.list_page(witness)
    fake.list_page(witness)
    assert fake.sightings == 1


def test_connection_that_was_opened_anew_lists_again() -> None:
    fake = FakeStore()
    listed = list[int]()

    def job(witness: Witness) -> str:
        listed.append(fake.number)
        fake.list_page(witness)
        fake.number += len(listed) == 1
        fake.list_page(witness)
        return "done"

    assert sighted_listing.list_with_witness(job, fake.see_marker, fake.kept) == ("done", [None])
    assert listed == [1, 2]


def test_connection_that_breaks_again_and_again_proves_nothing() -> None:
    fake = FakeStore()

    def job(witness: Witness) -> None:
        fake.list_page(witness)
        fake.list_page(witness)
        fake.number += 1

    with pytest.raises(Reconnected):
        sighted_listing.list_with_witness(job, fake.see_marker, fake.kept)


def test_connections_that_were_not_numbered_prove_nothing() -> None:
    kept = KeptConnection()
    with pytest.raises(Reconnected):
        sighted_listing.list_with_witness(lambda witness: witness.note_page(), lambda: None, kept)
