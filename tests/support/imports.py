"""Reads which files of ours import what, from the source text alone: nothing is imported to find out."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path


def module_name(root: Path, file: Path) -> str:
    """The dotted name of a source file: agent/update/engine.py is agent.update.engine."""
    parts = list(file.relative_to(root).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def source_files(root: Path, packages: tuple[str, ...]) -> dict[str, Path]:
    """Every source file of the packages, by dotted name."""
    files = (file for package in packages for file in sorted((root / package).rglob("*.py")))
    return {module_name(root, file): file for file in files}


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Every dotted name an import statement mentions, wherever in the file it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def import_graph(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Which of our files each of our files imports. `from a import b` is the file a.b where there is one, else a."""
    graph: dict[str, set[str]] = {}
    for name, file in files.items():
        graph[name] = set()
        for imported in imported_names(ast.parse(file.read_text())):
            target = imported if imported in files else imported.rpartition(".")[0]
            if target in files and target != name:
                graph[name].add(target)
    return graph


def find_cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """One import cycle as the list of files along it, or an empty list."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(graph[name]):
            if cycle := walk(target, [*path, name]):
                return cycle
        done.add(name)
        return []

    return next((cycle for name in sorted(graph) if (cycle := walk(name, []))), [])
