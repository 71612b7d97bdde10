"""What is written down for programs has words for people, which can be translated."""

import ast
from collections.abc import Iterator
from pathlib import Path

import storage_audit
from storage_audit.cleanup.adaptive_batch import BatchSize
from storage_audit.cleanup.field_labels import COLUMN_WORDS, FIELD_WORDS, describe_field
from storage_audit.ownership.key_template import FIELD_NAMES

SOURCES = Path(storage_audit.__file__).parent.rglob("*.py")


def recorded() -> Iterator[str]:
    """The names of all figures that a timeline is given one by one."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "record":
                yield from (each.arg for each in node.keywords if each.arg)


def test_each_name_has_words() -> None:
    written = {
        *recorded(),
        *FIELD_NAMES,
        *BatchSize._fields,
        "request_id",
        "shown",
        "fewer",
        "doubted",
    }
    assert {"second_look", "next_attempt", "listed_prefixes"} <= written
    assert written <= FIELD_WORDS.keys() | COLUMN_WORDS.keys()


def test_a_name_without_words_is_shown_itself() -> None:
    assert describe_field("list_calls") == "list calls"
    assert describe_field("bell\x07") == "bell\\x07"
