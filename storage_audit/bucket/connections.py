"""The connections to the store: which of them served a request, and how a thread keeps one.

A connection mostly leads to the same server, so what it listed counts if the marker is listed over
it too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from queue import Full, LifoQueue
from typing import Any

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)

_numbers = count(1)


class KeptConnection:
    """What `keep_connection` gives: the connection that a thread keeps, and in `served` for each
    request the number of the connection that it was sent over."""

    def __init__(self) -> None:
        self.served = list[int]()
        self.idle: dict[KeepingQueue, Any] = {}


_kept: ContextVar[KeptConnection | None] = ContextVar("kept_connection", default=None)


@contextmanager
def keep_connection() -> Iterator[KeptConnection]:
    """Within, this thread sends its requests over one connection, which no other thread uses. It is
    opened again if it breaks, and then has another number."""
    kept = KeptConnection()
    before = _kept.set(kept)
    try:
        yield kept
    finally:
        _kept.reset(before)
        for queue, connection in kept.idle.items():
            try:
                queue.put(connection, block=False)
            except Full:
                connection.close()


class KeepingQueue(LifoQueue[Any]):
    """The idle connections of a pool, but for those that threads keep."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        kept = _kept.get()
        if kept and self in kept.idle:
            return kept.idle.pop(self)
        return super().get(block, timeout)

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        kept = _kept.get()
        if kept and item is not None:
            kept.idle[self] = item
        else:
            super().put(item, block, timeout)


class NumberedConnection:
    """A number for each time that it is opened: urllib3 opens one again under the same object."""

    number = 0

    def connect(self) -> None:
        self.number = next(_numbers)
        super().connect()  # type: ignore[misc]

    def request(self, *args: Any, **options: Any) -> Any:
        answer = super().request(*args, **options)  # type: ignore[misc]
        if kept := _kept.get():
            kept.served.append(self.number)
        return answer


class NumberedHTTPConnection(NumberedConnection, AWSHTTPConnection):  # type: ignore[misc]
    pass


class NumberedHTTPSConnection(NumberedConnection, AWSHTTPSConnection):  # type: ignore[misc]
    pass


class HTTPPool(AWSHTTPConnectionPool):
    ConnectionCls = NumberedHTTPConnection
    QueueCls = KeepingQueue


class HTTPSPool(AWSHTTPSConnectionPool):
    ConnectionCls = NumberedHTTPSConnection
    QueueCls = KeepingQueue


def number_connections(client: Any) -> None:
    """Have a new client of botocore use these pools, also behind a proxy."""
    session = client._endpoint.http_session
    pools = {"http": HTTPPool, "https": HTTPSPool}
    session._pool_classes_by_scheme = session._manager.pool_classes_by_scheme = pools
