"""What confirmation pages say about files that rows of other tables use."""

from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit.models import R2Object, R2ObjectQuerySet
from storage_audit.ownership.references import Cascade, find_row_references
from storage_audit.ownership.referring_columns import has_references
from storage_audit.redaction import printable_text

FILES_SHOWN, QUERY_SECONDS = 50, 2.0
KEPT_TEXT = gettext_lazy("Kept: %(key)s is used by %(row)s.")
DELETED_TEXT = gettext_lazy("Deleted although in use: %(key)s is used by %(row)s.")


def lines_in_use(
    rows: R2ObjectQuerySet, text: str | Promise, removed: Cascade | None = None
) -> list[str]:
    """A line for each of the first files in use. Rows that are deleted too do not count."""
    lines = list[str]()
    if not has_references():
        return lines
    for bucket, *_figures in rows.totals_by_bucket():
        here = rows.in_bucket(bucket)
        used = find_row_references(bucket, here, removed=removed, seconds=QUERY_SECONDS)
        keys: Any = R2Object.objects.filter(pk__in=list(used.rows)[:FILES_SHOWN]).order_by("key")
        for pk, key in keys.values_list("pk", "key"):
            lines.append(text % {"key": printable_text(key), "row": used.rows[pk]})
        if (more := len(used.rows) - FILES_SHOWN) > 0:
            lines.append(ngettext("… and %d more", "… and %d more", more) % more)
        for field in used.unreadable:
            lines.append(_("Can't be read, so its rows may use some of these files: %s.") % field)
    return lines
