"""Loading of a pooler: the layers after pooling, from the model's files and from modules of sentence-transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ember.engine.description.config import DecoderConfig
from ember.engine.description.pooling import DenseConfig, PoolingConfig
from ember.engine.layers.norm import LayerNorm
from ember.engine.layers.pooler import Dense, Pooler
from ember.engine.loading.load import read_tensors
from ember.engine.loading.plan import read_headers
from ember.engine.loading.pooler_plan import DensePlan, plan_pooler, pooled_width
from ember.engine.loading.safetensors_header import TensorEntry
from ember.engine.loading.stored import plan_stored

_DUMMY_RANGE = 1e-3


def load_pooler(
    model_dir: Path,
    tokenizer_dir: Path,
    config: DecoderConfig,
    device: torch.device,
    load_format: str = "auto",
) -> Pooler:
    """Read the pooler of a model. Raises ModelError that names what the files lack."""
    pooling = config.pooling
    assert pooling is not None, "the model has pooling"
    if load_format == "dummy":
        return _dummy(pooling, pooled_width(config), device)
    reads_model = pooling.token_head is not None or any(not each.directory for each in pooling.dense)
    entries = read_headers(model_dir, load_format) if reads_model else {}
    plan = plan_pooler(model_dir, tokenizer_dir, config, entries)
    return Pooler(pooling, [_load(layer, device) for layer in plan.layers], plan.outputs, device)


def _load(plan: DensePlan, device: torch.device) -> Dense:
    rows = [_read(entry, device) for entry in plan.weights]
    weight = rows[0] if len(rows) == 1 else torch.cat(rows)
    if plan.is_difference:
        weight = weight[1:] - weight[:1]
    norm = None
    if plan.norm is not None:
        scale, shift = (None if entry is None else _read(entry, device) for entry in plan.norm)
        norm = LayerNorm(scale, shift, plan.outputs, plan.norm_eps)
    return Dense(
        weight, None if plan.bias is None else _read(plan.bias, device), plan.activation, norm, plan.normalizes_inputs
    )


def _read(entry: TensorEntry, device: torch.device) -> Tensor:
    """A stored tensor as float32 on the device."""
    read = read_tensors(plan_stored({entry.name: entry}, "float32"), device)
    (stored,) = read.by_name.values()
    return stored[0].to(device, torch.float32, copy=True)


def _dummy(pooling: PoolingConfig, width: int, device: torch.device) -> Pooler:
    """A pooler with small random weights, the same ones each time."""
    layers, generator = pooling.dense, torch.Generator(device).manual_seed(0)
    if pooling.token_head is not None:
        layers = (DenseConfig(("score",), pooling.token_head.outputs),)
    dense = []
    for each in layers:
        outputs = width if each.outputs is None else each.outputs
        weight = torch.empty(outputs, width, device=device).uniform_(-_DUMMY_RANGE, _DUMMY_RANGE, generator=generator)
        dense.append(Dense(weight, None, each.activation, normalizes_inputs=each.normalizes_inputs))
        width = outputs
    return Pooler(pooling, dense, width, device)
