"""Steps in which each repeated launch is compared with the one of a whole call; run by test_launch.py.

    python tests/kernels/repeated_launches.py

prints how many calls were compared, by family, and fails where a repeated launch has another binary, grid or argument.
Nothing is compiled or launched.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from triton.runtime.jit import JITFunction

from ember.engine.description.operator_sets import TRITON
from ember.engine.operators import triton_ops
from ember_kernels import compile as kernels
from ember_kernels import launch
from tests.kernels.family_launches import LIMITS, SHAPES, describe
from tests.kernels.published_models import float8_rows
from tests.support.empty_models import EmptyEngine, no_products, with_layers

# Norms of each kind and place, norms of heads, windows, soft caps, plain activations, one KV head, experts.
FAMILIES = (
    *("llama", "mistral_window", "qwen3", "olmo2", "cohere", "glm4", "opt", "gemma2", "falcon", "qwen3_moe"),
    *("gpt_oss", "llama4", "bloom", "mpt"),  # sinks, chunks, slopes, clamped activations
)
FLOAT8 = "llama in float8"  # whose norms and activations write float8 too
seen: list[Any] = []
num_compared = 0


def pretend(self: Any, key: Any, signature: Any, device: int, *rest: Any) -> Any:
    """In place of a compilation: a binary that notes its launches."""

    def run(x: int, y: int, z: int, stream: int, function: Any, metadata: Any, *given: Any) -> None:
        arguments = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in given[3:]]
        seen.append((self.__name__, str(key), (x, y, z), arguments))

    binary = SimpleNamespace(run=run, launch_metadata=lambda *a: None, function=0, packed_metadata=())
    self.device_caches[device][0][key] = binary
    return binary


def compared(
    launches: launch.Launches,
    key: Any,
    tensors: tuple[Any, ...],
    call: Callable[[], Any],
    num_checked: int | None = None,
) -> None:
    """`repeat`, and if it repeats what is known, the whole call after it."""
    global num_compared
    is_known = launches.get(key) is not None
    seen.clear()
    assert launch.are_aligned(tensors), key  # also those that the caller vouches for
    launch.repeat(launches, key, tensors, call, num_checked)
    if is_known:
        repeated = seen.copy()
        seen.clear()
        call()
        assert repeated == seen, f"{key}: {repeated} is not {seen}"
        num_compared += 1


def main() -> None:
    global num_compared
    JITFunction._do_compile = pretend
    triton_ops.repeat = compared
    properties = torch.cuda.get_device_capability
    torch.cuda.get_device_capability = lambda device=None: (9, 0)  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as directory, kernels._active(kernels._Driver(90)), torch.inference_mode():
        for variant in (*FAMILIES, FLOAT8):
            config = with_layers(describe(variant.partition(" ")[0], SHAPES[1], Path(directory)), 3)
            lacking = TRITON.lacking(config)
            assert "attend" not in lacking and "experts" not in lacking, variant
            num_compared = 0
            with no_products():
                engine = EmptyEngine(config, torch.bfloat16, LIMITS, float8_rows() if variant == FLOAT8 else None)
                for num_tokens in (1, 5, 70):
                    engine.add(num_tokens)
                    for _ in range(2):
                        engine.step()
            assert num_compared >= 6, variant
            print(f"{num_compared} {variant}")
    torch.cuda.get_device_capability = properties


if __name__ == "__main__":
    main()
