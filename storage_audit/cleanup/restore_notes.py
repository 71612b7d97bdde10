"""Sentences about what of a snapshot did not come back."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit.cleanup.snapshot_rows import Table
from storage_audit.ownership.ownership_rule import shorten_list
from storage_audit.redaction import printable_text


class RestoreNotes:
    def __init__(self) -> None:
        # By what happened, the table and the field, the keys of the rows.
        self.keys = defaultdict[tuple[str, str, str], list[str]](list)

    def add(self, what: str, table: Table, link: Any, key: str) -> None:
        label = f"{link.model._meta.label}.{link.name}"
        self.keys[what, table._meta.label, label].append(printable_text(key))

    def sentences(self) -> Iterator[str]:
        for (what, label, field), keys in self.keys.items():
            words = {"rows": f"{label} {shorten_list(keys)}", "field": field}
            yield note_text(what, len(keys)) % words


def note_text(what: str, count: int) -> str:
    texts = {
        "gone": ngettext(
            "Not restored: %(rows)s, as the row in %(field)s is gone.",
            "Not restored: %(rows)s, as the rows in %(field)s are gone.",
            count,
        ),
        "later": ngettext(
            "Not restored yet: %(rows)s. It comes back once you also undo the deletion of the row"
            " in %(field)s.",
            "Not restored yet: %(rows)s. They come back once you also undo the deletion of the"
            " rows in %(field)s.",
            count,
        ),
        "link_gone": ngettext(
            "Restored without the link %(field)s: %(rows)s, as the linked row is gone.",
            "Restored without the link %(field)s: %(rows)s, as the linked rows are gone.",
            count,
        ),
        "link_later": ngettext(
            "Restored without the link %(field)s: %(rows)s. The link comes back once you also undo"
            " the deletion of the other row.",
            "Restored without the link %(field)s: %(rows)s. The links come back once you also undo"
            " the deletion of the other rows.",
            count,
        ),
        "link_changed": _(
            "Not linked again in %(field)s: %(rows)s, changed or deleted since the deletion."
        ),
    }
    return texts[what]
