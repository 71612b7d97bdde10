"""Checks the bucket marker after a batch of pages has arrived, and while these are compared with
the table: the pages count only if the marker is still there."""

from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Self

from storage_audit.bucket.errors import Unavailable
from storage_audit.ownership import bucket_marker
from storage_audit.scan import fetchers


class MarkerWatcher:
    """Checks the marker in its own thread. As a context manager it ends with no thread left."""

    def __init__(self, bucket: str) -> None:
        self.bucket, self.marker = bucket, bucket_marker.require_marker(bucket)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="witness")
        self._answer: Future[str | None]
        self._stop = Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._stop.set()
        self._thread.shutdown()

    def start(self) -> None:
        """Ask for the marker now; `wait` gives the answer."""
        self._answer = self._thread.submit(self._name_marker)

    def wait(self) -> str:
        """Wait for the marker that `start` asked for, and give the text that names it. What had
        arrived before may then be believed. Raises CannotConclude and StoreError."""
        name = self._answer.result()
        return name if name == self.marker else bucket_marker.require_marker(self.bucket)

    def check(self) -> str:
        self.start()
        return self.wait()

    def _name_marker(self) -> str | None:
        """Does not use the database, as each thread would need its own connection."""
        pauses = iter(fetchers.RETRY_PAUSES_SECONDS)
        while True:
            try:
                listed = bucket_marker.find_marker(self.bucket)
            except Unavailable as error:
                fetchers.wait_to_retry(error, pauses, self._stop)
            else:
                return bucket_marker.name_marker(listed) if listed else None
