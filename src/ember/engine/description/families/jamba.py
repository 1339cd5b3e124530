"""Jamba, Mamba and FalconMamba: Mamba 1 (arXiv 2312.00752). This module does not import torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ember.engine.description.config import DecoderConfig, Mixer
from ember.engine.description.families.nemotron_h import MAMBA2_CONTEXT
from ember.engine.description.families.nemotron_h import NAMES as MAMBA_NAMES
from ember.engine.description.family import ACTIVATIONS, Family, field_names
from ember.engine.description.fields import MAX_LAYERS, Fields
from ember.engine.description.mixers import SelectiveConfig, SelectiveNames
from ember.engine.description.read_experts import read_experts
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder
from ember.engine.description.weight_names import ExpertNames
from ember.engine.errors import ModelError


def selective_names(module: str) -> SelectiveNames:
    """The names of a module's weights."""
    return SelectiveNames(
        inputs=f"{module}.in_proj",
        conv=f"{module}.conv1d",
        rates=f"{module}.x_proj",
        dt=f"{module}.dt_proj",
        decay=f"{module}.A_log",
        skip=f"{module}.D",
        output=f"{module}.out_proj",
        dt_norm=f"{module}.dt_layernorm",
        b_norm=f"{module}.b_layernorm",
        c_norm=f"{module}.c_layernorm",
    )


JAMBA_NAMES = replace(
    LLAMA_NAMES,
    final_norm="model.final_layernorm",
    mlp_norm="pre_ff_layernorm",
    gate="feed_forward.gate_proj",
    up="feed_forward.up_proj",
    down="feed_forward.down_proj",
    selective=selective_names("mamba"),
    experts=ExpertNames(
        router="feed_forward.router",
        gate="feed_forward.experts.{}.gate_proj",
        up="feed_forward.experts.{}.up_proj",
        down="feed_forward.experts.{}.down_proj",
    ),
)


def read_jamba(fields: Fields) -> DecoderConfig:
    """Jamba: Mamba 1 in most layers, attention without positions in the others, and experts in every second one."""
    config = read_rotary_decoder(fields, max_position_embeddings=262144, num_kv_heads=8, reads_rope=False)
    fields.one_of("hidden_act", "silu", ("silu",))  # that of the convolution too
    layers = range(config.num_layers)
    attends = _every(fields, "attn_layer_period", 8, "attn_layer_offset", 4)
    mixers: tuple[Mixer, ...] = tuple("attention" if attends(layer) else "selective" for layer in layers)
    config = replace(config, names=JAMBA_NAMES, layer_mixers=mixers)
    if "selective" in mixers:
        config = replace(
            config,
            selective=SelectiveConfig(
                inner_size=fields.integer("mamba_expand", 2) * config.hidden_size,
                state_dim=fields.integer("mamba_d_state", 16),
                dt_rank=_dt_rank(fields, "mamba_dt_rank", config.hidden_size),
                kernel=fields.integer("mamba_d_conv", 4),
                conv_bias=fields.flag("mamba_conv_bias", True),
                bias=fields.flag("mamba_proj_bias", False),
                norm="weighted",
                norm_eps=config.norm_eps,
            ),
        )
    has_experts = tuple(map(_every(fields, "expert_layer_period", 2, "expert_layer_offset", 1), layers))
    names = [name for name in ("num_experts", "num_local_experts") if fields.values.get(name) is not None]
    if not any(has_experts) or (names and fields.integer(names[0]) == 1):
        return config  # one expert is an MLP without a router, whatever num_experts_per_tok says
    size = (config.intermediate_field, config.intermediate_size)
    experts = read_experts(fields, ("num_experts num_local_experts", 16), ("num_experts_per_tok", 2), size)
    return replace(config, experts=replace(experts, layers=has_experts, normalised=False))


def _every(fields: Fields, period_name: str, period: int, offset_name: str, offset: int) -> Callable[[int], bool]:
    """Whether a layer is one of those at an offset in each period."""
    every = fields.integer(period_name, period)
    first = fields.integer(offset_name, offset, at_least=0)
    if first >= every:
        raise ModelError(f"{offset_name}={first} must be less than {period_name}={every}")
    return lambda layer: layer % every == first


def _dt_rank(fields: Fields, name: str, hidden_size: int) -> int:
    return -(-hidden_size // 16) if fields.values.get(name) in (None, "auto") else fields.integer(name)


def read_mamba(fields: Fields) -> DecoderConfig:
    """Mamba 1 in all layers, and nothing else."""
    hidden_size = fields.integer("hidden_size", 768)
    expanded = fields.integer("expand", 2) * hidden_size
    inner_size = fields.optional_integer("intermediate_size", None) or expanded
    num_layers = fields.integer("num_hidden_layers", 32, at_most=MAX_LAYERS)
    mixers: list[Mixer] = ["selective"] * num_layers
    return DecoderConfig(
        architecture="",
        vocab_size=fields.integer("vocab_size", 50280),
        hidden_size=hidden_size,
        intermediate_size=inner_size,
        num_layers=num_layers,
        num_heads=1,
        num_kv_heads=1,
        head_dim=64,
        max_position_embeddings=MAMBA2_CONTEXT,
        names=replace(MAMBA_NAMES, ssd=None, experts=None, selective=selective_names("mixer"), unused=()),
        norm_eps=fields.number("layer_norm_epsilon", 1e-5, at_least=0.0),
        wiring="alone",
        activation=ACTIVATIONS[fields.one_of("hidden_act", "silu", ("silu",))],
        layer_mixers=tuple(mixers),
        selective=SelectiveConfig(
            inner_size=inner_size,
            state_dim=fields.integer("state_size", 16),
            dt_rank=_dt_rank(fields, "time_step_rank", hidden_size),
            kernel=fields.integer("conv_kernel", 4),
            conv_bias=fields.flag("use_conv_bias", True),
            bias=fields.flag("use_bias", False),
        ),
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
    )


def read_falcon_mamba(fields: Fields) -> DecoderConfig:
    """Mamba 1 with norms of dt, b and c, which have no weights."""
    config = read_mamba(fields)
    assert config.selective is not None
    eps = fields.number("mixer_rms_eps", 1e-6, at_least=0.0)
    return replace(config, selective=replace(config.selective, norm="plain", norm_eps=eps))


# Fields of training and of how the same is computed.
_KERNELS = field_names("use_mamba_kernels use_mambapy use_associative_scan")
JAMBA = Family(
    read_jamba,
    (ROTARY_FIELDS - field_names("rope_theta rope_scaling rope_parameters"))
    - field_names("partial_rotary_factor original_max_position_embeddings")
    | field_names(
        "attn_layer_period attn_layer_offset expert_layer_period expert_layer_offset num_experts num_local_experts "
        "num_experts_per_tok mamba_expand mamba_d_state mamba_dt_rank mamba_d_conv mamba_conv_bias mamba_proj_bias"
    ),
    harmless=dict.fromkeys(
        _KERNELS
        | field_names("num_logits_to_keep sliding_window mamba_inner_layernorms layer_types layers_block_type"),
        (),
    ),
)
MAMBA = Family(
    read_mamba,
    field_names(
        "architectures model_type dtype torch_dtype eos_token_id quantization_config compression_config vocab_size "
        "hidden_size intermediate_size expand num_hidden_layers layer_norm_epsilon hidden_act state_size "
        "time_step_rank conv_kernel use_conv_bias use_bias tie_word_embeddings"
    ),
    harmless=dict.fromkeys(
        _KERNELS
        | field_names(
            "residual_in_fp32 time_step_scale time_step_min time_step_max time_step_init_scheme time_step_floor "
            "rescale_prenorm_residual layer_types d_inner d_model n_layer ssm_cfg rms_norm fused_add_norm "
            "pad_vocab_size_multiple use_falcon_mambapy"
        ),
        (),
    ),
)
FALCON_MAMBA = Family(read_falcon_mamba, MAMBA.fields | {"mixer_rms_eps"}, MAMBA.harmless)
