"""An S3 store that costs its client next to nothing: a listing of so many keys, rendered once.

    python -m benchmarks.canned --port 9000 --keys 1000000 --latency 0.1

It answers ListObjectsV2 as Cloudflare's local R2 words it, at any position and for any prefix, and
keeps what is put before those keys, such as the marker of the installation. It checks no signature.
GET /_requests tells how many requests of each kind came since it was last asked.
"""

import asyncio
import json
import re
from argparse import ArgumentParser
from base64 import b64decode, b64encode
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache, partial
from hashlib import md5
from mmap import mmap
from tempfile import TemporaryFile
from typing import NamedTuple
from unicodedata import normalize
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from benchmarks.keys import etag_at, key_at, size_at, time_at

PAGE = 1000
XML = '<?xml version="1.0" encoding="UTF-8"?>'
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
REASONS = {200: "OK", 204: "No Content", 404: "Not Found", 501: "Not Implemented"}

Body = list[bytes | memoryview]


class Answer(NamedTuple):
    status: int
    body: Body = []
    headers: str = ""


class Place(NamedTuple):
    """A part of the listing: what was put, then a range of the rendered keys."""

    put: list[str]
    first: int
    end: int
    truncated: bool

    @property
    def size(self) -> int:
        return len(self.put) + self.end - self.first

    @property
    def last(self) -> str:
        return key_at(self.end - 1) if self.end > self.first else self.put[-1]


def entry(key: str, size: int, time: str, etag: str) -> bytes:
    return (
        f"<Contents><Key>{key}</Key><Size>{size}</Size><LastModified>{time}</LastModified>"
        f"<ETag>&quot;{etag}&quot;</ETag><StorageClass>STANDARD</StorageClass></Contents>"
    ).encode()


def written(key: str, encoded: bool) -> str:
    return quote(key, safe="") if encoded else escape(key)


@cache
def rendered(count: int, encoded: bool) -> memoryview:
    """All entries, of which each is as long as the first. In a file, as they may be gigabytes."""

    def entries() -> Iterator[bytes]:
        for n in range(count):
            yield entry(written(key_at(n), encoded), size_at(n), time_at(n), etag_at(n))

    file = TemporaryFile()  # noqa: SIM115 - open as long as the process lives
    file.writelines(entries())
    file.flush()
    return memoryview(mmap(file.fileno(), 0))


class Bucket:
    def __init__(self, count: int) -> None:
        self.keys = range(count)
        self.put: dict[str, bytes] = {}

    def answer(self, method: str, target: str, body: bytes) -> tuple[str, Answer]:
        """What kind of request it is, and the answer to it."""
        url = urlsplit(target)
        key = unquote(url.path).lstrip("/").partition("/")[2]
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        if key:
            return method.lower(), self.answer_object(method, key, body)
        if "uploads" in query:
            return "uploads", self.list_uploads()
        if query.get("list-type") == "2" and "delimiter" not in query:
            return "list", self.list_objects(query)
        return "head", Answer(200 if method == "HEAD" else 501)

    def answer_object(self, method: str, key: str, body: bytes) -> Answer:
        # As on R2, all spellings of a key are one object.
        name = normalize("NFC", key)
        if name >= key_at(0):
            return Answer(501)
        if method == "PUT":
            self.put[name] = body
            return Answer(200, headers=f'ETag: "{etag_of(body)}"\r\n')
        if method == "DELETE":
            self.put.pop(name, None)
            return Answer(204)
        if name not in self.put:
            return Answer(404, [f"{XML}<Error><Code>NoSuchKey</Code></Error>".encode()])
        return Answer(200, [self.put[name]])

    def list_uploads(self) -> Answer:
        root = "ListMultipartUploadsResult"
        text = f'<{root} xmlns="{NAMESPACE}"><IsTruncated>false</IsTruncated></{root}>'
        return Answer(200, [f"{XML}{text}".encode()])

    def list_objects(self, query: Mapping[str, str]) -> Answer:
        encoded = query.get("encoding-type") == "url"
        token = query.get("continuation-token", "")
        after = b64decode(token).decode() if token else query.get("start-after", "")
        limit = min(int(query.get("max-keys", PAGE)), PAGE)
        place = self.place(query.get("prefix", ""), after, limit)
        head = f'{XML}<ListBucketResult xmlns="{NAMESPACE}"><Name>benchmark</Name>'
        tail = "".join(f"<{n}>{v}</{n}>" for n, v in facts_of(place, query, limit).items())
        return Answer(
            200,
            [head.encode(), *self.entries(place, encoded), f"{tail}</ListBucketResult>".encode()],
        )

    def place(self, prefix: str, after: str, limit: int) -> Place:
        put = sorted(key for key in self.put if key > after and key.startswith(prefix))
        first, end = 0, len(self.keys)
        if prefix:
            start_at = partial(start_of_key, len(prefix))
            first = bisect_left(self.keys, prefix, key=start_at)
            end = bisect_right(self.keys, prefix, key=start_at)
        if after:
            first = min(max(first, bisect_right(self.keys, after, key=key_at)), end)
        room = limit - len(put[:limit])
        return Place(put[:limit], first, min(first + room, end), len(put) + end - first > limit > 0)

    def entries(self, place: Place, encoded: bool) -> Body:
        put = [
            entry(written(key, encoded), len(body), time_at(0), etag_of(body))
            for key, body in ((key, self.put[key]) for key in place.put)
        ]
        if place.first == place.end:
            return [*put]
        entries = rendered(len(self.keys), encoded)
        length = len(entries) // len(self.keys)
        return [*put, entries[place.first * length : place.end * length]]


def start_of_key(length: int, index: int) -> str:
    return key_at(index)[:length]


def etag_of(body: bytes) -> str:
    return md5(body, usedforsecurity=False).hexdigest()


def facts_of(place: Place, query: Mapping[str, str], limit: int) -> dict[str, object]:
    """What a listing says beside its objects, in the order in which local R2 says it."""
    encoded = query.get("encoding-type") == "url"
    facts: dict[str, object] = {"IsTruncated": str(place.truncated).lower()}
    facts["Prefix"] = written(query.get("prefix", ""), encoded)
    if "start-after" in query:
        facts["StartAfter"] = written(query["start-after"], encoded)
    if "continuation-token" in query:
        facts["ContinuationToken"] = query["continuation-token"]
    if place.truncated:
        facts["NextContinuationToken"] = b64encode(place.last.encode()).decode()
    facts |= {"MaxKeys": limit, "KeyCount": place.size}
    return facts | ({"EncodingType": "url"} if encoded else {})


class Connection(asyncio.Protocol):
    """One client. It gets its answers in turn, each as late as the latency says."""

    def __init__(self, bucket: Bucket, latency: float, counts: Counter[str]) -> None:
        self.bucket, self.latency, self.counts = bucket, latency, counts
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, rest = self.received.partition(b"\r\n\r\n")
        found = CONTENT_LENGTH.search(head)
        length = int(found[1]) if found else 0
        if end and len(rest) >= length:
            self.received = rest[length:]
            method, target, _version = head.split(b"\r\n", 1)[0].decode().split(" ")
            self.take(method, target, rest[:length])

    def take(self, method: str, target: str, body: bytes) -> None:
        if target == "/_requests":
            self.send("GET", Answer(200, [json.dumps(self.counts).encode()]))
            self.counts.clear()
            return
        kind, answer = self.bucket.answer(method, target, body)
        self.counts[kind] += 1
        if self.latency:
            loop = asyncio.get_running_loop()
            loop.call_later(self.latency, self.send, method, answer)
        else:
            self.send(method, answer)

    def send(self, method: str, answer: Answer) -> None:
        status, body, headers = answer
        head = f"HTTP/1.1 {status} {REASONS[status]}\r\n{headers}Content-Type: application/xml\r\n"
        head += f"Content-Length: {sum(map(len, body))}\r\n\r\n"
        if not self.transport.is_closing():
            self.transport.writelines([head.encode(), *([] if method == "HEAD" else body)])


async def serve(port: int, keys: int, latency: float) -> None:
    bucket, counts = Bucket(keys), Counter[str]()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(bucket, latency, counts), "127.0.0.1", port
    )
    await server.serve_forever()


def command_line() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m benchmarks.canned", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="the port on 127.0.0.1")
    parser.add_argument("--keys", type=int, default=100_000, help="how many objects it lists")
    parser.add_argument("--latency", type=float, default=0, help="seconds before each answer")
    return parser


if __name__ == "__main__":
    options = command_line().parse_args()
    asyncio.run(serve(options.port, options.keys, options.latency))
