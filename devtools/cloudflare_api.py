"""The part of Cloudflare's own API that wrangler and the SDK use for R2, before a local R2.

    with LocalR2(folder, ["media"]) as r2, cloudflare_api(r2) as api:
        os.environ.update(api.environment)

It answers as https://developers.cloudflare.com/api/ says, and takes paths as they come: it does not
undo what a client makes of `..` or `#` in a key.
"""

import json
import re
import secrets
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from time import monotonic
from typing import Any
from urllib.parse import parse_qs, unquote, unquote_to_bytes

from devtools.http_reply import Reply
from devtools.local_r2 import LocalR2

ROOT = "/client/v4"
DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 20, 1000
MAX_KEY_BYTES = 1024
MAX_KEPT_REQUESTS = 10_000
# https://developers.cloudflare.com/fundamentals/api/reference/limits/
RATE_WINDOW_SECONDS = 300.0  # seconds
REQUESTS_PER_WINDOW = 1200
ACCOUNT_ID = re.compile("[0-9a-f]{32}")


class Refused(Exception):
    """Carries the answer."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


def json_reply(status: int, content: dict[str, Any], *headers: tuple[str, str]) -> Reply:
    kind = ("Content-Type", "application/json")
    return Reply(status, json.dumps(content).encode(), (kind, *headers))


def success_reply(result: object, info: dict[str, Any] | None = None) -> Reply:
    content = {"success": True, "errors": [], "messages": [], "result": result}
    return json_reply(200, content | ({"result_info": info} if info else {}))


def error_reply(status: int, code: int, message: str, *headers: tuple[str, str]) -> Reply:
    errors = [{"code": code, "message": message}]
    content = {"success": False, "errors": errors, "messages": [], "result": None}
    return json_reply(status, content, *headers)


# https://developers.cloudflare.com/r2/api/error-codes/
INTERNAL_ERROR_TEXT = "We encountered an internal error. Please try again."
NO_BUCKET = error_reply(404, 10006, "The specified bucket does not exist.")
NO_KEY = error_reply(404, 10007, "The specified key does not exist.")
BAD_NAME = error_reply(400, 10020, "The specified object name is not valid.")
BAD_PAGE = error_reply(400, 10021, f"per_page must be between 1 and {MAX_PAGE_SIZE}.")
UNAVAILABLE = error_reply(503, 10043, "The service is currently unavailable.")
LOCKED = error_reply(403, 10069, "The object is locked by the bucket policy.")
# Of the API as a whole.
NO_TOKEN = error_reply(400, 9106, "Missing X-Auth-Key, X-Auth-Email or Authorization headers")
BAD_HEADER = error_reply(400, 6003, "Invalid request headers")
BAD_TOKEN = error_reply(401, 1000, "Invalid API Token")
BAD_TOKEN_FOR_USER = error_reply(403, 9109, "Invalid access token")
BAD_TOKEN_FOR_ACCOUNT = error_reply(401, 10000, "Authentication error")
NOT_PERMITTED = error_reply(403, 10000, "Authentication error")
TOO_MANY_REQUESTS = error_reply(
    429,
    971,
    "Please wait and consider throttling your request speed",
    ("Retry-After", f"{RATE_WINDOW_SECONDS:.0f}"),
)


def no_route_reply(path: str) -> Reply:
    text = f"Could not route to {path}, perhaps your object identifier is invalid?"
    return error_reply(404, 7003, text)


@dataclass
class CloudflareApi:
    """`token` may do all, `read_only_token` may not write, `token_without_r2` is valid and may do
    nothing here, `old_token` is out of date.

    `requests` lists the latest as method, target as it came, and status of the answer. Faults:
    `failures` are statuses for the next requests, `locked` prefixes that a bucket lock keeps,
    `limit` the number of requests allowed in five minutes. Without `tells_accounts` its tokens may
    not see their accounts.
    """

    r2: LocalR2
    jurisdiction: str = ""
    url: str = ""
    account_id: str = field(default_factory=lambda: secrets.token_hex(16))
    token: str = field(default_factory=lambda: secrets.token_hex(20))
    read_only_token: str = field(default_factory=lambda: secrets.token_hex(20))
    token_without_r2: str = field(default_factory=lambda: secrets.token_hex(20))
    expired_token: str = field(default_factory=lambda: secrets.token_hex(20))

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget what was asked, and work again."""
        self.requests: deque[tuple[str, str, int]] = deque(maxlen=MAX_KEPT_REQUESTS)
        self.failures: list[int] = []
        self.locked: list[str] = []
        self.request_limit = REQUESTS_PER_WINDOW
        self.lists_accounts = True
        self._times: deque[float] = deque(maxlen=MAX_KEPT_REQUESTS)

    @property
    def environment(self) -> dict[str, str]:
        """What wrangler, and the project's settings, need to use it."""
        return {
            "CLOUDFLARE_API_BASE_URL": self.url,
            "CLOUDFLARE_ACCOUNT_ID": self.account_id,
            "CLOUDFLARE_API_TOKEN": self.token,
        }

    def list_bulk_deletes(self) -> list[str]:
        """The calls that delete all objects of a prefix, or of the bucket."""
        pattern = re.compile(r"[^?]*/objects/?(\?|$)")
        return [
            target
            for method, target, _ in self.requests
            if method == "DELETE" and pattern.match(target)
        ]

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Reply:
        try:
            self._count_request()
            reply = _Call(self, method, target, headers, body).build_reply()
        except Refused as refused:
            reply = refused.reply
        except OSError:
            reply = UNAVAILABLE
        self.requests.append((method, target, reply.status))
        return reply

    def _count_request(self) -> None:
        now = monotonic()
        recent = [at for at in self._times if at > now - RATE_WINDOW_SECONDS]
        if len(recent) >= self.request_limit:
            raise Refused(TOO_MANY_REQUESTS)
        self._times.append(now)
        if self.failures:
            raise Refused(error_reply(self.failures.pop(0), 10001, INTERNAL_ERROR_TEXT))


class _Call:
    def __init__(
        self, api: CloudflareApi, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> None:
        self.api, self.method, self.body = api, method, body
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.path, _, query = target.partition("?")
        pairs = parse_qs(query, keep_blank_values=True)
        self.query = {name: values[0] for name, values in pairs.items()}

    def build_reply(self) -> Reply:
        kind, _, token = self.headers.get("authorization", "").partition(" ")
        if not token:
            raise Refused(NO_TOKEN)
        if kind != "Bearer" or not re.fullmatch("[A-Za-z0-9_-]{40,}", token):
            raise Refused(BAD_HEADER)
        self.token = token
        match self.path.removeprefix(ROOT + "/").split("/"):
            case ["user", "tokens", "verify"]:
                return self._verify_token()
            case ["user" | "accounts" | "memberships" as about] if self.method == "GET":
                return self._show_account(about)
            case ["accounts", account, "r2", "buckets", *where]:
                self._authorize(account)
                return self._handle_bucket(where)
        raise Refused(no_route_reply(self.path))

    def _verify_token(self) -> Reply:
        state = {self.api.expired_token: "expired"} | dict.fromkeys(self._valid_tokens(), "active")
        if self.token not in state:
            raise Refused(BAD_TOKEN)
        return success_reply({"id": self.token[:32], "status": state[self.token]})

    def _show_account(self, about: str) -> Reply:
        if self.token not in self._valid_tokens():
            raise Refused(BAD_TOKEN_FOR_USER)
        if about == "user":
            return success_reply({"id": self.api.account_id, "email": "staff@example.com"})
        account = {"id": self.api.account_id, "name": "Local R2"}
        entry = account if about == "accounts" else {"id": account["id"], "account": account}
        entries = [entry] if self.api.lists_accounts else []
        count = dict.fromkeys(("count", "total_count", "total_pages"), len(entries))
        return success_reply(entries, {"page": 1, "per_page": DEFAULT_PAGE_SIZE, **count})

    def _authorize(self, account: str) -> None:
        if not ACCOUNT_ID.fullmatch(account):
            raise Refused(no_route_reply(self.path))
        if self.token not in self._valid_tokens():
            raise Refused(BAD_TOKEN_FOR_ACCOUNT)
        reads = self.method in ("GET", "HEAD")
        may = self.token == self.api.token or (reads and self.token == self.api.read_only_token)
        if account != self.api.account_id or not may:
            raise Refused(NOT_PERMITTED)

    def _valid_tokens(self) -> tuple[str, ...]:
        return self.api.token, self.api.read_only_token, self.api.token_without_r2

    def _handle_bucket(self, where: list[str]) -> Reply:
        here = self.headers.get("cf-r2-jurisdiction", "default") == (
            self.api.jurisdiction or "default"
        )
        names = list(self.api.r2.buckets) if here else []
        if not where:
            return self._list_buckets(names)
        name = unquote(where[0])
        if name not in names:
            raise Refused(NO_BUCKET)
        match self.method, where[1:]:
            case "GET", []:
                return success_reply(_bucket_facts(name))
            case "GET", ["objects"]:
                return self._list_objects(name)
            case "DELETE", ["objects"] if "prefix" in self.query:
                return self._delete_prefix(name)
            case _, ["objects", *segments] if segments:
                return self._handle_object(name, _decode_key("/".join(segments)))
        raise Refused(no_route_reply(self.path))

    def _list_buckets(self, names: list[str]) -> Reply:
        size, cursor = self._page_size(), self.query.get("cursor", "")
        start = names.index(cursor) + 1 if cursor in names else 0
        page = names[start : start + size]
        more = page[-1] if start + size < len(names) else ""
        described = [_bucket_facts(name) for name in page]
        return success_reply({"buckets": described}, {"cursor": more, "per_page": size})

    def _page_size(self) -> int:
        size = self.query.get("per_page", str(DEFAULT_PAGE_SIZE))
        if not size.isdecimal() or not 1 <= int(size) <= MAX_PAGE_SIZE:
            raise Refused(BAD_PAGE)
        return int(size)

    def _list_objects(self, bucket: str) -> Reply:
        size = self._page_size()
        given = {
            "prefix": self.query.get("prefix", ""),
            "delimiter": self.query.get("delimiter", ""),
            "cursor": self.query.get("cursor", ""),
            "startAfter": self.query.get("start_after", ""),
        }
        page = self.api.r2.list_page(
            bucket, limit=str(size), **{k: v for k, v in given.items() if v}
        )
        result = [
            {
                "key": key,
                "etag": etag,
                "last_modified": uploaded,
                "size": size,
                "http_metadata": {},
                "custom_metadata": {},
                "ssec": False,
                "storage_class": "Standard",
            }
            for key, size, etag, uploaded in page["objects"]
        ]
        info = {
            "cursor": page["cursor"] or "",
            "is_truncated": page["cursor"] is not None,
            "per_page": size,
            "delimited": page["prefixes"],
        }
        return success_reply(result, info)

    def _delete_prefix(self, bucket: str) -> Reply:
        """Delete all that starts so; with an empty prefix, the whole bucket."""
        prefix = self.query["prefix"]
        gone = [key for key in self.api.r2.keys(bucket) if key.startswith(prefix)]
        for key in gone:
            self._require_unlocked(key)
            self.api.r2.remove(key, bucket)
        return success_reply([{"key": key} for key in gone])

    def _handle_object(self, bucket: str, key: str) -> Reply:
        r2 = self.api.r2
        if self.method == "PUT":
            self._require_unlocked(key)
            r2.put(key, self.body, bucket)
            return success_reply(
                {"key": key, "size": str(len(self.body)), "storage_class": "Standard"}
            )
        if self.method not in ("GET", "DELETE"):
            raise Refused(no_route_reply(self.path))
        try:
            content = r2.read(key, bucket)
        except LookupError:
            raise Refused(NO_KEY) from None
        if self.method == "GET":
            return Reply(200, content, (("Content-Type", "application/octet-stream"),))
        self._require_unlocked(key)
        r2.remove(key, bucket)
        return success_reply({"key": key})

    def _require_unlocked(self, key: str) -> None:
        if key.startswith(tuple(self.api.locked)):
            raise Refused(LOCKED)


def _decode_key(encoded: str) -> str:
    try:
        key = unquote_to_bytes(encoded).decode()
    except UnicodeDecodeError:
        raise Refused(BAD_NAME) from None
    if not 1 <= len(key.encode()) <= MAX_KEY_BYTES:
        raise Refused(BAD_NAME)
    return key


def _bucket_facts(bucket: str) -> dict[str, str]:
    return {
        "name": bucket,
        "creation_date": "2026-01-01T00:00:00.000Z",
        "location": "WEUR",
        "storage_class": "Standard",
    }


@contextmanager
def cloudflare_api(
    r2: LocalR2, port: int = 0, *, jurisdiction: str = ""
) -> Iterator[CloudflareApi]:
    """Answer on a port of 127.0.0.1 for as long as the block lasts.

    Raises OSError when the port is taken.
    """
    with _Server(("127.0.0.1", port), _Handler) as server:
        server.api = CloudflareApi(r2, jurisdiction, f"http://127.0.0.1:{server.server_port}{ROOT}")
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.api
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    api: CloudflareApi


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def handle_any(self) -> None:
        # Not `self.path`, where slashes at the start are folded.
        target = self.requestline.split()[1]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        reply = self.server.api.answer(self.command, target, dict(self.headers.items()), body)
        self.send_response_only(reply.status)
        for name, value in reply.headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    do_GET = do_PUT = do_POST = do_DELETE = handle_any

    def log_message(self, format: str, *args: object) -> None:
        pass
