"""What the pages say that confirm the deletion or the untracking of files."""

from collections.abc import Collection
from typing import Any

from django.template.defaultfilters import filesizeformat
from django.utils.translation import ngettext

from storage_audit.display_formats import deletion_text, format_bucket_key, format_projects
from storage_audit.models import R2ObjectQuerySet
from storage_audit.tracking.admin.used_file_lines import DELETED_TEXT, lines_in_use

FILES_SHOWN = 10


def file_deletion_page(rows: R2ObjectQuerySet, counts: Collection[Any]) -> dict[str, Any]:
    """`counts` are Django's own of all rows that go."""
    count, size = rows.totals()
    totals = rows.totals_by_bucket()
    lead = ngettext(
        "This deletes %(count)d file (%(size)s) from R2, even if its project exists.",
        "This deletes %(count)d files (%(size)s) from R2, even if their projects exist.",
        count,
    )
    return {
        "title": ngettext("Delete %d file?", "Delete %d files?", count) % count,
        "lead": lead % {"count": count, "size": filesizeformat(size)},
        "lines": [
            projects_line(rows),
            *([deletion_text(*figures) for figures in totals] if len(totals) > 1 else []),
            *lines_in_use(rows, DELETED_TEXT),
        ],
        "of_files": True,
        "others": len(counts) > 1,
        **file_sample(rows, count),
    }


def projects_line(rows: R2ObjectQuerySet) -> str:
    return format_projects(set(rows.order_by().values_list("project_id", flat=True).distinct()))


def file_sample(rows: R2ObjectQuerySet, count: int) -> dict[str, Any]:
    """Some of the files. Without an order, as that would sort all of them."""
    found = rows.order_by().values_list("bucket", "key")[:FILES_SHOWN]
    return {"sample": [format_bucket_key(*each) for each in found], "all_files": count}
