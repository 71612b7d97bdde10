"""Ways to ask the store for deletions. None of them says that an object is gone: verify does."""

import re
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from storage_audit.bucket import r2
from storage_audit.bucket.errors import Barred, StoreError, Unavailable
from storage_audit.bucket.r2 import Answer

Answers = dict[str, Answer]

# What XML 1.0 cannot carry, or carries changed: https://www.w3.org/TR/xml/#charsets
NOT_IN_XML = re.compile("[\0-\x1f\x7f\ufffe\uffff]")
UNDELETABLE = Answer(
    "Undeletable",
    "no S3 call can name this key: a control character, or a space at an end, needs a single"
    " delete, and a '.' or '..' segment breaks a single delete's signature. Delete it in the"
    " Cloudflare dashboard.",
)


class Sent(NamedTuple):
    """What came of the calls: the answers, by key, and what ended them early."""

    answers: Answers
    troubles: list[StoreError]


def delete(bucket: str, keys: Collection[str], *, until: float, size: int, calls: int) -> Sent:
    """Ask once for each key, by the call that can carry it: `size` keys in one, `calls` at once.

    Nothing leaves after the clock says `until`, or after a call had trouble. Keys that were not
    sent have no answer, nor have those whose call failed: what became of them is unknown.
    """
    sent = Sent({key: UNDELETABLE for key in keys if is_undeletable(key)}, [])
    with ThreadPoolExecutor(calls) as pool:
        for answers in pool.map(partial(ask, bucket, until, sent.troubles), parts(keys, size)):
            sent.answers.update(answers)
    return sent


def parts(keys: Collection[str], size: int) -> list[list[str]]:
    """The keys of each call."""
    batch = [key for key in keys if survives_xml(key)]
    single = [key for key in keys if not survives_xml(key) and not is_undeletable(key)]
    batches = [batch[start : start + size] for start in range(0, len(batch), size)]
    return batches + [[key] for key in single]


def ask(bucket: str, until: float, troubles: list[StoreError], keys: list[str]) -> Answers:
    if troubles:
        return {}
    try:
        with r2.sent_until(until):
            if survives_xml(keys[0]):
                return r2.delete_batch(bucket, keys)
            return {keys[0]: r2.delete_single(bucket, keys[0])}
    except StoreError as error:
        # Refused for its spelling, for example: one such key must not stop the others.
        alone = len(keys) == 1 and error.answered and not isinstance(error, Barred)
        if not alone or isinstance(error, Unavailable):
            troubles.append(error)
        return {keys[0]: r2.refusal(error.code, str(error))} if alone else {}


def survives_xml(key: str) -> bool:
    """Some stores trim the text of an element, and would delete the object of the trimmed key:
    local R2 does, and R2 did (release notes of 2022-08-17)."""
    return not NOT_IN_XML.search(key) and key == key.strip().strip("\ufeff")


def is_undeletable(key: str) -> bool:
    return not survives_xml(key) and any(segment in (".", "..") for segment in key.split("/"))
