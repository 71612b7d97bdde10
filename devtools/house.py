"""Count what the rules of the house forbid: `python -m devtools.house`."""

import ast
from collections.abc import Iterator
from pathlib import Path


def read_modules() -> list[ast.Module]:
    files = (Path(__file__).resolve().parent.parent / "storage_audit").rglob("*.py")
    return [ast.parse(path.read_text()) for path in files if "migrations" not in path.parts]


def name_of(node: ast.AST | None) -> str:
    """The last name: `status` of `cleanup.status`, of `row["status"]` and of `"status"`."""
    node = node.slice if isinstance(node, ast.Subscript) else node
    return str(getattr(node, "attr", getattr(node, "id", getattr(node, "value", ""))))


def is_enum(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and "TextChoices" in map(name_of, node.bases)


def named_values(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What the node gives to a name, or compares with it. A Meta cannot see its class's enums."""
    match node:
        case ast.keyword(arg=str(name), value=value):
            yield name, value
        case ast.Compare(left=left, comparators=[right]):
            yield from ((name_of(left), right), (name_of(right), left))
        case ast.Assign(targets=[target], value=value):
            yield name_of(target), value
        case ast.Dict(keys=keys, values=values):
            yield from ((name_of(key), value) for key, value in zip(keys, values, strict=True))
    for child in ast.iter_child_nodes(node):
        if not is_enum(child) and getattr(child, "name", "") != "Meta":
            yield from named_values(child)


def count_statuses_as_text(modules: list[ast.Module]) -> int:
    """Values of our enums as text, where a field that has one is set, asked for or compared."""
    nodes = [node for module in modules for node in ast.walk(module)]
    choices = [each for node in nodes if is_enum(node) for each in ast.walk(node)]
    values = {name_of(each.elts[0]) for each in choices if isinstance(each, ast.Tuple)}
    pairs = [(name, node) for module in modules for name, node in named_values(module)]
    fields = {name for name, node in pairs if "choices=" in ast.unparse(node)}
    fields.remove("step")  # those of the timeline are free text
    named = [node for name, node in pairs if not fields.isdisjoint(name.split("__"))]
    given = [part for node in named for part in (node, *getattr(node, "elts", ()))]
    given += [
        part for node in named if isinstance(node, ast.IfExp) for part in (node.body, node.orelse)
    ]
    return sum(isinstance(part, ast.Constant) and part.value in values for part in given)


if __name__ == "__main__":
    rows = {"statuses written as text": count_statuses_as_text(read_modules())}
    for rule, count in rows.items():
        print(f"{rule:<40}{count:>6}")
