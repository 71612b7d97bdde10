"""A proxy in front of local R2 that answers chosen requests itself: the store on a bad day.

Each request is held against the rules in turn: see `on`.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

from django.db import connections


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def query(self) -> dict[str, str]:
        pairs = parse_qs(urlsplit(self.target).query, keep_blank_values=True)
        return {name: values[0] for name, values in pairs.items()}

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)


@dataclass(frozen=True)
class Reply:
    """An answer of the store; `status` 0 stands for a connection that breaks without one."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/xml"),)

    @property
    def text(self) -> str:
        return self.body.decode()


Forward = Callable[[], Reply]
Matches = Callable[[Request], bool]
# What to answer, or None to leave the request to the next rule and at last to the store.
Rule = Callable[[Request, Forward], Reply | None]

RESET = Reply(0)
HTML = Reply(200, b"<html><p>Sign in to the network<br></html>", (("Content-Type", "text/html"),))


@dataclass
class FaultyStore:
    """`rules` are asked in order; `seen` lists what came, without what the rules made of it."""

    url: str
    rules: list[Rule] = field(default_factory=list)
    seen: list[Request] = field(default_factory=list)

    def asked(self, matches: Matches) -> list[Request]:
        return [request for request in self.seen if matches(request)]


def on(matches: Matches, *answers: Reply | Rule, times: int | None = None) -> Rule:
    """Give these answers in turn to the requests that match, the last one again and again; after
    `times` of them step aside."""
    count = 0

    def rule(request: Request, forward: Forward) -> Reply | None:
        nonlocal count
        if not matches(request) or (times is not None and count >= times):
            return None
        answer = answers[min(count, len(answers) - 1)]
        count += 1
        return answer if isinstance(answer, Reply) else answer(request, forward)

    return rule


def is_delete_batch(request: Request) -> bool:
    return request.method == "POST" and "delete" in request.query


def is_delete_single(request: Request) -> bool:
    return request.method == "DELETE" and not request.path.rpartition("/")[2].startswith("probe-")


def is_listing(request: Request) -> bool:
    return "list-type" in request.query


def is_listing_under(prefix: str) -> Matches:
    return lambda request: is_listing(request) and request.query.get("prefix") == prefix


def is_marker(request: Request) -> bool:
    return request.method == "GET" and request.path.endswith("/installation.json")


def is_anything(request: Request) -> bool:
    return True


def keys_sent(request: Request) -> list[str]:
    """The keys that a DeleteObjects call names."""
    return [unescape(key) for key in re.findall("<Key>(.*?)</Key>", request.body.decode(), re.S)]


def error(code: str, message: str = "a fault for the test") -> bytes:
    return f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


def per_key(request: Request, xml: Callable[[str], str]) -> Reply:
    entries = "".join(xml(escape(key)) for key in keys_sent(request))
    return Reply(200, f"<DeleteResult>{entries}</DeleteResult>".encode())


def each_key_fails(request: Request, forward: Forward) -> Reply:
    why = "<Code>InternalError</Code><Message>no</Message>"
    return per_key(request, lambda key: f"<Error><Key>{key}</Key>{why}</Error>")


def lies(request: Request, forward: Forward) -> Reply:
    """Says `Deleted` of every key and deletes none."""
    return per_key(request, lambda key: f"<Deleted><Key>{key}</Key></Deleted>")


def does_it_and_breaks(request: Request, forward: Forward) -> Reply:
    forward()
    return RESET


def then(*effects: Callable[[], object]) -> Rule:
    """Let something else happen in the world just before the request reaches the store."""

    def rule(request: Request, forward: Forward) -> None:
        for effect in effects:
            effect()

    return rule


def changed(change: Callable[[str], str]) -> Rule:
    """Pass the store's answer on with its text changed."""

    def rule(request: Request, forward: Forward) -> Reply:
        reply = forward()
        return replace(reply, body=change(reply.text).encode())

    return rule


def contents(xml: str) -> list[str]:
    return re.findall("<Contents>.*?</Contents>", xml, re.S)


def with_contents(xml: str, entries: list[str]) -> str:
    """The same page of a listing with these entries."""
    empty = re.sub("<KeyCount>.*?</KeyCount>", f"<KeyCount>{len(entries)}</KeyCount>", xml)
    for entry in contents(xml):
        empty = empty.replace(entry, "", 1)
    return empty.replace("</ListBucketResult>", "".join(entries) + "</ListBucketResult>")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Small answers go out at once and in one piece.
    disable_nagle_algorithm = True
    wbufsize = -1
    store: FaultyStore
    upstream: str

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        headers = dict(self.headers.items())
        request = Request(self.command, self.path, headers, self.rfile.read(length))
        self.store.seen.append(request)
        forward = partial(forwarded, self.upstream, request)
        answers = (rule(request, forward) for rule in self.store.rules)
        try:
            reply = next(filter(None, answers), None) or forward()
        finally:
            connections.close_all()  # Those of this thread, which a rule may have opened.
        if reply.status == 0:
            self.close_connection = True
            return
        self.send_response_only(reply.status)
        for name, value in reply.headers:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def log_message(self, format: str, *args: object) -> None:
        pass


def forwarded(upstream: str, request: Request) -> Reply:
    """Send the request on as it came, with the Host that its signature covers."""
    connection = HTTPConnection(upstream, timeout=30)
    try:
        connection.putrequest(
            request.method, request.target, skip_host=True, skip_accept_encoding=True
        )
        for name, value in request.headers.items():
            if name.lower() != "connection":
                connection.putheader(name, value)
        connection.endheaders(request.body or None)
        response = connection.getresponse()
        dropped = {"connection", "transfer-encoding"}
        if request.method != "HEAD":
            dropped.add("content-length")
        kept = ((n, v) for n, v in response.getheaders() if n.lower() not in dropped)
        return Reply(response.status, response.read(), tuple(kept))
    finally:
        connection.close()


@contextmanager
def faulty_store(endpoint_url: str) -> Iterator[FaultyStore]:
    parts = urlsplit(endpoint_url)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    store = FaultyStore(f"http://127.0.0.1:{server.server_port}{parts.path}")
    server.RequestHandlerClass = type(
        "Handler", (_Handler,), {"store": store, "upstream": parts.netloc}
    )
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
