"""Triton's interpreter, which runs the kernels where there is no GPU, without work that it repeats.

Every call of one jitted function by another looks through the whole of `triton.language` for what to replace, although
the launch that it is a part of has done so: two fifths of the time of an interpreted step.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


@cache
def patch_once_a_launch() -> None:
    """Let each launch replace the functions of a module once."""
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
