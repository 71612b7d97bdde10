"""Breaks one rule after the other in a copy of the tree, and runs the test that has to fail.

The rules, and how to break each, are in tests/mutants. A mutant whose test passes has survived."""

import ast
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from devtools.processes import Child, stop_on_signals

ROOT = Path(__file__).resolve().parent.parent
MUTANTS_FOLDER = ROOT / "tests" / "mutants"
# Far more than any of these tests takes; beyond it, the mutant has made something hang.
TEST_TIMEOUT_SECONDS = 300.0

EPILOG = """\
examples:
  make test-mutants
  make test-mutants ARGS="limits"

exit codes:
  0  each mutant was killed by its test
  1  one was not, or does not apply any more, or a test fails without any; lines say which
  2  the same, as make says it

Next: one that survived needs a better test; one that does not apply needs the text of today.
"""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One way to break a guarantee, and the test that notices.

    `function` is the name of a function, class or constant in whose text `find` stands exactly
    once; empty for a file that is not Python."""

    file: str
    function: str
    find: str
    replace: str
    guarantee: str
    test: str

    def __str__(self) -> str:
        return f"{self.file} {self.function}: {' '.join(self.find.split())}"

    @classmethod
    def read_all(cls, text: str) -> Iterator[Self]:
        """Mutants that contain this text, or whose file has it in its name."""
        for path in sorted(MUTANTS_FOLDER.glob("*.toml")):
            for fields in tomllib.loads(path.read_text())["mutant"]:
                mutant = cls(**{"function": "", **fields})
                if text in path.name or text in repr(mutant):
                    yield mutant

    def apply(self, root: Path) -> tuple[Path, str] | None:
        """The file, and its text with the mutant, if there is exactly one place for it. Code that
        was moved is found by the name of its function."""
        moved = sorted((root / "storage_audit").rglob("*.py")) if self.function else []
        for path in [root / self.file, *moved]:
            if path.exists() and len(found := self.mutate(path.read_text())) == 1:
                return path, found.pop()
        return None

    def mutate(self, source: str) -> set[str]:
        """The text of the file with the mutant, for each place where `find` stands."""
        lines = source.splitlines(keepends=True)
        spans = find_spans(self.function, source) if self.function else {(0, len(lines))}
        found = set()
        for start, end in spans:
            before, inside, after = map("".join, (lines[:start], lines[start:end], lines[end:]))
            if inside.count(self.find) == 1:
                found.add(before + inside.replace(self.find, self.replace) + after)
        return found


def find_spans(name: str, source: str) -> Iterator[tuple[int, int]]:
    """First line and the line after the last of each definition of this name, with decorators."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.FunctionDef(name=found) | ast.ClassDef(name=found) if found == name:
                start = min(each.lineno for each in [node, *node.decorator_list])
            case ast.Assign(targets=[target]) | ast.AnnAssign(target=target):
                if not isinstance(target, ast.Name) or target.id != name:
                    continue
                start = node.lineno
            case _:
                continue
        yield start - 1, node.end_lineno or start


def command_line() -> ArgumentParser:
    parser = ArgumentParser(
        prog="make test-mutants",
        usage='make test-mutants [ARGS="[-h] [TEXT]"]',
        description=__doc__,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("text", nargs="?", default="", metavar="TEXT", help="some (default: all)")
    return parser


def copy_tree(folder: Path) -> None:
    """All files that are in git or could be added, as they are now."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "devtools" / "node_modules").symlink_to(ROOT / "devtools" / "node_modules")


def run_tests(tree: Path, *arguments: str) -> Child:
    """pytest in this copy, with a database of its own."""
    return Child(
        "pytest",
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        env=os.environ | {"DATABASE_URL": f"sqlite:///{tree}/db.sqlite3"},
        log=tree / "pytest.log",
        cwd=tree,
        grace=30,
        stop_signal=signal.SIGINT,
    )


def run_mutants(mutants: list[Mutant], trees: list[Path]) -> Iterator[tuple[Mutant, str]]:
    """Each mutant and its problem, which is empty if its test fails as it must."""
    waiting, free = mutants[::-1], list(trees)
    running = dict[Path, tuple[Mutant, Child, Path, float]]()
    with ExitStack() as stack:
        while waiting or running:
            while free and waiting:
                mutant = waiting.pop()
                if not (applied := mutant.apply(free[-1])):
                    yield mutant, "does not apply: its text is not there exactly once"
                    continue
                tree, (path, changed) = free.pop(), applied
                path.write_text(changed)
                child = stack.enter_context(run_tests(tree, "-x", "-n", "0", mutant.test))
                running[tree] = mutant, child, path, time.monotonic() + TEST_TIMEOUT_SECONDS
            for tree, (mutant, child, path, deadline) in list(running.items()):
                if not child.is_running or time.monotonic() > deadline:
                    yield mutant, describe_problem(child)
                    child.stop()
                    shutil.copy2(ROOT / path.relative_to(tree), path)
                    del running[tree]
                    free.append(tree)
            time.sleep(0.05)


def describe_problem(child: Child) -> str:
    if child.is_running:
        return f"its test takes longer than {TEST_TIMEOUT_SECONDS:.0f} seconds"
    match child.wait():
        case 0:
            return "survived"
        case 1 if "\nFAILED " in child.tail():
            return ""
        case code:
            return f"pytest ended with exit code {code}\n{child.tail()}"


def main(text: str) -> None:
    if not (mutants := list(Mutant.read_all(text))):
        sys.exit(f"No mutant has the text {text!r}.")
    with stop_on_signals(), TemporaryDirectory() as folder:
        trees = [Path(folder, str(number)) for number in range(os.cpu_count() or 1)]
        for tree in trees:
            copy_tree(tree)
        print(f"{len(mutants)} mutants. First their tests, without them.", flush=True)
        tests = sorted({each.test for each in mutants})
        with run_tests(trees[0], "-n", str(len(trees)), *tests) as child:
            if child.wait() != 0:
                sys.exit(f"{child.tail()}\n\nFAILED: tests that fail without any mutant")
        wrong = 0
        for mutant, problem in run_mutants(mutants, trees):
            wrong += bool(problem)
            print(f"{problem or 'killed'}: {mutant}\n    {mutant.test}", flush=True)
    if wrong:
        sys.exit(f"\nFAILED: {wrong} of {len(mutants)} mutants were not killed")
    print(f"\nAll {len(mutants)} mutants were killed.")


if __name__ == "__main__":
    main(**vars(command_line().parse_args()))
