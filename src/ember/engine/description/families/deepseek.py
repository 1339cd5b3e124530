"""DeepSeek V2 and V3 (arXiv 2405.04434, 2412.19437), Kimi K2, GLM-4.7-Flash, Youtu, Mistral 4: latent attention.

Kimi K2 and Moonlight are of V3's class. This module does not import torch.
"""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.deepseek_experts import (
    DEEPSEEK_NAMES,
    after_dense,
    read_deepseek_experts,
    sparse_layers,
)
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.read_latent import (
    LATENT_FIELDS,
    LATENT_HARMLESS,
    LATENT_NAMES,
    LatentSizes,
    read_latent_decoder,
)
from ember.engine.description.read_rope import RopeForm
from ember.engine.errors import ModelError

NAMES = replace(LATENT_NAMES, experts=DEEPSEEK_NAMES)
_STACKED = replace(DEEPSEEK_NAMES, gate=None, up=None, gate_up="mlp.experts.gate_up_proj", down="mlp.experts.down_proj")
_MOE_FIELDS = field_names(
    "n_routed_experts num_experts_per_tok moe_intermediate_size n_group topk_group norm_topk_prob "
    "routed_scaling_factor n_shared_experts first_k_dense_replace moe_layer_freq topk_method scoring_func"
)
_V3_FIELDS = field_names("rope_interleave num_local_experts num_nextn_predict_layers num_mtp_layers")
# Fields of training, of how experts are spread over devices, and of the code that came with older files.
_HARMLESS = LATENT_HARMLESS | dict.fromkeys(field_names("aux_loss_alpha seq_aux ep_size auto_map"), ())


def read_v3(fields: Fields) -> DecoderConfig:
    """Sigmoid scores with a correction for the choice, groups by their two best experts, layers after the last that
    predict further tokens."""
    config = read_latent_decoder(fields, max_position_embeddings=4096)
    _check_router(fields, "sigmoid", ("noaux_tc",))
    experts = read_deepseek_experts(
        fields,
        after_dense(fields, config.num_layers, 3),
        count=("n_routed_experts num_local_experts", 256),
        size=2048,
        scale=("routed_scaling_factor", 2.5),
        groups=(8, 4),
    )
    return _with_extra_layers(fields, replace(config, names=NAMES, experts=experts), 1)


def read_v2(fields: Fields) -> DecoderConfig:
    """Softmax scores, and groups by their best expert."""
    config = read_latent_decoder(
        fields, max_position_embeddings=2048, rope=RopeForm(interleaved=True), interleaved=None
    )
    config = replace(config, mlp_bias=fields.flag("mlp_bias", False))
    _check_router(fields, "softmax", ("greedy", "group_limited_greedy"))
    if fields.flag("norm_topk_prob", False):
        raise fields.error("norm_topk_prob", "false: sums of scores are not supported for this class")
    experts = read_deepseek_experts(
        fields,
        after_dense(fields, config.num_layers, 0),
        count=("n_routed_experts num_experts", 64),
        per_token=6,
        size=1407,
        normalised=False,
        shared=("n_shared_experts", 2),
    )
    experts = replace(experts, scores="softmax", correction=False, best_of_group=1, biases=False)
    if fields.text("topk_method", "greedy") == "greedy":
        experts = replace(experts, groups=1, groups_per_token=1)
    return replace(config, names=NAMES, experts=experts)


def read_glm_lite(fields: Fields) -> DecoderConfig:
    """GLM-4.7-Flash: V3 with other sizes."""
    sizes = LatentSizes(query_rank=768, plain_dim=192, value_dim=256)
    config = read_latent_decoder(fields, max_position_embeddings=202752, sizes=sizes, norm_eps=1e-5)
    _check_router(fields, "sigmoid", ("noaux_tc",))
    experts = read_deepseek_experts(
        fields,
        sparse_layers(fields, after_dense(fields, config.num_layers, 1)),
        count=("n_routed_experts num_local_experts", 64),
        per_token=4,
        size=1536,
        scale=("routed_scaling_factor", 1.8),
    )
    return _with_extra_layers(fields, replace(config, names=NAMES, experts=experts), 0)


def read_mistral4(fields: Fields) -> DecoderConfig:
    """Mistral 4: softmax scores, groups by their two best experts, queries that are scaled by their positions."""
    rope = RopeForm(reads_query_beta=True, absent=_MISTRAL4_ROPE)
    config = read_latent_decoder(
        fields,
        max_position_embeddings=1048576,
        sizes=LatentSizes(kv_rank=256, query_rank=1024, plain_dim=64),
        rope=rope,
        shares_head=True,
    )
    experts = read_deepseek_experts(
        fields,
        after_dense(fields, config.num_layers, 0),
        count=("n_routed_experts num_local_experts", 128),
        per_token=4,
        size=2048,
    )
    experts = replace(experts, scores="softmax", correction=False, wide_router=False)
    return replace(config, names=replace(NAMES, experts=_STACKED), experts=experts)


def read_youtu(fields: Fields) -> DecoderConfig:
    """Youtu: V3's attention, and an MLP in every layer."""
    return read_latent_decoder(fields, max_position_embeddings=131072, tie_word_embeddings=True)


def _with_extra_layers(fields: Fields, config: DecoderConfig, default: int) -> DecoderConfig:
    further = fields.integer("num_mtp_layers", default, at_least=0)
    further = fields.integer("num_nextn_predict_layers", further, at_least=0)
    return replace(config, num_extra_layers=further)


def _check_router(fields: Fields, scores: str, methods: tuple[str, ...]) -> None:
    """Raise ModelError for a router of another kind than that of the class."""
    fields.one_of("scoring_func", scores, (scores,))
    fields.one_of("topk_method", methods[0], methods)
    if fields.integer("moe_layer_freq", 1) != 1:
        raise ModelError(f"moe_layer_freq={fields.values['moe_layer_freq']} is not supported: it must be 1")


_MISTRAL4_ROPE = {
    "type": "yarn",
    "rope_theta": 10000.0,
    "factor": 128.0,
    "original_max_position_embeddings": 8192,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}

V3 = Family(read_v3, LATENT_FIELDS | _MOE_FIELDS | _V3_FIELDS, _HARMLESS)
V2 = Family(read_v2, LATENT_FIELDS | _MOE_FIELDS | {"mlp_bias", "num_experts"}, _HARMLESS)
GLM_LITE = Family(read_glm_lite, V3.fields | {"mlp_layer_types"}, _HARMLESS)
MISTRAL4 = Family(
    read_mistral4,
    LATENT_FIELDS
    | _MOE_FIELDS - field_names("moe_layer_freq topk_method scoring_func")
    | field_names("rope_interleave num_local_experts"),
    LATENT_HARMLESS,
)
YOUTU = Family(read_youtu, LATENT_FIELDS | {"rope_interleave"}, LATENT_HARMLESS | {"embedding_initializer_range": ()})
