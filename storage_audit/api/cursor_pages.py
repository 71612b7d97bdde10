"""Pages of the API's lists. A cursor is the id of the last row of the page before.

Each function returns the rows of a page, and the next cursor, or None behind the last page.
"""

from typing import Any, TypeVar
from uuid import UUID

from django.db.models import Model, Q, QuerySet
from django.shortcuts import get_object_or_404

Row = TypeVar("Row", bound=Model)


def page_newest_first(
    rows: QuerySet[Row], column: str, cursor: UUID | None, limit: int
) -> tuple[list[Row], Any]:
    """By the time in this column, which has an index. Raises Http404 for an unknown cursor."""
    if cursor:
        last = get_object_or_404(rows.model, pk=cursor)
        until = getattr(last, column)
        earlier = Q(**{f"{column}__lt": until}) | Q(pk__lt=last.pk)
        # The bound is apart from the OR, which no index serves.
        rows = rows.filter(earlier, **{f"{column}__lte": until})
    return first_page(rows.order_by(f"-{column}", "-pk"), limit)


def page_oldest_first(rows: QuerySet[Row], cursor: int, limit: int) -> tuple[list[Row], Any]:
    return first_page(rows.filter(pk__gt=cursor).order_by("pk"), limit)


def first_page(rows: QuerySet[Row], limit: int) -> tuple[list[Row], Any]:
    found = list(rows[: limit + 1])
    page = found[:limit]
    return page, page[-1].pk if len(found) > limit else None
