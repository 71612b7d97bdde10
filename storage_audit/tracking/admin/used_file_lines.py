"""What pages of confirmation say of files that rows of other tables use."""

from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit.models import R2Object, R2ObjectQuerySet
from storage_audit.ownership.references import Cascade, asks_anything, uses_of_rows
from storage_audit.redaction import visible

SHOWN, SECONDS = 50, 2.0
KEPT = gettext_lazy("Kept: %(key)s is used by %(row)s.")
DELETED = gettext_lazy("Deleted although in use: %(key)s is used by %(row)s.")


def used_lines(
    rows: R2ObjectQuerySet, text: str | Promise, removed: Cascade | None = None
) -> list[str]:
    """A line for each of the first files in use, but for what uses them and goes along."""
    lines = list[str]()
    if not asks_anything():
        return lines
    for bucket, *_figures in rows.by_bucket():
        here = rows.in_bucket(bucket)
        used = uses_of_rows(bucket, here, removed=removed, seconds=SECONDS)
        keys: Any = R2Object.objects.filter(pk__in=list(used.rows)[:SHOWN]).order_by("key")
        for pk, key in keys.values_list("pk", "key"):
            lines.append(text % {"key": visible(key), "row": used.rows[pk]})
        if (more := len(used.rows) - SHOWN) > 0:
            lines.append(ngettext("… and %d more", "… and %d more", more) % more)
        for field in used.unread:
            lines.append(_("Its rows may use some files, and cannot be read: %s.") % field)
    return lines
