"""A very fast S3 store: it serves a listing of so many keys that was rendered once.

    python -m benchmarks.canned --port 9000 --keys 1000000 --latency 0.1

It answers ListObjectsV2 as Cloudflare's local R2 words it, at any position and for any prefix, and
keeps what is put before those keys, such as the marker of the database. It checks no signature.
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

PAGE_SIZE = 1000
XML = '<?xml version="1.0" encoding="UTF-8"?>'
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
REASONS = {200: "OK", 204: "No Content", 404: "Not Found", 501: "Not Implemented"}

Body = list[bytes | memoryview]


class Answer(NamedTuple):
    status: int
    body: Body = []
    headers: str = ""


class ListingPart(NamedTuple):
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


def entry_xml(key: str, size: int, time: str, etag: str) -> bytes:
    return (
        f"<Contents><Key>{key}</Key><Size>{size}</Size><LastModified>{time}</LastModified>"
        f"<ETag>&quot;{etag}&quot;</ETag><StorageClass>STANDARD</StorageClass></Contents>"
    ).encode()


def encode_key(key: str, encoded: bool) -> str:
    return quote(key, safe="") if encoded else escape(key)


@cache
def render_entries(count: int, encoded: bool) -> memoryview:
    """All entries, which have equal lengths. In a file, as they may take gigabytes."""

    def entries() -> Iterator[bytes]:
        for n in range(count):
            yield entry_xml(encode_key(key_at(n), encoded), size_at(n), time_at(n), etag_at(n))

    file = TemporaryFile()  # noqa: SIM115 - open as long as the process lives
    file.writelines(entries())
    file.flush()
    return memoryview(mmap(file.fileno(), 0))


class Bucket:
    def __init__(self, count: int) -> None:
        self.keys = range(count)
        self.put_objects: dict[str, bytes] = {}

    def answer_request(self, method: str, target: str, body: bytes) -> tuple[str, Answer]:
        """The kind of the request, and the answer."""
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
            self.put_objects[name] = body
            return Answer(200, headers=f'ETag: "{md5_etag(body)}"\r\n')
        if method == "DELETE":
            self.put_objects.pop(name, None)
            return Answer(204)
        if name not in self.put_objects:
            return Answer(404, [f"{XML}<Error><Code>NoSuchKey</Code></Error>".encode()])
        return Answer(200, [self.put_objects[name]])

    def list_uploads(self) -> Answer:
        root = "ListMultipartUploadsResult"
        text = f'<{root} xmlns="{NAMESPACE}"><IsTruncated>false</IsTruncated></{root}>'
        return Answer(200, [f"{XML}{text}".encode()])

    def list_objects(self, query: Mapping[str, str]) -> Answer:
        encoded = query.get("encoding-type") == "url"
        token = query.get("continuation-token", "")
        after = b64decode(token).decode() if token else query.get("start-after", "")
        limit = min(int(query.get("max-keys", PAGE_SIZE)), PAGE_SIZE)
        place = self.find_part(query.get("prefix", ""), after, limit)
        head = f'{XML}<ListBucketResult xmlns="{NAMESPACE}"><Name>benchmark</Name>'
        tail = "".join(f"<{n}>{v}</{n}>" for n, v in listing_fields(place, query, limit).items())
        return Answer(
            200,
            [
                head.encode(),
                *self.page_entries(place, encoded),
                f"{tail}</ListBucketResult>".encode(),
            ],
        )

    def find_part(self, prefix: str, after: str, limit: int) -> ListingPart:
        put = sorted(key for key in self.put_objects if key > after and key.startswith(prefix))
        first, end = 0, len(self.keys)
        if prefix:
            start_at = partial(key_start, len(prefix))
            first = bisect_left(self.keys, prefix, key=start_at)
            end = bisect_right(self.keys, prefix, key=start_at)
        if after:
            first = min(max(first, bisect_right(self.keys, after, key=key_at)), end)
        room = limit - len(put[:limit])
        return ListingPart(
            put[:limit], first, min(first + room, end), len(put) + end - first > limit > 0
        )

    def page_entries(self, place: ListingPart, encoded: bool) -> Body:
        put = [
            entry_xml(encode_key(key, encoded), len(body), time_at(0), md5_etag(body))
            for key, body in ((key, self.put_objects[key]) for key in place.put)
        ]
        if place.first == place.end:
            return [*put]
        entries = render_entries(len(self.keys), encoded)
        length = len(entries) // len(self.keys)
        return [*put, entries[place.first * length : place.end * length]]


def key_start(length: int, index: int) -> str:
    return key_at(index)[:length]


def md5_etag(body: bytes) -> str:
    return md5(body, usedforsecurity=False).hexdigest()


def listing_fields(place: ListingPart, query: Mapping[str, str], limit: int) -> dict[str, object]:
    """The fields of a listing beside its objects, in the order of local R2."""
    encoded = query.get("encoding-type") == "url"
    facts: dict[str, object] = {"IsTruncated": str(place.truncated).lower()}
    facts["Prefix"] = encode_key(query.get("prefix", ""), encoded)
    if "start-after" in query:
        facts["StartAfter"] = encode_key(query["start-after"], encoded)
    if "continuation-token" in query:
        facts["ContinuationToken"] = query["continuation-token"]
    if place.truncated:
        facts["NextContinuationToken"] = b64encode(place.last.encode()).decode()
    facts |= {"MaxKeys": limit, "KeyCount": place.size}
    return facts | ({"EncodingType": "url"} if encoded else {})


class Connection(asyncio.Protocol):
    """One client. It gets its answers in order, each after the latency."""

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
            self.handle_request(method, target, rest[:length])

    def handle_request(self, method: str, target: str, body: bytes) -> None:
        if target == "/_requests":
            self.send_answer("GET", Answer(200, [json.dumps(self.counts).encode()]))
            self.counts.clear()
            return
        kind, answer = self.bucket.answer_request(method, target, body)
        self.counts[kind] += 1
        if self.latency:
            loop = asyncio.get_running_loop()
            loop.call_later(self.latency, self.send_answer, method, answer)
        else:
            self.send_answer(method, answer)

    def send_answer(self, method: str, answer: Answer) -> None:
        status, body, headers = answer
        head = f"HTTP/1.1 {status} {REASONS[status]}\r\n{headers}Content-Type: application/xml\r\n"
        head += f"Content-Length: {sum(map(len, body))}\r\n\r\n"
        if not self.transport.is_closing():
            self.transport.writelines([head.encode(), *([] if method == "HEAD" else body)])


async def run_server(port: int, keys: int, latency: float) -> None:
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
    asyncio.run(run_server(options.port, options.keys, options.latency))
