"""Reads a cell of our CSV as docs/admin.md says."""

import re

ESCAPE_SEQUENCE = re.compile(r"\\(?:\\|[tnr]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")


def cell_text(cell: str) -> str:
    """The text that became this cell."""
    return ESCAPE_SEQUENCE.sub(
        lambda escaped: escaped[0].encode().decode("unicode_escape"), cell.removeprefix("'")
    )
