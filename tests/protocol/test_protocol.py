"""The page of the model names functions that exist, and describes each step."""

import re

from tests.paths import ROOT

PAGE = (ROOT / "tests" / "protocol" / "README.md").read_text()
MODEL = (ROOT / "tests" / "protocol" / "cleanup.pml").read_text()
APP = ROOT / "storage_audit"
NAMED = re.findall(r"((?:`\w+`(?: and )?)+) in `([\w/]+\.py)`", PAGE)


def test_each_function_that_the_page_names_exists() -> None:
    assert len(NAMED) > 20
    for names, path in NAMED:
        for name in re.findall(r"`(\w+)`", names):
            assert f"def {name}(" in (APP / path).read_text(), (name, path)


def test_model_is_small_enough_to_be_read() -> None:
    assert len(MODEL.splitlines()) <= 300
