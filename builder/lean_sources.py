"""What the modules of torch import by name, and how they use these names, read from their sources.

A `DeferredName` does for a name that a module uses only inside functions, and there only to call it, to read an
attribute of it, or as the class in isinstance() or issubclass(). The sources are analysed for this, name by name.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

_REPLACES_ITSELF = re.compile(r"sys\.modules\[__name__\]\s*=")


class Source:
    """What a module's source says: what it imports by name, and what it does with these names."""

    def __init__(self, module: str, entry: dict[str, Any]) -> None:
        self.module = module
        self.file = entry["file"]
        text = Path(entry["file"]).read_text(encoding="utf-8")
        self.replaces_itself = _REPLACES_ITSELF.search(text) is not None
        self.is_plain = entry["is_plain"]
        package = module if entry["is_package"] else module.rpartition(".")[0]
        self.imports: dict[tuple[str, str], set[str]] = defaultdict(set)  # (module, name) -> what it is called here
        tree = ast.parse(text)
        has_lazy_annotations = any(
            isinstance(node, ast.ImportFrom) and node.module == "__future__" and node.names[0].name == "annotations"
            for node in tree.body
        )
        self._uses = _Uses(has_lazy_annotations)
        self._uses.visit(tree)
        for node in _executed(tree.body):
            if isinstance(node, ast.ImportFrom):
                target = _resolve(package, node)
                for alias in node.names:
                    self.imports[(target, alias.name)].add(alias.asname or alias.name)

    def may_defer(self, name: str) -> bool:
        """Whether a `DeferredName` does for the global `name`."""
        if self.module == "torch":  # its functions get no deferred names: see LeanImport._guard_package
            return name not in self._uses.loaded
        return self.is_plain and name not in self._uses.needed


def _resolve(package: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    base = ".".join(parts[: len(parts) - node.level + 1])
    return f"{base}.{node.module}" if node.module else base


def _executed(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements that run when the module is imported, blocks opened."""
    found: list[ast.stmt] = []
    for node in body:
        found.append(node)
        if isinstance(node, ast.If):
            test = ast.unparse(node.test)
            if not test.endswith("TYPE_CHECKING") or test.startswith("not "):
                found += _executed(node.body)
            found += _executed(node.orelse)
        elif isinstance(node, ast.Try):
            for block in (node.body, node.orelse, node.finalbody, *(handler.body for handler in node.handlers)):
                found += _executed(block)
        elif isinstance(node, ast.With | ast.For | ast.While):
            found += _executed(node.body)
    return found


class _Uses(ast.NodeVisitor):
    """Which names are loaded at all, and which in a way that needs the real object or the moment of the import."""

    def __init__(self, has_lazy_annotations: bool) -> None:
        self.loaded: set[str] = set()
        self.needed: set[str] = set()
        self._has_lazy_annotations = has_lazy_annotations
        self._in_function = False
        self._locals: list[set[str]] = []  # of the functions around

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for part in (*node.decorator_list, *node.args.defaults, *node.args.kw_defaults):
            if part is not None:
                self.visit(part)
        if not self._has_lazy_annotations:
            arguments = (
                *node.args.posonlyargs,
                *node.args.args,
                *node.args.kwonlyargs,
                node.args.vararg,
                node.args.kwarg,
            )
            for annotation in (*(each.annotation for each in arguments if each is not None), node.returns):
                if annotation is not None:
                    self._visit_annotation(annotation)
        self._visit_body(node.body, _locals(node))

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for part in (*node.args.defaults, *node.args.kw_defaults):
            if part is not None:
                self.visit(part)
        self._visit_body([node.body], _locals(node))

    def _visit_body(self, body: list[Any], local: set[str]) -> None:
        outer, self._in_function = self._in_function, True
        self._locals.append(local)
        for part in body:
            self.visit(part)
        self._in_function = outer
        self._locals.pop()

    def _is_local(self, name: str) -> bool:
        return any(name in local for local in self._locals)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.target)
        if node.value is not None:
            self.visit(node.value)
        if not self._has_lazy_annotations and not self._in_function:
            self.visit(node.annotation)

    def visit_Call(self, node: ast.Call) -> None:
        self._visit_harmless(node.func)
        arguments = list(node.args)
        is_check = isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass")
        if is_check and len(arguments) == 2:
            classes = arguments.pop()
            for each in classes.elts if isinstance(classes, ast.Tuple) else [classes]:
                self._visit_harmless(each)
        for part in (*arguments, *(keyword.value for keyword in node.keywords)):
            self.visit(part)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load):
            self._visit_harmless(node.value)
        else:
            self.visit(node.value)

    def _visit_annotation(self, node: ast.expr) -> None:
        """Find what an annotation of a function uses: it is evaluated when the function is defined. `real_annotations`
        repairs plain names and their unions."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            self._visit_annotation(node.left)
            self._visit_annotation(node.right)
        elif isinstance(node, ast.Name):
            self.loaded.add(node.id)
        else:
            self.visit(node)

    def _visit_harmless(self, node: ast.expr) -> None:
        """A use that a `DeferredName` answers as the real object would, if it comes after the import."""
        if isinstance(node, ast.Name):
            if self._is_local(node.id):
                return
            self.loaded.add(node.id)
            if not self._in_function:
                self.needed.add(node.id)
        else:
            self.visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load) and not self._is_local(node.id):
            self.loaded.add(node.id)
            self.needed.add(node.id)


def _locals(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> set[str]:
    """The names that a function's body binds, so that they hide the module's."""
    arguments = function.args
    every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg)
    found = {each.arg for each in every if each is not None}
    declared: set[str] = set()
    waiting: list[ast.AST] = list(function.body) if isinstance(function.body, list) else [function.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Global):
            declared |= set(node.names)
        if not isinstance(node, ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return found - declared
