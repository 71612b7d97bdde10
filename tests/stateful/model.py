"""What may become of each object, written from docs/architecture.md alone: nothing here asks the
application."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from uuid import UUID

from tests.ownership.oracle import named_projects


class Fate(Enum):
    STAYS = "stays"
    MAY_GO = "may go"
    GOES = "goes"


@dataclass
class Object:
    """`put` and `asked` are moments: when it was written, and when its row was deleted."""

    etag: str
    put_at: int
    asked_at: int | None = None


@dataclass
class Model:
    """`deleted` are the ids of which somebody said that they are deleted, and when; `silent` those
    whose row is gone without a word. `uploads` are the tracking rows of uploads with their
    project; `deletions` counts those that were signalled and committed; `stirred` is when
    something last happened to a key or an id; `held` are deleted ids until when their files
    stay, in time that was let pass, and `cancelled` those whose files a person keeps. `paused` are
    the deletions that are paused alone, with None for all of them."""

    moment: int = 0
    living: set[str] = field(default_factory=set)
    deleted: dict[str, int] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    uploads: dict[str, str | None] = field(default_factory=dict)
    objects: dict[str, Object] = field(default_factory=dict)
    deletions: Counter[str] = field(default_factory=Counter)
    touched_at: dict[str, int] = field(default_factory=dict)
    clock: timedelta = timedelta(0)
    held: dict[str, timedelta] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    paused: set[UUID | None] = field(default_factory=set)

    def record_put(self, key: str, etag: str) -> None:
        """An object was written; one that is the same again may still go by its deleted row."""
        before = self.objects.get(key)
        asked = before.asked_at if before and before.etag == etag else None
        self.objects[key] = Object(etag, self.touch(key), asked)

    def record_upload(self, key: str, project: str | None) -> None:
        self.uploads[key] = project
        self.touch(key)
        if key in self.objects:
            self.objects[key].asked_at = None

    def record_removal(self, key: str) -> None:
        self.objects.pop(key, None)
        self.touch(key)

    def record_row_deletion(self, key: str, etag: str, described: bool) -> None:
        """A person deleted the row, which described an object with this ETag, or with any; and the
        one that is there by its time as well, or it may stay."""
        self.uploads.pop(key, None)
        moment = self.touch(key)
        if (there := self.objects.get(key)) and etag in ("", there.etag):
            there.asked_at = moment if described else 0

    def record_handover(self, key: str, project: str) -> None:
        self.touch(key)
        if key in self.uploads:
            self.uploads[key] = project

    def record_creation(self, id: str) -> None:
        self.touch(id)
        self.living.add(id)
        self.deleted.pop(id, None)
        self.silent.discard(id)
        self.held.pop(id, None)
        self.cancelled.discard(id)

    def record_deletion(self, id: str, grace: timedelta = timedelta(0)) -> None:
        self.living.remove(id)
        self.deletions[id] += 1
        self.deleted[id] = self.touch("")
        if grace:
            self.held[id] = self.clock + grace

    def record_cancellation(self, id: str) -> None:
        self.held.pop(id, None)
        self.cancelled.add(id)

    def record_erasure(self, id: str) -> None:
        self.held.pop(id, None)

    def record_second_cleanup(self, id: str) -> None:
        self.cancelled.discard(id)

    def is_paused(self, deletion: UUID) -> bool:
        return not self.paused.isdisjoint({None, deletion})

    def kept_ids(self) -> set[str]:
        """Deleted ids whose files stay for now."""
        return {id for id, until in self.held.items() if until > self.clock} | self.cancelled

    def record_silent_deletion(self, id: str) -> None:
        self.living.remove(id)
        self.silent.add(id)

    def record_declaration(self, id: str) -> None:
        """A person approved a silent disappearance, or asked for the cleanup of a dead id."""
        self.silent.discard(id)
        self.deleted.setdefault(id, self.touch(id))

    def touch(self, what: str) -> int:
        self.moment += 1
        self.touched_at[what] = self.moment
        return self.moment

    def fate(self, key: str) -> Fate:
        there = self.objects[key]
        if there.asked_at is not None:
            return Fate.GOES if self.touched_at[key] == there.asked_at else Fate.MAY_GO
        owner = self.uploads.get(key)
        names = {owner} if owner else named_projects(key)
        kept = self.kept_ids()
        dead, rivals = names & self.deleted.keys() - kept, named_projects(key) - {owner}
        if not dead or rivals & (self.living | self.silent | kept):
            return Fate.STAYS
        if owner and rivals & self.deleted.keys():
            # It was kept while one of them lived, and is while its cleanup is blocked.
            return Fate.MAY_GO
        last = max(self.deleted[id] for id in dead)
        if not owner and len(names) > 1 and there.put_at > last:
            return Fate.STAYS
        # What changed after the deletion may be left to a person.
        touched = max(self.touched_at.get(what, 0) for what in (key, *names))
        return Fate.GOES if touched < last else Fate.MAY_GO
