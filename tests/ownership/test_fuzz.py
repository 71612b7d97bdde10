"""A sample of the ownership fuzz, and proof that it sees what it is to see."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from storage_audit.ownership import attribution, ownership_rule
from storage_audit.ownership.attribution import Owner
from storage_audit.ownership.key_formats import KeyFormats
from storage_audit.ownership.key_template import ParsedKeys
from storage_audit.ownership.ownership_rule import DeletedProject, Verdict
from tests.ownership import fuzz

pytestmark = [pytest.mark.django_db, pytest.mark.slow]
find_owner = attribution.find_owner
judge, parse_key = ownership_rule.judge_ownership, KeyFormats.parse_key


def test_no_key_is_owned_falsely_and_none_is_missed() -> None:
    figures = fuzz.run_in_process(30_000, seed=1)
    assert figures.key_count == 30_000
    assert figures.wrong == []
    for verdict in ("owned", "kept", "elsewhere"):
        assert figures.count_said(verdict) > 3_000
    assert figures.orphaned > 3_000


def test_the_whole_runs_from_a_shell() -> None:
    sample = ["--keys", "3000", "--seed", "1", "--processes", "2"]
    assert fuzz.main(sample) == 0


def test_a_seed_gives_the_same_keys_again_in_any_number_of_processes() -> None:
    first = fuzz.run_in_process(2_000, seed=3)
    assert first == fuzz.run_fuzz(2_000, seed=3, processes=2)
    assert first != fuzz.run_in_process(2_000, seed=4)


def nobody_lives(parsed_keys: object, ids: object) -> set[str]:
    return set()


def no_matter_how_old(
    project: DeletedProject, of_key: Any, rows: Any, time: datetime | None, alive: set[str]
) -> Verdict:
    return judge(project, of_key, rows, None, alive)


def no_matter_what_was_uploaded(
    project: DeletedProject, of_key: Any, rows: Any, time: datetime | None, alive: set[str]
) -> Verdict:
    return judge(project, of_key, (), time, alive)


def no_matter_what_a_backfill_wrote(
    project: DeletedProject, of_key: Any, rows: Any, time: datetime | None, alive: set[str]
) -> Verdict:
    return judge(project, of_key, [r for r in rows if r.source == "upload"], time, alive)


def scan_no_matter_what_a_backfill_wrote(of_key: Any, rows: Any, *others: Any) -> Owner:
    return find_owner(of_key, [r for r in rows if r.source == "upload"], *others)


def first_key_only(key_formats: KeyFormats, key: str) -> ParsedKeys:
    found = parse_key(key_formats, key)
    return ParsedKeys(found[:1], found.refused_ids)


def ids_of_any_case(key_formats: KeyFormats, key: str) -> ParsedKeys:
    found = parse_key(key_formats, key)
    return ParsedKeys([replace(r, project=r.project.lower()) for r in found], found.refused_ids)


def ids_up_to_an_underscore(key_formats: KeyFormats, key: str) -> ParsedKeys:
    """As where proj_1_ is taken for a prefix of proj_1."""
    found = parse_key(key_formats, key)
    shorter = [replace(r, project="_".join(r.project.split("_")[:2])) for r in found]
    return ParsedKeys(shorter, found.refused_ids)


def ids_of_the_grammar_alone(key_formats: KeyFormats, key: str) -> ParsedKeys:
    return ParsedKeys(parse_key(key_formats, key))


@pytest.mark.parametrize(
    "where, name, broken",
    [
        (fuzz, "living_owners", nobody_lives),
        (fuzz, "judge_ownership", no_matter_how_old),
        (fuzz, "judge_ownership", no_matter_what_was_uploaded),
        (fuzz, "judge_ownership", no_matter_what_a_backfill_wrote),
        (KeyFormats, "parse_key", first_key_only),
        (KeyFormats, "parse_key", ids_of_any_case),
        (KeyFormats, "parse_key", ids_up_to_an_underscore),
        (KeyFormats, "parse_key", ids_of_the_grammar_alone),
    ],
)
def test_the_fuzz_sees_what_is_broken(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, broken: Callable[..., Any]
) -> None:
    monkeypatch.setattr(where, name, broken)
    figures = fuzz.run_in_process(3_000, seed=1)
    assert figures.falsely_owned
    assert "should be" in fuzz.render_result(figures, 1, 1.0)


def test_fuzz_sees_an_orphan_that_no_cleanup_would_delete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "find_owner", scan_no_matter_what_a_backfill_wrote)
    wrong = fuzz.run_in_process(3_000, seed=1).wrong
    assert {(right, said) for _key, right, said in wrong} == {("kept", "orphaned")}
