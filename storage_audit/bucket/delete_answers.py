"""Deletions of many objects as they go over the wire, and the store's answers to them.

botocore takes 40 µs for each key of a DeleteObjects call, and this takes one. As in listing_xml.py,
what is not exactly as expected is left for botocore to write, or to read.
"""

import re
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

# https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
DELETE_REQUEST_XML = (
    '<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{}<Quiet>false</Quiet></Delete>'
)
FIRST_KEY_START, KEY_SEPARATOR, LAST_KEY_END = (
    "<Deleted><Key>",
    "</Key></Deleted><Deleted><Key>",
    "</Key></Deleted>",
)
# What stands around the entries, which are the only ones.
ANSWER_START = re.compile(
    r'(?:<\?xml version="1\.0"(?: encoding="(?i:utf-8)")?\?>)?\s*<DeleteResult[^<>]*>'
)
ANSWER_END = re.compile(r"</DeleteResult>\s*")
# Of the keys: what XML gives a meaning, carries changed, or does not carry.
UNSAFE_IN_XML = re.compile("[\0-\x1f\x7f\ufffe\uffff]")
MARKUP_OR_UNSAFE = re.compile("[<>&\0-\x1f\x7f\ufffe\uffff]")


def split_answer(body: bytes) -> tuple[bytes, list[str]]:
    """The answer without the keys that it calls deleted, and those keys. If it contains anything
    else, the answer as it is and no keys."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return body, []
    start, end = text.find(FIRST_KEY_START), text.rfind(LAST_KEY_END)
    head, tail = text[:start], text[end + len(LAST_KEY_END) :]
    if end < start or not (ANSWER_START.fullmatch(head) and ANSWER_END.fullmatch(tail)):
        return body, []
    keys = text[start + len(FIRST_KEY_START) : end].split(KEY_SEPARATOR)
    if not all(keys) or MARKUP_OR_UNSAFE.search("".join(keys)):
        return body, []
    return (head + tail).encode(), keys


def is_plain_request(delete: Mapping[str, Any]) -> bool:
    """Whether the call names objects by their keys alone, asks for all answers, and XML carries
    each key unchanged."""
    objects = delete["Objects"]
    if delete.get("Quiet") or any(each.keys() != {"Key"} for each in objects):
        return False
    return not UNSAFE_IN_XML.search("".join(each["Key"] for each in objects))


# Hooks that botocore calls.


def keep_first_key(params: dict[str, Any], context: dict[str, Any], **kwargs: Any) -> None:
    """Let botocore check and write one of many objects; the others are added afterwards."""
    if is_plain_request(asked := params["Delete"]):
        context["keys"] = [each["Key"] for each in asked["Objects"]]
        params["Delete"] = {**asked, "Objects": asked["Objects"][:1]}


def write_all_keys(params: dict[str, Any], context: dict[str, Any], **kwargs: Any) -> None:
    """Before the request is signed, and its checksum made. Raises ValueError for a key that is no
    text."""
    if "keys" in context:
        objects = "</Key></Object><Object><Key>".join(map(escape, context["keys"]))
        text = DELETE_REQUEST_XML.format(f"<Object><Key>{objects}</Key></Object>")
        params["body"] = text.encode()


def take_deleted_keys(
    response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **kwargs: Any
) -> None:
    response_dict["body"], customized_response_dict["Cut"] = split_answer(response_dict["body"])
