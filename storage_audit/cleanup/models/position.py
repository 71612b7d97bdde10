"""Where the step of a cleanup goes on."""

from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Self

from django.db import models

VERSION = 1
# No listing was ever seen then, so nothing may rest on it.
BEFORE_ALL_LISTINGS = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a step goes on. It is saved together with the results up to it, so any worker can
    continue. An empty position is the beginning of the step.

    Each `after` is the last key that was done. Times are by the database's clock, unless a comment
    says otherwise.
    """

    # What the position rests on: the bucket's marker, where it is listed, and when a listing showed
    # the marker last. Empty as long as nothing was listed: nothing can be outdated then.
    marker: str = ""
    place: str = ""
    seen_at: datetime | None = None
    # How often in a row the pass had to start from the beginning.
    restarts: int = 0

    # In the listing of the prefixes: which of them, and its last key; the last of the given objects
    # where these are compared.
    range_index: int | None = None
    after: str = ""
    # Among the tracking rows under this prefix, once it was listed to its end.
    tracked_after: str | None = None
    # Among those under none of the prefixes.
    outside_after: str = ""
    # A search for keys in all their spellings, see cleanup/position_basis.py.
    spelling_search: dict[str, Any] | None = None

    # Verification: when its listing began and ended, by the worker's clock.
    began_at: datetime | None = None
    ended_at: datetime | None = None
    # Among the items under none of the prefixes.
    lone_after: str = ""
    # Among those whose deletion no answer confirms, which are looked up again at this time.
    confirm_at: datetime | None = None
    confirmed_after: str = ""
    # Among the items that were not listed; those of the verified cleanup are copied before.
    missing_after: str = ""
    is_parent_copied: bool = False
    # All items are settled.
    is_settled: bool = False

    # Deletion: the last unfinished upload that was tried.
    aborted_up_to: str = ""

    def is_beginning(self) -> bool:
        return self == Position(restarts=self.restarts)

    def to_json(self) -> dict[str, Any]:
        """The fields that are not empty."""
        values: dict[str, Any] = {"version": VERSION}
        for field in fields(self):
            if (value := getattr(self, field.name)) != field.default:
                values[field.name] = value.isoformat() if isinstance(value, datetime) else value
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """A position of another version rests on nothing that counts, so its step begins again."""
        if values and values.get("version") != VERSION:
            return cls(seen_at=BEFORE_ALL_LISTINGS)
        times = {name: datetime.fromisoformat(values[name]) for name in TIME_FIELDS & values.keys()}
        return cls(**{name: at for name, at in values.items() if name != "version"} | times)


TIME_FIELDS = {field.name for field in fields(Position) if "datetime" in str(field.type)}


class PositionField(models.JSONField):
    """A JSON column whose value is a `Position`."""

    _pyi_private_set_type: Position
    _pyi_private_get_type: Position

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Position | None:
        return self.to_python(super().from_db_value(value, expression, connection))

    def to_python(self, value: Any) -> Position | None:
        return Position.from_json(value) if isinstance(value, dict) else value

    def get_prep_value(self, value: Any) -> Any:
        return value.to_json() if isinstance(value, Position) else value

    def value_to_string(self, obj: models.Model) -> Any:
        return self.get_prep_value(self.value_from_object(obj))
