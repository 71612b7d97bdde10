"""Ways to ask the store for deletions. None of them says that an object is gone: verify does."""

import re
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Executor
from threading import Event
from typing import NamedTuple, Protocol

from storage_audit.bucket import s3, wrangler
from storage_audit.bucket.errors import (
    BucketForbidden,
    DeadlinePassed,
    InvalidResponse,
    StoreError,
    Unavailable,
    classify_error,
)
from storage_audit.bucket.s3 import DELETED, Answer
from storage_audit.bucket.wrangler_process import Command

Answers = dict[str, Answer]
Lane = Sequence[list[str]]

# What XML 1.0 cannot carry, or carries changed: https://www.w3.org/TR/xml/#charsets
UNSAFE_IN_XML = re.compile("[\0-\x1f\x7f\ufffe\uffff]")
PLAIN_KEY = re.compile("[!-~]+")
UNDELETABLE_MESSAGE = (
    "S3 can't delete this name: it has a '.' or '..' segment, and a control character"
    " or a space at an end. Delete the file in the Cloudflare dashboard."
)


class SendResult(NamedTuple):
    """The result of the calls: the answers by key, the keys that were in no call, the store's
    errors, and the programs that were run."""

    answers: Answers
    unsent: list[str]
    errors: list[StoreError]
    commands: list[Command]


class Deleter(Protocol):
    """A strategy."""

    def undeletable_reason(self, key: str) -> str:
        """Why the strategy cannot name this key, or nothing."""

    def split_into_lanes(self, keys: list[str], size: int) -> Sequence[Lane]:
        """Lanes of `size` keys at most. A lane makes its calls one by one; lanes run at once."""

    def send_call(
        self, bucket: str, keys: list[str], until: float, commands: list[Command]
    ) -> Answers:
        """Make one call, unless the clock says `until`. Raises StoreError."""


class BatchDeleter:
    """Many keys in a call. Keys that such a call cannot carry go alone."""

    def undeletable_reason(self, key: str) -> str:
        return UNDELETABLE_MESSAGE if not is_xml_safe(key) and has_dot_segments(key) else ""

    def split_into_lanes(self, keys: list[str], size: int) -> Sequence[Lane]:
        batch = [key for key in keys if is_xml_safe(key)]
        single = [[[key]] for key in keys if not is_xml_safe(key)]
        return [[part] for part in split_keys(batch, size)] + single

    def send_call(
        self, bucket: str, keys: list[str], until: float, commands: list[Command]
    ) -> Answers:
        with s3.send_deadline(until):
            if is_xml_safe(keys[0]):
                return s3.delete_batch(bucket, keys)
            return {keys[0]: s3.delete_single(bucket, keys[0])}


class SingleDeleter(BatchDeleter):
    """A call for each key. Keys whose single call cannot be signed go in a call for many."""

    def split_into_lanes(self, keys: list[str], size: int) -> Sequence[Lane]:
        return [split_keys(part, 1) for part in split_keys(keys, size)]

    def send_call(
        self, bucket: str, keys: list[str], until: float, commands: list[Command]
    ) -> Answers:
        if has_dot_segments(keys[0]):
            return super().send_call(bucket, keys, until, commands)
        with s3.send_deadline(until):
            return {keys[0]: s3.delete_single(bucket, keys[0])}


class WranglerDeleter:
    """Cloudflare's command-line tool, started for each key."""

    def undeletable_reason(self, key: str) -> str:
        return wrangler.undeletable_reason(key)

    def split_into_lanes(self, keys: list[str], size: int) -> Sequence[Lane]:
        return [split_keys(part, 1) for part in split_keys(keys, size)]

    def send_call(
        self, bucket: str, keys: list[str], until: float, commands: list[Command]
    ) -> Answers:
        return {
            keys[0]: wrangler.delete_object(
                bucket, keys[0], until=until, on_command=commands.append
            )
        }


DELETERS: dict[str, Deleter] = {
    "batch": BatchDeleter(),
    "parallel": SingleDeleter(),
    "sequential": SingleDeleter(),
    "wrangler": WranglerDeleter(),
    "wrangler_sequential": WranglerDeleter(),
}


def send_deletions(
    strategy: str,
    bucket: str,
    keys: Collection[str],
    *,
    until: float,
    size: int,
    pool: Executor,
    stop: Event,
) -> SendResult:
    """Ask once for each key, in the strategy's way: `size` keys in a lane, and as many lanes at
    once as the pool has threads.

    Nothing is sent after the clock says `until`, or once `stop` is set. A call that fails sets it,
    also for others that share it. Keys that were not sent have no answer, nor have those whose
    call failed: what became of them is unknown.
    """
    deleter = DELETERS[strategy]
    objections = {key: deleter.undeletable_reason(key) for key in keys}
    refused = {key: Answer("Undeletable", why) for key, why in objections.items() if why}
    sent = SendResult(dict(refused), list(refused), [], [])

    def work_through(lane: Lane) -> Answers:
        answers: Answers = {}
        for call in lane:
            if stop.is_set():
                sent.unsent.extend(call)
            else:
                answers |= (told := try_call(deleter, bucket, call, until, sent))
                sent.errors.extend(errors_in_answers(told))
                if sent.errors:
                    stop.set()
        return answers

    lanes = deleter.split_into_lanes([key for key in keys if key not in refused], size)
    try:
        for answers in pool.map(work_through, lanes):
            sent.answers.update(answers)
    except BaseException:
        # Whatever it is, the other lanes must make no further call.
        stop.set()
        raise
    return sent


def try_call(
    deleter: Deleter, bucket: str, keys: list[str], until: float, sent: SendResult
) -> Answers:
    try:
        return deleter.send_call(bucket, keys, until, sent.commands)
    except DeadlinePassed as error:
        sent.unsent.extend(keys)
        sent.errors.append(error)
        return {}
    except StoreError as error:
        # Refused for its spelling, for example: one such key must not stop the others.
        alone = len(keys) == 1 and error.answered and not isinstance(error, BucketForbidden)
        if not alone or isinstance(error, Unavailable):
            sent.errors.append(error)
        return {keys[0]: s3.refused_answer(error.code, str(error), type(error))} if alone else {}


def errors_in_answers(answers: Answers) -> Iterator[StoreError]:
    """What the store could not do for single keys, and might later."""
    for answer in answers.values():
        if answer != DELETED and issubclass(
            kind := classify_error(answer.code), Unavailable | InvalidResponse
        ):
            yield kind(str(answer), answer.code)


def split_keys(keys: list[str], size: int) -> list[list[str]]:
    return [keys[start : start + size] for start in range(0, len(keys), size)]


def is_xml_safe(key: str) -> bool:
    """Some stores trim the text of an element, and would delete the object of the trimmed key:
    local R2 does, and R2 did (release notes of 2022-08-17)."""
    if PLAIN_KEY.fullmatch(key):
        return True
    return not UNSAFE_IN_XML.search(key) and key == key.strip().strip("\ufeff")


def has_dot_segments(key: str) -> bool:
    """Whether a single delete of this key has a signature that the store does not accept."""
    return any(segment in (".", "..") for segment in key.split("/"))
