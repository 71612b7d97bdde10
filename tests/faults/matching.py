"""Which requests a rule is for, and how often it acts."""

import re
from collections.abc import Callable
from threading import Lock
from xml.sax.saxutils import unescape

from devtools.http_reply import Reply
from tests.faults.proxy import Forward, Request, Rule

Matches = Callable[[Request], bool]


def rule_for(matches: Matches, *answers: Reply | Rule, times: int | None = None) -> Rule:
    """Give these answers in turn to the requests that match, the last one again and again; after
    `times` of them step aside."""
    count, counting = 0, Lock()

    def rule(request: Request, forward: Forward) -> Reply | None:
        nonlocal count
        if not matches(request):
            return None
        with counting:
            turn, count = count, count + 1
        if times is not None and turn >= times:
            return None
        answer = answers[min(turn, len(answers) - 1)]
        return answer if isinstance(answer, Reply) else answer(request, forward)

    return rule


def run_before(*effects: Callable[[], object]) -> Rule:
    """Let something else happen in the world just before the request reaches the store."""

    def rule(request: Request, forward: Forward) -> None:
        for effect in effects:
            effect()

    return rule


def is_anything(request: Request) -> bool:
    return True


def is_listing(request: Request) -> bool:
    return "list-type" in request.query


def is_listing_under(prefix: str) -> Matches:
    return lambda request: is_listing(request) and request.query.get("prefix") == prefix


def is_listing_at(*keys: str) -> Matches:
    """The first page of a listing of all keys that goes on at one of these."""
    under = is_listing_under("")
    return lambda request: under(request) and request.start_key in keys


def is_later_page(request: Request) -> bool:
    return is_listing(request) and "continuation-token" in request.query


def is_uploads_listing(request: Request) -> bool:
    return request.method == "GET" and "uploads" in request.query


def is_abort(request: Request) -> bool:
    return request.method == "DELETE" and "uploadId" in request.query


def is_delete_batch(request: Request) -> bool:
    return request.method == "POST" and "delete" in request.query


def is_delete_single(request: Request) -> bool:
    """An object's deletion; that of the probes of connect_bucket is not meant."""
    name = request.path.rpartition("/")[2]
    return is_plain(request, "DELETE") and not name.startswith("probe-")


def is_read(request: Request) -> bool:
    return is_plain(request, "GET")


def is_marker(request: Request) -> bool:
    return is_read(request) and request.path.endswith("/installation.json")


def is_plain(request: Request, method: str) -> bool:
    """About one object, and nothing but it; who signed does not matter."""
    names = {name for name in request.query if not name.lower().startswith("x-amz-")}
    return request.method == method and names <= {"x-id"}


def sent_keys(request: Request) -> list[str]:
    """The keys that a DeleteObjects call names."""
    return [unescape(key) for key in re.findall("<Key>(.*?)</Key>", request.body.decode(), re.S)]
