"""Deletions of many objects as they go over the wire, and the store's answers to them.

botocore takes 40 µs for each key of a DeleteObjects call, and this takes one. As in listing_xml.py,
what is not exactly as expected is left for botocore to write, or to read.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any
from xml.sax.saxutils import escape

# https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
REQUEST = '<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{}<Quiet>false</Quiet></Delete>'
OPENING, BETWEEN, CLOSING = (
    "<Deleted><Key>",
    "</Key></Deleted><Deleted><Key>",
    "</Key></Deleted>",
)
# What stands around the entries, which are the only ones.
HEAD = re.compile(
    r'(?:<\?xml version="1\.0"(?: encoding="(?i:utf-8)")?\?>)?\s*<DeleteResult[^<>]*>'
)
TAIL = re.compile(r"</DeleteResult>\s*")
# Of the keys: what XML gives a meaning, carries changed, or does not carry.
CHANGES = re.compile("[\0-\x1f\x7f\ufffe\uffff]")
MEANS_MORE = re.compile("[<>&\0-\x1f\x7f\ufffe\uffff]")


def cut(body: bytes) -> tuple[bytes, list[str]]:
    """An answer without the keys that it calls deleted, and these, when it tells of nothing else;
    or else the answer as it is, and none."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return body, []
    start, end = text.find(OPENING), text.rfind(CLOSING)
    head, tail = text[:start], text[end + len(CLOSING) :]
    if end < start or not (HEAD.fullmatch(head) and TAIL.fullmatch(tail)):
        return body, []
    keys = text[start + len(OPENING) : end].split(BETWEEN)
    if not all(keys) or MEANS_MORE.search("".join(keys)):
        return body, []
    return (head + tail).encode(), keys


def asks_plainly(delete: Mapping[str, Any]) -> bool:
    """Whether such a call names objects by their keys alone, none of which XML carries changed, and
    asks for all answers."""
    objects = delete["Objects"]
    if delete.get("Quiet") or any(each.keys() != {"Key"} for each in objects):
        return False
    return not CHANGES.search("".join(each["Key"] for each in objects))


def request(keys: Iterable[str]) -> bytes:
    """The body that asks for the deletion of these. Raises ValueError for a key that is no text."""
    objects = "</Key></Object><Object><Key>".join(map(escape, keys))
    return REQUEST.format(f"<Object><Key>{objects}</Key></Object>").encode()


# What botocore calls on the way.


def leave_one(params: dict[str, Any], context: dict[str, Any], **kwargs: Any) -> None:
    """Let it check and write one of many objects; the others are added when it has."""
    if asks_plainly(asked := params["Delete"]):
        context["keys"] = [each["Key"] for each in asked["Objects"]]
        params["Delete"] = {**asked, "Objects": asked["Objects"][:1]}


def ask_for_all(params: dict[str, Any], context: dict[str, Any], **kwargs: Any) -> None:
    """Before the request is signed, and its checksum made."""
    if "keys" in context:
        params["body"] = request(context["keys"])


def cut_keys(
    response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **kwargs: Any
) -> None:
    response_dict["body"], customized_response_dict["Cut"] = cut(response_dict["body"])
