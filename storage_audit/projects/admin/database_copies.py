"""Rows of another database, which own no files."""

from typing import Any

from django.db import DEFAULT_DB_ALIAS


def is_database_copy(rows: Any) -> bool:
    """Whether an admin lists rows of another database, which own no files but may have the ids of
    projects. A read replica that a router chooses does not count: the queryset does not name it."""
    named: str | None = rows._db
    return named not in (None, DEFAULT_DB_ALIAS)
