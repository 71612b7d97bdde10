"""Whose a key is, written from the section "Ownership" of the design alone: nothing here asks the
application."""

import re
from collections.abc import Iterator, Set
from typing import Literal, NamedTuple
from unicodedata import normalize

Claim = Literal["owned", "elsewhere", "protected"]
ID = re.compile(r"proj_(?!proj)[A-Za-z0-9_-]+")
KINDS = ("audio", "captions", "images", "thumbnails", "video")


class Row(NamedTuple):
    """A tracking row: the project that it names, and whether an upload said so."""

    project: str | None
    of_upload: bool


def claim(project: str, key: str, row: Row | None, *, is_older: bool, living: Set[str]) -> Claim:
    """What the deleted project may say of an object. `living` are the projects that live or that
    nobody said are deleted, also those whose ids are no ids; `is_older` whether the object was
    there before the deletion, and for longer than the transaction that makes a project may be
    open."""
    misfits = {id for id in living if not ID.fullmatch(id)}
    wanted = bool(set(map(nfc, texts_in(key))) & set(map(nfc, misfits)))
    if row and row.of_upload and row.project:
        # An upload's row has its project from the key alone, as the settings of then read it.
        wanted |= bool(named_by(key) & living - {project})
        mine: Claim = "protected" if wanted else "owned"
        return mine if row.project == project else "elsewhere"
    # What a backfill wrote grants nothing, and protects all the same.
    wanted |= bool(row and row.project in living - {project})
    names = named_by(key)
    if not names:
        return "protected"
    if project not in names:
        return "protected" if row and row.project == project else "elsewhere"
    others = names - {project}
    if others & living or wanted:
        return "protected"
    return "protected" if others and not is_older else "owned"


def named_by(key: str) -> set[str]:
    """Every project that the key could name in one of the three layouts and their doubles."""
    return {text for text in texts_in(key) if ID.fullmatch(text)}


def texts_in(key: str) -> Iterator[str]:
    """All that stands where an id would, in the layouts and their doubles."""
    for text in spelled_in(key):
        yield text
        if text.startswith("proj_"):
            yield text.removeprefix("proj_")


def spelled_in(key: str) -> Iterator[str]:
    head, slash, rest = key.partition("/")
    if head == "projects" and slash:
        yield from before(rest, "/scenes/", "[^/]+/media/.+")
    elif head in KINDS and slash:
        yield from before(rest, "/", "[^/]+/.+")
    yield from before(key, "_", r"[^/]+_media\.[A-Za-z0-9]+")


def before(text: str, separator: str, tail: str) -> Iterator[str]:
    for cut in (i for i in range(1, len(text)) if text.startswith(separator, i)):
        if re.fullmatch(tail, text[cut + len(separator) :], re.DOTALL):
            yield text[:cut]


def nfc(text: str) -> str:
    return normalize("NFC", text)
