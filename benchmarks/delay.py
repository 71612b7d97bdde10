"""A proxy that holds back each request before it hands it on, many at once: the delay is a timer.

    python -m benchmarks.delay --port 9001 --upstream 127.0.0.1:8333 --latency 0.1

GET /_requests tells how many requests of each kind came since it was last asked, and the seconds
from the first one to the last answer.
"""

import asyncio
import json
from argparse import ArgumentParser
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from urllib.parse import parse_qs, urlsplit

MARKER_PREFIX = ".storage_audit/"
PIECE_BYTES = 1 << 16


@dataclass
class Tally:
    """What came since the last report."""

    counts: Counter[str] = field(default_factory=Counter)
    began: float = 0.0
    ended: float = 0.0

    def take_report(self) -> bytes:
        report = {"counts": self.counts, "seconds": self.ended - self.began}
        text = json.dumps(report).encode()
        self.counts, self.began = Counter(), 0.0
        return text


def classify_request(method: str, target: str) -> str:
    """The kind of a request, as the results name it."""
    url = urlsplit(target)
    query = parse_qs(url.query, keep_blank_values=True)
    if "list-type" in query:
        is_marker = query.get("prefix", [""])[0].startswith(MARKER_PREFIX)
        return "marker listings" if is_marker else "listings"
    if "uploads" in query:
        return "listings of uploads"
    if "delete" in query or method == "DELETE":
        return "deletions"
    return "marker reads" if MARKER_PREFIX in url.path else "others"


async def read_message(reader: StreamReader, *, has_body: bool = True) -> tuple[bytes, bytes]:
    """Head and body, as they came. Raises IncompleteReadError when there is no other one."""
    head = await reader.readuntil(b"\r\n\r\n")
    fields = {
        name.strip().lower(): value.strip()
        for name, _colon, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
    }
    if not has_body:
        return head, b""
    if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
        return head, await read_chunks(reader)
    return head, await reader.readexactly(int(fields.get(b"content-length", b"0")))


async def read_chunks(reader: StreamReader) -> bytes:
    body = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        rest = await reader.readexactly(int(line.split(b";")[0], 16) + 2)
        body += line + rest
        if rest == b"\r\n":
            return body


class Relay:
    """Hands requests to the store, each connection of a client over one of its own."""

    def __init__(self, host: str, port: int, latency: float) -> None:
        self.host, self.port, self.latency, self.tally = host, port, latency, Tally()

    async def serve_client(self, reader: StreamReader, writer: StreamWriter) -> None:
        store: tuple[StreamReader, StreamWriter] | None = None
        with suppress(IncompleteReadError, ConnectionError):
            while True:
                head, body = await read_message(reader)
                method, target, _version = head.split(b"\r\n", 1)[0].decode().split(" ")
                if target == "/_requests":
                    report = self.tally.take_report()
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(report))
                    writer.write(report)
                    continue
                self.tally.began = self.tally.began or monotonic()
                self.tally.counts[classify_request(method, target)] += 1
                await asyncio.sleep(self.latency)
                store = store or await asyncio.open_connection(self.host, self.port)
                store[1].write(head + body)
                answer = await self.read_answer(store[0], method)
                self.tally.ended = monotonic()
                writer.write(answer)
        for each in (writer, store[1] if store else None):
            if each:
                each.close()

    async def read_answer(self, reader: StreamReader, method: str) -> bytes:
        start = await reader.readuntil(b"\r\n")
        status = int(start.split(b" ")[1])
        head, body = await read_message(
            reader, has_body=method != "HEAD" and status not in (204, 304)
        )
        return start + head + body


async def run_server(port: int, upstream: str, latency: float) -> None:
    host, _colon, upstream_port = upstream.partition(":")
    relay = Relay(host, int(upstream_port), latency)
    server = await asyncio.start_server(
        relay.serve_client, "127.0.0.1", port, limit=PIECE_BYTES, backlog=128
    )
    await server.serve_forever()


def command_line() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m benchmarks.delay", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="the port on 127.0.0.1")
    parser.add_argument("--upstream", required=True, help="HOST:PORT of the store")
    parser.add_argument("--latency", type=float, required=True, help="seconds before each request")
    return parser


if __name__ == "__main__":
    options = command_line().parse_args()
    asyncio.run(run_server(options.port, options.upstream, options.latency))
