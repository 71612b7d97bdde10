"""The demo's settings with short pauses between attempts, so that hours of retries and days of
follow-up checks pass in minutes. Lease, turn and queue are as in production."""

from datetime import timedelta

from devtools.demo.settings import *  # noqa: F403
from devtools.demo.settings import STORAGE_AUDIT

STORAGE_AUDIT |= {
    # Long enough to change one's mind, and to be killed while one does.
    "GRACE": timedelta(seconds=20),
    # Sixteen such calls are a batch: a project has several.
    "BATCH_SIZE": 3,
    "LIMIT_OBJECTS": 5000,
    "RETRY_FIRST": timedelta(seconds=3),
    "RETRY_LONGEST": timedelta(seconds=15),
    "RETRY_FAILED_EVERY": timedelta(seconds=30),
    "FOLLOW_UP_CHECKS": (timedelta(seconds=75),),
    # An upload whose process was killed is no upload any more when the last of them looks.
    "UPLOAD_TIMEOUT": timedelta(seconds=40),
}
