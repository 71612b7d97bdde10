"""The objects of the benchmark's bucket, by formula: the nth key, and what a listing says of it.

The keys are in bytewise order, and every part of an object has the same length for each n: so the
canned server's entries are equally long, and a page of them is a slice.
"""

from hashlib import md5

PROJECT_KEYS = 100
PREFIX = "projects/"


def key_at(index: int) -> str:
    project, scene, file = index // PROJECT_KEYS, index // 10 % 10, index % 10
    return f"{PREFIX}proj_{project:06}/scenes/s{scene}/media/clip{file}.mp4"


def size_at(index: int) -> int:
    return 1_000_000 + index * 7919 % 8_999_993


def etag_at(index: int) -> str:
    return md5(str(index).encode(), usedforsecurity=False).hexdigest()


def time_at(index: int) -> str:
    """A millisecond after the one before, all of them years ago."""
    seconds, millisecond = divmod(index, 1000)
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    return f"2024-01-{1 + hours // 24:02}T{hours % 24:02}:{minute:02}:{second:02}.{millisecond:03}Z"
