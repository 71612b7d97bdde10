"""Looks at every deletion call between the application and the store."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Lock
from typing import NamedTuple

from devtools.http_reply import Reply
from storage_audit.ownership import bucket_marker
from tests.crash.world import World
from tests.faults.matching import is_delete_batch, is_delete_single, sent_keys
from tests.faults.proxy import Request

# In place of a project, for deletions that follow those of tracking rows.
ROWS_OWNER = "rows"


class Call(NamedTuple):
    """A call that deletes, with the moment of its signature, in full seconds: however late it
    comes, it left no earlier, and it was signed as it left."""

    owner: str
    keys: list[str]
    signed_at: float


@dataclass
class Observer:
    """`wrong` are the keys that nobody asked to delete, `again` how many keys of a project were
    sent once more though the store had deleted them and had said so, without a fault."""

    world: World
    bucket: str
    wrong_keys: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    batches_again: int = 0
    sent_again: Counter[str] = field(default_factory=Counter)
    _answered: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _lock: Lock = field(default_factory=Lock)

    def __call__(self, request: Request, of_store: Reply | None, reply: Reply) -> None:
        if not (keys := self._deleted_keys(request)):
            return
        with self._lock:
            self.wrong_keys += [key for key in keys if not self.world.may_delete(key)]
            owner = self.world.find_life(keys[0]).id if not self._is_of_rows(keys) else ROWS_OWNER
            self.calls.append(Call(owner, keys, signing_time(request)))
            repeated = self._answered[owner].intersection(keys)
            self.batches_again += bool(repeated)
            self.sent_again[owner] += len(repeated)
            if of_store is reply and reply.status in (200, 204):
                self._answered[owner].update(keys)

    def _is_of_rows(self, keys: list[str]) -> bool:
        return not self.world.doomed_rows.isdisjoint(keys)

    def _deleted_keys(self, request: Request) -> list[str]:
        if is_delete_batch(request):
            return sent_keys(request)
        if is_delete_single(request):
            key = request.path.partition(f"/{self.bucket}/")[2]
            # To resume deletions, a person has this one deleted.
            return [] if bucket_marker.is_pause(key) else [key]
        return []

    @property
    def sent_keys(self) -> set[str]:
        return {key for call in self.calls for key in call.keys}


def signing_time(request: Request) -> float:
    [text] = [value for name, value in request.headers.items() if name.lower() == "x-amz-date"]
    return datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
