"""A proxy in front of an S3 store on this machine, which answers chosen requests itself.

    with faulty_store("http://127.0.0.1:8787") as store:
        store.rules.append(on(is_listing, Reply(503)))

Without rules it hands everything on as it came. A store that is down looks through it as it is:
the connection breaks.
"""

import re
import socket
import struct
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from itertools import chain, count
from select import select
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import unescape

from devtools.http_reply import Reply

# More than a call that deletes 1,000 keys. What is larger goes through in pieces.
MAX_BODY_BYTES = 8 << 20
PIECE_BYTES = 1 << 16
MAX_KEPT_PAGES = 64
STORE_TIMEOUT_SECONDS = 60.0  # seconds
# What makes the place where a listing begins unlike all others.
NONCE = re.compile("\U0010ffff[0-9a-f]{16}")
HOP_BY_HOP_HEADERS = {"connection", "keep-alive", "proxy-connection"}


RESET_REPLY = Reply(0)


@dataclass(frozen=True)
class Request:
    """`body` is empty when it is larger than any call that is about keys. `follows` is the page
    of the listing that this request goes on from, `past` the first answer to the same request.
    `connection` counts the clients' connections from 1."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    previous_page: Reply | None = None
    first_answer: Reply | None = None
    connection: int = 0

    @property
    def query(self) -> dict[str, str]:
        pairs = parse_qs(urlsplit(self.target).query, keep_blank_values=True)
        return {name: values[0] for name, values in pairs.items()}

    @property
    def start_key(self) -> str:
        """The key at which a listing begins; the application names a text just before it."""
        start = self.query.get("start-after", "")
        if not (nonce := NONCE.search(start)):
            return start
        return start[: nonce.start() - 1] + chr(ord(start[nonce.start() - 1]) + 1)

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)


class Forward:
    """Hands the request to the store, once however often it is called, and gives its answer:
    RESET when it broke off, and nobody can tell what became of the request."""

    def __init__(self, send: Callable[[], Reply]) -> None:
        self._send = send
        self.reply: Reply | None = None

    def __call__(self) -> Reply:
        if self.reply is None:
            self.reply = self._send()
        return self.reply


# What to answer, or None to leave the request to the next rule and at last to the store.
Rule = Callable[[Request, Forward], Reply | None]
# Told of each request when its answer is known: the store's (None when it was not asked), ours.
Observer = Callable[[Request, Reply | None, Reply], object]


@dataclass
class FaultyStore:
    """`rules` are asked in order; `seen` lists the latest requests, as they came."""

    url: str
    requests: deque[Request]
    observers: list[Observer] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)

    def find_requests(self, matches: Callable[[Request], bool]) -> list[Request]:
        return [request for request in list(self.requests) if matches(request)]

    def answer(self, request: Request, forward: Forward) -> Reply:
        self.requests.append(request)
        answers = (rule(request, forward) for rule in list(self.rules))
        reply = next(filter(None, answers), None) or forward()
        for observer in self.observers:
            observer(request, forward.reply, reply)
        return reply


@contextmanager
def faulty_store(
    endpoint_url: str,
    port: int = 0,
    *,
    kept_requests: int = 10_000,
    observers: Iterable[Observer] = (),
) -> Iterator[FaultyStore]:
    """Stand in front of this store, on a port of 127.0.0.1, for as long as the block lasts.

    `keep` is the number of requests that `seen` remembers. Raises OSError when the port is taken.
    """
    parts = urlsplit(endpoint_url)
    with _Server(("127.0.0.1", port), _Handler) as server:
        url = f"http://127.0.0.1:{server.server_port}{parts.path}"
        server.store = FaultyStore(url, deque(maxlen=kept_requests), list(observers))
        server.upstream = parts.netloc
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.store
        finally:
            server.shutdown()
            thread.join()
            server.break_connections()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    store: FaultyStore
    upstream: str

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.pages = _Pages()
        self.numbers = count(1)
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        # Without the polite farewell, which would make an end of a reset.
        self._open.discard(request)
        self.close_request(request)

    def break_connections(self) -> None:
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that went away is none of our errors; a rule that fails is.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Small answers go out at once and in one piece.
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.upstream = _Upstream(self.server.upstream)
        self.number = next(self.server.numbers)

    def finish(self) -> None:
        self.upstream.close()
        super().finish()

    def handle_expect_100(self) -> bool:
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def handle_any(self) -> None:
        headers = dict(self.headers.items())
        pieces = _read_pieces(headers, self.rfile)
        start = _read_start(pieces)
        # Not `self.path`, where slashes at the start are folded.
        target = self.requestline.split()[1]
        body = start if len(start) <= MAX_BODY_BYTES else b""
        pages = self.server.pages
        before, past = pages.find_previous(target), pages.find_first(target)
        request = Request(self.command, target, headers, body, before, past, self.number)
        forward = Forward(lambda: self.upstream.send(request, chain([start], pieces)))
        reply = self.server.store.answer(request, forward)
        for _piece in pieces:
            pass  # An answer that comes before the end of the body would be lost.
        if forward.reply:
            pages.remember(target, forward.reply)
        self.send_reply(reply)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def send_reply(self, reply: Reply) -> None:
        self.close_connection |= reply.status == 0 or reply.announced_length is not None
        if reply.status == 0:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return
        self.send_response_only(reply.status)
        for name, value in reply.headers:
            self.send_header(name, value)
        if self.command == "HEAD":
            self.end_headers()
            return
        self.send_header("Content-Length", str(reply.announced_length or len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Upstream:
    """The connection to the store that goes with one of a client."""

    def __init__(self, address: str) -> None:
        self._connection = HTTPConnection(address, timeout=STORE_TIMEOUT_SECONDS)

    def send(self, request: Request, body: Iterable[bytes]) -> Reply:
        """Send it on as it came, with the Host that its signature covers."""
        open_socket = self._connection.sock
        if open_socket and select([open_socket], [], [], 0)[0]:
            self.close()  # The store has closed it, or speaks unasked.
        try:
            return self._exchange(request, body)
        except (OSError, HTTPException):
            self.close()
            return RESET_REPLY

    def _exchange(self, request: Request, body: Iterable[bytes]) -> Reply:
        connection = self._connection
        connection.putrequest(
            request.method, request.target, skip_host=True, skip_accept_encoding=True
        )
        for name, value in request.headers.items():
            if name.lower() not in HOP_BY_HOP_HEADERS:
                connection.putheader(name, value)
        connection.endheaders(body, encode_chunked=_is_chunked(request.headers))
        response = connection.getresponse()
        dropped = HOP_BY_HOP_HEADERS | {"transfer-encoding"}
        if request.method != "HEAD":
            dropped.add("content-length")
        kept = ((n, v) for n, v in response.getheaders() if n.lower() not in dropped)
        return Reply(response.status, response.read(), tuple(kept))

    def close(self) -> None:
        self._connection.close()


class _Pages:
    """The latest pages of listings that go on, by the token that asks for the next one, and the
    first of each request."""

    def __init__(self) -> None:
        self._by_token: OrderedDict[str, Reply] = OrderedDict()
        self._by_target: OrderedDict[str, Reply] = OrderedDict()
        self._lock = Lock()

    def find_previous(self, target: str) -> Reply | None:
        if "continuation-token=" not in target:
            return None
        token = parse_qs(urlsplit(target).query).get("continuation-token", [""])[0]
        return self._by_token.get(token)

    def find_first(self, target: str) -> Reply | None:
        return self._by_target.get(NONCE.sub("", unquote(target)))

    def remember(self, target: str, reply: Reply) -> None:
        if "list-type=" not in target or reply.status != 200:
            return
        token = re.search(b"<NextContinuationToken>(.*?)</", reply.body)
        with self._lock:
            self._by_target.setdefault(NONCE.sub("", unquote(target)), reply)
            if token:
                self._by_token[unescape(token[1].decode())] = reply
            for kept in (self._by_token, self._by_target):
                while len(kept) > MAX_KEPT_PAGES:
                    kept.popitem(last=False)


def _find_header(headers: Mapping[str, str], name: str) -> str:
    return next((value for each, value in headers.items() if each.lower() == name), "")


def _is_chunked(headers: Mapping[str, str]) -> bool:
    return _find_header(headers, "transfer-encoding").lower() == "chunked"


def _read_start(pieces: Iterator[bytes]) -> bytes:
    """All of it, or more than KEPT_BODY."""
    start = bytearray()
    while len(start) <= MAX_BODY_BYTES and (piece := next(pieces, b"")):
        start += piece
    return bytes(start)


def _read_pieces(headers: Mapping[str, str], source: BufferedIOBase) -> Iterator[bytes]:
    """The body of a request. Raises ConnectionResetError when the client breaks off."""
    if not _is_chunked(headers):
        yield from _read_exactly(int(_find_header(headers, "content-length") or 0), source)
        return
    while size := int(_read_line(source).partition(b";")[0], 16):
        yield from _read_exactly(size, source)
        _read_line(source)
    while _read_line(source).strip():
        pass


def _read_exactly(length: int, source: BufferedIOBase) -> Iterator[bytes]:
    while length:
        piece = source.read(min(length, PIECE_BYTES))
        if not piece:
            raise ConnectionResetError
        length -= len(piece)
        yield piece


def _read_line(source: BufferedIOBase) -> bytes:
    line = source.readline(PIECE_BYTES)
    if not line.endswith(b"\n"):
        raise ConnectionResetError
    return line
