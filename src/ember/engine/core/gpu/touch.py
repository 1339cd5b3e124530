"""Loading of libraries and kernels while the weights are still being read, on a GPU.

The first product creates cuBLAS's handle and workspace, and the first launch of a kernel loads its binary. Both take a
good part of the time between the last weight and the first token. The thread that waits for the weights has nothing to
do, so it makes such calls before: on tensors of two tokens, with the sizes of the model, which decide on the binaries.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from ember.engine.description.config import DecoderConfig
from ember.engine.description.operator_sets import TRITON
from ember.engine.description.rope_config import RopeConfig
from ember.engine.description.weights import norm_dtype
from ember.engine.layers.rotary import inverse_frequencies

log = logging.getLogger(__name__)

_TOKENS = 2


@torch.inference_mode()
def touch(config: DecoderConfig, dtype: torch.dtype, device: torch.device, block_size: int) -> None:
    """Make one call of each operation that a step of the model makes. Errors are logged, and left for the first step
    to report."""
    try:
        zeros = torch.zeros(_TOKENS, config.hidden_size, dtype=dtype, device=device)
        zeros @ zeros.t()
        _touch_kernels(config, zeros, block_size)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        log.warning("kernels could not be loaded ahead: %s: %s", type(error).__name__, reason)


def _touch_kernels(config: DecoderConfig, x: Tensor, block_size: int) -> None:
    """Launch kernels that read nothing but zeros: contexts of length 0, and tokens without a slot in the cache."""
    try:
        from ember_kernels.activation import KINDS, activation
        from ember_kernels.decode_attention import decode_attention
        from ember_kernels.norm import layer_norm, rms_norm
        from ember_kernels.prefill_attention import prefill_attention
    except ImportError:  # triton is not installed: torch computes everything
        return
    lacking = TRITON.lacking(config)
    of_norms = norm_dtype(config)
    norm_type = x.dtype if of_norms is None else getattr(torch, of_norms)
    if "add_norm" not in lacking:
        norm_weight = x.new_zeros(config.hidden_size, dtype=norm_type)
        bias = norm_weight if config.norm_bias else None
        adds_always = config.wiring == "post_norm" or not config.first_norm
        for residual in (x.clone(),) if adds_always else (None, x.clone()):
            if config.norm == "rms":
                rms_norm(x, norm_weight if config.norm_affine else x[0], config.norm_eps, residual=residual)
            else:
                weight = norm_weight if config.norm_affine else None
                layer_norm(x, weight, bias, config.norm_eps, residual=residual)
    has_mlp = any(map(config.has_mlp, range(config.num_layers)))
    if has_mlp and "gate" not in lacking and config.activation in KINDS:
        width = config.intermediate_size * (2 if config.gated_mlp else 1)
        limit = config.swiglu_limit if config.gated_mlp else None
        kind = config.activation if limit is None else "silu"
        activation(x.new_zeros(_TOKENS, width), kind, gated=config.gated_mlp, limit=limit, alpha=config.swiglu_alpha)
    if config.latent is not None and "attend_latents" not in lacking:
        _touch_latents(config, x, block_size)
    if any(map(config.state, range(config.num_layers))):  # other models do not import these kernels
        from ember.engine.core.gpu.touch_states import touch_states

        touch_states(config, x, lacking)
    if "attend" in lacking or "attention" not in map(config.mixer, range(config.num_layers)):
        return
    if config.bidirectional:
        _touch_texts(config, x, norm_type)
        return
    numbers = torch.zeros(_TOKENS, dtype=torch.int32, device=x.device)
    attending = [layer for layer in range(config.num_layers) if config.mixer(layer) == "attention"]
    windows, has_norms = config.windows(), config.qk_norm_of
    kinds = {(config.heads(i), windows[i], config.rope_index(i), has_norms(i) is not None) for i in attending}
    for (heads, kv_heads, head_dim), window, rope, has_norm in kinds:
        keys, values = x.new_zeros(2, 1, block_size, kv_heads, head_dim).unbind()
        query = x.new_zeros(_TOKENS, heads, head_dim)
        tables, starts = numbers[:, None].repeat(1, 16), numbers.new_zeros(_TOKENS + 1)
        of_heads = torch.zeros(heads, dtype=torch.float32, device=x.device)
        options: dict[str, Any] = {"window": window, "is_chunk": config.window_is_chunk}
        options |= {"soft_cap": config.attention_soft_cap, "sinks": of_heads if config.attention_sinks else None}
        options |= {"slopes": of_heads if config.alibi else None}
        decode_attention(query, keys, values, tables, numbers, **options)
        for most in (1, 1024):  # tiles for few rows, and for many
            prefill_attention(query, keys, values, tables, starts, numbers, max_queries=most, **options)
        if "place_heads" not in lacking:
            _touch_rope(config, x, keys, values, (heads, kv_heads, head_dim), rope, norm_type if has_norm else None)


def _touch_rope(
    config: DecoderConfig,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    sizes: tuple[int, int, int],
    rope: int | None,
    norm_type: torch.dtype | None,
) -> None:
    """Norm and rotation of heads, which are written nowhere. `norm_type`: of the weights of their norms, if any."""
    from ember_kernels.rope_cache import rope_cache

    heads, kv_heads, head_dim = sizes
    nowhere = torch.full((_TOKENS,), -1, dtype=torch.int64, device=x.device)
    weight = None if norm_type is None else x.new_zeros(head_dim, dtype=norm_type)
    rope_cache(
        x.new_zeros(_TOKENS, (heads + 2 * kv_heads) * head_dim),
        keys,
        values,
        nowhere,
        torch.zeros_like(nowhere),
        None if rope is None else _angle_table(config.ropes()[rope], x.device),
        query_weight=weight,
        key_weight=weight,
        neox=config.rope is None or not config.rope.interleaved,
        rotary_dim=None if rope is None else config.ropes()[rope].rotary_dim,
    )


def _angle_table(rope: RopeConfig, device: torch.device) -> Tensor:
    """Zeros in place of the angles of one position. Pairs that are not rotated are left out."""
    pairs = max(int(inverse_frequencies(rope).count_nonzero()), 1)
    return torch.zeros(1, 2 * pairs, device=device)


def _touch_texts(config: DecoderConfig, x: Tensor, norm_type: torch.dtype) -> None:
    from ember_kernels.text_attention import text_attention

    starts = torch.zeros(2, dtype=torch.int32, device=x.device)
    layers, windows, has_norms = range(config.num_layers), config.windows(), config.qk_norm_of
    kinds = {(config.heads(i), windows[i], config.rope_index(i), has_norms(i) is not None) for i in layers}
    for (heads, kv_heads, head_dim), window, rope, has_norm in kinds:
        query = x.new_zeros(_TOKENS, heads, head_dim)
        keys, values = x.new_zeros(2, 1, _TOKENS, kv_heads, head_dim).unbind()
        biases = None
        if config.distance_bias is not None:
            biases = torch.zeros(heads, 2 * config.distance_bias.max_distance + 1, device=x.device)
        for longest, own_window in ((1, None), (1024, window)):  # tiles for few rows, and for many
            text_attention(query, keys[0], values[0], starts, longest=longest, window=own_window, biases=biases)
        if rope is not None or has_norm:
            _touch_rope(config, x, keys, values, (heads, kv_heads, head_dim), rope, norm_type if has_norm else None)


def _touch_latents(config: DecoderConfig, x: Tensor, block_size: int) -> None:
    from ember_kernels.latent_cache import latent_cache
    from ember_kernels.latent_decode import latent_decode
    from ember_kernels.latent_expansion import Carried, expanded_attention
    from ember_kernels.latent_pieces import gather_latents, upload_pieces
    from ember_kernels.latent_prefill import latent_prefill

    sizes, heads = config.latent, config.num_heads
    assert sizes is not None
    cache, query = x.new_zeros(1, block_size, 1, sizes.size), x.new_zeros(_TOKENS, heads, sizes.size)
    numbers = torch.zeros(_TOKENS, dtype=torch.int32, device=x.device)
    positions, nowhere = torch.zeros_like(numbers, dtype=torch.int64), torch.full_like(numbers, -1, dtype=torch.int64)
    table, weight = torch.zeros(1, sizes.rotary_dim, device=x.device), x.new_zeros(sizes.kv_rank)
    neox = config.rope is None or not config.rope.interleaved
    given = (x.new_zeros(_TOKENS, heads, sizes.head_dim)[..., sizes.plain_dim :], cache.new_zeros(_TOKENS, sizes.size))
    latent_cache(*given, weight, cache, nowhere, positions, table, eps=sizes.norm_eps, neox=neox, out=query)
    tables, starts = numbers[:, None].repeat(1, 16), numbers.new_zeros(_TOKENS + 1)
    latent_decode(query, cache, tables, numbers, rank=sizes.kv_rank, scale=1.0)
    latent_prefill(query, cache, tables, starts, numbers, rank=sizes.kv_rank, scale=1.0)
    (piece,) = upload_pieces([0, 1], [1], 1, x.device)
    _, turned = gather_latents(cache, tables, piece, rank=sizes.kv_rank, dtype=x.dtype)
    up = x.new_zeros(1, heads * (sizes.plain_dim + sizes.value_dim))
    out = x.new_empty(1, heads, sizes.value_dim)
    for is_split in (False, True):
        own, carried = piece._replace(is_split=is_split), Carried.like(out)
        expanded_attention(
            given[0].new_zeros(1, heads, sizes.head_dim), up, turned, own, scale=1.0, carried=carried, out=out
        )
