"""Triton's interpreter, which runs the kernels where there is no GPU, without work that comes to nothing.

It is most of the time of an interpreted step. Every call of one jitted function by another looks through the whole of
`triton.language` for what to replace, although the launch that it is a part of has done so. Every sum of integers is
computed a second time in 64 bits, for a check that is not made unless `debug` is on, which it is not. And the type that
numpy has for a value comes out of a table that is built for it.

Triton 3.6 also needs help with numpy 2.4 and newer, which no longer takes an array of one element for a number.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


@cache
def prepare() -> None:
    """Leave the superfluous work out, and let every version run, for the rest of the process."""
    _index_with_one_element()
    _patch_once_a_launch()
    builder = interpreter.interpreter_builder
    checks = builder.options.sanitize_overflow and builder.options.debug
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=checks)
    _remember_types()


def _index_with_one_element() -> None:
    """Let an array of one element be the bound of a loop, as triton 3.7 and newer do themselves."""
    patch = interpreter._patch_lang_tensor

    def patch_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_tensor


def _patch_once_a_launch() -> None:
    launch, patch = interpreter.GridExecutor.__call__, interpreter._patch_lang
    patched: set[int] = set()

    def launch_patched(self: Any, *arguments: Any, **options: Any) -> None:
        patched.clear()
        launch(self, *arguments, **options)

    def patch_new(fn: Any) -> Any:
        used = _languages(fn)
        if used <= patched:
            return None
        patched.update(used)
        return patch(fn)

    interpreter.GridExecutor.__call__ = launch_patched
    interpreter._patch_lang = patch_new


@cache
def _languages(fn: Any) -> frozenset[int]:
    """The modules that are replaced for a function: those it sees."""
    return frozenset(id(seen) for seen in fn.__globals__.values() if seen is tl or seen is tl.core)


def _remember_types() -> None:
    find = interpreter._get_np_dtype
    known: dict[str, Any] = {}

    def find_once(of: Any) -> Any:
        scalar = of.scalar
        if scalar.name not in known:
            known[scalar.name] = find(scalar)
        return known[scalar.name]

    interpreter._get_np_dtype = find_once
