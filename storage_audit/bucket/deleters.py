"""Ways to ask the store for deletions. None of them says that an object is gone: verify does."""

import re
from collections.abc import Iterable
from time import monotonic

from storage_audit.bucket import r2
from storage_audit.bucket.r2 import Answer

# What XML 1.0 cannot carry, or carries changed: https://www.w3.org/TR/xml/#charsets
NOT_IN_XML = re.compile("[\0-\x1f\x7f\ufffe\uffff]")
UNDELETABLE = Answer(
    "Undeletable",
    "no S3 call can name this key: a control character, or a space at an end, needs a single"
    " delete, and a '.' or '..' segment breaks a single delete's signature. Delete it in the"
    " Cloudflare dashboard.",
)


def delete(bucket: str, keys: Iterable[str], *, until: float) -> dict[str, Answer]:
    """Ask once for each key, by the call that can carry it; the answer for each.

    Keys that go one by one are asked for until the clock says `until`; the rest has no answer.
    Raises StoreError when a batch call fails as a whole: what became of its keys is unknown.
    """
    single, batch, answers = [], [], {}
    for key in keys:
        if survives_xml(key):
            batch.append(key)
        elif has_dot_segment(key):
            answers[key] = UNDELETABLE
        else:
            single.append(key)
    if batch:
        answers |= r2.delete_batch(bucket, batch)
    for key in single:
        if monotonic() > until:
            break
        answers[key] = delete_one(bucket, key)
    return answers


def delete_one(bucket: str, key: str) -> Answer:
    try:
        return r2.delete_single(bucket, key)
    except r2.StoreError as error:
        # One such key must not stop the others, and a 403 may be about its spelling alone.
        return Answer(error.code, str(error))


def survives_xml(key: str) -> bool:
    """Some stores trim the text of an element, and would delete the object of the trimmed key:
    local R2 does, and R2 did (release notes of 2022-08-17)."""
    return not NOT_IN_XML.search(key) and key == key.strip().strip("\ufeff")


def has_dot_segment(key: str) -> bool:
    return any(segment in (".", "..") for segment in key.split("/"))
