"""Rows for new objects with plain names, in folders that plainly belong to a live project: most of
a first backfill. They cost a tenth of a closer check, as what all files of a folder share is found
out once, and rows are text."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from django.db import connection

from storage_audit.ownership.attribution import Owner, find_owner
from storage_audit.ownership.key_template import ParsedKey
from storage_audit.ownership.ownership_rule import get_key_formats, living_owners
from storage_audit.scan.diff_lines import Line, line_key
from storage_audit.tracking.bulk_insert import format_line
from storage_audit.tracking.recognise import keys_of_deleted_rows

# `2024-01-02T03:04:05.678901Z`: of what is longer, the database would round what Python cuts off.
MAX_TIME_LENGTH = 27


class SortedObjects(NamedTuple):
    """The keys of plain objects and their rows, as lines of LINE_FIELDS; and all other objects."""

    keys: list[str]
    lines: list[str]
    others: list[Line]


def sort_objects(bucket: str, objects: Sequence[Line], tracked: Collection[str]) -> SortedObjects:
    """Only the keys in `tracked` have a row. What is not exactly as expected is not plain."""
    new = [one for one in objects if line_key(one[0]) not in tracked]
    folders = folder_values({line_key(line).rpartition("/")[0] for line, _time in new})
    if not folders or not is_copy_safe(new):
        return SortedObjects([], [], list(objects))
    found = SortedObjects([], [], [one for one in objects if line_key(one[0]) in tracked])
    to_be_deleted = keys_of_deleted_rows(bucket, [line_key(line) for line, _time in new])
    is_plain, stamp = get_key_formats().plain_name.fullmatch, TIME_ADAPTERS[connection.vendor]
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


def adapt_time(time: str) -> str:
    return str(connection.ops.adapt_datetimefield_value(datetime.fromisoformat(time)))


# PostgreSQL reads what the store says.
TIME_ADAPTERS: dict[str, Callable[[str], str]] = {"postgresql": str, "sqlite": adapt_time}


def is_copy_safe(objects: Sequence[Line]) -> bool:
    """Whether COPY, and the database, take their ETags and times for what we do."""
    etags = [line.split(" ", 2)[1] for line, _time in objects]
    times = [time for _line, time in objects]
    if not is_harmless("".join(etags)) or max(map(len, times)) > MAX_TIME_LENGTH:
        return False
    try:
        deque(map(datetime.fromisoformat, times), maxlen=0)
    except ValueError:
        return False
    return True


def is_harmless(text: str) -> bool:
    return text.isascii() and text.isprintable() and "\\" not in text


def folder_values(folders: Iterable[str]) -> dict[str, str]:
    """What a row says of any plain file in these folders, up to its type; of those that are plainly
    of one project each, which is alive."""
    ways = {each: get_key_formats().parse_folder(each) for each in folders if is_harmless(each)}
    plain = {folder: found for folder, found in ways.items() if len(found) == 1}
    alive = living_owners(plain.values())
    owners, values = dict[tuple[str, str, frozenset[str]], Owner](), dict[str, str]()
    for folder, found in plain.items():
        [parsed_key] = found
        # The owner does not depend on the scene, and a project has many of these.
        same = parsed_key.key_format, parsed_key.project, found.refused_ids
        if same not in owners:
            owners[same] = find_owner(found, (), alive, alive, None)
        if told := values_up_to_type(owners[same], parsed_key):
            values[folder] = told
    return values


def values_up_to_type(owner: Owner, parsed_key: ParsedKey) -> str:
    """Nothing if a finding is to be made of it."""
    if owner.problem or owner.unambiguous_under is None:
        return ""
    scene, version = parsed_key.scene or "", owner.unambiguous_under
    return format_line([owner.project_id, scene, parsed_key.key_format, version])
