"""What may become of each object, written from docs/architecture.md alone: nothing here asks the
application."""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

from tests.ownership.oracle import named_by


class Fate(Enum):
    STAYS = "stays"
    MAY_GO = "may go"
    GOES = "goes"


@dataclass
class Object:
    """`put` and `asked` are moments: when it was written, and when its row was deleted."""

    etag: str
    put: int
    asked: int | None = None


@dataclass
class Model:
    """`deleted` are the ids of which somebody said that they are deleted, and when; `silent` those
    whose row is gone without a word. `uploads` are the tracking rows of uploads with their
    project; `deletions` counts those that were signalled and committed; `stirred` is when
    something last happened to a key or an id."""

    moment: int = 0
    living: set[str] = field(default_factory=set)
    deleted: dict[str, int] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    uploads: dict[str, str | None] = field(default_factory=dict)
    objects: dict[str, Object] = field(default_factory=dict)
    deletions: Counter[str] = field(default_factory=Counter)
    stirred: dict[str, int] = field(default_factory=dict)

    def put(self, key: str, etag: str) -> None:
        """An object was written; one that is the same again may still go by its deleted row."""
        before = self.objects.get(key)
        asked = before.asked if before and before.etag == etag else None
        self.objects[key] = Object(etag, self.stir(key), asked)

    def uploaded(self, key: str, project: str | None) -> None:
        self.uploads[key] = project
        self.stir(key)
        if key in self.objects:
            self.objects[key].asked = None

    def removed(self, key: str) -> None:
        self.objects.pop(key, None)
        self.stir(key)

    def row_deleted(self, key: str, etag: str, described: bool) -> None:
        """A person deleted the row, which described an object with this ETag, or with any; and the
        one that is there by its time as well, or it may stay."""
        self.uploads.pop(key, None)
        moment = self.stir(key)
        if (there := self.objects.get(key)) and etag in ("", there.etag):
            there.asked = moment if described else 0

    def handed_over(self, key: str, project: str) -> None:
        self.stir(key)
        if key in self.uploads:
            self.uploads[key] = project

    def created(self, id: str) -> None:
        self.stir(id)
        self.living.add(id)
        self.deleted.pop(id, None)
        self.silent.discard(id)

    def deletion_committed(self, id: str) -> None:
        self.living.remove(id)
        self.deletions[id] += 1
        self.deleted[id] = self.stir("")

    def went_silently(self, id: str) -> None:
        self.living.remove(id)
        self.silent.add(id)

    def said_deleted(self, id: str) -> None:
        """A person released a silent disappearance, or asked for the cleanup of a dead id."""
        self.silent.discard(id)
        self.deleted.setdefault(id, self.stir(id))

    def stir(self, what: str) -> int:
        self.moment += 1
        self.stirred[what] = self.moment
        return self.moment

    def fate(self, key: str) -> Fate:
        there = self.objects[key]
        if there.asked is not None:
            return Fate.GOES if self.stirred[key] == there.asked else Fate.MAY_GO
        owner = self.uploads.get(key)
        names = {owner} if owner else named_by(key)
        dead, rivals = names & self.deleted.keys(), named_by(key) - {owner}
        if not dead or rivals & (self.living | self.silent):
            return Fate.STAYS
        if owner and rivals & self.deleted.keys():
            # It was kept while one of them lived, and is while its cleanup is blocked.
            return Fate.MAY_GO
        last = max(self.deleted[id] for id in dead)
        if not owner and len(names) > 1 and there.put > last:
            return Fate.STAYS
        # What changed after the deletion may be left to a person.
        touched = max(self.stirred.get(what, 0) for what in (key, *names))
        return Fate.GOES if touched < last else Fate.MAY_GO
