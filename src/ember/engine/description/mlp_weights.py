"""The weights of a layer's MLP, and of its router and experts, as data. This module does not import torch."""

from __future__ import annotations

from collections.abc import Iterator

from ember.engine.description.config import DecoderConfig, ExpertsConfig
from ember.engine.description.weight_names import ExpertNames
from ember.engine.description.weights import (
    Output,
    Rows,
    Size,
    Spec,
    Stored,
    TensorSpec,
    linear_spec,
    norm_specs,
    twice,
)

BESIDE_NORMS = ("mlp_output_norm", "input_norm", "output_norm")  # of experts beside an MLP
# The weights of the activation xielu (arXiv 2411.13010) by their names in checkpoints.
XIELU_WEIGHTS: dict[str, tuple[Size, ...]] = {
    "alpha_p": (Size(1, "activation xielu"),),
    "alpha_n": (Size(1, "activation xielu"),),
    "beta": (),
    "eps": (),
}


def mlp_specs(config: DecoderConfig, hidden: Size, layer: int, ours: str, theirs: str) -> Iterator[Spec]:
    """The matrices of a layer's MLP, gate and up as one, and the weights of its activation."""
    names, inner = config.names, _mlp_size(config, layer)
    up_bias = config.mlp_bias if config.up_bias is None else config.up_bias
    yield linear_spec(f"{ours}up", _up(config, hidden, inner, theirs), up_bias)
    if config.activation == "xielu":
        for name, shape in XIELU_WEIGHTS.items():
            yield TensorSpec(f"{ours}activation.{name}", f"{theirs}{names.activation}.{name}", shape)
    down = Stored(f"{theirs}{names.down}", hidden, inner, names.transposed)
    yield linear_spec(f"{ours}down", [down.whole()], config.mlp_bias)


def _mlp_size(config: DecoderConfig, layer: int) -> Size:
    size, common = config.mlp_size(layer), config.intermediate_size
    says = f"{config.intermediate_field}={common}"
    return Size(size, says if size == common else f"{says} in layers with MLPs of {size}")


def _up(config: DecoderConfig, hidden: Size, inner: Size, theirs: str) -> list[Output]:
    """The rows of gate, if there is one, and up."""
    names = config.names
    if not config.gated_mlp:
        return [Stored(f"{theirs}{names.up}", inner, hidden, names.transposed).whole()]
    if names.gate_up is not None:
        return [Stored(theirs + names.gate_up, twice(inner), hidden, names.transposed).whole()]
    if names.up_gate is not None:
        stored, size = Stored(theirs + names.up_gate, twice(inner), hidden, names.transposed), inner.extent
        return [Output(stored, Rows(first, size)) for first in (size, 0)]
    return [Stored(f"{theirs}{name}", inner, hidden, names.transposed).whole() for name in (names.gate, names.up)]


def expert_specs(config: DecoderConfig, experts: ExpertsConfig, hidden: Size, ours: str, theirs: str) -> Iterator[Spec]:
    """The router; the experts' gate and up as one matrix, with gate's rows, then up's rows of each expert; and down.
    Then the MLP that computes every token."""
    names = config.names.experts
    assert names is not None, "a family with experts names them"
    transposed, count = bool(names.transposed), Size(experts.count, f"{experts.count_field}={experts.count}")
    inner = Size(experts.intermediate_size, f"{experts.intermediate_field}={experts.intermediate_size}")
    yield linear_spec(f"{ours}router", [Stored(theirs + names.router, count, hidden).whole()], experts.router_bias)
    if experts.router_norm:
        yield TensorSpec(f"{ours}router_scale", f"{theirs}{names.router_scale}", (hidden,), "float32")
    if experts.expert_scales:
        yield TensorSpec(f"{ours}expert_scales", f"{theirs}{names.expert_scales}", (count,), "float32")
    if experts.beside_mlp:
        for norm in BESIDE_NORMS:
            yield from norm_specs(config, hidden, f"{ours}experts.{norm}", f"{theirs}{getattr(names, norm)}")
    if experts.correction:
        shape = (count,) if names.correction_dim == 1 else (Size(1, "one row"), count)
        yield TensorSpec(f"{ours}correction", f"{theirs}{names.correction}", shape, "float32")

    width = hidden
    if experts.latent_size is not None:
        width = Size(experts.latent_size, f"moe_latent_size={experts.latent_size}")
        down = Stored(f"{theirs}{names.latent_down}", width, hidden)
        yield linear_spec(f"{ours}experts.latent_down", [down.whole()], config.mlp_bias)

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
        ups = outputs((names.gate_up, twice(inner), width, taken))
    elif config.gated_mlp:
        ups = outputs((names.gate, inner, width, whole), (names.up, inner, width, whole))
    else:
        ups = outputs((names.up, inner, width, whole))
    biases = config.mlp_bias if experts.biases is None else experts.biases
    if experts.latent_size is not None:
        yield linear_spec(
            f"{ours}experts.latent_up", [Stored(f"{theirs}{names.latent_up}", hidden, width).whole()], config.mlp_bias
        )
    yield linear_spec(f"{ours}experts.up", ups, biases)
    yield linear_spec(f"{ours}experts.down", outputs((names.down, width, inner, (Rows(0, width.extent),))), biases)
    if experts.shared_size:
        yield from _shared_mlp(config, experts, names, hidden, ours, theirs)


def _shared_mlp(
    config: DecoderConfig, experts: ExpertsConfig, names: ExpertNames, hidden: Size, ours: str, theirs: str
) -> Iterator[Spec]:
    """The MLP that computes every token, and its router."""
    inner = Size(experts.shared_size, f"{experts.shared_field}={experts.shared_size}")
    if names.shared_gate_up is not None:
        ups = [Stored(theirs + names.shared_gate_up, twice(inner), hidden).whole()]
    else:
        parts = (names.shared_gate, names.shared_up) if config.gated_mlp else (names.shared_up,)
        ups = [Stored(f"{theirs}{name}", inner, hidden).whole() for name in parts]
    yield linear_spec(f"{ours}shared.up", ups, config.mlp_bias)
    yield linear_spec(
        f"{ours}shared.down", [Stored(f"{theirs}{names.shared_down}", hidden, inner).whole()], config.mlp_bias
    )
    if experts.shared_router:
        yield linear_spec(
            f"{ours}shared.router", [Stored(f"{theirs}{names.shared_router}", Size(1, "one"), hidden).whole()]
        )
