"""The bucket's marker, looked for after the pages that it is to vouch for have arrived, and while
these are compared with the table."""

from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Self

from storage_audit.bucket.errors import Unavailable
from storage_audit.ownership import bucket_marker
from storage_audit.scan import fetchers


class Witness:
    """Sees the marker in a thread of its own. As a context manager it ends with no thread left."""

    def __init__(self, bucket: str) -> None:
        self.bucket, self.marker = bucket, bucket_marker.see_marker(bucket)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="witness")
        self._answer: Future[str | None]
        self._stop = Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._stop.set()
        self._thread.shutdown()

    def look(self) -> None:
        """Ask for the marker now: see `vouch`."""
        self._answer = self._thread.submit(self._name_marker)

    def vouch(self) -> str:
        """Wait until the marker was seen that was asked for last, and give the text that names it.
        What had arrived before it was asked for may be believed. Raises CannotConclude and
        StoreError."""
        name = self._answer.result()
        return name if name == self.marker else bucket_marker.see_marker(self.bucket)

    def see(self) -> str:
        self.look()
        return self.vouch()

    def _name_marker(self) -> str | None:
        """Asks no database, as each thread would need a connection of its own."""
        pauses = iter(fetchers.PAUSES)
        while True:
            try:
                listed = bucket_marker.find_marker(self.bucket)
            except Unavailable as error:
                fetchers.wait_to_retry(error, pauses, self._stop)
            else:
                return bucket_marker.name_marker(listed) if listed else None
