"""The weights of each kind of mixer as data: attention, latent attention, and the mixers with a state.

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import NamedTuple

from ember.engine.description.config import DecoderConfig, HeadSizes, LatentConfig, Mixer
from ember.engine.description.weights import (
    Output,
    Rows,
    Size,
    Spec,
    Stored,
    TensorSpec,
    linear_spec,
    norm_dtype,
    norm_specs,
    twice,
)


class LayerSizes(NamedTuple):
    """The sizes of the tensors of a layer's mixer."""

    heads: HeadSizes
    hidden: Size
    query: Size
    kv: Size
    qkv: Size
    head: Size

    @classmethod
    def of(cls, config: DecoderConfig, hidden: Size, layer: int) -> LayerSizes:
        sizes = config.heads(layer)
        heads, kv_heads = f"num_attention_heads={sizes.heads}", f"num_key_value_heads={sizes.kv_heads}"
        head_dim, query, kv = f"of head_dim={sizes.head_dim}", sizes.query_size, sizes.kv_size
        return cls(
            sizes,
            hidden,
            Size(query, f"{heads} {head_dim}: {query}"),
            Size(kv, f"{kv_heads} {head_dim}: {kv}"),
            Size(query + 2 * kv, f"{heads} and {kv_heads} {head_dim}: {query + 2 * kv}"),
            Size(sizes.head_dim, f"head_dim={sizes.head_dim}"),
        )


def _attention(config: DecoderConfig, sizes: LayerSizes, layer: int, ours: str, theirs: str) -> Iterator[Spec]:
    names, hidden = config.names, sizes.hidden
    yield linear_spec(f"{ours}qkv", _qkv(config, sizes, layer, theirs), config.qkv_bias)
    if config.qk_norm_of(layer) not in (None, "plain"):
        yield from _qk_norm(config, sizes, "query_norm", sizes.heads.heads, ours, theirs)
        if config.has_own_kv(layer):
            yield from _qk_norm(config, sizes, "key_norm", sizes.heads.kv_heads, ours, theirs)
    output = Stored(theirs + names.output, hidden, sizes.query, names.transposed)
    yield linear_spec(f"{ours}output", [output.whole()], config.output_bias)
    if config.attention_gate:
        yield linear_spec(f"{ours}gate", [_query_and_gate(config, sizes, theirs)[1]], config.qkv_bias)
    if config.head_gate:
        heads = Size(config.num_heads, f"num_attention_heads={config.num_heads}")
        yield linear_spec(f"{ours}gate", [Stored(f"{theirs}{names.head_gate}", heads, hidden).whole()])
    if config.attention_sinks:
        heads = Size(config.num_heads, f"num_attention_heads={config.num_heads}")
        yield TensorSpec(f"{ours}sinks", f"{theirs}{names.sinks}", (heads,), "float32")


def _qk_norm(
    config: DecoderConfig, sizes: LayerSizes, name: str, num_heads: int, ours: str, theirs: str
) -> Iterator[TensorSpec]:
    """The weights of the norm of queries or of keys, of which there are `num_heads` heads."""
    source = f"{theirs}{getattr(config.names, name)}.weight"
    if "{}" in source:
        for head in range(num_heads):
            yield TensorSpec(
                f"{ours}{name}.{head}.weight",
                source.format(head),
                (sizes.head,),
                norm_dtype(config),
                config.norm_offset,
            )
        return
    heads = Size(num_heads, f"{'num_attention_heads' if name == 'query_norm' else 'num_key_value_heads'}={num_heads}")
    shapes = {
        **dict.fromkeys(("head", "layer_bias"), (sizes.head,)),
        "all": (sizes.query if name == "query_norm" else sizes.kv,),
        "layer": (heads, sizes.head),
    }
    yield TensorSpec(
        f"{ours}{name}.weight", source, shapes[str(config.qk_norm)], norm_dtype(config), config.norm_offset
    )
    if config.qk_norm == "layer_bias":
        yield TensorSpec(f"{ours}{name}.bias", source.removesuffix(".weight") + ".bias", (sizes.head,))


def _qkv(config: DecoderConfig, sizes: LayerSizes, layer: int, theirs: str) -> list[Output]:
    """The rows of query, key and value. Only layers with separate matrices may lack some of them."""
    names, hidden = config.names, sizes.hidden
    if names.qkv is None:
        parts = [(names.query, sizes.query)]
        if config.attention_gate:
            others = (Stored(f"{theirs}{name}", sizes.kv, hidden) for name in (names.key, names.value))
            return [_query_and_gate(config, sizes, theirs)[0], *(stored.whole() for stored in others)]
        if config.has_own_kv(layer):
            parts.append((names.key, sizes.kv))
            if not config.values_are_keys(layer):
                parts.append((names.value, sizes.kv))
        return [Stored(f"{theirs}{name}", rows, hidden, names.transposed).whole() for name, rows in parts]
    stored = Stored(theirs + names.qkv, sizes.qkv, hidden, names.transposed)
    if names.qkv_order == "parts":
        return [stored.whole()]
    if names.qkv_order == "quarters":
        size = sizes.heads.query_size // 4
        return [Output(stored, Rows(start * size, size, 4, 3 * size)) for start in (0, 2, 1)]
    _, heads, head_dim = sizes.heads
    queries = sizes.heads.query_size // heads  # rows of query for each key-value head
    step = queries + 2 * head_dim
    runs = ((0, queries), (queries, head_dim), (queries + head_dim, head_dim))
    return [Output(stored, Rows(start, size, heads, step)) for start, size in runs]


def _query_and_gate(config: DecoderConfig, sizes: LayerSizes, theirs: str) -> tuple[Output, Output]:
    """The rows of the queries and of the gates, which alternate head by head in one matrix."""
    heads, _, head_dim = sizes.heads
    stored = Stored(f"{theirs}{config.names.query}", twice(sizes.query), sizes.hidden)
    query, gate = (Output(stored, Rows(first, head_dim, heads, 2 * head_dim)) for first in (0, head_dim))
    return query, gate


def _latent(config: DecoderConfig, sizes: LayerSizes, layer: int, ours: str, theirs: str) -> Iterator[Spec]:
    """The matrices that compress the input are one; the first is that of queries that are not compressed."""
    names, hidden, latent = config.names, sizes.hidden, config.latent
    assert latent is not None, "a family with latent attention has its sizes"
    heads = f"num_attention_heads={config.num_heads}"
    says = f"{heads} of qk_nope_head_dim={latent.plain_dim} and qk_rope_head_dim={latent.rotary_dim}"
    query = Size(config.num_heads * latent.head_dim, f"{says}: {config.num_heads * latent.head_dim}")
    kv_rank = Size(latent.kv_rank, f"kv_lora_rank={latent.kv_rank}")
    compressed = Size(latent.size, f"{kv_rank.says} and qk_rope_head_dim={latent.rotary_dim}: {latent.size}")
    kv_size = config.num_heads * (latent.plain_dim + latent.value_dim)
    says = f"{heads} of qk_nope_head_dim={latent.plain_dim} and v_head_dim={latent.value_dim}"
    expanded = Size(kv_size, f"{says}: {kv_size}")
    values = Size(config.num_heads * latent.value_dim, f"{heads} of v_head_dim={latent.value_dim}")
    down, rank = Stored(f"{theirs}{names.query}", query, hidden), None
    if latent.query_rank is not None:
        rank = Size(latent.query_rank, f"q_lora_rank={latent.query_rank}")
        down = Stored(f"{theirs}{names.query_down}", rank, hidden)
    kv_down = Stored(f"{theirs}{names.kv_down}", compressed, hidden)
    yield linear_spec(f"{ours}qkv", [down.whole(), kv_down.whole()], config.qkv_bias)
    if rank is not None:
        yield from norm_specs(config, rank, f"{ours}query_norm", f"{theirs}{names.query_down_norm}")
        yield linear_spec(f"{ours}query_up", [Stored(f"{theirs}{names.query_up}", query, rank).whole()])
    yield from norm_specs(config, kv_rank, f"{ours}kv_norm", f"{theirs}{names.kv_down_norm}")
    if names.kv_up is None:
        yield linear_spec(f"{ours}kv_up", _by_heads(config, latent, kv_rank, theirs))
    else:
        yield linear_spec(f"{ours}kv_up", [Stored(f"{theirs}{names.kv_up}", expanded, kv_rank).whole()])
    yield linear_spec(f"{ours}output", [Stored(theirs + names.output, hidden, values).whole()], config.output_bias)


def _by_heads(config: DecoderConfig, latent: LatentConfig, kv_rank: Size, theirs: str) -> list[Output]:
    """The rows that make a head's keys, then those that make its values, head by head, from a stack for each."""
    heads = Size(config.num_heads, f"num_attention_heads={config.num_heads}")
    plain = Size(latent.plain_dim, f"qk_nope_head_dim={latent.plain_dim}")
    value = Size(latent.value_dim, f"v_head_dim={latent.value_dim}")
    stacks = (
        Stored(f"{theirs}{config.names.key_up}", plain, kv_rank, transposed=True, stack=heads),
        Stored(f"{theirs}{config.names.value_up}", value, kv_rank, stack=heads),
    )
    return [Output(each, Rows(0, each.rows.extent), head) for head in range(config.num_heads) for each in stacks]


def _delta(config: DecoderConfig, sizes: LayerSizes, layer: int, ours: str, theirs: str) -> Iterator[Spec]:
    """The gated delta rule: the inputs of its convolution and its gates, the rates, and its other weights."""
    delta, names, hidden = config.delta, config.names.delta, sizes.hidden
    assert delta is not None and names is not None, "a family with this mixer describes it"
    keys = f"linear_num_key_heads={delta.key_heads} of linear_key_head_dim={delta.key_dim}"
    values = f"linear_num_value_heads={delta.value_heads} of linear_value_head_dim={delta.value_dim}"
    channels = Size(delta.channels, f"{keys} and {values}: {delta.channels}")
    value_heads, value = Size(delta.value_heads, values), Size(delta.value_size, f"{values}: {delta.value_size}")
    shared, total = delta.value_heads // delta.key_heads, delta.channels + delta.value_size
    if names.qkv_gate:
        stored = Stored(theirs + names.qkv_gate, Size(total, f"{keys} and {values}: {total}"), hidden)
        sizes_of = (delta.key_dim, delta.key_dim, shared * delta.value_dim, shared * delta.value_dim)
        step, firsts = sum(sizes_of), accumulate(sizes_of, initial=0)
        inputs = [
            Output(stored, Rows(first, size, delta.key_heads, step))
            for first, size in zip(firsts, sizes_of, strict=False)
        ]
    else:
        parts = ((names.qkv, channels), (names.gate, value))
        inputs = [Stored(theirs + name, rows, hidden).whole() for name, rows in parts]
    if names.beta_alpha:
        both = Stored(theirs + names.beta_alpha, twice(value_heads), hidden)
        rates = [Output(both, Rows(first, shared, delta.key_heads, 2 * shared)) for first in (0, shared)]
    else:
        rates = [Stored(theirs + name, value_heads, hidden).whole() for name in (names.beta, names.alpha)]
    yield linear_spec(f"{ours}delta.inputs", inputs)
    yield linear_spec(f"{ours}delta.rates", rates)
    kernel = Size(delta.kernel, f"linear_conv_kernel_dim={delta.kernel}")
    yield TensorSpec(f"{ours}delta.conv", f"{theirs}{names.conv}.weight", (channels, Size(1, "one"), kernel), "float32")
    yield TensorSpec(f"{ours}delta.decay", f"{theirs}{names.decay}", (value_heads,), "float32")
    yield TensorSpec(f"{ours}delta.dt_bias", f"{theirs}{names.dt_bias}", (value_heads,), "float32")
    yield TensorSpec(f"{ours}delta.norm", f"{theirs}{names.norm}.weight", (Size(delta.value_dim, values),))
    yield linear_spec(f"{ours}delta.output", [Stored(theirs + names.output, hidden, value).whole()])


def ssd_specs(config: DecoderConfig, sizes: LayerSizes, layer: int, ours: str, theirs: str) -> Iterator[Spec]:
    """Mamba 2. Its first matrix has the gates, the inputs of the convolution, and dt."""
    ssd, names, hidden = config.ssd, config.names.ssd, sizes.hidden
    assert ssd is not None and names is not None, "a family with this mixer describes it"
    says = f"{ssd.heads} heads of {ssd.head_dim} and {ssd.groups} groups of {ssd.state_dim} of Mamba 2"
    heads, inner = Size(ssd.heads, says), Size(ssd.inner_size, says)
    channels = Size(ssd.channels, f"{says}: {ssd.channels}")
    total = ssd.inner_size + ssd.channels + ssd.heads
    inputs = Stored(theirs + names.inputs, Size(total, f"{says}: {total}"), hidden)
    yield linear_spec(f"{ours}ssd.inputs", [inputs.whole()], ssd.bias)
    shape = (channels, Size(1, "one"), Size(ssd.kernel, f"a convolution of {ssd.kernel} inputs"))
    yield TensorSpec(f"{ours}ssd.conv", f"{theirs}{names.conv}.weight", shape, "float32")
    if ssd.conv_bias:
        yield TensorSpec(f"{ours}ssd.conv_bias", f"{theirs}{names.conv}.bias", (channels,), "float32")
    for name in ("dt_bias", "decay", "skip"):
        yield TensorSpec(f"{ours}ssd.{name}", f"{theirs}{getattr(names, name)}", (heads,), "float32")
    if ssd.norm != "none":
        yield TensorSpec(f"{ours}ssd.norm", f"{theirs}{names.norm}.weight", (inner,))
    yield linear_spec(f"{ours}ssd.output", [Stored(theirs + names.output, hidden, inner).whole()], ssd.output_bias)


def _selective(config: DecoderConfig, sizes: LayerSizes, layer: int, ours: str, theirs: str) -> Iterator[Spec]:
    """Mamba 1. Its first matrix has x and the gates, the second one what dt is made of, b and c."""
    part, names, hidden = config.selective, config.names.selective, sizes.hidden
    assert part is not None and names is not None, "a family with this mixer describes it"
    inner = Size(part.inner_size, f"an inner size of Mamba of {part.inner_size}")
    state = Size(part.state_dim, f"states of {part.state_dim}")
    rank = Size(part.dt_rank, f"a rank of dt of {part.dt_rank}")
    rates = Size(rank.extent + 2 * state.extent, f"{rank.says} and two vectors of {state.extent}")
    inputs = Stored(theirs + names.inputs, twice(inner), hidden)
    yield linear_spec(f"{ours}selective.inputs", [inputs.whole()], part.bias)
    shape = (inner, Size(1, "one"), Size(part.kernel, f"a convolution of {part.kernel} inputs"))
    yield TensorSpec(f"{ours}selective.conv", f"{theirs}{names.conv}.weight", shape, "float32")
    if part.conv_bias:
        yield TensorSpec(f"{ours}selective.conv_bias", f"{theirs}{names.conv}.bias", (inner,), "float32")
    yield linear_spec(f"{ours}selective.rates", [Stored(theirs + names.rates, rates, inner).whole()])
    if part.norm == "weighted":
        for name, size in (("dt_norm", rank), ("b_norm", state), ("c_norm", state)):
            yield TensorSpec(f"{ours}selective.{name}", f"{theirs}{getattr(names, name)}.weight", (size,))
    yield linear_spec(f"{ours}selective.dt", [Stored(theirs + names.dt, inner, rank).whole()], True)
    yield TensorSpec(f"{ours}selective.decay", f"{theirs}{names.decay}", (inner, state), "float32")
    yield TensorSpec(f"{ours}selective.skip", f"{theirs}{names.skip}", (inner,), "float32")
    yield linear_spec(f"{ours}selective.output", [Stored(theirs + names.output, hidden, inner).whole()], part.bias)


def _short_convolution(config: DecoderConfig, sizes: LayerSizes, layer: int, ours: str, theirs: str) -> Iterator[Spec]:
    conv, names, hidden = config.conv, config.names.conv, sizes.hidden
    assert conv is not None and names is not None, "a family with this mixer describes it"
    inputs = Size(3 * hidden.extent, f"three times {hidden.says}: {3 * hidden.extent}")
    yield linear_spec(f"{ours}conv.inputs", [Stored(theirs + names.inputs, inputs, hidden).whole()], conv.bias)
    shape = (hidden, Size(1, "one"), Size(conv.kernel, f"conv_L_cache={conv.kernel}"))
    yield TensorSpec(f"{ours}conv.weight", f"{theirs}{names.conv}.weight", shape, "float32")
    if conv.bias:
        yield TensorSpec(f"{ours}conv.bias", f"{theirs}{names.conv}.bias", (hidden,), "float32")
    yield linear_spec(f"{ours}conv.output", [Stored(theirs + names.output, hidden, hidden).whole()], conv.bias)


MIXERS: dict[Mixer, Callable[[DecoderConfig, LayerSizes, int, str, str], Iterator[Spec]]] = {
    "attention": _attention,
    "latent": _latent,
    "delta": _delta,
    "conv": _short_convolution,
    "ssd": ssd_specs,
    "selective": _selective,
    "none": lambda *_: iter(()),
}
"""The weights of each kind of mixer, for a layer with these sizes, this index, and these beginnings of names: of the
weights, and in the checkpoint."""
