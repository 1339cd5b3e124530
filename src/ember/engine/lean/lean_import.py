"""A lean `import torch`: only the modules that the engine needs; the first use of another one completes the import.

docs/boot.md describes it. `prepare()` is called before `import torch`, `finish()` after it. Without a list for this
version of torch, or with EMBER_LEAN_TORCH=false, both do nothing and the import is a plain one.
"""

from __future__ import annotations

import importlib.machinery
import logging
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from ember.engine.lean.deferred import (
    COMPLETE,
    IMPORTING,
    LEAN,
    Deferral,
    DeferredModule,
    DeferredName,
    bind,
    make_spec,
    raw_dict,
    real,
    real_annotations,
)
from ember.engine.lean.torch_list import TorchList, find_torch, load_list

log = logging.getLogger(__name__)

_FALSE = frozenset({"0", "false", "f", "no", "n", "off"})


class LeanImport:
    """One lean import of torch: a finder in `sys.meta_path`, and what it deferred."""

    def __init__(
        self, torch_list: TorchList, directory: str, say: Callable[[str], None], package: str = "torch"
    ) -> None:
        self.list = torch_list
        self.say = say
        self._packages = frozenset({package, *(name for name in torch_list.modules if "." not in name)})
        self.directory = directory  # of the package torch
        names = {
            importer: {module: frozenset(found) for module, found in modules.items()}
            for importer, modules in torch_list.names.items()
        }
        self.deferral = Deferral(package, torch_list.modules, names, torch_list.stars)
        self.deferral.unbound = frozenset(torch_list.unbound)
        self._bound: list[tuple[ModuleType, str, DeferredName]] = []
        self.deferral.on_complete.append(self._make_names_real)
        self.deferral.say = say

    @property
    def is_complete(self) -> bool:
        return self.deferral.stage == COMPLETE

    def complete(self, wanted: str) -> None:
        """Execute all deferred modules because `wanted` was used. Does nothing if this was done before."""
        self.deferral.complete(wanted)

    # ------------------------------------------------------------------ the finder
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Called by the import system for every module that is not loaded yet."""
        if name.partition(".")[0] not in self._packages:
            return None
        if self.deferral.stage == IMPORTING:
            is_package = self.list.modules.get(name)  # the list has torchgen too, which is a part of torch
            if is_package is None:
                return None
            loader: Any = _DeferredLoader(self, is_package)
            return importlib.machinery.ModuleSpec(name, loader, is_package=is_package)
        if target is None:  # a module that the plain import does not load may expect a complete torch
            self.complete(name)
        return None

    def make(self, name: str, is_package: bool) -> DeferredModule:
        directory = os.path.join(os.path.dirname(self.directory), *name.split(".")[:-1])
        return self.deferral.make(make_spec(name, directory, is_package))

    # ------------------------------------------------------------------ after the import
    def finish(self) -> None:
        """End the lean import. From now on the first use of a deferred module or name completes the import."""
        made = self.deferral.modules
        ordered: dict[str, ModuleType] = {}
        executed = {name for name, _ in self.deferral.touched}
        for name, is_package in self.list.modules.items():
            if name not in made:
                module = self.make(name, is_package)
                sys.modules[name] = module
                if name not in self.list.unbound:
                    bind(module)
            ordered[name] = made[name]
        if executed:
            self.say(
                f"the list for torch {self.list.version} defers too much of this one: {', '.join(sorted(executed))}"
            )
        self.deferral.modules = ordered
        for importer in self.list.names:
            importing = sys.modules.get(importer)
            if importing is not None and type(importing) is not DeferredModule:
                self._guard(importing)
        self.deferral.stage = LEAN
        if self.deferral.package == "torch":
            from ember.engine.lean.torch_hooks import install  # it needs torch

            install(self.deferral)

    def _guard(self, module: ModuleType) -> None:
        """Hide a module's deferred names from all code but its own functions; other code gets the real objects."""
        values = module.__dict__
        bound = {name: value for name, value in values.items() if type(value) is DeferredName}
        if not bound:
            return
        self._bound += [(module, name, value) for name, value in bound.items()]
        if module.__name__ == self.deferral.package:
            self._guard_package(module, bound)
        else:
            module.__class__ = _lean_class(bound)

    def _guard_package(self, package: ModuleType, bound: dict[str, DeferredName]) -> None:
        """Remove the deferred names from `torch` itself until they are used: torch's own functions use none of them."""
        values = package.__dict__
        original = values["__getattr__"]
        for name in bound:
            del values[name]

        def __getattr__(name: str) -> Any:
            if name in bound:
                return real(bound[name])
            return original(name)

        def __dir__() -> list[str]:
            self.complete(f"{package.__name__}.__dir__")
            return sorted(values)

        def restore() -> None:
            values["__getattr__"] = original
            del values["__dir__"]

        values["__getattr__"], values["__dir__"] = __getattr__, __dir__
        self.deferral.on_complete.append(restore)

    def _make_names_real(self) -> None:
        for module, name, deferred in self._bound:
            if issubclass(type(module), LeanModule):
                ModuleType.__setattr__(module, "__class__", ModuleType)
            values = raw_dict(module)
            if values.get(name, deferred) is deferred:
                try:
                    values[name] = real(deferred)
                except AttributeError:  # a star import of a build that exports less
                    values.pop(name, None)
        self._bind_other_exports()
        for module in {id(module): module for module, _, _ in self._bound}.values():
            real_annotations(module)
        self._bound.clear()

    def _bind_other_exports(self) -> None:
        """Add the names that this build of torch exports, and the list does not have, to the star imports."""
        for importer, modules in self.list.names.items():
            for name, asked in modules.items():
                if "*" in asked and importer in sys.modules:
                    for exported in sys.modules[name].__all__:
                        raw_dict(sys.modules[importer]).setdefault(exported, getattr(sys.modules[name], exported))


class LeanModule(ModuleType):
    """A module with deferred names in its globals. Each is a property of its class that returns the real object."""


def _lean_class(bound: dict[str, DeferredName]) -> type[LeanModule]:
    def make_property(name: str, deferred: DeferredName) -> property:
        def get(module: ModuleType) -> Any:
            return real(deferred)

        def set_(module: ModuleType, value: object) -> None:
            real(deferred)
            setattr(module, name, value)

        def delete(module: ModuleType) -> None:
            real(deferred)
            delattr(module, name)

        return property(get, set_, delete)

    def get_dict(module: ModuleType) -> dict[str, Any]:
        values = raw_dict(module)
        for name, deferred in bound.items():
            if values.get(name) is deferred:
                values[name] = real(deferred)
        return values

    properties = {name: make_property(name, deferred) for name, deferred in bound.items()}
    return type("LeanModule", (LeanModule,), {**properties, "__dict__": property(get_dict)})


class _DeferredLoader:
    """The loader of deferred modules during the lean import: it creates the module object and executes nothing."""

    def __init__(self, lean: LeanImport, is_package: bool) -> None:
        self._lean = lean
        self._is_package = is_package

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return self._lean.make(spec.name, self._is_package)

    def exec_module(self, module: ModuleType) -> None:
        """Restore the real spec, with which the module is executed later. The import system has just set another
        one."""
        spec = self._lean.deferral.specs[module.__name__]
        module.__spec__, module.__loader__ = spec, spec.loader


def prepare(say: Callable[[str], None] = log.info, torch_list: TorchList | None = None) -> LeanImport | None:
    """Prepare a lean `import torch`, with `torch_list` or the list for the version. Returns None for a plain import.

    `say` is called with a line if there is no list, and when the import is completed.
    """
    if "torch" in sys.modules or os.environ.get("EMBER_LEAN_TORCH", "").strip().lower() in _FALSE:
        return None
    found = find_torch()
    if found is None:
        return None
    directory, version = found
    torch_list = torch_list or load_list(version)
    if torch_list is None:
        say(f"torch {version} is imported whole: there is no list of what the engine does without in this version")
        return None
    lean = LeanImport(torch_list, directory, say)
    sys.meta_path.insert(0, lean)
    return lean
