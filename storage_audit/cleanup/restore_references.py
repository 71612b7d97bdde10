"""The rows that foreign keys of restored rows name: those that are there, and those that another
deletion took."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import Any
from uuid import UUID

from storage_audit.cleanup.models import Snapshot, SnapshotChunk
from storage_audit.cleanup.restore_rows import Row
from storage_audit.cleanup.snapshot_rows import (
    Link,
    all_rows,
    decode_value,
    encode_value,
    split_rows,
    stored_links,
    table_of,
)
from storage_audit.read_in_steps import read_in_steps


class References:
    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        # By the field that foreign keys name: the values of rows to be restored, those of rows in
        # the database, and those of rows that stay away, with the snapshot where they wait.
        self.values = defaultdict[Any, set[str]](set)
        self.existing = defaultdict[Any, set[str]](set)
        self.away = defaultdict[Any, dict[str, UUID | None]](dict)
        self.waiting = dict[Any, dict[str, UUID]]()

    def look_up(self, rows: Collection[Row], links: Iterable[tuple[Any, Link]]) -> None:
        """Which of the values that foreign keys name there are."""
        wanted = defaultdict[Any, set[str]](set)
        tables = {row.table for row in rows}
        keys = {table: stored_links(table) for table in tables}
        for row in rows:
            for link in keys[row.table]:
                if (text := row.texts[link.attname]) is not None:
                    wanted[link.target_field].add(text)
        for field, changed in links:
            if changed.old is not None:
                wanted[field.target_field].add(changed.old)
        for target in wanted:
            table = table_of(target.model)
            self.values[target] = {
                str(row.texts[target.attname]) for row in rows if row.table is table
            }
            for some in split_rows(wanted[target] - self.values[target]):
                values = [decode_value(target, text) for text in some]
                found = all_rows(table).filter(**{f"{target.attname}__in": values})
                self.existing[target].update(
                    str(encode_value(target, value))
                    for value in found.values_list(target.attname, flat=True)
                )

    def is_there(self, target: Any, text: str | None) -> bool:
        return text is None or text in self.values[target] or text in self.existing[target]

    def place_of(self, target: Any, text: str | None) -> UUID | None:
        """The snapshot from which the missing row can still be restored."""
        if text in self.away[target]:
            return self.away[target][text]
        if target not in self.waiting:
            self.waiting[target] = dict(self.find_waiting(target))
        return self.waiting[target].get(str(text))

    def find_waiting(self, target: Any) -> Iterator[tuple[str, UUID]]:
        """The rows of the table in other snapshots."""
        chunks = SnapshotChunk.objects.filter(
            model=table_of(target.model)._meta.label, field="", snapshot__unavailable=""
        ).exclude(snapshot=self.snapshot)
        if target.primary_key:
            for keys, place in read_in_steps(chunks.values_list("keys", "snapshot_id"), 100):
                yield from ((key, place) for key in keys)
            return
        for text, place in read_in_steps(chunks.values_list("rows", "snapshot_id"), 1):
            content = json.loads(text)
            column = content["fields"].index(target.attname)
            yield from ((values[column], place) for values in content["values"])

    def leave_out(self, row: Row, place: UUID | None) -> None:
        """Note that the row stays away, and the snapshot where it waits, if it does."""
        for target in {*self.values, row.table._meta.pk}:
            if table_of(target.model) is row.table and target.attname in row.texts:
                text = str(row.texts[target.attname])
                self.values[target].discard(text)
                self.away[target][text] = place
