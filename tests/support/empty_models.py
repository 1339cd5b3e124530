"""Decoders of real sizes without their weights' values, for what looks at launches and at the host's work alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from triton.backends.nvidia.driver import CudaLauncher

from ember.engine.core.block_manager import BlockManager
from ember.engine.core.block_pool import BlockPool, root_hash
from ember.engine.core.gpu.device_runner import DeviceRunner
from ember.engine.core.limits import EngineLimits
from ember.engine.core.scheduler import Scheduler
from ember.engine.core.sequence import Sequence
from ember.engine.core.state_slots import StateSlots
from ember.engine.description.cache_groups import cache_groups, paged
from ember.engine.description.config import DecoderConfig
from ember.engine.description.operator_sets import TRITON
from ember.engine.description.weight_specs import weight_specs
from ember.engine.description.weights import LinearSpec
from ember.engine.layers.cache import KVCache
from ember.engine.layers.linear import Linear
from ember.engine.models.decoder import Decoder
from ember.engine.models.weights import Weights
from ember.engine.operators import triton_float8
from ember.engine.operators.torch_ops import TorchOperators
from ember.engine.operators.triton_ops import TritonOperators
from ember.wire import SamplingParams
from ember_kernels.rounding import has_conversion

NUM_CHECKPOINTS = 4  # of a model whose layers have states

Layout = Callable[[str, int, int], Linear | None]
"""From a matrix's name, rows and columns to a quantised layer without memory; None: it is not quantised."""


def empty_decoder(config: DecoderConfig, dtype: torch.dtype, layout: Layout | None = None) -> Decoder:
    """The decoder on Triton's operators. Its matrices have no memory, so it needs `no_products`."""
    weights: Weights = {}
    for spec in weight_specs(config):
        if isinstance(spec, LinearSpec):
            rows = sum(output.rows.total for output in spec.outputs)
            bias = torch.empty(rows, dtype=dtype) if spec.bias else None
            quantised = None if layout is None else layout(spec.name, rows, spec.inputs)
            if quantised is None:
                quantised = Linear(torch.empty(rows, spec.inputs, dtype=dtype, device="meta"))
            quantised.bias = bias
            weights[spec.name] = quantised
        else:
            own = dtype if spec.dtype is None else getattr(torch, spec.dtype)
            weights[spec.name] = torch.empty([size.extent for size in spec.shape], dtype=own)
    model = Decoder(config, weights)
    model.ops = TritonOperators(TorchOperators(config, model.parts, dtype, torch.device("cpu")), TRITON.lacking(config))
    return model


# The attributes of Triton's launcher besides `launch`, of all versions; no binary here needs scratch memory.
_LAUNCHER = (
    *("global_scratch_size", "global_scratch_align", "profile_scratch_size", "profile_scratch_align"),
    *("launch_cooperative_grid", "launch_pdl", "gsan_enabled", "arg_annotations", "kernel_signature"),
)


def empty_launcher(launch: Callable[..., None]) -> CudaLauncher:
    """Triton's launcher of a binary with `launch` in place of its C function, which needs a driver."""
    launcher = object.__new__(CudaLauncher)
    launcher.__dict__ = dict.fromkeys(_LAUNCHER, 0) | {"launch": launch, "num_ctas": 1}
    return launcher


@contextmanager
def no_products() -> Iterator[None]:
    """Let torch's matrix products compute nothing. Their results have the right shapes. That of two float8 matrices is
    there if the GPU that is pretended has float8."""
    linear, bmm, scaled, has_scaled = F.linear, torch.bmm, torch._scaled_mm, triton_float8.has_scaled

    def product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return input.new_empty((*input.shape[:-1], weight.shape[0]))

    def scaled_product(a: Tensor, b: Tensor, *scales: Tensor, out_dtype: torch.dtype) -> Tensor:
        return torch.empty(len(a), b.shape[1], dtype=out_dtype)

    def products(input: Tensor, mat2: Tensor, out: Tensor | None = None) -> Tensor:
        shape = *input.shape[:2], mat2.shape[2]
        assert out is None or out.shape == shape
        return input.new_empty(shape) if out is None else out

    F.linear, torch.bmm, torch._scaled_mm = product, products, scaled_product  # type: ignore[assignment]
    triton_float8.has_scaled = lambda device: has_conversion()  # type: ignore[assignment]
    try:
        yield
    finally:
        F.linear, torch.bmm, torch._scaled_mm, triton_float8.has_scaled = linear, bmm, scaled, has_scaled


def empty_runner(
    config: DecoderConfig, dtype: torch.dtype, limits: EngineLimits, layout: Layout | None = None
) -> tuple[Scheduler, DeviceRunner]:
    """The scheduler and the GPU's runner of an engine with an `empty_decoder`."""
    groups = cache_groups(config, dtype.itemsize)
    sizes, own = (limits.num_blocks, limits.block_size), paged(groups)
    states = None
    if len(own) < len(groups):
        states = StateSlots(limits.max_num_seqs, NUM_CHECKPOINTS, limits.block_size)
    num_states = limits.max_num_seqs + NUM_CHECKPOINTS if states is not None else 0
    cache = KVCache.allocate(groups, *sizes, dtype, torch.device("cpu"), num_states)
    pool = BlockPool(limits.num_blocks, True, len(own))
    scheduler = Scheduler(BlockManager(pool, groups, limits.block_size, states), limits)
    return scheduler, DeviceRunner(empty_decoder(config, dtype, layout), cache, torch.device("cpu"), limits)


class EmptyEngine:
    """A scheduler and the GPU's runner without results: every sampled token is the same."""

    def __init__(
        self, config: DecoderConfig, dtype: torch.dtype, limits: EngineLimits, layout: Layout | None = None
    ) -> None:
        self.scheduler, self.runner = empty_runner(config, dtype, limits, layout)
        self._num_sequences = 0

    def add(self, num_tokens: int, **sampling: Any) -> Sequence:
        """Queue a prompt of so many tokens, which no other prompt shares."""
        self._num_sequences += 1
        number = self._num_sequences
        prompt = [1 + number % 150, *([3] * (num_tokens - 1))]
        params = SamplingParams(**{"max_tokens": 10_000, "ignore_eos": True, **sampling})
        salt = root_hash(str(number))
        sequence = Sequence(number, 0, prompt, num_tokens, params, seed=number, priority=0, arrival=number, salt=salt)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> None:
        step = self.scheduler.schedule()
        launched = self.runner.launch(step)
        self.scheduler.complete(step)
        for sequence in launched.sequences:
            sequence.num_pending += 1
        launched.draw_late()
        for sequence in launched.sequences:
            sequence.num_pending -= 1
            sequence.token_ids.append(5)
            sequence.is_prefilled = True


BY_LAYER = (
    *("windowed_layers", "rope_layers", "qk_norm_layers", "key_value_layers"),
    *("layer_head_dims", "layer_kv_heads", "layer_intermediate_sizes", "layer_mixers"),
)  # the fields that have a value for each layer


def with_layers(config: DecoderConfig, num_layers: int) -> DecoderConfig:
    """The first layers of a decoder."""
    return replace(
        config,
        num_layers=num_layers,
        shared_kv_layers=max(0, config.shared_kv_layers - (config.num_layers - num_layers)),
        **{name: getattr(config, name)[:num_layers] for name in BY_LAYER},
    )
