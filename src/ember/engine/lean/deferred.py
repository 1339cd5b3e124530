"""Placeholders for modules and names whose import is deferred, and the completion of the import.

A `DeferredModule` is the module object itself: it is in `sys.modules`, and the module's code is executed in it later. A
`DeferredName` is bound where an executed module runs `from deferred import name`; the completion replaces it in that
module's globals by the real object. This module is independent of torch; `LeanImport` (lean_import.py) is not.

While torch is being imported, a deferred module that is used is executed alone, as the plain import would do at that
time. After the import, the first use completes the import: every deferred module is executed, always in the same order.
So torch has only two states, the lean one and the complete one. Threads that use something during the completion wait
until it is done.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import sys
import threading
import time
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import FunctionType, ModuleType
from typing import Any

# Attributes that the import system, `warnings` and `inspect` read of every module: reading them executes nothing.
_PROBED = frozenset(
    {
        *("__class__", "__name__", "__spec__", "__loader__", "__package__", "__path__", "__file__", "__cached__"),
        "__warningregistry__",
    }
)
IMPORTING, LEAN, COMPLETING, COMPLETE = "importing", "lean", "completing", "complete"


class DeferredModule(ModuleType):
    """A module whose code has not been executed. Any attribute but the import system's own executes it."""

    def __getattribute__(self, name: str) -> Any:
        if name not in _PROBED:
            owner = _owner_of(self)
            if owner.stage == IMPORTING:
                found = owner.deferred_name(self, name, sys._getframe(1))
                if found is not None:
                    return found
            owner.execute(self, name)
            return getattr(self, name)
        return ModuleType.__getattribute__(self, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _PROBED and not _is_own_submodule(self, name, value):
            _owner_of(self).execute(self, name)
        ModuleType.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        if name not in _PROBED:
            _owner_of(self).execute(self, name)
        ModuleType.__delattr__(self, name)

    def __dir__(self) -> list[str]:
        _owner_of(self).execute(self, "__dir__")
        return dir(self)


class ExecutingModule(ModuleType):
    """A deferred module during its execution: incomplete, and therefore only for the thread that executes it."""

    def __getattribute__(self, name: str) -> Any:
        if name not in _PROBED:
            _owner_of(self).wait_for_others()
        return ModuleType.__getattribute__(self, name)


class DeferredName:
    """A placeholder in a module's globals for `name` of a deferred module.

    It can be called, asked for an attribute, and passed to `isinstance` or `issubclass`, with the result of the real
    object. The list of names is made so that modules use them in no other way.
    """

    __slots__ = ("_ember_module", "_ember_name")

    def __init__(self, module: DeferredModule, name: str) -> None:
        self._ember_module = module
        self._ember_name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return real(self)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(real(self), name)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, real(self))

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, real(self))

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[Any, ...]:
        return (real(self),)

    def __or__(self, other: Any) -> DeferredUnion:
        return DeferredUnion(self, other)

    def __ror__(self, other: Any) -> DeferredUnion:
        return DeferredUnion(other, self)


class DeferredUnion:
    """`left | right` in a function's annotations, where one of them is a deferred name."""

    __slots__ = ("left", "right")

    def __init__(self, left: Any, right: Any) -> None:
        self.left = left
        self.right = right

    def __or__(self, other: Any) -> DeferredUnion:
        return DeferredUnion(self, other)

    def __ror__(self, other: Any) -> DeferredUnion:
        return DeferredUnion(other, self)


def real_annotations(module: ModuleType) -> None:
    """Replace deferred names in the annotations of a module's functions and methods by the real objects."""
    name = module.__name__
    for value in list(vars(module).values()):
        is_class = issubclass(type(value), type)  # `__class__` is not read: it may be a property that warns
        if not (is_class or type(value) is FunctionType) or value.__module__ != name:
            continue
        for function in [value, *(vars(value).values() if is_class else ())]:
            while isinstance(function, FunctionType):
                for each in (function, *typing.get_overloads(function)):
                    for key, annotation in each.__annotations__.items():
                        if isinstance(annotation, DeferredName | DeferredUnion):
                            each.__annotations__[key] = _real_annotation(annotation)
                function = getattr(function, "__wrapped__", None)


def _real_annotation(annotation: Any) -> Any:
    if isinstance(annotation, DeferredUnion):
        return _real_annotation(annotation.left) | _real_annotation(annotation.right)
    return real(annotation) if type(annotation) is DeferredName else annotation


def real(deferred: DeferredName) -> Any:
    """The real object of a deferred name. This executes its module."""
    module = deferred._ember_module
    if type(module) is DeferredModule:
        _owner_of(module).execute(module, deferred._ember_name)
    return getattr(module, deferred._ember_name)


class Deferral:
    """The deferred modules of one package, from its lean import to the completed one."""

    def __init__(
        self,
        package: str,
        all_modules: Collection[str],
        names: dict[str, dict[str, frozenset[str]]],
        stars: dict[str, list[str]],
    ) -> None:
        self.package = package
        self.stage = IMPORTING
        self.unbound: frozenset[str] = frozenset()  # modules that their packages do not have as an attribute
        self.modules: dict[str, ModuleType] = {}  # in the order in which they are executed
        self.touched: list[tuple[str, str]] = []  # modules executed during the import, and the names that were used
        self.completed_for = ""  # the name whose use started the completion
        self.specs: dict[str, ModuleSpec] = {}
        self.say: Callable[[str], None] = lambda line: None
        self.on_complete: list[Callable[[], None]] = []
        self.before_complete: list[Callable[[], None]] = []
        self._all_modules = all_modules
        self._names = names
        self._stars = stars
        self.given: dict[tuple[str, str], DeferredName] = {}
        self._lock = threading.RLock()
        self._thread: int | None = None  # the one that completes the import

    def make(self, spec: ModuleSpec) -> DeferredModule:
        """The deferred module for `spec`, whose loader fills it later."""
        module = DeferredModule(spec.name)
        values = raw_dict(module)
        values["__spec__"] = spec
        values["__loader__"] = spec.loader
        values["__package__"] = spec.parent
        values["__file__"] = spec.origin
        if spec.cached is not None:
            values["__cached__"] = spec.cached
        if spec.submodule_search_locations is not None:
            values["__path__"] = spec.submodule_search_locations
        self.modules[spec.name] = module
        self.specs[spec.name] = spec
        _owners[spec.name] = self
        return module

    def deferred_name(self, module: DeferredModule, name: str, frame: Any) -> Any:
        """The placeholder for `name` in an importing module, or None if `module` must be executed."""
        while frame is not None and frame.f_globals.get("__name__") == "importlib._bootstrap":
            frame = frame.f_back
        if frame is None or frame.f_code.co_name != "<module>":
            return None
        of_module = self._names.get(frame.f_globals.get("__name__", ""), {}).get(module.__name__)
        if of_module is None:
            return None
        if name == "__all__" and "*" in of_module:
            return self._stars[module.__name__]
        child = f"{module.__name__}.{name}"
        if name in of_module and child in self._all_modules:
            return importlib.import_module(child)
        if name not in of_module and not ("*" in of_module and name in self._stars[module.__name__]):
            return None
        key = (module.__name__, name)
        if key not in self.given:
            self.given[key] = DeferredName(module, name)
        return self.given[key]

    def execute(self, module: ModuleType, name: str) -> None:
        """Execute `module` because `name` was used. After the import, execute all other deferred modules too."""
        if self.stage == IMPORTING:
            self.touched.append((module.__name__, name))
            self._execute_one(module, ModuleType)
            return
        with self._lock:
            if self._thread == threading.get_ident():
                self._execute_one(module, ExecutingModule)
            else:
                self.complete(f"{module.__name__}.{name}")

    def complete(self, wanted: str) -> None:
        """Execute every deferred module. An error is raised to the caller, and the next use tries again."""
        with self._lock:
            if self.stage == COMPLETE or self._thread == threading.get_ident():
                return
            self.stage, self._thread, self.completed_for = COMPLETING, threading.get_ident(), wanted
            outer, started, done = builtins.__import__, time.perf_counter(), False
            try:
                for prepare in self.before_complete:
                    prepare()
                builtins.__import__ = self._importing(outer)
                for module in self.modules.values():
                    self._execute_one(module, ExecutingModule)
                for finish in self.on_complete:
                    finish()
                for module in self.modules.values():
                    if type(module) is ExecutingModule:
                        ModuleType.__setattr__(module, "__class__", ModuleType)
                self.stage, done = COMPLETE, True
                seconds = time.perf_counter() - started
                self.say(f"{wanted} was asked for: the rest of {self.package} is imported too, {seconds:.1f} s")
            finally:
                builtins.__import__ = outer
                self._thread = None
                if not done:
                    self.stage = LEAN

    def _importing(self, outer: Callable[..., Any]) -> Callable[..., Any]:
        """`__import__` during the completion. It executes an imported deferred module at once, as a plain import would.

        The import system itself would find the modules in `sys.modules` and not execute them. Some modules are imported
        only for their registrations, on which later modules depend.
        """

        def __import__(
            name: str,
            globals: Mapping[str, object] | None = None,
            locals: Mapping[str, object] | None = None,
            fromlist: Sequence[str] | None = (),
            level: int = 0,
        ) -> Any:
            if self._thread == threading.get_ident():
                absolute = name
                if level:
                    package = str((globals or {}).get("__package__") or "")
                    absolute = importlib.util.resolve_name("." * level + name, package)
                self._execute_path(absolute)
                parent = sys.modules.get(absolute)
                for child in fromlist or ():
                    # A deferred child may be an attribute of its package already.
                    if parent is not None and type(raw_dict(parent).get(child, _ABSENT)) in (object, DeferredModule):
                        self._execute_path(f"{absolute}.{child}")
            return outer(name, globals, locals, fromlist, level)

        return __import__

    def _execute_path(self, name: str) -> None:
        module = self.modules.get(name)
        if module is not None:
            self._execute_one(module, ExecutingModule)

    def wait_for_others(self) -> None:
        """Wait for the end of the completion if another thread runs it."""
        if self._thread != threading.get_ident():
            with self._lock:
                pass

    def _execute_one(self, module: ModuleType, meanwhile: type[ModuleType]) -> None:
        """Execute one module in place, its parent package first, as the import system would have."""
        parent = self.modules.get(module.__name__.rpartition(".")[0])
        if parent is not None and type(parent) is DeferredModule:
            self._execute_one(parent, meanwhile)
        if type(module) is not DeferredModule:
            return  # its parent package has executed it
        spec = module.__spec__
        assert spec is not None and spec.loader is not None
        ModuleType.__setattr__(module, "__class__", meanwhile)
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            ModuleType.__setattr__(module, "__class__", DeferredModule)
            if isinstance(error, AttributeError):  # hasattr() would swallow it
                raise ImportError(f"{module.__name__} cannot be imported: {error}", name=module.__name__) from error
            raise
        if module.__name__ not in self.unbound:
            bind(module)


_ABSENT = object()
_namespace: Any = vars(ModuleType)["__dict__"]


def raw_dict(module: ModuleType) -> dict[str, Any]:
    """The module's globals, even if its class overrides `__dict__`."""
    found: dict[str, Any] = _namespace.__get__(module)
    return found


def bind(module: ModuleType) -> None:
    """Make `module` an attribute of its parent package, unless the package has something else of that name."""
    package, _, name = module.__name__.rpartition(".")
    parent = sys.modules.get(package)
    if parent is not None:
        raw_dict(parent).setdefault(name, module)


def make_spec(name: str, directory: str, is_package: bool) -> ModuleSpec:
    """The spec that the import system would find for a module in `directory`, made without disk access."""
    tail = name.rpartition(".")[2]
    file = f"{directory}/{tail}/__init__.py" if is_package else f"{directory}/{tail}.py"
    spec = ModuleSpec(name, SourceFileLoader(name, file), origin=file, is_package=is_package)
    spec.has_location = True
    if is_package:
        spec.submodule_search_locations = [f"{directory}/{tail}"]
    return spec


_owners: dict[str, Deferral] = {}


def _owner_of(module: ModuleType) -> Deferral:
    return _owners[ModuleType.__getattribute__(module, "__name__")]


def _is_own_submodule(module: ModuleType, name: str, value: object) -> bool:
    """Whether the import system is binding a submodule, which does not require executing the package."""
    return isinstance(value, ModuleType) and sys.modules.get(f"{module.__name__}.{name}") is value
