"""Keys that are hard to read, to store or to show, and what becomes of each."""

from typing import NamedTuple

from tests.keys import FOLDER

STRANGE_ORPHANS = [
    FOLDER + "<script>alert(1)</script>",
    FOLDER + "=cmd()",
    FOLDER + "../up",
    FOLDER + "a\x01b",
    FOLDER + "tab\tand\x7f",
    FOLDER + "b//c",
    FOLDER + "e%2Fb",
    FOLDER + " g ",
    FOLDER + "k\u00e9",
    FOLDER + "le\u0301",
    FOLDER + "x" * (1024 - len(FOLDER)),
]
# What COPY, an escape, a line, or a format would make something else of.
HARD_TEXTS = [
    "\\",
    "\\\\",
    "\\.",
    "\\N",
    "\\n",
    "\n",
    "a\nb",
    "a\n",
    "\r",
    "a\r\nb",
    "\t",
    "a\tb",
    "\\t",
    "\x01",
    "\x08\x0b\x0c",
    "\x1f",
    "\x7f",
    "\x85",
    "\u2028",
    "\ufeff",
    "%",
    "%s",
    "%(a)s",
    "%%",
    "'",
    "''",
    '"',
    "$1",
    "?",
    "?a",
    " ",
    "  a  ",
    "1 2 3 4 5",
    "NULL",
    "{}",
    "\u00e9",
    "e\u0301",
    "\ue000",
    "\uffff",
    "\U0001f98a",
    "\U0010ffff",
    "x" * 1024,
]
KEY_PREFIX = "projects/proj_1/scenes/s1/media/"
# Folders, as there are stores that take no name of more than 255 bytes between slashes.
LONG_NAME = ("é" * 100 + "/") * 4
LONG_NAME += "x" * (1024 - len((KEY_PREFIX + LONG_NAME).encode()))


class StrangeKey(NamedTuple):
    """A key, after UNDER or as a whole, what it could be taken for, and what becomes of it."""

    name: str
    traps: tuple[str, ...]
    outcome: str = "deleted"


# Of each kind one.
STRANGE_KEYS = {
    "markup": StrangeKey(
        "<script>alert(1)</script>", ("alert(1)", "&lt;script&gt;alert(1)&lt;/script&gt;")
    ),
    "formula": StrangeKey("=cmd()", ("cmd()", "'=cmd()")),
    "formula with a plus": StrangeKey("+1+cmd()", (" 1 cmd()", "%2B1%2Bcmd()")),
    "up": StrangeKey("../up", ("up", "projects/proj_1/scenes/s1/up")),
    "far up": StrangeKey("../../../../../stranger", ("stranger", "/stranger")),
    "dot": StrangeKey("./dot", ("dot",)),
    "empty folder": StrangeKey("b//c", ("b/c",)),
    "leading slash": StrangeKey("/lead", ("lead",)),
    "leading slash of all": StrangeKey("/projects/proj_1/a", ("projects/proj_1/a",)),
    "trailing slash": StrangeKey("d/", ("d",)),
    "control": StrangeKey("a\x01b", ("ab", "a%01b", "a\\x01b")),
    "tab": StrangeKey("t\tb", ("t b", "tb", "t%09b")),
    "delete": StrangeKey("a\x7fb", ("a%7Fb",)),
    "newline": StrangeKey("n\nb", ("n b", "nb", "n", "n%0Ab"), "failed"),
    "control and dots": StrangeKey("x/../c\x01", ("c\x01", "c"), "failed"),
    "percent": StrangeKey("e%2Fb", ("e/b", "e%252Fb")),
    "percent NUL": StrangeKey("z%00b", ("zb", "z")),
    "plus": StrangeKey("f+b", ("f b", "f%2Bb")),
    "spaces": StrangeKey(" g ", ("g", " g", "g ")),
    "backslash": StrangeKey("h\\b", ("h/b",)),
    "query": StrangeKey("i?b#c", ("i", "i?b")),
    "capital": StrangeKey("J", ("j",)),
    "composed": StrangeKey("k\u00e9", ("ke\u0301", "ke")),
    "decomposed": StrangeKey("le\u0301", ("l\u00e9", "le")),
    "compatible": StrangeKey("\ufb01", ("fi",)),
    "1,024 bytes": StrangeKey(LONG_NAME, (LONG_NAME[:-1],)),
}


def complete_key(name: str) -> str:
    wholes = ("projects/", "/projects/", "stranger", "/stranger")
    return name if name.startswith(wholes) else KEY_PREFIX + name


KEYS = {complete_key(each.name): each.outcome for each in STRANGE_KEYS.values()}
TRAPS = {complete_key(trap) for each in STRANGE_KEYS.values() for trap in each.traps}


def select_kept(before: dict[str, tuple[int, str]]) -> dict[str, tuple[int, str]]:
    """What must still be there when all has gone that can go."""
    return {key: facts for key, facts in before.items() if KEYS.get(key) != "deleted"}
