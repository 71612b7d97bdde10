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
    classify,
)
from storage_audit.bucket.s3 import DELETED, Answer
from storage_audit.bucket.wrangler import Command

Answers = dict[str, Answer]
Lane = Sequence[list[str]]

# What XML 1.0 cannot carry, or carries changed: https://www.w3.org/TR/xml/#charsets
NOT_IN_XML = re.compile("[\0-\x1f\x7f\ufffe\uffff]")
PLAIN = re.compile("[!-~]+")
UNDELETABLE = (
    "no S3 call can name this key: a control character, or a space at an end, needs a single"
    " delete, and a '.' or '..' segment breaks a single delete's signature. Delete it in the"
    " Cloudflare dashboard."
)


class Sent(NamedTuple):
    """What came of the calls: the answers, by key, the keys that were asked for in none, what
    trouble the store had, and the programs run."""

    answers: Answers
    unasked: list[str]
    troubles: list[StoreError]
    commands: list[Command]


class Deleter(Protocol):
    """A strategy. `objection` tells why it cannot name a key, or nothing; `lanes` shares the keys
    out: the calls of a lane, each with its keys, are made one after the other, those of `size`
    keys at most, and lanes run at once."""

    def objection(self, key: str) -> str: ...

    def lanes(self, keys: list[str], size: int) -> Sequence[Lane]: ...

    def ask(self, bucket: str, keys: list[str], until: float, ran: list[Command]) -> Answers:
        """Make one call, unless the clock says `until`. Raises StoreError."""


class Batch:
    """Many keys in a call; alone those that it cannot carry."""

    def objection(self, key: str) -> str:
        return UNDELETABLE if not survives_xml(key) and has_dots(key) else ""

    def lanes(self, keys: list[str], size: int) -> Sequence[Lane]:
        batch = [key for key in keys if survives_xml(key)]
        single = [[[key]] for key in keys if not survives_xml(key)]
        return [[part] for part in parts(batch, size)] + single

    def ask(self, bucket: str, keys: list[str], until: float, ran: list[Command]) -> Answers:
        with s3.sent_until(until):
            if survives_xml(keys[0]):
                return s3.delete_batch(bucket, keys)
            return {keys[0]: s3.delete_single(bucket, keys[0])}


class Single(Batch):
    """A call for each key; by that for many only those whose single call cannot be signed."""

    def lanes(self, keys: list[str], size: int) -> Sequence[Lane]:
        return [parts(part, 1) for part in parts(keys, size)]

    def ask(self, bucket: str, keys: list[str], until: float, ran: list[Command]) -> Answers:
        if has_dots(keys[0]):
            return super().ask(bucket, keys, until, ran)
        with s3.sent_until(until):
            return {keys[0]: s3.delete_single(bucket, keys[0])}


class Wrangler:
    """Cloudflare's command-line tool, started for each key."""

    def objection(self, key: str) -> str:
        return wrangler.objection(key)

    def lanes(self, keys: list[str], size: int) -> Sequence[Lane]:
        return [parts(part, 1) for part in parts(keys, size)]

    def ask(self, bucket: str, keys: list[str], until: float, ran: list[Command]) -> Answers:
        return {keys[0]: wrangler.delete(bucket, keys[0], until=until, ran=ran.append)}


DELETERS: dict[str, Deleter] = {
    "batch": Batch(),
    "parallel": Single(),
    "sequential": Single(),
    "wrangler": Wrangler(),
    "wrangler_sequential": Wrangler(),
}


def delete(
    strategy: str,
    bucket: str,
    keys: Collection[str],
    *,
    until: float,
    size: int,
    pool: Executor,
    stop: Event,
) -> Sent:
    """Ask once for each key, in the strategy's way: `size` keys in a lane, and as many lanes at
    once as the pool has threads.

    Nothing leaves after the clock says `until`, or once `stop` is set, as it is after a call had
    trouble: also for others that share it. Keys that were not sent have no answer, nor have those
    whose call failed: what became of them is unknown.
    """
    deleter = DELETERS[strategy]
    objections = {key: deleter.objection(key) for key in keys}
    refused = {key: Answer("Undeletable", why) for key, why in objections.items() if why}
    sent = Sent(dict(refused), list(refused), [], [])

    def work_through(lane: Lane) -> Answers:
        answers: Answers = {}
        for call in lane:
            if stop.is_set():
                sent.unasked.extend(call)
            else:
                answers |= (told := ask(deleter, bucket, call, until, sent))
                sent.troubles.extend(troubles_told_in(told))
                if sent.troubles:
                    stop.set()
        return answers

    lanes = deleter.lanes([key for key in keys if key not in refused], size)
    try:
        for answers in pool.map(work_through, lanes):
            sent.answers.update(answers)
    except BaseException:
        # Whatever it is, the other lanes must make no further call.
        stop.set()
        raise
    return sent


def ask(deleter: Deleter, bucket: str, keys: list[str], until: float, sent: Sent) -> Answers:
    try:
        return deleter.ask(bucket, keys, until, sent.commands)
    except DeadlinePassed as error:
        sent.unasked.extend(keys)
        sent.troubles.append(error)
        return {}
    except StoreError as error:
        # Refused for its spelling, for example: one such key must not stop the others.
        alone = len(keys) == 1 and error.answered and not isinstance(error, BucketForbidden)
        if not alone or isinstance(error, Unavailable):
            sent.troubles.append(error)
        return {keys[0]: s3.refusal(error.code, str(error), type(error))} if alone else {}


def troubles_told_in(answers: Answers) -> Iterator[StoreError]:
    """What the store could not do for single keys, and might later."""
    for answer in answers.values():
        if answer != DELETED and issubclass(
            kind := classify(answer.code), Unavailable | InvalidResponse
        ):
            yield kind(str(answer), answer.code)


def parts(keys: list[str], size: int) -> list[list[str]]:
    return [keys[start : start + size] for start in range(0, len(keys), size)]


def survives_xml(key: str) -> bool:
    """Some stores trim the text of an element, and would delete the object of the trimmed key:
    local R2 does, and R2 did (release notes of 2022-08-17)."""
    if PLAIN.fullmatch(key):
        return True
    return not NOT_IN_XML.search(key) and key == key.strip().strip("\ufeff")


def has_dots(key: str) -> bool:
    """Whether a single delete of this key has a signature that the store does not accept."""
    return any(segment in (".", "..") for segment in key.split("/"))
