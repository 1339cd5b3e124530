"""The decoder's weights as data: their names, sizes and stored tensors. This module does not import torch.

A linear layer's matrix is [out, in]. Its rows are those of its `outputs` in order: query, key and value are one matrix,
and so are gate and up. If a checkpoint stores them separately, each output is a stored matrix. If it stores them in one
matrix, each output is a set of rows of that matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from math import prod
from typing import NamedTuple

from ember.engine.description.config import (
    DecoderConfig,
    ExpertNames,
    ExpertsConfig,
    HeadSizes,
    LatentConfig,
    Mixer,
)


class Size(NamedTuple):
    """A size of a stored tensor, and the fields of config.json, with their values, from which it follows."""

    extent: int
    says: str


class Rows(NamedTuple):
    """Rows of a matrix: `runs` runs of `size` rows. The first run is at row `start`, each next one `step` rows
    later."""

    start: int
    size: int
    runs: int = 1
    step: int = 0

    @property
    def total(self) -> int:
        return self.size * self.runs


class Stored(NamedTuple):
    """A matrix of the checkpoint, [rows, columns] as in y = x @ matrix.T, or a stack of equal matrices.

    Its tensor has that shape, or [columns, rows] if `transposed`. A `stack` has one more dimension in front.
    """

    name: str  # of the module: the tensors' names without `suffix` and `bias_suffix`
    rows: Size
    columns: Size
    transposed: bool = False
    stack: Size | None = None
    suffix: str = ".weight"
    bias_suffix: str = ".bias"

    def whole(self) -> Output:
        """All rows, of a stack those of all matrices."""
        matrices = 1 if self.stack is None else self.stack.extent
        return Output(self, Rows(0, self.rows.extent * matrices))


class Output(NamedTuple):
    """Rows of a stored matrix that are output rows of a linear layer.

    In a stack they are rows of the matrix at `stack_index`, and may continue in the matrices after it.
    """

    stored: Stored
    rows: Rows
    stack_index: int = 0


# The weights of the activation xielu (arXiv 2411.13010) by their names in checkpoints.
XIELU_WEIGHTS: dict[str, tuple[Size, ...]] = {
    "alpha_p": (Size(1, "activation xielu"),),
    "alpha_n": (Size(1, "activation xielu"),),
    "beta": (),
    "eps": (),
}


BESIDE_NORMS = ("mlp_output_norm", "input_norm", "output_norm")  # of experts beside an MLP
_INPUT_SIZE = "hidden_size_per_layer_input"  # the field of config.json


class LinearSpec(NamedTuple):
    """A linear layer, or the linear layers of all experts, one after the other."""

    name: str
    outputs: tuple[Output, ...]
    inputs: int
    bias: bool = False
    first_input: int = 0  # of the stored matrices' columns

    @property
    def num_rows(self) -> int:
        return sum(output.rows.total for output in self.outputs)

    @property
    def columns(self) -> tuple[int, int]:
        """The columns of the stored matrices that are used: the first, and the one after the last."""
        return self.first_input, self.first_input + self.inputs

    @property
    def is_in_block(self) -> bool:
        """Whether it is a matrix of attention, of an MLP or of experts that may be quantised, and no router."""
        return self.name.startswith("layers.") and not self.name.endswith("router") and not self.is_restored

    @property
    def is_restored(self) -> bool:
        """Whether the decoder keeps it in the model's dtype, however the checkpoint stores it: latent attention
        multiplies with its rows by heads."""
        return self.name.endswith(".kv_up")


class TensorSpec(NamedTuple):
    """A vector or a table that is used as it is stored."""

    name: str
    source: str  # the tensor's name in the checkpoint
    shape: tuple[Size, ...]
    dtype: str | None = None  # torch's name; None: the model's dtype
    offset: float = 0.0  # added to the stored values


Spec = LinearSpec | TensorSpec


def weight_specs(config: DecoderConfig) -> list[Spec]:
    """Every weight of the decoder, in the order of the forward pass."""
    names, hidden = config.names, Size(config.hidden_size, f"hidden_size={config.hidden_size}")
    vocabulary, embed = Size(config.vocab_size, f"vocab_size={config.vocab_size}"), hidden
    if config.embed_dim is not None:
        embed = Size(config.embed_dim, f"word_embed_proj_dim={config.embed_dim}")
    summed = embed if config.projects_sum else hidden  # the width at which all embeddings are added
    specs: list[Spec] = [TensorSpec("embed_tokens", f"{names.embed_tokens}.weight", (vocabulary, embed))]
    if config.position_offset is not None:
        positions = config.max_position_embeddings + config.position_offset
        rows = Size(positions, f"max_position_embeddings and its offset: {positions}")
        specs.append(TensorSpec("embed_positions", f"{names.embed_positions}.weight", (rows, summed)))
    if config.token_types:
        types = Size(config.token_types, f"type_vocab_size={config.token_types}")
        specs.append(TensorSpec("embed_token_types", f"{names.embed_token_types}.weight", (types, summed)))
    if config.embed_norm:
        specs += _norm(config, summed, "embed_norm", str(names.embed_norm))
    if config.layer_input_size:
        specs += _layer_inputs(config, hidden)
    if config.embed_dim is not None:
        projection = Stored(str(names.project_in), hidden, embed).whole()
        specs.append(_linear("project_in", [projection], config.projects_sum))
    specs += _relative_positions(config, hidden)
    specs += _text_conv(config, hidden)
    for layer in range(config.num_layers):
        specs += _layer(config, _Sizes.of(config, hidden, layer), layer)
    if config.final_norm:
        specs += _norm(config, hidden, "final_norm", names.final_norm)
    if not config.has_head:
        return specs
    if config.embed_dim is not None:
        specs.append(_linear("project_out", [Stored(str(names.project_out), embed, hidden).whole()]))
    if not config.tie_word_embeddings:
        specs.append(_linear("lm_head", [Stored(names.lm_head, vocabulary, embed).whole()], config.head_bias))
    elif config.head_bias:
        specs.append(TensorSpec("lm_head.bias", f"{names.lm_head}.bias", (vocabulary,)))
    return specs


def _relative_positions(config: DecoderConfig, hidden: Size) -> Iterator[Spec]:
    """The tables of relative positions, which all layers share."""
    names = config.names
    if config.distance_bias is not None:
        buckets = config.distance_bias.buckets
        rows = Size(buckets, f"relative_attention_num_buckets={buckets}")
        heads = Size(config.num_heads, f"num_attention_heads={config.num_heads}")
        yield TensorSpec("distance_bias", f"{names.distance_bias}.weight", (rows, heads))
    if config.disentangled is not None:
        count = 2 * config.disentangled.span
        rows = Size(count, f"twice position_buckets or max_relative_positions: {count}")
        yield TensorSpec("position_vectors", f"{names.position_vectors}.weight", (rows, hidden))
        if config.disentangled.norm:
            yield from _norm(config, hidden, "position_norm", str(names.position_norm))


def _text_conv(config: DecoderConfig, hidden: Size) -> Iterator[Spec]:
    conv, name = config.text_conv, config.names.text_conv
    if conv is None:
        return
    inputs = Size(hidden.extent // conv.groups, f"{hidden.says} in conv_groups={conv.groups}")
    kernel = Size(conv.kernel, f"conv_kernel_size={conv.kernel}")
    yield TensorSpec("text_conv.weight", f"{name}.weight", (hidden, inputs, kernel))
    yield TensorSpec("text_conv.bias", f"{name}.bias", (hidden,))
    yield from _norm(config, hidden, "text_conv.norm", str(config.names.text_conv_norm))


def count_parameters(specs: Iterable[Spec]) -> int:
    """The number of parameters of these weights, however they are stored."""
    return sum(
        prod(size.extent for size in spec.shape)
        if isinstance(spec, TensorSpec)
        else spec.num_rows * (spec.inputs + spec.bias)
        for spec in specs
    )


class _Sizes(NamedTuple):
    """The sizes of a layer's tensors."""

    heads: HeadSizes
    hidden: Size
    query: Size
    kv: Size
    qkv: Size
    head: Size
    inner: Size  # the MLP's

    @classmethod
    def of(cls, config: DecoderConfig, hidden: Size, layer: int) -> _Sizes:
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
            _mlp_size(config, layer),
        )


def _mlp_size(config: DecoderConfig, layer: int) -> Size:
    size, common = config.mlp_size(layer), config.intermediate_size
    says = f"{config.intermediate_field}={common}"
    return Size(size, says if size == common else f"{says} in layers with MLPs of {size}")


def _layer(config: DecoderConfig, sizes: _Sizes, layer: int) -> Iterator[Spec]:
    names, hidden = config.names, sizes.hidden
    ours, theirs = f"layers.{layer}.", names.layer.format(layer)
    if layer or config.first_norm:
        yield from _norm(config, hidden, f"{ours}attention_norm", theirs + names.attention_norm)
    yield from MIXERS[config.mixer(layer)](config, sizes, layer, ours, theirs)
    if config.ssd_beside_attention:
        yield from _ssd(config, sizes, layer, ours, theirs)
    if names.attention_output_norm is not None:
        yield from _norm(config, hidden, f"{ours}attention_output_norm", theirs + names.attention_output_norm)
    if names.mlp_norm is not None:
        yield from _norm(config, hidden, f"{ours}mlp_norm", theirs + names.mlp_norm)
    if names.mlp_output_norm is not None:
        yield from _norm(config, hidden, f"{ours}mlp_output_norm", theirs + names.mlp_output_norm)
    if config.layer_input_size:
        yield from _layer_input(config, hidden, ours, theirs)
    if config.layer_scalar:
        yield TensorSpec(f"{ours}scalar", f"{theirs}{names.layer_scalar}", (Size(1, "one number for a layer"),))
    if config.experts is not None and config.has_experts(layer):
        yield from _experts(config, config.experts, hidden, ours, theirs)
    if not config.has_mlp(layer):
        return
    up_bias = config.mlp_bias if config.up_bias is None else config.up_bias
    yield _linear(f"{ours}up", _up(config, sizes, theirs), up_bias)
    if config.activation == "xielu":
        for name, shape in XIELU_WEIGHTS.items():
            yield TensorSpec(f"{ours}activation.{name}", f"{theirs}{names.activation}.{name}", shape)
    down = Stored(f"{theirs}{names.down}", hidden, sizes.inner, names.transposed)
    yield _linear(f"{ours}down", [down.whole()], config.mlp_bias)


def _attention(config: DecoderConfig, sizes: _Sizes, layer: int, ours: str, theirs: str) -> Iterator[Spec]:
    names, hidden = config.names, sizes.hidden
    yield _linear(f"{ours}qkv", _qkv(config, sizes, layer, theirs), config.qkv_bias)
    if config.qk_norm_of(layer) not in (None, "plain"):
        yield from _qk_norm(config, sizes, "query_norm", sizes.heads.heads, ours, theirs)
        if config.has_own_kv(layer):
            yield from _qk_norm(config, sizes, "key_norm", sizes.heads.kv_heads, ours, theirs)
    output = Stored(theirs + names.output, hidden, sizes.query, names.transposed)
    yield _linear(f"{ours}output", [output.whole()], config.output_bias)
    if config.attention_gate:
        yield _linear(f"{ours}gate", [_query_and_gate(config, sizes, theirs)[1]], config.qkv_bias)
    if config.head_gate:
        heads = Size(config.num_heads, f"num_attention_heads={config.num_heads}")
        yield _linear(f"{ours}gate", [Stored(f"{theirs}{names.head_gate}", heads, hidden).whole()])
    if config.attention_sinks:
        heads = Size(config.num_heads, f"num_attention_heads={config.num_heads}")
        yield TensorSpec(f"{ours}sinks", f"{theirs}{names.sinks}", (heads,), "float32")


def _latent(config: DecoderConfig, sizes: _Sizes, layer: int, ours: str, theirs: str) -> Iterator[Spec]:
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
    yield _linear(f"{ours}qkv", [down.whole(), kv_down.whole()], config.qkv_bias)
    if rank is not None:
        yield from _norm(config, rank, f"{ours}query_norm", f"{theirs}{names.query_down_norm}")
        yield _linear(f"{ours}query_up", [Stored(f"{theirs}{names.query_up}", query, rank).whole()])
    yield from _norm(config, kv_rank, f"{ours}kv_norm", f"{theirs}{names.kv_down_norm}")
    if names.kv_up is None:
        yield _linear(f"{ours}kv_up", _by_heads(config, latent, kv_rank, theirs))
    else:
        yield _linear(f"{ours}kv_up", [Stored(f"{theirs}{names.kv_up}", expanded, kv_rank).whole()])
    yield _linear(f"{ours}output", [Stored(theirs + names.output, hidden, values).whole()], config.output_bias)


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


def _qk_norm(
    config: DecoderConfig, sizes: _Sizes, name: str, num_heads: int, ours: str, theirs: str
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


def _qkv(config: DecoderConfig, sizes: _Sizes, layer: int, theirs: str) -> list[Output]:
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


def _query_and_gate(config: DecoderConfig, sizes: _Sizes, theirs: str) -> tuple[Output, Output]:
    """The rows of the queries and of the gates, which alternate head by head in one matrix."""
    heads, _, head_dim = sizes.heads
    stored = Stored(f"{theirs}{config.names.query}", _twice(sizes.query), sizes.hidden)
    query, gate = (Output(stored, Rows(first, head_dim, heads, 2 * head_dim)) for first in (0, head_dim))
    return query, gate


def _delta(config: DecoderConfig, sizes: _Sizes, layer: int, ours: str, theirs: str) -> Iterator[Spec]:
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
        both = Stored(theirs + names.beta_alpha, _twice(value_heads), hidden)
        rates = [Output(both, Rows(first, shared, delta.key_heads, 2 * shared)) for first in (0, shared)]
    else:
        rates = [Stored(theirs + name, value_heads, hidden).whole() for name in (names.beta, names.alpha)]
    yield _linear(f"{ours}delta.inputs", inputs)
    yield _linear(f"{ours}delta.rates", rates)
    kernel = Size(delta.kernel, f"linear_conv_kernel_dim={delta.kernel}")
    yield TensorSpec(f"{ours}delta.conv", f"{theirs}{names.conv}.weight", (channels, Size(1, "one"), kernel), "float32")
    yield TensorSpec(f"{ours}delta.decay", f"{theirs}{names.decay}", (value_heads,), "float32")
    yield TensorSpec(f"{ours}delta.dt_bias", f"{theirs}{names.dt_bias}", (value_heads,), "float32")
    yield TensorSpec(f"{ours}delta.norm", f"{theirs}{names.norm}.weight", (Size(delta.value_dim, values),))
    yield _linear(f"{ours}delta.output", [Stored(theirs + names.output, hidden, value).whole()])


def _ssd(config: DecoderConfig, sizes: _Sizes, layer: int, ours: str, theirs: str) -> Iterator[Spec]:
    """Mamba 2. Its first matrix has the gates, the inputs of the convolution, and dt."""
    ssd, names, hidden = config.ssd, config.names.ssd, sizes.hidden
    assert ssd is not None and names is not None, "a family with this mixer describes it"
    says = f"{ssd.heads} heads of {ssd.head_dim} and {ssd.groups} groups of {ssd.state_dim} of Mamba 2"
    heads, inner = Size(ssd.heads, says), Size(ssd.inner_size, says)
    channels = Size(ssd.channels, f"{says}: {ssd.channels}")
    total = ssd.inner_size + ssd.channels + ssd.heads
    inputs = Stored(theirs + names.inputs, Size(total, f"{says}: {total}"), hidden)
    yield _linear(f"{ours}ssd.inputs", [inputs.whole()], ssd.bias)
    shape = (channels, Size(1, "one"), Size(ssd.kernel, f"a convolution of {ssd.kernel} inputs"))
    yield TensorSpec(f"{ours}ssd.conv", f"{theirs}{names.conv}.weight", shape, "float32")
    if ssd.conv_bias:
        yield TensorSpec(f"{ours}ssd.conv_bias", f"{theirs}{names.conv}.bias", (channels,), "float32")
    for name in ("dt_bias", "decay", "skip"):
        yield TensorSpec(f"{ours}ssd.{name}", f"{theirs}{getattr(names, name)}", (heads,), "float32")
    if ssd.norm != "none":
        yield TensorSpec(f"{ours}ssd.norm", f"{theirs}{names.norm}.weight", (inner,))
    yield _linear(f"{ours}ssd.output", [Stored(theirs + names.output, hidden, inner).whole()], ssd.output_bias)


def _selective(config: DecoderConfig, sizes: _Sizes, layer: int, ours: str, theirs: str) -> Iterator[Spec]:
    """Mamba 1. Its first matrix has x and the gates, the second one what dt is made of, b and c."""
    part, names, hidden = config.selective, config.names.selective, sizes.hidden
    assert part is not None and names is not None, "a family with this mixer describes it"
    inner = Size(part.inner_size, f"an inner size of Mamba of {part.inner_size}")
    state, rank = (
        Size(part.state_dim, f"states of {part.state_dim}"),
        Size(part.dt_rank, f"a rank of dt of {part.dt_rank}"),
    )
    rates = Size(rank.extent + 2 * state.extent, f"{rank.says} and two vectors of {state.extent}")
    yield _linear(f"{ours}selective.inputs", [Stored(theirs + names.inputs, _twice(inner), hidden).whole()], part.bias)
    shape = (inner, Size(1, "one"), Size(part.kernel, f"a convolution of {part.kernel} inputs"))
    yield TensorSpec(f"{ours}selective.conv", f"{theirs}{names.conv}.weight", shape, "float32")
    if part.conv_bias:
        yield TensorSpec(f"{ours}selective.conv_bias", f"{theirs}{names.conv}.bias", (inner,), "float32")
    yield _linear(f"{ours}selective.rates", [Stored(theirs + names.rates, rates, inner).whole()])
    if part.norm == "weighted":
        for name, size in (("dt_norm", rank), ("b_norm", state), ("c_norm", state)):
            yield TensorSpec(f"{ours}selective.{name}", f"{theirs}{getattr(names, name)}.weight", (size,))
    yield _linear(f"{ours}selective.dt", [Stored(theirs + names.dt, inner, rank).whole()], True)
    yield TensorSpec(f"{ours}selective.decay", f"{theirs}{names.decay}", (inner, state), "float32")
    yield TensorSpec(f"{ours}selective.skip", f"{theirs}{names.skip}", (inner,), "float32")
    yield _linear(f"{ours}selective.output", [Stored(theirs + names.output, hidden, inner).whole()], part.bias)


def _short_convolution(config: DecoderConfig, sizes: _Sizes, layer: int, ours: str, theirs: str) -> Iterator[Spec]:
    conv, names, hidden = config.conv, config.names.conv, sizes.hidden
    assert conv is not None and names is not None, "a family with this mixer describes it"
    inputs = Size(3 * hidden.extent, f"three times {hidden.says}: {3 * hidden.extent}")
    yield _linear(f"{ours}conv.inputs", [Stored(theirs + names.inputs, inputs, hidden).whole()], conv.bias)
    shape = (hidden, Size(1, "one"), Size(conv.kernel, f"conv_L_cache={conv.kernel}"))
    yield TensorSpec(f"{ours}conv.weight", f"{theirs}{names.conv}.weight", shape, "float32")
    if conv.bias:
        yield TensorSpec(f"{ours}conv.bias", f"{theirs}{names.conv}.bias", (hidden,), "float32")
    yield _linear(f"{ours}conv.output", [Stored(theirs + names.output, hidden, hidden).whole()], conv.bias)


MIXERS: dict[Mixer, Callable[[DecoderConfig, _Sizes, int, str, str], Iterator[Spec]]] = {
    "attention": _attention,
    "latent": _latent,
    "delta": _delta,
    "conv": _short_convolution,
    "ssd": _ssd,
    "selective": _selective,
    "none": lambda *_: iter(()),
}
"""The weights of each kind of mixer, for a layer with these sizes, this index, and these beginnings of names: of the
weights, and in the checkpoint."""


def _up(config: DecoderConfig, sizes: _Sizes, theirs: str) -> list[Output]:
    """The rows of gate, if there is one, and up."""
    names, hidden, inner = config.names, sizes.hidden, sizes.inner
    if not config.gated_mlp:
        return [Stored(f"{theirs}{names.up}", inner, hidden, names.transposed).whole()]
    if names.gate_up is not None:
        return [Stored(theirs + names.gate_up, _twice(inner), hidden, names.transposed).whole()]
    if names.up_gate is not None:
        stored, size = Stored(theirs + names.up_gate, _twice(inner), hidden, names.transposed), inner.extent
        return [Output(stored, Rows(first, size)) for first in (size, 0)]
    return [Stored(f"{theirs}{name}", inner, hidden, names.transposed).whole() for name in (names.gate, names.up)]


def _layer_inputs(config: DecoderConfig, hidden: Size) -> Iterator[Spec]:
    """The table of all layers' inputs, the projection of the embeddings to them, and its norm."""
    names, size = config.names, config.layer_input_size
    rows = Size(config.layer_input_vocab_size, f"vocab_size_per_layer_input={config.layer_input_vocab_size}")
    says = f"num_hidden_layers={config.num_layers} of {_INPUT_SIZE}={size}"
    total = Size(config.num_layers * size, f"{says}: {config.num_layers * size}")
    yield TensorSpec("layer_table", f"{names.layer_table}.weight", (rows, total))
    yield _linear("layer_projection", [Stored(str(names.layer_projection), total, hidden).whole()])
    yield from _norm(
        config, Size(size, f"{_INPUT_SIZE}={size}"), "layer_projection_norm", str(names.layer_projection_norm)
    )


def _layer_input(config: DecoderConfig, hidden: Size, ours: str, theirs: str) -> Iterator[Spec]:
    names, size = config.names, Size(config.layer_input_size, f"{_INPUT_SIZE}={config.layer_input_size}")
    yield _linear(f"{ours}input_gate", [Stored(f"{theirs}{names.layer_gate}", size, hidden).whole()])
    yield _linear(f"{ours}input_output", [Stored(f"{theirs}{names.layer_output}", hidden, size).whole()])
    yield from _norm(config, hidden, f"{ours}input_norm", f"{theirs}{names.layer_output_norm}")


def _experts(config: DecoderConfig, experts: ExpertsConfig, hidden: Size, ours: str, theirs: str) -> Iterator[Spec]:
    """The router; the experts' gate and up as one matrix, with gate's rows, then up's rows of each expert; and down.
    Then the MLP that computes every token."""
    names = config.names.experts
    assert names is not None, "a family with experts names them"
    transposed, count = bool(names.transposed), Size(experts.count, f"{experts.count_field}={experts.count}")
    inner = Size(experts.intermediate_size, f"{experts.intermediate_field}={experts.intermediate_size}")
    yield _linear(f"{ours}router", [Stored(theirs + names.router, count, hidden).whole()], experts.router_bias)
    if experts.router_norm:
        yield TensorSpec(f"{ours}router_scale", f"{theirs}{names.router_scale}", (hidden,), "float32")
    if experts.expert_scales:
        yield TensorSpec(f"{ours}expert_scales", f"{theirs}{names.expert_scales}", (count,), "float32")
    if experts.beside_mlp:
        for norm in BESIDE_NORMS:
            yield from _norm(config, hidden, f"{ours}experts.{norm}", f"{theirs}{getattr(names, norm)}")
    if experts.correction:
        shape = (count,) if names.correction_dim == 1 else (Size(1, "one row"), count)
        yield TensorSpec(f"{ours}correction", f"{theirs}{names.correction}", shape, "float32")

    width = hidden
    if experts.latent_size is not None:
        width = Size(experts.latent_size, f"moe_latent_size={experts.latent_size}")
        down = Stored(f"{theirs}{names.latent_down}", width, hidden)
        yield _linear(f"{ours}experts.latent_down", [down.whole()], config.mlp_bias)

    def outputs(*matrices: tuple[str | None, Size, Size, tuple[Rows, ...]]) -> list[Output]:
        """The `rows` of each matrix (name, rows and columns, rows that are used) of each expert."""
        stacks = [
            Stored(f"{theirs}{name}", rows, columns, transposed, count, names.suffix, names.bias_suffix)
            for name, rows, columns, _ in matrices
        ]
        if len(stacks) == 1 and len(matrices[0][3]) == 1 and not transposed and "{}" not in stacks[0].name:
            return [stacks[0].whole()]
        found: list[Output] = []
        for expert in range(experts.count):
            for stack, (_, rows, columns, taken) in zip(stacks, matrices, strict=True):
                stored, index = stack, expert
                if "{}" in stack.name:
                    stored, index = Stored(stack.name.format(expert), rows, columns, transposed), 0
                found += [Output(stored, run, index) for run in taken]
        return found

    whole = (Rows(0, inner.extent),)
    if names.gate_up is not None:
        every_other = tuple(Rows(start, 1, inner.extent, 2) for start in (0, 1))
        taken = every_other if names.alternates else (Rows(0, 2 * inner.extent),)
        ups = outputs((names.gate_up, _twice(inner), width, taken))
    elif config.gated_mlp:
        ups = outputs((names.gate, inner, width, whole), (names.up, inner, width, whole))
    else:
        ups = outputs((names.up, inner, width, whole))
    biases = config.mlp_bias if experts.biases is None else experts.biases
    if experts.latent_size is not None:
        yield _linear(
            f"{ours}experts.latent_up", [Stored(f"{theirs}{names.latent_up}", hidden, width).whole()], config.mlp_bias
        )
    yield _linear(f"{ours}experts.up", ups, biases)
    yield _linear(f"{ours}experts.down", outputs((names.down, width, inner, (Rows(0, width.extent),))), biases)
    if experts.shared_size:
        yield from _shared_mlp(config, experts, names, hidden, ours, theirs)


def _shared_mlp(
    config: DecoderConfig, experts: ExpertsConfig, names: ExpertNames, hidden: Size, ours: str, theirs: str
) -> Iterator[Spec]:
    """The MLP that computes every token, and its router."""
    inner = Size(experts.shared_size, f"{experts.shared_field}={experts.shared_size}")
    if names.shared_gate_up is not None:
        ups = [Stored(theirs + names.shared_gate_up, _twice(inner), hidden).whole()]
    else:
        parts = (names.shared_gate, names.shared_up) if config.gated_mlp else (names.shared_up,)
        ups = [Stored(f"{theirs}{name}", inner, hidden).whole() for name in parts]
    yield _linear(f"{ours}shared.up", ups, config.mlp_bias)
    yield _linear(
        f"{ours}shared.down", [Stored(f"{theirs}{names.shared_down}", hidden, inner).whole()], config.mlp_bias
    )
    if experts.shared_router:
        yield _linear(
            f"{ours}shared.router", [Stored(f"{theirs}{names.shared_router}", Size(1, "one"), hidden).whole()]
        )


def _twice(size: Size) -> Size:
    return Size(2 * size.extent, f"twice {size.says}: {2 * size.extent}")


def _linear(name: str, outputs: list[Output], bias: bool = False) -> LinearSpec:
    return LinearSpec(name, tuple(outputs), outputs[0].stored.columns.extent, bias)


def _norm(config: DecoderConfig, size: Size, name: str, source: str) -> Iterator[TensorSpec]:
    if config.norm_affine:
        yield TensorSpec(f"{name}.weight", f"{source}.weight", (size,), norm_dtype(config), config.norm_offset)
    if config.norm_bias:
        yield TensorSpec(f"{name}.bias", f"{source}.bias", (size,))


def norm_dtype(config: DecoderConfig) -> str | None:
    """The dtype of norms' weights. An offset of 1 hides small weights in bfloat16, and Gemma's were never rounded."""
    return "float32" if config.norm_offset and config.norm == "rms" else None
