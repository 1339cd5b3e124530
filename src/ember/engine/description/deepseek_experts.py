"""Experts in the line of DeepSeek V3 (arXiv 2412.19437): sigmoid scores, a bias for the choice, groups of experts, and
an MLP that computes every token. No torch is imported."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import ExpertsConfig
from ember.engine.description.fields import Fields
from ember.engine.description.read_experts import EXPERT_NAMES, read_experts
from ember.engine.errors import ModelError

DEEPSEEK_NAMES = replace(
    EXPERT_NAMES,
    correction="mlp.gate.e_score_correction_bias",
    shared_gate="mlp.shared_experts.gate_proj",
    shared_up="mlp.shared_experts.up_proj",
    shared_down="mlp.shared_experts.down_proj",
)


def read_deepseek_experts(
    fields: Fields,
    layers: tuple[bool, ...],
    *,
    count: tuple[str, int] = ("n_routed_experts num_local_experts", 128),
    per_token: int = 8,
    size: int = 1408,
    normalised: bool = True,
    scale: tuple[str, float] = ("routed_scaling_factor", 1.0),
    shared: tuple[str, int] = ("n_shared_experts", 1),
    groups: tuple[int, int] = (1, 1),
) -> ExpertsConfig:
    """The experts of the `layers` that have them. The other arguments are the family's names of fields, and its
    defaults; `groups`: those of n_group and topk_group. Raises ModelError."""
    experts = read_experts(fields, count, ("num_experts_per_tok", per_token), ("moe_intermediate_size", size))
    number, chosen = fields.integer("n_group", groups[0]), fields.integer("topk_group", groups[1])
    if experts.count % number or chosen > number:
        raise ModelError(
            f"n_group={number} must divide {experts.count_field}={experts.count}, and topk_group={chosen} be at most "
            "n_group"
        )
    return replace(
        experts,
        layers=() if all(layers) else layers,
        scores="sigmoid",
        normalised=fields.flag("norm_topk_prob", normalised),
        scale=fields.number(*scale),
        wide_router=True,
        correction=True,
        groups=number,
        groups_per_token=chosen,
        shared_size=fields.integer(*shared) * experts.intermediate_size,
        shared_field=f"{shared[0]} * moe_intermediate_size",
    )


def after_dense(fields: Fields, num_layers: int, dense: int, name: str = "first_k_dense_replace") -> tuple[bool, ...]:
    """Whether each layer has experts: all but the first ones, of which `dense` is the default number."""
    dense = fields.integer(name, dense, at_least=0)
    return tuple(layer >= dense for layer in range(num_layers))


def sparse_layers(fields: Fields, absent: tuple[bool, ...]) -> tuple[bool, ...]:
    """Whether each layer has experts, from `mlp_layer_types`; `absent`: in a file without it."""
    kinds = fields.names("mlp_layer_types")
    if not kinds:
        return absent
    if len(kinds) != len(absent):
        raise ModelError(f"mlp_layer_types has {len(kinds)} entries for num_hidden_layers={len(absent)}")
    if not set(kinds) <= {"dense", "sparse"}:
        raise fields.error("mlp_layer_types", "a list of dense and sparse")
    return tuple(kind == "sparse" for kind in kinds)
