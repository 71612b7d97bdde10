"""Prints measures of code quality: `python -m devtools.house`. It is no CI gate; the docstrings of
the functions have the goals."""

import ast
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
# Django looks for these by name.
CONVENTIONAL_NAMES = {"__init__", "admin", "api", "apps", "models", "urls"}
# The modules of a deletion, from post_delete to clean.
DELETION_MODULES = (
    *("signals", "cleanup/make_cleanups", "tasks", "cleanup/runner", "cleanup/plan"),
    *("cleanup/kind_policies", "cleanup/delete_batches", "cleanup/verify"),
    "cleanup/models/lease_and_status",
)
# Conditions on the kind of a cleanup, or on how it deletes. A policy for each kind answers instead.
KIND_CONDITIONS = (
    "has_given_objects",
    ".is_deletion",
    "runs_wrangler",
    ".dry_run",
    ".root_kind",
    ".kind ",
    "Kind.",
    ".is_verification",
)
MAX_MODULE_LINES = 360  # lines


def read_files() -> dict[Path, str]:
    files = sorted((ROOT / "storage_audit").rglob("*.py"))
    return {path: path.read_text() for path in files if "migrations" not in path.parts}


def last_name(node: ast.AST | None) -> str:
    """The last name: `status` of `cleanup.status`, of `row["status"]` and of `"status"`."""
    node = node.slice if isinstance(node, ast.Subscript) else node
    return str(getattr(node, "attr", getattr(node, "id", getattr(node, "value", ""))))


def is_enum(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and "TextChoices" in map(last_name, node.bases)


def named_values(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Values that the node assigns to a name or compares with it. Meta cannot see class enums."""
    match node:
        case ast.keyword(arg=str(name), value=value):
            yield name, value
        case ast.Compare(left=left, comparators=[right]):
            yield from ((last_name(left), right), (last_name(right), left))
        case ast.Assign(targets=[target], value=value):
            yield last_name(target), value
        case ast.Dict(keys=keys, values=values):
            yield from ((last_name(key), value) for key, value in zip(keys, values, strict=True))
    for child in ast.iter_child_nodes(node):
        if not is_enum(child) and getattr(child, "name", "") != "Meta":
            yield from named_values(child)


def count_statuses_as_text(modules: list[ast.Module]) -> int:
    """Enum values written as text, where a field that has an enum is set, queried or compared."""
    nodes = [node for module in modules for node in ast.walk(module)]
    choices = [each for node in nodes if is_enum(node) for each in ast.walk(node)]
    values = {last_name(each.elts[0]) for each in choices if isinstance(each, ast.Tuple)}
    pairs = [(name, node) for module in modules for name, node in named_values(module)]
    fields = {name for name, node in pairs if "choices=" in ast.unparse(node)}
    fields.remove("step")  # those of the timeline are free text
    named = [node for name, node in pairs if not fields.isdisjoint(name.split("__"))]
    given = [part for node in named for part in (node, *getattr(node, "elts", ()))]
    given += [
        part for node in named if isinstance(node, ast.IfExp) for part in (node.body, node.orelse)
    ]
    return sum(isinstance(part, ast.Constant) and part.value in values for part in given)


def count_shared_names(files: Sequence[Path]) -> int:
    """Modules with the name of another one. Commands have the names that users type. Goal: 0."""
    names = Counter(path.stem for path in files if "commands" not in path.parts)
    return sum(
        count for name, count in names.items() if count > 1 and name not in CONVENTIONAL_NAMES
    )


def list_functions(modules: Sequence[ast.Module]) -> list[str]:
    """Names of the functions at module level."""
    defined = [node for module in modules for node in module.body]
    return [node.name for node in defined if isinstance(node, ast.FunctionDef)]


def one_word_percentage(names: Sequence[str]) -> float:
    """Functions at module level with a name of one word, in percent. Goal: 5."""
    return 100 * sum("_" not in name.strip("_") for name in names) / len(names)


def count_used_once(modules: Sequence[ast.Module]) -> int:
    """Functions and methods whose name is used in one other place. Goal: 280."""
    nodes = [node for module in modules for node in ast.walk(module)]
    used = Counter(last_name(node) for node in nodes if isinstance(node, ast.Name | ast.Attribute))
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    return sum(used[name] == 1 for name in defined)


def count_branches_on_kind() -> int:
    """Branches on the kind of a cleanup in DELETION_MODULES. Goal: 10."""
    nodes = [
        node
        for name in DELETION_MODULES
        for node in ast.walk(ast.parse((ROOT / "storage_audit" / f"{name}.py").read_text()))
        if isinstance(node, ast.If | ast.IfExp | ast.While)
    ]
    return sum(any(kind in ast.unparse(node.test) for kind in KIND_CONDITIONS) for node in nodes)


def count_imported(graph: grimp.ImportGraph, module: str) -> int:
    """Modules that this one imports, directly or not, itself included."""
    return 1 + len(graph.find_upstream_modules(f"storage_audit.{module}"))


def print_table() -> None:
    files = read_files()
    lines = {path: text.count("\n") for path, text in files.items()}
    modules = [ast.parse(text) for text in files.values()]
    names = list_functions(modules)
    graph = grimp.build_graph("storage_audit")
    way = [lines[ROOT / "storage_audit" / f"{name}.py"] for name in DELETION_MODULES]
    rows: dict[str, float] = {
        "lines of the application": sum(lines.values()),
        "files": len(files),
        f"files above {MAX_MODULE_LINES} lines": sum(
            count > MAX_MODULE_LINES for count in lines.values()
        ),
        "files of a deletion": len(way),
        "lines of these": sum(way),
        "branches on the kind in these": count_branches_on_kind(),
        "modules imported by cleanup.runner": count_imported(graph, "cleanup.runner"),
        "modules imported by signals": count_imported(graph, "signals"),
        "modules that share a name": count_shared_names(list(files)),
        "functions used once": count_used_once(modules),
        "functions of one word, in percent": round(one_word_percentage(names), 1),
        "statuses written as text": count_statuses_as_text(modules),
    }
    for measure, value in rows.items():
        print(f"{measure:<40}{value:>10,}")


if __name__ == "__main__":
    print_table()
