"""The project's settings with short pauses between attempts, so that hours of retries and days of
late checks pass in minutes. Lease, turn and queue are as in production."""

from datetime import timedelta

from autoshorts.settings import *  # noqa: F403
from autoshorts.settings import STORAGE_AUDIT

STORAGE_AUDIT |= {
    "BATCH_SIZE": 100,
    "LIMIT_OBJECTS": 5000,
    "FIRST_RETRY": timedelta(seconds=3),
    "LONGEST_RETRY": timedelta(seconds=15),
    "FAILED_RETRY": timedelta(seconds=30),
    "LATE_CHECKS": (timedelta(seconds=60), timedelta(seconds=120)),
}
