"""The --help of every command, and of make, is enough to use it; wrong use says what is right."""

import re
import shlex
import subprocess
from argparse import Action, ArgumentParser
from collections.abc import Iterator

import pytest
from django.core.management import find_commands, load_command_class
from django.core.management.base import CommandError, DjangoHelpFormatter

import benchmarks.__main__
import devtools.demo.__main__
import devtools.mutants
import devtools.screenshots
import devtools.test
import tests.crash.__main__
import tests.faults.__main__
import tests.protocol.check
from tests.paths import ROOT

# What it asks is no database.
pytestmark = pytest.mark.only_on("sqlite")

MAKEFILE = (ROOT / "Makefile").read_text()


def management_commands() -> Iterator[tuple[str, ArgumentParser]]:
    for app in ("devtools", "storage_audit"):
        for name in find_commands(str(ROOT / app / "management")):
            command = load_command_class(app, name)
            yield f"manage.py {name}", command.create_parser("manage.py", name)


PARSERS: dict[str, ArgumentParser] = {
    **dict(management_commands()),
    "make demo": devtools.demo.__main__.command_line(),
    "make bench": benchmarks.__main__.command_line(),
    "make test": devtools.test.command_line(),
    "make test-crash": tests.crash.__main__.command_line(),
    "make test-mutants": devtools.mutants.command_line(),
    "make check-protocol": tests.protocol.check.command_line(),
    "-m tests.faults": tests.faults.__main__.command_line(),
    "make screenshots": devtools.screenshots.command_line(),
}
each_command = pytest.mark.parametrize("name", PARSERS)


def own_arguments(name: str) -> list[Action]:
    """Without those that Django gives to every command, and explains."""
    django_s = DjangoHelpFormatter.show_last
    return [a for a in PARSERS[name]._actions if not django_s.intersection(a.option_strings)]


def epilog(name: str) -> str:
    return PARSERS[name].epilog or ""


def examples(name: str) -> list[str]:
    _before, _, after = epilog(name).partition("examples:\n")
    return [line.strip() for line in after.partition("\n\n")[0].splitlines()]


def arguments(example: str) -> list[str]:
    """What the program gets when a person types the example."""
    words = shlex.split(example)
    return shlex.split(variables(words).get("ARGS", "")) if words[0] == "make" else words[3:]


def variables(words: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words[2:])


@each_command
def test_says_what_it_does_and_what_each_argument_is(name: str) -> None:
    assert PARSERS[name].description
    for argument in own_arguments(name):
        assert argument.help, argument


@each_command
def test_says_what_holds_when_a_value_is_not_given(name: str) -> None:
    for argument in own_arguments(name):
        if argument.nargs != 0 and not argument.required:
            assert re.search(r"\(default: |without it", argument.help or ""), argument


@each_command
def test_tells_the_exit_codes_and_what_to_do_next(name: str) -> None:
    _before, _, after = epilog(name).partition("exit codes:\n")
    codes, _, rest = after.partition("\n\n")
    assert {"0", "1", "2"} <= set(re.findall(r"^ +(\d+) ", codes, re.MULTILINE))
    assert rest.lstrip().startswith("Next: ")


@each_command
def test_its_examples_can_be_typed_as_they_are(name: str) -> None:
    assert len(examples(name)) >= 2
    for example in examples(name):
        assert name in example
        parse = PARSERS[name].parse_known_args if name == "make test" else PARSERS[name].parse_args
        parse(arguments(example))


@each_command
def test_its_lines_fit_a_terminal(name: str) -> None:
    assert max(map(len, PARSERS[name].format_help().splitlines())) <= 100


def test_bare_make_tells_every_target_and_variable() -> None:
    shown = shown_by_make()
    [targets] = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert set(targets.split()) <= set(re.findall(r"^make ([\w-]+) ", shown, re.MULTILINE))
    assert used_variables() <= set(re.findall(r"^  ([A-Z]+) ", shown, re.MULTILINE))


def shown_by_make() -> str:
    return subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def used_variables() -> set[str]:
    return set(re.findall(r"\$\(([A-Z]+)\)", MAKEFILE)) - {"HELP", "MAKE"}


def test_examples_with_make_use_its_targets_and_variables() -> None:
    lines = re.findall(r"^  (make .*)$", shown_by_make(), re.MULTILINE)
    lines += examples("make demo") + examples("make test")
    for line in lines:
        words = shlex.split(line)
        assert f"make {words[1]}" in PARSERS
        assert set(variables(words)) <= used_variables()


@pytest.mark.parametrize(
    ("option", "given"),
    [
        *(("--port", given) for given in ["65536", "-1", "http", "８０"]),
        *(("--bucket", given) for given in ["", "ab", "Bucket", "a_b", "-abc", "b" * 64]),
    ],
)
def test_local_r2_says_what_a_port_and_a_bucket_name_are(option: str, given: str) -> None:
    parser = PARSERS["manage.py local_r2"]
    with pytest.raises(CommandError, match=f"argument {option}: a (port is|bucket name has)"):
        parser.parse_args([f"{option}={given}"])
