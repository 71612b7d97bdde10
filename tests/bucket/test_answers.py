"""Deletions of many objects and their answers, written and read without an XML library."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest.mock import patch
from xml.sax.saxutils import escape

import pytest
from botocore.parsers import ResponseParserError, RestXMLParser
from hypothesis import given
from hypothesis import strategies as some

from devtools.http_reply import Reply
from storage_audit.bucket import delete_answers, deleters, s3
from storage_audit.bucket.errors import InvalidResponse
from tests.faults.matching import is_delete_batch, rule_for, sent_keys
from tests.faults.proxy import FaultyStore, Forward, Request
from tests.real_bucket import Bucket

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n<DeleteResult xmlns="http://s3.amazonaws.com/doc/">'
TAIL = "</DeleteResult>"
KEYS = some.text(min_size=1, max_size=20).filter(deleters.is_xml_safe)


def answer(*keys: str, head: str = HEAD, tail: str = TAIL) -> bytes:
    return (head + "".join(f"<Deleted><Key>{k}</Key></Deleted>" for k in keys) + tail).encode()


@pytest.mark.parametrize("head", [HEAD, "<DeleteResult>", HEAD.replace("\n", ""), HEAD.lower()])
def test_plain_answers_are_cut_out(head: str) -> None:
    keys = ["a", "b/c d.mp4", "é", "'\"", "a;b"]
    if head == HEAD.lower():
        # Tags have a case, encodings have none.
        assert delete_answers.split_answer(answer(*keys, head=head)) == (
            answer(*keys, head=head),
            [],
        )
        head = HEAD.replace("UTF-8", "utf-8")
    rest, found = delete_answers.split_answer(answer(*keys, head=head, tail=TAIL + "\n"))
    assert (rest.decode(), found) == (head + TAIL + "\n", keys)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html></html>",
        answer(),
        answer("a")[:-1],
        answer("a")[:-20],
        answer("a", tail=""),
        answer("a", head=""),
        answer("a") + answer("b"),
        answer("a&amp;b"),
        answer("a]]>"),
        answer(""),
        answer("a", "", "b"),
        answer("a\rb"),
        answer("a\x00"),
        answer("a<!-- </Key></Deleted><Deleted><Key>b -->"),
        answer(
            "a</Key></Deleted><Error><Key>b</Key><Code>InternalError</Code></Error><Deleted><Key>c"
        ),
        answer("a</Key><VersionId>1</VersionId></Deleted><Deleted><Key>c"),
        answer("a", tail="<Error><Key>b</Key><Code>AccessDenied</Code></Error>" + TAIL),
        answer("a", head=HEAD + "<Error><Key>b</Key></Error>"),
        answer("a", head=HEAD + "<!--", tail="-->" + TAIL),
        answer("a", head="<Error>" + HEAD),
        answer("é").replace("é".encode(), b"\xe9"),
        answer("é", head=HEAD.replace("UTF-8", "latin-1")),
        answer("a", head='<!DOCTYPE a [<!ENTITY b "c">]>' + HEAD),
    ],
)
def test_what_is_not_as_expected_is_left_to_botocore(body: bytes) -> None:
    assert delete_answers.split_answer(body) == (body, [])


@given(some.lists(KEYS, min_size=1), some.data())
def test_nothing_is_read_that_an_xml_parser_reads_otherwise(
    keys: list[str], data: some.DataObject
) -> None:
    body = answer(*map(escape, keys)).decode()
    at = data.draw(some.integers(0, len(body)))
    end = data.draw(some.integers(at, min(len(body), at + 5)))
    broken = (body[:at] + data.draw(some.text("<>/&;aKey ", max_size=5)) + body[end:]).encode()
    for given_ in (body.encode(), broken):
        rest, found = delete_answers.split_answer(given_)
        # What stands around them is still read by botocore, which fails for the whole.
        if found and readable(rest):
            assert [{"Key": key} for key in found] == parsed(given_)["Deleted"]
            assert "Errors" not in parsed(given_)


def readable(body: bytes) -> bool:
    with suppress(ResponseParserError):
        return bool(parsed(body) is not None)
    return False


def parsed(body: bytes) -> Any:
    """By botocore."""
    shape: Any = s3.s3_client().meta.service_model.operation_model("DeleteObjects").output_shape
    return RestXMLParser().parse({"status_code": 200, "headers": {}, "body": body}, shape)


@contextmanager
def bodies_sent() -> Iterator[list[bytes]]:
    """Of a client that sends nothing."""
    bodies = list[bytes]()

    def keep(request: Any, **kwargs: Any) -> None:
        bodies.append(request.body)
        raise InvalidResponse("enough")

    events = s3.s3_client(attempts=1).meta.events
    events.register("before-send.s3.DeleteObjects", keep)
    try:
        yield bodies
    finally:
        events.unregister("before-send.s3.DeleteObjects", keep)


@given(some.lists(KEYS, min_size=1, max_size=5, unique=True))
def test_request_is_the_one_that_botocore_writes(keys: list[str]) -> None:
    with bodies_sent() as bodies:
        for plainly in (True, False):
            with (
                pytest.raises(InvalidResponse),
                patch.object(delete_answers, "is_plain_request", return_value=plainly),
            ):
                s3.delete_batch("tests", keys)
    assert bodies[0] == bodies[1]
    assert b"<Quiet>false</Quiet>" in bodies[0]


def test_key_that_is_no_text_is_not_sent() -> None:
    with bodies_sent() as bodies, pytest.raises(InvalidResponse):
        s3.delete_batch("tests", ["a", "b\udcff"])
    assert not bodies


def test_answer_counts_only_for_a_key_that_was_sent(store: FaultyStore, bucket: Bucket) -> None:
    bucket.put("a", "b", "other")

    def tell_of_another(request: Request, forward: Forward) -> Reply:
        reply = forward()
        return Reply(200, reply.body.replace(b"<Key>b<", b"<Key>other<"))

    store.rules.append(rule_for(is_delete_batch, tell_of_another, times=1))
    assert s3.delete_batch(bucket.name, ["a", "b"]) == {"a": s3.WRONG_KEYS, "b": s3.WRONG_KEYS}
    assert [sent_keys(call) for call in store.find_requests(is_delete_batch)] == [["a", "b"]]


@pytest.mark.parametrize("key", ["x", "x&y", "x y", "é"])
def test_every_answer_is_read_beside_an_error(store: FaultyStore, bucket: Bucket, key: str) -> None:
    def refuse_one(request: Request, forward: Forward) -> Reply:
        told = answer(escape(key), tail="").decode()
        error = "<Error><Key>b</Key><Code>AccessDenied</Code><Message>no</Message></Error>"
        return Reply(200, (told + error + TAIL).encode())

    store.rules.append(rule_for(is_delete_batch, refuse_one, times=1))
    said = s3.delete_batch(bucket.name, [key, "b", "c"])
    assert said == {key: s3.DELETED, "b": s3.Answer("AccessDenied", "no"), "c": s3.NOT_MENTIONED}


@pytest.mark.parametrize("key", ["a\rb", "a\n", "\0", "a\x7f", "\ufffe"])
def test_keys_that_xml_carries_changed_are_left_to_botocore(key: str) -> None:
    assert delete_answers.is_plain_request({"Objects": [{"Key": "a b<é>"}]})
    assert not delete_answers.is_plain_request({"Objects": [{"Key": "a"}, {"Key": key}]})


TOLD = "<Deleted><Key>a</Key></Deleted>"
REFUSED = "<Error><Key>a</Key><Code>AccessDenied</Code></Error>"


@pytest.mark.parametrize("told", [TOLD + TOLD, REFUSED + REFUSED, TOLD + REFUSED, REFUSED + TOLD])
def test_answer_that_names_a_key_twice_is_no_answer(store: FaultyStore, told: str) -> None:
    store.rules.append(rule_for(is_delete_batch, Reply(200, f"{HEAD}{told}{TAIL}".encode())))
    assert s3.delete_batch("tests", ["a", "b"]) == {"a": s3.WRONG_KEYS, "b": s3.WRONG_KEYS}


@pytest.mark.parametrize(
    "body",
    [
        f"{HEAD}{TOLD}{TAIL}".replace("DeleteResult", "ListBucketResult"),
        f"{HEAD}<Deleted><Key>a</Key><Key>b</Key></Deleted>{TAIL}",
        f"{HEAD}<Deleted><Key>a<x/>b</Key></Deleted>{TAIL}",
        f"{HEAD}<Deleted></Deleted>{TAIL}",
        f"{HEAD}<Error><Code>AccessDenied</Code></Error>{TAIL}",
        f"{HEAD}<Result>{TOLD}</Result>{TAIL}",
        f"{HEAD}and{TOLD}{TAIL}",
    ],
)
def test_answer_of_another_form_is_refused(store: FaultyStore, body: str) -> None:
    store.rules.append(rule_for(is_delete_batch, Reply(200, body.encode())))
    with pytest.raises(InvalidResponse):
        s3.delete_batch("tests", ["a", "b"])
