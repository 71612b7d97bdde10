"""A sample of the ownership fuzz, and proof that it sees what it is to see."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from storage_audit.ownership import owner
from storage_audit.ownership.key_format import Readings
from storage_audit.ownership.key_formats import Layouts
from storage_audit.ownership.owner import Deleted, Verdict
from tests.ownership import fuzz

pytestmark = [pytest.mark.django_db, pytest.mark.slow]
judge, readings = owner.judge, Layouts.readings


def test_no_key_is_claimed_falsely_and_none_is_overlooked() -> None:
    figures = fuzz.run_here(30_000, seed=1)
    assert figures.keys == 30_000
    assert figures.wrong == []
    for verdict in ("owned", "protected", "elsewhere"):
        assert figures.said(verdict) > 3_000
    assert figures.orphaned > 3_000


def test_the_whole_runs_from_a_shell() -> None:
    sample = ["--keys", "3000", "--seed", "1", "--processes", "2"]
    assert fuzz.main(sample) == 0


def test_a_seed_gives_the_same_keys_again_in_any_number_of_processes() -> None:
    first = fuzz.run_here(2_000, seed=3)
    assert first == fuzz.run(2_000, seed=3, processes=2)
    assert first != fuzz.run_here(2_000, seed=4)


def nobody_lives(readings: object, ids: object) -> set[str]:
    return set()


def no_matter_how_old(
    project: Deleted, of_key: Any, rows: Any, time: datetime | None, alive: set[str]
) -> Verdict:
    return judge(project, of_key, rows, None, alive)


def no_matter_what_was_uploaded(
    project: Deleted, of_key: Any, rows: Any, time: datetime | None, alive: set[str]
) -> Verdict:
    return judge(project, of_key, (), time, alive)


def no_matter_what_a_backfill_wrote(
    project: Deleted, of_key: Any, rows: Any, time: datetime | None, alive: set[str]
) -> Verdict:
    return judge(project, of_key, [r for r in rows if r.source == "upload"], time, alive)


def one_reading(layouts: Layouts, key: str) -> Readings:
    found = readings(layouts, key)
    return Readings(found[:1], found.others)


def ids_of_any_case(layouts: Layouts, key: str) -> Readings:
    found = readings(layouts, key)
    return Readings([replace(r, project=r.project.lower()) for r in found], found.others)


def ids_up_to_an_underscore(layouts: Layouts, key: str) -> Readings:
    """As where proj_1_ is taken for a prefix of proj_1."""
    found = readings(layouts, key)
    shorter = [replace(r, project="_".join(r.project.split("_")[:2])) for r in found]
    return Readings(shorter, found.others)


def ids_of_the_grammar_alone(layouts: Layouts, key: str) -> Readings:
    return Readings(readings(layouts, key))


@pytest.mark.parametrize(
    "where, name, broken",
    [
        (fuzz, "alive_among", nobody_lives),
        (fuzz, "judge", no_matter_how_old),
        (fuzz, "judge", no_matter_what_was_uploaded),
        (fuzz, "judge", no_matter_what_a_backfill_wrote),
        (Layouts, "readings", one_reading),
        (Layouts, "readings", ids_of_any_case),
        (Layouts, "readings", ids_up_to_an_underscore),
        (Layouts, "readings", ids_of_the_grammar_alone),
    ],
)
def test_the_fuzz_sees_what_is_broken(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, broken: Callable[..., Any]
) -> None:
    monkeypatch.setattr(where, name, broken)
    figures = fuzz.run_here(3_000, seed=1)
    assert figures.false_claims
    assert "should be" in fuzz.told(figures, 1, 1.0)
