"""What leads from a lean torch to the whole one where no deferred module is touched: the registries of operators.

Some of torch's Python modules register operators and kernels when they are imported: kernels for tensors on the device
"meta" (shapes without values), and operators such as `prims::add`. The dispatcher would do without them silently.
"""

from __future__ import annotations

from typing import Any

from ember.engine.lean.deferred import COMPLETE, Deferral

# Every tensor on the device "meta" begins with one of these operators.
_META_FACTORIES = ("empty.memory_format", "empty_strided")


def install(deferral: Deferral) -> None:
    """Complete the import when the first meta tensor is made, and when an operator is asked for that nobody knows."""
    _make_generators_usable()
    _watch_meta_tensors(deferral)
    _watch_operators(deferral)


def _make_generators_usable() -> None:
    """Say which metaclass `torch.Generator` has; a deferred module does, and no generator can be made before it."""
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
            return operator(*args, **kwargs)  # its own kernel is back

        libraries[0].impl(name, completing)

    for name in _META_FACTORIES:
        watch(name)
    deferral.before_complete.append(libraries.clear)  # a library's end takes its kernels back


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
