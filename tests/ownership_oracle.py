"""Whose a key is, written from the section "Ownership" of the design alone: nothing here asks the
application."""

import re
from collections.abc import Iterator, Set
from typing import Literal, NamedTuple

Claim = Literal["owned", "elsewhere", "protected"]
ID = re.compile(r"proj_(?!proj)[A-Za-z0-9_-]+")
KINDS = ("audio", "captions", "images", "thumbnails", "video")


class Row(NamedTuple):
    """A tracking row: the project that it names, and whether an upload said so."""

    project: str | None
    of_upload: bool


def claim(project: str, key: str, row: Row | None, *, is_older: bool, living: Set[str]) -> Claim:
    """What the deleted project may say of an object. `living` are the projects that live or that
    nobody said are deleted; `is_older` whether the object was there before the deletion, and for
    longer than the transaction that makes a project may be open."""
    if row and row.of_upload and row.project:
        return "owned" if row.project == project else "elsewhere"
    names = named_by(key)
    if not names:
        return "protected"
    if project not in names:
        return "protected" if row and row.project == project else "elsewhere"
    others = names - {project}
    return "protected" if others & living or (others and not is_older) else "owned"


def named_by(key: str) -> set[str]:
    """Every project that the key could name in one of the three layouts and their doubles."""
    return {id for text in spelled_in(key) for id in undoubled(text)}


def spelled_in(key: str) -> Iterator[str]:
    head, *rest = key.split("/")
    if head == "projects" and len(rest) > 4 and rest[1] == "scenes" and rest[3] == "media":
        if rest[2] and "/".join(rest[4:]):
            yield rest[0]
    elif head in KINDS and len(rest) > 2 and rest[1] and "/".join(rest[2:]):
        yield rest[0]
    elif not rest and (flat := re.fullmatch(r"(.+)_media\.[A-Za-z0-9]+", key, re.DOTALL)):
        ids_and_scene = flat.group(1)
        cuts = (i for i, char in enumerate(ids_and_scene[:-1]) if char == "_")
        yield from (ids_and_scene[:cut] for cut in cuts)


def undoubled(text: str) -> Iterator[str]:
    yield from (id for id in (text, text.removeprefix("proj_")) if ID.fullmatch(id))
