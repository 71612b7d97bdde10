"""Objects of which nothing is to be said but that they are there: new, plainly named, and in a
folder that is plainly a live project's. Of a first backfill most are such. They cost a tenth of a
closer look: what is the same for all files of a folder is found out once, and rows are text."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from django.db import connection

from storage_audit.ownership.key_format import Reading
from storage_audit.ownership.owner import alive_among, layouts, plain_under
from storage_audit.scan.diff_lines import Line, key_of
from storage_audit.tracking.bulk_insert import line
from storage_audit.tracking.recognise import named_by_deletions

# `2024-01-02T03:04:05.678901Z`: of what is longer, the database would round what Python cuts off.
LONGEST_TIME = 27


class Sorted(NamedTuple):
    """The keys of plain objects and their rows, as lines of `rows.NAMES`; and all other objects."""

    keys: list[str]
    lines: list[str]
    others: list[Line]


def sort_out(bucket: str, objects: Sequence[Line], tracked: Collection[str]) -> Sorted:
    """Only the keys in `tracked` have a row. What is not exactly as expected is not plain."""
    new = [one for one in objects if key_of(one[0]) not in tracked]
    folders = told_of({key_of(line).rpartition("/")[0] for line, _time in new})
    if not folders or not are_as_expected(new):
        return Sorted([], [], list(objects))
    found = Sorted([], [], [one for one in objects if key_of(one[0]) in tracked])
    to_be_deleted = named_by_deletions(bucket, [key_of(line) for line, _time in new])
    is_plain, stamp = layouts().plain_name.fullmatch, STAMPS[connection.vendor]
    for one in new:
        size, etag, _seconds, key = one[0].split(" ", 3)
        folder, _slash, name = key.rpartition("/")
        told = folders.get(folder)
        plain = is_plain(name) if told else None
        if plain and key not in to_be_deleted:
            found.keys.append(key)
            found.lines.append(
                f"{key}\t{size}\t{etag}\t{stamp(one[1])}\t{told}\t{plain[1].lower()}"
            )
        else:
            found.others.append(one)
    return found


def adapted(time: str) -> str:
    return str(connection.ops.adapt_datetimefield_value(datetime.fromisoformat(time)))


# PostgreSQL reads what the store says.
STAMPS: dict[str, Callable[[str], str]] = {"postgresql": str, "sqlite": adapted}


def are_as_expected(objects: Sequence[Line]) -> bool:
    """Whether COPY, and the database, take their ETags and times for what we do."""
    etags = [line.split(" ", 2)[1] for line, _time in objects]
    times = [time for _line, time in objects]
    if not is_harmless("".join(etags)) or max(map(len, times)) > LONGEST_TIME:
        return False
    try:
        deque(map(datetime.fromisoformat, times), maxlen=0)
    except ValueError:
        return False
    return True


def is_harmless(text: str) -> bool:
    return text.isascii() and text.isprintable() and "\\" not in text


def told_of(folders: Iterable[str]) -> dict[str, str]:
    """What a row says of any plain file in these folders, up to its type; of those that are plainly
    of one project each, which is alive."""
    ways = {each: layouts().readings_in(each) for each in folders if is_harmless(each)}
    plain = {folder: found for folder, found in ways.items() if len(found) == 1}
    alive = alive_among(plain.values())
    return {
        folder: told
        for folder, found in plain.items()
        if found.owners & alive == found.projects and (told := told_by_reading(found[0]))
    }


def told_by_reading(reading: Reading) -> str:
    """Nothing if a finding is to be made of it."""
    version = plain_under({reading.project}, reading)
    if version is None:
        return ""
    return line([reading.project, reading.scene or "", reading.layout, version])
