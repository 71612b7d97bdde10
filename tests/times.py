"""Moments and spans of time that tests count from."""

from datetime import UTC, datetime, timedelta

YEAR = timedelta(days=365)
DELETED_AT = datetime(2026, 6, 1, tzinfo=UTC)
OLDER, YOUNGER = DELETED_AT - timedelta(days=1), DELETED_AT + timedelta(seconds=1)
