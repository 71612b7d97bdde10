import csv
import json
from io import StringIO

import pytest

from storage_audit.exports import byte_chunks, csv_cell, csv_lines, json_lines
from tests.ui.csv_cells import cell_text

SIGNS = "=+-@＝＋－＠\t\r"
TEXTS = [
    "",
    "plain/é.mp3",
    *(f"{sign}1+cmd()" for sign in SIGNS),
    " =1",
    "\n=1",
    "'=1",
    "a;=cmd()",
    'a; "@cmd()',
    "a;b",
    'a,"b"\r\nc',
    "\\x3d1",
    "\\",
    "\x01\x1b[2J\u202e\U000e0001",
]


def shown_by(text: str, delimiter: str) -> list[str]:
    (row,) = csv.reader(StringIO("".join(csv_lines([["first", text]]))), delimiter=delimiter)
    return row


@pytest.mark.parametrize("text", TEXTS)
def test_a_cell_is_no_formula_hides_nothing_and_is_still_the_same_text(text: str) -> None:
    assert csv_cell(text).isprintable()
    assert cell_text(csv_cell(text)) == text
    assert shown_by(text, ",") == ["first", csv_cell(text)]
    # Quotation marks do not hold a cell together that is cut where none was expected.
    for seen in (*shown_by(text, ","), *shown_by(text, ";")):
        assert not seen.strip(" \"'").startswith(tuple(SIGNS)) or seen.startswith("'")


def test_no_two_texts_become_the_same_cell() -> None:
    assert len({csv_cell(text) for text in TEXTS}) == len(TEXTS)


def test_json_is_one_array_with_an_element_a_line() -> None:
    assert json.loads("".join(json_lines([]))) == []
    rows = [{"key": text} for text in TEXTS]
    lines = "".join(json_lines(rows))
    assert json.loads(lines) == rows
    assert [json.loads(line.rstrip(",")) for line in lines.split("\n")[1:-2]] == rows


def test_many_lines_are_one_piece() -> None:
    assert [piece.count(b"\n") for piece in byte_chunks(["x\n"] * 1001)] == [500, 500, 1]
