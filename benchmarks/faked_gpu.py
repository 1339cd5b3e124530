"""A GPU that is not there, for benchmarks: kernels are compiled or found in Triton's cache, and nothing is computed.

Tensors "on cuda" are on torch's meta device, which has shapes and no memory, and times are made up. So every line of a
benchmark of kernels runs without a device, and all the binaries that it will ask for lie in the cache. A line for each
that was not there is added to the file that EMBER_FAKED_GPU_MISSES names.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode

FAKED_NAME = "no device"
_MILLISECONDS = itertools.cycle((1.0, 1.25, 0.75))  # between two events: made up, and not all the same


@contextmanager
def faked_gpu(capability: int = 90) -> Iterator[None]:
    """Let torch and Triton find a device of this capability, which does nothing."""
    from ember_kernels.compile import cache_misses, compile_only

    with ExitStack() as stack:
        for name, replacement in _replacements(capability).items():
            stack.enter_context(patch.object(torch.cuda, name, replacement))
        stack.enter_context(_OnMeta())
        stack.enter_context(compile_only(capability, launchers=True))
        misses = stack.enter_context(cache_misses())
        yield
    if path := os.environ.get("EMBER_FAKED_GPU_MISSES"):
        with Path(path).open("a") as file:
            file.writelines(f"{miss}\n" for miss in misses)


class _OnMeta(TorchFunctionMode):
    """Put on torch's meta device what is asked for on a GPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.cuda:
            return args[0].to("meta")
        kwargs = {key: _placed(value) for key, value in (kwargs or {}).items()}
        return func(*map(_placed, args), **kwargs)


def _placed(value: Any) -> Any:
    is_gpu = (isinstance(value, str) and value.startswith("cuda")) or (
        isinstance(value, torch.device) and value.type == "cuda"
    )
    return torch.device("meta") if is_gpu else value


class _Event:
    def __init__(self, enable_timing: bool = False) -> None:
        pass

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: _Event) -> float:
        return next(_MILLISECONDS)


class _Stream:
    def wait_stream(self, stream: _Stream) -> None:
        pass


class _Graph:
    def replay(self) -> None:
        pass


def _replacements(capability: int) -> dict[str, Any]:
    from ember_kernels.decode_plan import MULTIPROCESSORS

    major, minor = divmod(capability, 10)
    properties = SimpleNamespace(multi_processor_count=MULTIPROCESSORS[capability], major=major, minor=minor)
    return {
        "is_available": lambda: True,
        "get_device_capability": lambda device=None: (major, minor),
        "get_device_properties": lambda device=None: properties,
        "get_device_name": lambda device=None: FAKED_NAME,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "current_stream": lambda device=None: _Stream(),
        "Stream": _Stream,
        "Event": _Event,
        "CUDAGraph": _Graph,
        "stream": lambda stream: nullcontext(),
        "graph": lambda graph: nullcontext(),
    }
