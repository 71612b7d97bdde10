"""What stores, and the networks before them, have done to their clients, by name."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import sleep
from xml.sax.saxutils import escape

from devtools.http_reply import Reply
from tests.faults import pages
from tests.faults.matching import (
    Matches,
    is_anything,
    is_delete_batch,
    is_later_page,
    is_listing,
    is_read,
    is_uploads_listing,
    keys_sent,
)
from tests.faults.pages import backwards, with_token, without_token
from tests.faults.proxy import RESET, Forward, Request, Rule

DELAY = 2.0  # seconds
HANG = 15.0  # seconds; longer than the application waits

PAGE_OF_HTML = b"<html><p>Sign in to the network<br></html>"
HTML = Reply(200, PAGE_OF_HTML, (("Content-Type", "text/html"),))


@dataclass(frozen=True)
class Fault:
    """`says` is the line that explains it; `fits` tells the requests that it can be done to.
    `answer` gives None where it finds nothing to spoil."""

    says: str
    fits: Matches
    answer: Rule


def error(code: str, message: str = "a fault, made on purpose") -> bytes:
    return f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


def refusing(says: str, status: int, code: str) -> Fault:
    """An error of the store, of which the request never came to anything."""
    return Fault(says, is_anything, always(Reply(status, error(code))))


def from_the_edge(says: str, status: int) -> Fault:
    """An error of Cloudflare's network, which knows no S3."""
    page = f"<!DOCTYPE html><html><title>{status}: web server error</title><br></html>"
    headers = (("Content-Type", "text/html; charset=UTF-8"),)
    return Fault(says, is_anything, always(Reply(status, page.encode(), headers)))


def elsewhere(status: int, code: str) -> Reply:
    """A redirect of the store to another region, which botocore would follow."""
    body = error(code).replace(b"</Code>", b"</Code><Region>weur</Region>")
    return Reply(status, body, (("x-amz-bucket-region", "weur"), ("Location", "/another-bucket/")))


def redirecting(says: str, status: int, code: str) -> Fault:
    return Fault(says, is_anything, always(elsewhere(status, code)))


def always(reply: Reply) -> Rule:
    """Answer so, and let nothing reach the store."""
    return lambda request, forward: reply


def is_xml_call(request: Request) -> bool:
    """Its answer counts for what its XML says, not for its status."""
    return is_listing(request) or is_uploads_listing(request) or is_delete_batch(request)


def has_an_answer(request: Request) -> bool:
    """With a body that the client waits for."""
    return is_xml_call(request) or is_read(request)


def per_key(request: Request, xml: Callable[[str], str]) -> Reply:
    entries = "".join(xml(escape(key)) for key in keys_sent(request))
    return Reply(200, f"<DeleteResult>{entries}</DeleteResult>".encode())


def deleted(key: str) -> str:
    return f"<Deleted><Key>{key}</Key></Deleted>"


def refused(key: str) -> str:
    return f"<Error><Key>{key}</Key><Code>InternalError</Code><Message>no</Message></Error>"


def each_key_fails(request: Request, forward: Forward) -> Reply:
    return per_key(request, refused)


def lies(request: Request, forward: Forward) -> Reply:
    """Says `Deleted` of every key and deletes none."""
    return per_key(request, deleted)


def denies(request: Request, forward: Forward) -> Reply:
    """Deletes every key and says that none went."""
    reply = forward()
    return per_key(request, refused) if reply.status == 200 else reply


def does_it_and_breaks(request: Request, forward: Forward) -> Reply:
    forward()
    return RESET


def cut_short(request: Request, forward: Forward) -> Reply | None:
    reply = forward()
    half = reply.body[: len(reply.body) // 2]
    return replace(reply, body=half, announced=len(reply.body)) if reply.body else None


def half_of_the_xml(request: Request, forward: Forward) -> Reply | None:
    """All of a body, as its length says, and yet not all of the document."""
    reply = forward()
    return replace(reply, body=reply.body[: len(reply.body) // 2]) if reply.body else None


def answers_late(request: Request, forward: Forward) -> Reply:
    reply = forward()
    sleep(DELAY)
    return reply


def acts_late(request: Request, forward: Forward) -> Reply:
    sleep(HANG)
    return forward()


def page_again(request: Request, forward: Forward) -> Reply | None:
    return request.follows


def changed(change: Callable[[str], str]) -> Rule:
    """Pass the store's answer on with its text changed; None when that changes nothing."""

    def rule(request: Request, forward: Forward) -> Reply | None:
        reply = forward()
        text = change(reply.text) if reply.status == 200 else reply.text
        return replace(reply, body=text.encode()) if text != reply.text else None

    return rule


def same_token(request: Request, forward: Forward) -> Reply | None:
    token = escape(request.query["continuation-token"])
    return changed(lambda xml: with_token(xml, token))(request, forward)


def malformed_page(request: Request, forward: Forward) -> Reply | None:
    """Each of the forms, by the request: the same request meets the same one."""
    return changed(pages.malformed(request.target))(request, forward)


def page_of_the_past(request: Request, forward: Forward) -> Reply | None:
    """What the store said the first time that it was asked this."""
    reply, past = forward(), request.past
    return past if past and past.body != reply.body else None


def for_other_keys(request: Request, forward: Forward) -> Reply:
    """Deletes nothing, and says `Deleted` of each key and of one that it was not asked for."""
    entries = "".join(deleted(escape(key)) for key in [*keys_sent(request), "another"])
    return Reply(200, f"<DeleteResult>{entries}</DeleteResult>".encode())


# https://developers.cloudflare.com/r2/api/error-codes/
KINDS: dict[str, Fault] = {
    "access-denied": refusing("403: these credentials may not", 403, "AccessDenied"),
    "no-such-bucket": refusing("404: there is no such bucket", 404, "NoSuchBucket"),
    "request-timeout": refusing("408: the request took too long", 408, "RequestTimeout"),
    "too-many-requests": refusing("429 (10058): too many at once", 429, "TooManyRequests"),
    "internal-error": refusing("500: an error of the store", 500, "InternalError"),
    "slow-down": refusing("503: too much to do", 503, "SlowDown"),
    "redirect-301": redirecting("301: the bucket has moved", 301, "PermanentRedirect"),
    "redirect-307": redirecting("307: the bucket is elsewhere for now", 307, "TemporaryRedirect"),
    "wrong-region": redirecting("400: another region", 400, "AuthorizationHeaderMalformed"),
    "edge-520": from_the_edge("520 with HTML: the edge got no proper answer", 520),
    "edge-524": from_the_edge("524 with HTML: the edge got no answer in time", 524),
    "client-disconnect": refusing("400 (10054): retryable all the same", 400, "ClientDisconnect"),
    "key-errors": Fault("200, with an error for each key", is_delete_batch, each_key_fails),
    "empty-body": Fault("200, with nothing in it", is_xml_call, always(Reply(200))),
    "html": Fault("200, with the HTML of somebody else", is_xml_call, always(HTML)),
    "truncated-xml": Fault("200, with half of the XML", is_xml_call, half_of_the_xml),
    "kept": Fault("200, with `Deleted` for keys that it kept", is_delete_batch, lies),
    "denied": Fault("200, with errors for keys that it deleted", is_delete_batch, denies),
    "late-answer": Fault(f"the answer comes {DELAY:g} s late", is_anything, answers_late),
    "late-request": Fault(f"the store gets it {HANG:g} s late", is_anything, acts_late),
    "reset-before": Fault("breaks, and the store got nothing", is_anything, always(RESET)),
    "reset-after": Fault("breaks, and the store obeyed", is_anything, does_it_and_breaks),
    "cut-short": Fault("breaks in the middle of the answer", has_an_answer, cut_short),
    "page-backwards": Fault("a listing's keys out of order", is_listing, changed(backwards)),
    "page-without-token": Fault(
        "more of a listing, and no token for it", is_listing, changed(without_token)
    ),
    "page-again": Fault("a listing's page once more, as the next", is_later_page, page_again),
    "page-same-token": Fault("a listing's token that repeats", is_later_page, same_token),
    "page-of-another-bucket": Fault(
        "a listing's page of another bucket, empty", is_listing, changed(pages.of_another_bucket)
    ),
    "page-of-another-prefix": Fault(
        "a listing's page of another prefix, empty", is_listing, changed(pages.of_another_prefix)
    ),
    "page-of-the-past": Fault("a listing's page as it was at first", is_listing, page_of_the_past),
    "page-malformed": Fault(
        f"a listing's page in one of {len(pages.FORMS)} forms that are none",
        is_listing,
        malformed_page,
    ),
    "uploads-of-another-bucket": Fault(
        "unfinished uploads of another bucket, none",
        is_uploads_listing,
        changed(pages.of_another_bucket),
    ),
    "other-keys": Fault(
        "200, with `Deleted` for all keys, and one more, kept", is_delete_batch, for_other_keys
    ),
}
