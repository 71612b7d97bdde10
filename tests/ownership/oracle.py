"""Whose a key is, written from the section "Ownership" of the design alone: nothing here asks the
application."""

import re
from collections.abc import Iterator, Set
from typing import Literal, NamedTuple
from unicodedata import normalize

ExpectedVerdict = Literal["owned", "elsewhere", "kept"]
ID = re.compile(r"proj_(?!proj)[A-Za-z0-9_-]+")
KINDS = ("audio", "captions", "images", "thumbnails", "video")


class Row(NamedTuple):
    """A tracking row: the project that it names, and whether an upload said so."""

    project: str | None
    is_upload: bool


def expected_verdict(
    project: str, key: str, row: Row | None, *, is_older: bool, living: Set[str]
) -> ExpectedVerdict:
    """What the deleted project may say of an object. `living` are the projects that live or that
    nobody said are deleted, also those whose ids are no ids; `is_older` whether the object was
    there before the deletion, and for longer than the transaction that makes a project may be
    open."""
    misfits = {id for id in living if not ID.fullmatch(id)}
    wanted = bool(set(map(to_nfc, id_candidates(key))) & set(map(to_nfc, misfits)))
    if row and row.is_upload and row.project:
        # An upload's row has its project from the key alone, as the settings of then read it.
        wanted |= bool(named_projects(key) & living - {project})
        mine: ExpectedVerdict = "kept" if wanted else "owned"
        return mine if row.project == project else "elsewhere"
    # What a backfill wrote grants nothing, and protects all the same.
    wanted |= bool(row and row.project in living - {project})
    names = named_projects(key)
    if not names:
        return "kept"
    if project not in names:
        return "kept" if row and row.project == project else "elsewhere"
    others = names - {project}
    if others & living or wanted:
        return "kept"
    return "kept" if others and not is_older else "owned"


def named_projects(key: str) -> set[str]:
    """Every project that the key could name in one of the three key formats and their doubles."""
    return {text for text in id_candidates(key) if ID.fullmatch(text)}


def id_candidates(key: str) -> Iterator[str]:
    """All that stands where an id would, in the key formats and their doubles."""
    for text in raw_candidates(key):
        yield text
        if text.startswith("proj_"):
            yield text.removeprefix("proj_")


def raw_candidates(key: str) -> Iterator[str]:
    head, slash, rest = key.partition("/")
    if head == "projects" and slash:
        yield from split_before(rest, "/scenes/", "[^/]+/media/.+")
    elif head in KINDS and slash:
        yield from split_before(rest, "/", "[^/]+/.+")
    yield from split_before(key, "_", r"[^/]+_media\.[A-Za-z0-9]+")


def split_before(text: str, separator: str, tail: str) -> Iterator[str]:
    for cut in (i for i in range(1, len(text)) if text.startswith(separator, i)):
        if re.fullmatch(tail, text[cut + len(separator) :], re.DOTALL):
            yield text[:cut]


def to_nfc(text: str) -> str:
    return normalize("NFC", text)
