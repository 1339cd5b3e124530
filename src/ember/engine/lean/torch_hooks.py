"""Hooks in torch's registries of operators that complete a lean import.

Some of torch's Python modules register operators and kernels when they are imported: kernels for tensors on the device
"meta" (shapes without values), and operators such as `prims::add`. Their use touches no deferred module, and the
dispatcher would silently work without them.
"""

from __future__ import annotations

from typing import Any

from ember.engine.lean.deferred import COMPLETE, Deferral

# Every tensor on the device "meta" is created by one of these operators.
_META_FACTORIES = ("empty.memory_format", "empty_strided")


def install(deferral: Deferral) -> None:
    """Complete the import when the first meta tensor is created or an unknown operator is looked up."""
    _make_generators_usable()
    _watch_meta_tensors(deferral)
    _watch_operators(deferral)


def _make_generators_usable() -> None:
    """Set the metaclass of `torch.Generator`. A deferred module sets it otherwise, and generators need it."""
    import torch

    say = getattr(torch._C, "_set_generator_metaclass", None)  # torch 2.13
    if say is not None:
        from torch._opaque_base import OpaqueBaseMeta

        say(OpaqueBaseMeta)


def _watch_meta_tensors(deferral: Deferral) -> None:
    import torch

    libraries = [torch.library.Library("aten", "IMPL", "Meta")]

    def watch(name: str) -> None:
        packet, _, overload = name.partition(".")
        operator = getattr(getattr(torch.ops.aten, packet), overload or "default")

        def completing(*args: Any, **kwargs: Any) -> Any:
            deferral.complete(f'device="meta", by aten::{name}')
            return operator(*args, **kwargs)  # calls its own kernel again

        libraries[0].impl(name, completing)

    for name in _META_FACTORIES:
        watch(name)
    deferral.before_complete.append(libraries.clear)  # deleting a library unregisters its kernels


def _watch_operators(deferral: Deferral) -> None:
    import torch

    def watch(namespace: Any, prefix: str) -> None:
        original = namespace.__getattr__

        def __getattr__(self: Any, name: str) -> Any:
            try:
                return original(self, name)
            except AttributeError:
                if name.startswith("__") or deferral.stage == COMPLETE:
                    raise
                deferral.complete(f"{prefix}{name}")
                return original(self, name)

        def restore() -> None:
            namespace.__getattr__ = original

        namespace.__getattr__ = __getattr__
        deferral.on_complete.append(restore)

    watch(type(torch.ops.aten), "operator ")
    watch(type(torch.ops.higher_order), "higher-order operator ")
