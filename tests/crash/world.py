"""What is in the bucket and whose it is, written down by those who put it there."""

import re
import time
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from hashlib import md5
from itertools import count
from random import Random
from threading import RLock

# By the time a deletion call is sent, its proof may be this old: whoever brings an id back to life
# may still lose what was deleted with it.
PROOF_WINDOW_SECONDS = 40.0  # seconds

KEY_TEMPLATES = [
    "projects/{id}/scenes/s1/media/{n}.mp4",
    "projects/proj_{id}/scenes/s2/media/{n} old.mp4",
    "audio/{id}/s1/{n}.mp3",
    "thumbnails/proj_{id}/s2/{n}.jpg",
    "{id}_s{n}_media.mp4",
    "proj_{id}_s{n}_media.mp4",
]
# Names that look like a victim's and are nobody's.
STRANGER_TEMPLATES = ["{id}_notes.txt", "{id}/a.mp4", "backup/projects/{id}/s1.tar"]
RELATIVE_TEMPLATES = ["{id}_x", "{id}x", "{id}0"]
# SeaweedFS keeps folders: none of its names is a file too, and it lists `a/b` before `a-b`.
NOT_IN_FOLDERS = ["projects/{id}"]
NOT_IN_ORDER = ["{id}-2"]
NOBODY = ""
UPLOAD_PATTERN = re.compile("projects/(proj_[^/]+)/")


@dataclass(eq=False)
class Life:
    """One life of a project id, from its creation to its deletion. `asked` is true as soon as
    somebody may have deleted it; `over` is the moment at which the id came to life again."""

    id: str
    may_delete: bool = False
    ended_at: float | None = None
    etags: dict[str, str] = field(default_factory=dict)


class World:
    """`doomed_rows` are the keys whose tracking rows somebody may have deleted, `planted` those
    that were there from the start, and that nobody writes again."""

    def __init__(self, seed: int, *, has_folders: bool) -> None:
        self._strangers = STRANGER_TEMPLATES if has_folders else STRANGER_TEMPLATES + NOT_IN_FOLDERS
        self._relatives = RELATIVE_TEMPLATES if has_folders else RELATIVE_TEMPLATES + NOT_IN_ORDER
        self._random = Random(seed)
        self._lock = RLock()
        self._numbers = count(1)
        self._lives: dict[str, list[Life]] = {NOBODY: [Life(NOBODY)]}
        self._owners: dict[str, Life] = {}
        self.doomed_rows: set[str] = set()
        self.planted: set[str] = set()

    def add_family(self) -> tuple[str, list[str], dict[str, bytes]]:
        """A new victim, live projects whose keys look like its own, and the objects of them all."""
        id = f"proj_{next(self._numbers)}v"
        relatives = [name.format(id=id) for name in self._relatives]
        large = self._random.random() < 0.05
        size = 1100 if large else self._random.choice([12, 40, 150, 250])
        objects = dict(self._objects(id, size))
        for relative in relatives:
            objects |= self._objects(relative, 6)
        for name in self._strangers:
            objects |= self._object(name.format(id=id), self._lives[NOBODY][0])
        return id, relatives, objects

    def _objects(self, id: str, size: int) -> Iterator[tuple[str, bytes]]:
        life = self.start_life(id)
        for n in range(size):
            yield from self._object(
                KEY_TEMPLATES[n % len(KEY_TEMPLATES)].format(id=id, n=n), life
            ).items()

    def _object(self, key: str, life: Life) -> dict[str, bytes]:
        content = f"{key} {self._random.random()}".encode()
        self.planted.add(key)
        self.record_saved(key, md5(content, usedforsecurity=False).hexdigest(), life)
        return {key: content}

    def start_life(self, id: str) -> Life:
        with self._lock:
            lives = self._lives.setdefault(id, [])
            if lives:
                lives[-1].ended_at = time.monotonic()
            lives.append(Life(id))
            return lives[-1]

    def allow_deletion(self, id: str) -> None:
        """From now on its objects may go."""
        self._lives[id][-1].may_delete = True

    def record_saved(self, key: str, etag: str, life: Life | None = None) -> None:
        with self._lock:
            life = life or self.find_life(key)
            self._owners[key] = life
            life.etags[key] = etag

    def find_life(self, key: str) -> Life:
        """That of an upload of which we know no more than its key is the last of its project."""
        with self._lock:
            named = UPLOAD_PATTERN.match(key)
            last = self._lives.get(named[1] if named else NOBODY, self._lives[NOBODY])[-1]
            return self._owners.get(key, last)

    def may_delete(self, key: str) -> bool:
        """Whether anybody has asked for anything that would delete this object."""
        life = self.find_life(key)
        if key in self.doomed_rows or self._lives[life.id][-1].may_delete:
            return True
        return life.ended_at is not None and time.monotonic() < life.ended_at + PROOF_WINDOW_SECONDS

    def expected_end(
        self,
        living: set[str],
        rows_deleted: set[str],
        kept: Set[str] = frozenset(),
        sent: Set[str] = frozenset(),
    ) -> tuple[dict[str, str], set[str]]:
        """What must be in the bucket at the end, with its etag, and what must not be. Of the ids
        that are `kept`, a person cancelled the deletion: what was not sent by then stays."""
        stays, goes = dict[str, str](), set(rows_deleted)
        for id, lives in self._lives.items():
            if id in living or id == NOBODY:
                stays |= lives[-1].etags
            elif id in kept:
                last = lives[-1].etags.items()
                stays |= {key: etag for key, etag in last if key not in sent}
            else:
                goes |= {key for life in lives for key in life.etags}
        return {key: etag for key, etag in stays.items() if key not in goes}, goes

    def count_lives(self, id: str) -> int:
        return len(self._lives.get(id, ()))

    def list_ids(self) -> set[str]:
        return self._lives.keys() - {NOBODY}
