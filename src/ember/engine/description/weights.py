"""The decoder's parameters as data: name, shape, and the checkpoint tensors that fill each, row by row. No torch here.

Fused matrices (query, key, value; gate, up) list several parts: the loader reads each part to its rows, so that nothing
is concatenated. Matrices are [out, in] as checkpoints have them.
"""

from __future__ import annotations

from dataclasses import dataclass

from ember.engine.description.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class Part:
    """One checkpoint tensor, placed at `row` of a parameter."""

    source: str
    shape: tuple[int, ...]
    row: int = 0


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of the decoder."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


def parameters(config: DecoderConfig) -> list[Parameter]:
    """Every parameter of the decoder, in the order in which the forward pass meets them."""
    names, hidden, heads = config.names, config.hidden_size, config.head_dim
    embed = config.embed_dim or hidden
    found = [_whole("embed_tokens.weight", f"{names.embed_tokens}.weight", config.vocab_size, embed)]
    if config.position_offset is not None:
        rows = config.max_position_embeddings + config.position_offset
        found.append(_whole("embed_positions.weight", f"{names.embed_positions}.weight", rows, hidden))
    if config.embed_dim is not None:
        found.append(_whole("project_in.weight", f"{names.project_in}.weight", hidden, embed))
        found.append(_whole("project_out.weight", f"{names.project_out}.weight", embed, hidden))
    for layer in range(config.num_layers):
        theirs, ours = names.layer.format(layer), f"layers.{layer}."
        qkv = [(names.query, config.query_size), (names.key, config.kv_size), (names.value, config.kv_size)]
        up = [(names.up, config.intermediate_size)]
        if config.gated_mlp:
            up.insert(0, (str(names.gate), config.intermediate_size))
        found += _norm(config, f"{ours}attention_norm", theirs + names.attention_norm)
        found += _rows(f"{ours}qkv", theirs, qkv, hidden, config.qkv_bias)
        if config.qk_norm:
            found.append(_whole(f"{ours}query_norm.weight", f"{theirs}{names.query_norm}.weight", heads))
            found.append(_whole(f"{ours}key_norm.weight", f"{theirs}{names.key_norm}.weight", heads))
        found += _rows(f"{ours}output", theirs, [(names.output, hidden)], config.query_size, config.output_bias)
        found += _norm(config, f"{ours}mlp_norm", theirs + names.mlp_norm)
        found += _rows(f"{ours}up", theirs, up, hidden, config.mlp_bias)
        found += _rows(f"{ours}down", theirs, [(names.down, hidden)], config.intermediate_size, config.mlp_bias)
    if config.final_norm:
        found += _norm(config, "final_norm", names.final_norm)
    if not config.tie_word_embeddings:
        found.append(_whole("lm_head.weight", f"{names.lm_head}.weight", config.vocab_size, embed))
    return found


def _whole(name: str, source: str, *shape: int) -> Parameter:
    return Parameter(name, shape, (Part(source, shape),))


def _norm(config: DecoderConfig, name: str, source: str) -> list[Parameter]:
    size = config.hidden_size
    found = [_whole(f"{name}.weight", f"{source}.weight", size)] if config.norm_affine else []
    if config.norm_bias:
        found.append(_whole(f"{name}.bias", f"{source}.bias", size))
    return found


def _rows(name: str, prefix: str, sources: list[tuple[str, int]], columns: int, bias: bool) -> list[Parameter]:
    """A linear layer whose output rows are those of `sources` (name, rows), one after the other."""
    weights: list[Part] = []
    biases: list[Part] = []
    row = 0
    for source, rows in sources:
        weights.append(Part(f"{prefix}{source}.weight", (rows, columns), row))
        biases.append(Part(f"{prefix}{source}.bias", (rows,), row))
        row += rows
    found = [Parameter(f"{name}.weight", (row, columns), tuple(weights))]
    if bias:
        found.append(Parameter(f"{name}.bias", (row,), tuple(biases)))
    return found
