"""Moments and spans of time that tests count from."""

from datetime import UTC, datetime, timedelta

YEAR = timedelta(days=365)
DELETED_AT = datetime(2026, 6, 1, tzinfo=UTC)
OLDER, YOUNGER = DELETED_AT - timedelta(days=1), DELETED_AT + timedelta(seconds=1)
# The clock of another machine may differ by so much, and the store takes its requests.
AHEAD = timedelta(minutes=12)
# The store obeys no deletion call that was sent so long ago.
STALE_CALL = timedelta(minutes=32)
