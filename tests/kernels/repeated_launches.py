"""Steps in which each repeated launch is compared with the one of a whole call; run by test_launch.py.

    python tests/kernels/repeated_launches.py

prints how many calls were compared, by family, and fails where a repeated launch has another binary, grid or argument.
Nothing is compiled or launched.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from triton.runtime.jit import JITFunction

from ember.engine.description.operator_sets import TRITON
from ember.engine.operators.triton_step import TritonStep
from ember_kernels import compile as kernels
from ember_kernels.launch import Launches
from tests.kernels.family_launches import LIMITS, SHAPES, describe
from tests.kernels.published_models import float8_rows
from tests.support.empty_models import EmptyEngine, empty_launcher, no_products, with_layers

# Norms of each kind and place, norms of heads, windows, soft caps, plain activations, one KV head, experts.
FAMILIES = (
    *("llama", "mistral_window", "qwen3", "olmo2", "cohere", "glm4", "opt", "gemma2", "falcon", "qwen3_moe"),
    *("gpt_oss", "llama4", "bloom", "mpt"),  # sinks, chunks, slopes, clamped activations
    *("deepseek_v3", "mistral4"),  # latent attention, with and without factors of queries
    *("qwen3_5", "bamba", "lfm2", "mamba"),  # states
)
FLOAT8 = "llama in float8"  # whose norms and activations write float8 too
seen: list[Any] = []
allocated: set[int] = set()  # addresses of the memory between two kernels that a whole call has allocated
num_compared = 0


def pretend(self: Any, key: Any, signature: Any, device: int, *rest: Any) -> Any:
    """In place of a compilation: a binary that notes its launches."""

    def launch(*given: Any) -> None:
        if isinstance(given[-1], tuple):
            given = (*given[:-1], *given[-1])
        arguments = [each.data_ptr() if isinstance(each, torch.Tensor) else each for each in given]
        seen.append((self.__name__, str(key), arguments))

    run = empty_launcher(launch)
    binary = SimpleNamespace(run=run, launch_metadata=lambda *a: None, function=0, packed_metadata=())
    self.device_caches[device][0][key] = binary
    return binary


class Compared(Launches):
    """Launches that are repeated and made by a whole call after that."""

    repeated: list[Any] | None = None

    def repeat(self, key: Any, addresses: Sequence[int]) -> bool:
        seen.clear()
        is_repeated = super().repeat(key, addresses)
        self.repeated = seen.copy() if is_repeated else None
        return False

    def make(self, key: Any, addresses: Sequence[int], call: Callable[[], Any]) -> None:
        global num_compared
        seen.clear()
        if self.repeated is None:
            super().make(key, addresses, call)
        else:
            create: Any = torch.Tensor.new_empty

            def new_empty(*given: Any, **options: Any) -> torch.Tensor:
                made: torch.Tensor = create(*given, **options)
                allocated.add(made.data_ptr())
                return made

            allocated.clear()
            torch.Tensor.new_empty = new_empty  # type: ignore[assignment]
            try:
                call()
            finally:
                torch.Tensor.new_empty = create  # type: ignore[method-assign]
            assert are_equal(self.repeated, seen), f"{key}: {self.repeated} is not {seen}"
            num_compared += 1


def are_equal(repeated: list[Any], made: list[Any]) -> bool:
    """Whether these are the same launches, but for where the memory is that they have allocated."""
    places: dict[int, int] = {}
    if [launch[:2] for launch in repeated] != [launch[:2] for launch in made]:
        return False
    for (*_, before), (*_, after) in zip(repeated, made, strict=True):
        for a, b in zip(before, after, strict=True):
            if a != b and (b not in allocated or places.setdefault(a, b) != b):
                return False
    return True


def main() -> None:
    global num_compared
    JITFunction._do_compile = pretend
    create: Any = TritonStep.__init__
    steps: Any = TritonStep
    steps.__init__ = lambda self, **fields: create(self, **fields, launches=Compared())
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
