"""One figure of the overview."""

from typing import Any, NamedTuple


class Tile(NamedTuple):
    """A figure, its meaning, and a link to what it counts. `style` is the colour of `state_label`,
    which says how things are."""

    title: Any
    figure: str
    lines: list[str]
    url: str
    style: str = "ok"
    state_label: Any = ""
