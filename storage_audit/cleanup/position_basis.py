"""What a position in the bucket's listings rests on, and how a search in them goes on."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from storage_audit.bucket.listing import match_spellings, nfc_key, storable_part
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup.models.position import BEFORE_ALL_LISTINGS, Position
from storage_audit.conf import conf

# What was listed longer ago says nothing of now. A full queue delays turns by minutes, and a pass
# that started again each time would never end.
MAX_POSITION_AGE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class PositionBasis:
    """What a pass has seen counts only while this stays the same."""

    marker: str
    place: str

    @classmethod
    def of(cls, marker: str, bucket: str, ranges: Sequence[str]) -> Self:
        url = urlsplit(conf().endpoint_url)
        place = json.dumps([url.hostname, url.port, url.path, bucket, *ranges])
        return cls(marker, hashlib.sha256(place.encode()).hexdigest()[:16])

    def attach(self, position: Position, seen_at: datetime) -> Position:
        """The same position, resting on this since the marker was last seen."""
        return replace(position, marker=self.marker, place=self.place, seen_at=seen_at)

    def supports(self, position: Position, now: datetime) -> bool:
        """Whether a pass may go on from this position, by the clock that wrote it."""
        age = now - (position.seen_at or BEFORE_ALL_LISTINGS)
        # A time from a clock that was ahead has no age. Corrections by seconds are usual.
        is_recent = -conf().lease_time <= age <= MAX_POSITION_AGE
        return is_recent and (position.marker, position.place) == (self.marker, self.place)


class SpellingSearch(NamedTuple):
    """The progress of a search for keys in all their spellings, and what it found, by NFC."""

    keys: str
    after: str
    found: dict[str, ListedObject]

    @classmethod
    def of(cls, position: Position, keys: Sequence[str]) -> Self:
        """The search for these keys, from the beginning if the position is of other keys."""
        same = hashlib.sha256(json.dumps(keys).encode()).hexdigest()
        kept = position.spelling_search or {}
        if kept.get("keys") != same:
            return cls(same, "", {})
        found = {
            nfc_key(key): ListedObject(key, size, etag, datetime.fromisoformat(at))
            for key, size, etag, at in kept["found"]
        }
        return cls(same, kept["after"], found)

    def advance(self, page: Sequence[ListedObject], keys: Sequence[str]) -> Self:
        found = self.found | match_spellings(page, keys)
        return self._replace(after=listing_position(page) if page else self.after, found=found)

    def to_dict(self) -> dict[str, Any]:
        found = [[o.key, o.size, o.etag, o.last_modified.isoformat()] for o in self.found.values()]
        return {**self._asdict(), "found": found}


def listing_position(page: Sequence[ListedObject]) -> str:
    """Where to go on. An object that is listed twice is an item already."""
    return storable_part(page[-1].key)
