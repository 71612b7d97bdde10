"""The end of every story: once nothing disturbs any more, each object is where it belongs."""

from datetime import timedelta

from storage_audit.cleanup.models import Cleanup, CleanupItem
from tests.stateful.model import Fate
from tests.stateful.play import Play

Status = Cleanup.Status
MAX_ROUNDS = 20


def finish_play(play: Play) -> None:
    work_until_rest(play)
    assert not [key for key, fate in read_fates(play).items() if fate is Fate.GOES]
    # What changed after a deletion, and after all that followed it, waits for a person to ask.
    if Fate.MAY_GO in read_fates(play).values():
        for project in sorted(play.model.deleted):
            play.declare_deleted(project)
        work_until_rest(play)
    left = {key for key, fate in read_fates(play).items() if fate is Fate.MAY_GO}
    kept = CleanupItem.objects.filter(key__in=left, outcome__in=["kept", "failed"])
    assert left == set(kept.exclude(reason="").values_list("key", flat=True))


def read_fates(play: Play) -> dict[str, Fate]:
    return {key: play.model.fate(key) for key in play.model.objects}


def work_until_rest(play: Play) -> None:
    """All time that anything could wait for goes by, and a person decides what is to be decided,
    but for projects that went without a word."""
    for _round in range(MAX_ROUNDS):
        play.let_pass(timedelta(days=9))
        play.resume()
        play.sweep()
        for cleanup in stopped_cleanups():
            play.decide(cleanup)
        if not play.list_due() and not play.model.paused:
            return
        work_on_due(play)
    raise AssertionError(f"no end of {[(each.status, each.message) for each in play.list_due()]}")


def work_on_due(play: Play) -> None:
    for cleanup in play.list_due():
        play.work_to_the_end(cleanup)
    play.watch.check_all()


def stopped_cleanups() -> list[Cleanup]:
    """By a look that was not believed."""
    blocked = Cleanup.objects.filter(status=Status.BLOCKED)
    return list(blocked.exclude(trigger="vanished").exclude(kind="verify"))
