"""Which module of a package imports which other, read from the sources: those inside functions too."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

Graph = Mapping[str, Mapping[str, int]]  # {module: {module that it imports: line}}


@dataclass(frozen=True, slots=True)
class Import:
    """One name that a module imports."""

    line: int
    name: str  # `a.b.c` for `from a.b import c`, which may be a module or what a module defines
    for_types: bool = False  # read by type checkers alone


def imports_in(source: str, package: str) -> Iterator[Import]:
    """Every import of a module of `package`, which relative ones begin from."""
    tree = ast.parse(source)
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        for name in _names(node, package):
            yield Import(getattr(node, "lineno", 0), name, id(node) in for_types)


def _names(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
        origin = ".".join([*above, *([node.module] if node.module else [])])
        yield from (f"{origin}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and _is_import_module(node.func):
        name = node.args[0]
        if isinstance(name, ast.Constant):
            yield str(name.value)


def _is_import_module(function: ast.expr) -> bool:
    """Whether it is `import_module` or `importlib.import_module`."""
    if isinstance(function, ast.Attribute):
        return (
            function.attr == "import_module"
            and isinstance(function.value, ast.Name)
            and function.value.id == "importlib"
        )
    return isinstance(function, ast.Name) and function.id == "import_module"


def modules_of(package: Path) -> dict[str, Path]:
    """{dotted name: file} of a package, itself included."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = (package.name, *file.relative_to(package).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def graph_of(package: Path) -> Graph:
    """What each module of a package imports of it. A face, an `__init__.py`, may name for type checkers what it gives."""
    modules, graph = modules_of(package), {}
    for module, file in modules.items():
        is_face = file.name == "__init__.py"
        imported: dict[str, int] = {}
        for found in imports_in(file.read_text(encoding="utf-8"), module if is_face else module.rpartition(".")[0]):
            target = found.name if found.name in modules else found.name.rpartition(".")[0]
            if target in modules and target != module and not (is_face and found.for_types):
                imported.setdefault(target, found.line)
        graph[module] = imported
    return graph


def circle_in(graph: Graph) -> list[str]:
    """Modules each of which imports the next, the last one being the first again; none where there is no such circle."""
    try:
        TopologicalSorter({module: imported.keys() for module, imported in graph.items()}).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle[::-1]
    return []


def out_of_order(graph: Graph, rooms: Sequence[str]) -> list[str]:
    """What imports upward, or stands in no room. `rooms`, lowest first, are modules or packages below the package.

    The package's own face stands above all; a package that only holds rooms is in none, and imports nothing.
    """
    wrong = []
    for module, imported in graph.items():
        place = _place(module, rooms)
        if place is None and (imported or not any(room.startswith(f"{_below(module)}.") for room in rooms)):
            wrong.append(f"{module} stands in no room")
        for target, line in imported.items():
            other = _place(target, rooms)
            if place is not None and other is not None and other > place:
                wrong.append(f"{module}:{line} imports {target}, which stands above it")
    return wrong


def _place(module: str, rooms: Sequence[str]) -> int | None:
    below = _below(module)
    if not below:
        return len(rooms)
    return next((place for place, room in enumerate(rooms) if f"{below}.".startswith(f"{room}.")), None)


def _below(module: str) -> str:
    return module.partition(".")[2]
