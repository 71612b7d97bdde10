"""Where a pass over the bucket's listings goes on, and what that rests on.

A position is the operation's cursor, and is written together with what was seen up to it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from storage_audit.bucket.listing import nfc, spelled_as, storable_part
from storage_audit.bucket.s3 import Listed
from storage_audit.conf import conf

# What was listed longer ago says nothing of now. A full queue delays turns by minutes, and a pass
# that started again each time would never end.
OLD_AFTER = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Basis:
    """What a pass has seen counts only as long as this stays the same."""

    marker: str
    place: str

    @classmethod
    def of(cls, marker: str, bucket: str, ranges: Sequence[str]) -> Self:
        url = urlsplit(conf().endpoint_url)
        place = json.dumps([url.hostname, url.port, url.path, bucket, *ranges])
        return cls(marker, hashlib.sha256(place.encode()).hexdigest()[:16])

    def write(self, seen_at: datetime) -> dict[str, Any]:
        return {"marker": self.marker, "place": self.place, "seen_at": seen_at.isoformat()}

    def supports(self, cursor: dict[str, Any], now: datetime) -> bool:
        """Whether a pass may go on from this position, by the clock that wrote it."""
        age = now - datetime.fromisoformat(cursor["seen_at"])
        # A clock that was ahead does not tell how old it is. A correction by seconds is usual.
        is_recent = -conf().lease <= age <= OLD_AFTER
        return is_recent and (cursor["marker"], cursor["place"]) == (self.marker, self.place)


class Alike(NamedTuple):
    """How far a look for some keys in all their spellings is, and what it found; by their NFC."""

    keys: str
    after: str
    found: dict[str, Listed]

    @classmethod
    def of(cls, cursor: dict[str, Any], keys: Sequence[str]) -> Self:
        """Of these keys, and at the beginning if the look was for others."""
        same = hashlib.sha256(json.dumps(keys).encode()).hexdigest()
        kept = cursor.get("alike", {})
        if kept.get("keys") != same:
            return cls(same, "", {})
        found = {
            nfc(key): Listed(key, size, etag, datetime.fromisoformat(at))
            for key, size, etag, at in kept["found"]
        }
        return cls(same, kept["after"], found)

    def behind(self, page: Sequence[Listed], keys: Sequence[str]) -> Self:
        found = self.found | spelled_as(page, keys)
        return self._replace(after=end_of(page) if page else self.after, found=found)

    def write(self) -> dict[str, Any]:
        found = [[o.key, o.size, o.etag, o.last_modified.isoformat()] for o in self.found.values()]
        return {**self._asdict(), "found": found}


def end_of(page: Sequence[Listed]) -> str:
    """Where to go on. What is listed twice is an item already."""
    return storable_part(page[-1].key)
