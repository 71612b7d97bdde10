"""Restores the rows of a deletion. A stub."""

from typing import NamedTuple


class CannotRestore(Exception):
    """The rows cannot be restored; the message says why."""


class Restored(NamedTuple):
    """What is back: how many rows by their label, and a sentence for each row that is not."""

    rows: dict[str, int]
    left_out: list[str]
