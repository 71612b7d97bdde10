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
    sent_keys,
)
from tests.faults.pages import reverse_entries, with_token, without_token
from tests.faults.proxy import RESET_REPLY, Forward, Request, Rule

DELAY_SECONDS = 2.0  # seconds
HANG_SECONDS = 15.0  # seconds; longer than the application waits

HTML_BODY = b"<html><p>Sign in to the network<br></html>"
HTML_REPLY = Reply(200, HTML_BODY, (("Content-Type", "text/html"),))


@dataclass(frozen=True)
class Fault:
    """`says` is the line that explains it; `fits` tells the requests that it can be done to.
    `answer` gives None where it finds nothing to spoil."""

    explanation: str
    fits: Matches
    answer: Rule


def error_xml(code: str, message: str = "a fault, made on purpose") -> bytes:
    return f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


def store_error(says: str, status: int, code: str) -> Fault:
    """An error of the store, of which the request never came to anything."""
    return Fault(says, is_anything, always_reply(Reply(status, error_xml(code))))


def edge_error(says: str, status: int) -> Fault:
    """An error of Cloudflare's network, which knows no S3."""
    page = f"<!DOCTYPE html><html><title>{status}: web server error</title><br></html>"
    headers = (("Content-Type", "text/html; charset=UTF-8"),)
    return Fault(says, is_anything, always_reply(Reply(status, page.encode(), headers)))


def redirect_reply(status: int, code: str) -> Reply:
    """A redirect of the store to another region, which botocore would follow."""
    body = error_xml(code).replace(b"</Code>", b"</Code><Region>weur</Region>")
    return Reply(status, body, (("x-amz-bucket-region", "weur"), ("Location", "/another-bucket/")))


def redirect_fault(says: str, status: int, code: str) -> Fault:
    return Fault(says, is_anything, always_reply(redirect_reply(status, code)))


def always_reply(reply: Reply) -> Rule:
    """Answer so, and let nothing reach the store."""
    return lambda request, forward: reply


def is_xml_call(request: Request) -> bool:
    """Its answer counts for what its XML says, not for its status."""
    return is_listing(request) or is_uploads_listing(request) or is_delete_batch(request)


def has_answer(request: Request) -> bool:
    """With a body that the client waits for."""
    return is_xml_call(request) or is_read(request)


def reply_per_key(request: Request, xml: Callable[[str], str]) -> Reply:
    entries = "".join(xml(escape(key)) for key in sent_keys(request))
    return Reply(200, f"<DeleteResult>{entries}</DeleteResult>".encode())


def deleted_xml(key: str) -> str:
    return f"<Deleted><Key>{key}</Key></Deleted>"


def refused_xml(key: str) -> str:
    return f"<Error><Key>{key}</Key><Code>InternalError</Code><Message>no</Message></Error>"


def fail_each_key(request: Request, forward: Forward) -> Reply:
    return reply_per_key(request, refused_xml)


def confirm_without_deleting(request: Request, forward: Forward) -> Reply:
    """Says `Deleted` of every key and deletes none."""
    return reply_per_key(request, deleted_xml)


def deny_deletion(request: Request, forward: Forward) -> Reply:
    """Deletes every key and says that none went."""
    reply = forward()
    return reply_per_key(request, refused_xml) if reply.status == 200 else reply


def forward_and_reset(request: Request, forward: Forward) -> Reply:
    forward()
    return RESET_REPLY


def cut_body(request: Request, forward: Forward) -> Reply | None:
    reply = forward()
    half = reply.body[: len(reply.body) // 2]
    return replace(reply, body=half, announced_length=len(reply.body)) if reply.body else None


def halve_xml(request: Request, forward: Forward) -> Reply | None:
    """All of a body, as its length says, and yet not all of the document."""
    reply = forward()
    return replace(reply, body=reply.body[: len(reply.body) // 2]) if reply.body else None


def answer_late(request: Request, forward: Forward) -> Reply:
    reply = forward()
    sleep(DELAY_SECONDS)
    return reply


def forward_late(request: Request, forward: Forward) -> Reply:
    sleep(HANG_SECONDS)
    return forward()


def repeat_page(request: Request, forward: Forward) -> Reply | None:
    return request.previous_page


def change_reply(change: Callable[[str], str]) -> Rule:
    """Pass the store's answer on with its text changed; None when that changes nothing."""

    def rule(request: Request, forward: Forward) -> Reply | None:
        reply = forward()
        text = change(reply.text) if reply.status == 200 else reply.text
        return replace(reply, body=text.encode()) if text != reply.text else None

    return rule


def repeat_token(request: Request, forward: Forward) -> Reply | None:
    token = escape(request.query["continuation-token"])
    return change_reply(lambda xml: with_token(xml, token))(request, forward)


def send_malformed_page(request: Request, forward: Forward) -> Reply | None:
    """Each of the forms, by the request: the same request meets the same one."""
    return change_reply(pages.malformed_change(request.target))(request, forward)


def send_past_page(request: Request, forward: Forward) -> Reply | None:
    """What the store said the first time that it was asked this."""
    reply, past = forward(), request.first_answer
    return past if past and past.body != reply.body else None


def answer_other_keys(request: Request, forward: Forward) -> Reply:
    """Deletes nothing, and says `Deleted` of each key and of one that it was not asked for."""
    entries = "".join(deleted_xml(escape(key)) for key in [*sent_keys(request), "another"])
    return Reply(200, f"<DeleteResult>{entries}</DeleteResult>".encode())


# https://developers.cloudflare.com/r2/api/error-codes/
FAULT_KINDS: dict[str, Fault] = {
    "access-denied": store_error("403: these credentials may not", 403, "AccessDenied"),
    "no-such-bucket": store_error("404: there is no such bucket", 404, "NoSuchBucket"),
    "request-timeout": store_error("408: the request took too long", 408, "RequestTimeout"),
    "too-many-requests": store_error("429 (10058): too many at once", 429, "TooManyRequests"),
    "internal-error": store_error("500: an error of the store", 500, "InternalError"),
    "slow-down": store_error("503: too much to do", 503, "SlowDown"),
    "redirect-301": redirect_fault("301: the bucket has moved", 301, "PermanentRedirect"),
    "redirect-307": redirect_fault(
        "307: the bucket is elsewhere for now", 307, "TemporaryRedirect"
    ),
    "wrong-region": redirect_fault("400: another region", 400, "AuthorizationHeaderMalformed"),
    "edge-520": edge_error("520 with HTML: the edge got no proper answer", 520),
    "edge-524": edge_error("524 with HTML: the edge got no answer in time", 524),
    "client-disconnect": store_error(
        "400 (10054): retryable all the same", 400, "ClientDisconnect"
    ),
    "key-errors": Fault("200, with an error for each key", is_delete_batch, fail_each_key),
    "empty-body": Fault("200, with nothing in it", is_xml_call, always_reply(Reply(200))),
    "html": Fault("200, with the HTML of somebody else", is_xml_call, always_reply(HTML_REPLY)),
    "truncated-xml": Fault("200, with half of the XML", is_xml_call, halve_xml),
    "kept": Fault(
        "200, with `Deleted` for keys that it kept", is_delete_batch, confirm_without_deleting
    ),
    "denied": Fault("200, with errors for keys that it deleted", is_delete_batch, deny_deletion),
    "late-answer": Fault(f"the answer comes {DELAY_SECONDS:g} s late", is_anything, answer_late),
    "late-request": Fault(f"the store gets it {HANG_SECONDS:g} s late", is_anything, forward_late),
    "reset-before": Fault(
        "breaks, and the store got nothing", is_anything, always_reply(RESET_REPLY)
    ),
    "reset-after": Fault("breaks, and the store obeyed", is_anything, forward_and_reset),
    "cut-short": Fault("breaks in the middle of the answer", has_answer, cut_body),
    "page-backwards": Fault(
        "a listing's keys out of order", is_listing, change_reply(reverse_entries)
    ),
    "page-without-token": Fault(
        "more of a listing, and no token for it", is_listing, change_reply(without_token)
    ),
    "page-again": Fault("a listing's page once more, as the next", is_later_page, repeat_page),
    "page-same-token": Fault("a listing's token that repeats", is_later_page, repeat_token),
    "page-of-another-bucket": Fault(
        "a listing's page of another bucket, empty",
        is_listing,
        change_reply(pages.other_bucket_page),
    ),
    "page-of-another-prefix": Fault(
        "a listing's page of another prefix, empty",
        is_listing,
        change_reply(pages.other_prefix_page),
    ),
    "page-of-the-past": Fault("a listing's page as it was at first", is_listing, send_past_page),
    "page-malformed": Fault(
        f"a listing's page in one of {len(pages.MALFORMED_FORMS)} forms that are none",
        is_listing,
        send_malformed_page,
    ),
    "uploads-of-another-bucket": Fault(
        "unfinished uploads of another bucket, none",
        is_uploads_listing,
        change_reply(pages.other_bucket_page),
    ),
    "other-keys": Fault(
        "200, with `Deleted` for all keys, and one more, kept", is_delete_batch, answer_other_keys
    ),
}
