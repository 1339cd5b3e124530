"""Which of our modules imports which, read from the sources: imports in functions and under TYPE_CHECKING included."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (ROOT / "src", ROOT / "kernels")


def module_files(sources: Iterable[Path] = SOURCES) -> dict[str, Path]:
    """The modules in these directories by name: ours are those of the packages ember, ember_kernels and ember_cpu."""
    found = {}
    for source in sources:
        for file in sorted(source.rglob("*.py")):
            parts = file.relative_to(source).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported_names(file: Path, module: str) -> Iterator[str]:
    """Every name that a file imports: modules, and what may be a module or a name in one."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports(files: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports. A package's `__init__` counts where a name of it is imported."""
    graph: dict[str, set[str]] = {}
    for module, file in files.items():
        found = set()
        for name in imported_names(file, module):
            while name and name not in files:  # a name in a module
                name = name.rpartition(".")[0]
            found.add(name)
        graph[module] = {name for name in found if name and name != module}
    return graph


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other, by Tarjan's algorithm for strongly connected components."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in graph:
        if module not in index:
            visit(module)
    return found
