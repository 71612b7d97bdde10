"""The end of every story: once nothing disturbs any more, each object is where it belongs."""

from datetime import timedelta

from storage_audit.cleanup.models import CleanupItem, CleanupOperation
from tests.stateful.model import Fate
from tests.stateful.play import Play

Status = CleanupOperation.Status
ROUNDS = 20


def come_to_rest(play: Play) -> None:
    work_until_rest(play)
    assert not [key for key, fate in fates(play).items() if fate is Fate.GOES]
    # What changed after a deletion, and after all that followed it, waits for a person to ask.
    if Fate.MAY_GO in fates(play).values():
        for project in sorted(play.model.deleted):
            play.declare_deleted(project)
        work_on_what_is_due(play)
    left = {key for key, fate in fates(play).items() if fate is Fate.MAY_GO}
    kept = CleanupItem.objects.filter(key__in=left, outcome__in=["protected", "failed"])
    assert left == set(kept.exclude(reason="").values_list("key", flat=True))


def fates(play: Play) -> dict[str, Fate]:
    return {key: play.model.fate(key) for key in play.model.objects}


def work_until_rest(play: Play) -> None:
    """All time that anything could wait for goes by, and a person decides what is to be decided,
    but for projects that went without a word."""
    for _round in range(ROUNDS):
        play.let_pass(timedelta(days=9))
        play.sweep()
        for operation in stopped():
            play.decide(operation)
        if not play.due():
            return
        work_on_what_is_due(play)
    raise AssertionError(f"no end of {[(each.status, each.error) for each in play.due()]}")


def work_on_what_is_due(play: Play) -> None:
    for operation in play.due():
        play.work_to_the_end(operation)
    play.watch.agrees()


def stopped() -> list[CleanupOperation]:
    """By a look that was not believed."""
    blocked = CleanupOperation.objects.filter(status=Status.BLOCKED)
    return list(blocked.exclude(trigger="vanished").exclude(kind="verify"))
