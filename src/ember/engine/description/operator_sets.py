"""The features of a decoder that each operator set computes. No torch is imported, so a model is refused early.

An operator set (`engine.operators`) computes the operations of a decoder. Each set has its own version of some, and
torch's version of the others. It declares, for every operation of its own, the features (`DecoderConfig.features`) that
this version computes, and which sizes it takes. If a model has another feature or size, torch computes that operation.
A feature that no set declares is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import shown
from ember.engine.description.layouts import ORDERED_INTEGERS, SMALL_TABLES
from ember.engine.errors import ModelError

OPERATIONS = (
    *("embed", "add_norm", "linear", "place_heads", "attend", "place_latents", "attend_latents"),
    *("convolve", "delta_rule", "scan", "selective_scan", "gated_norm", "gate", "experts", "logits"),
)
"""The operations of `operators.base.Operators`, in the order in which a step needs them."""

STATE_OPERATIONS = ("convolve", "delta_rule", "scan", "selective_scan", "gated_norm")
"""The operations of mixers with a state."""

PLANNED_OPERATIONS = ("convolve", "delta_rule", "scan", "selective_scan")
"""Those of them that torch plans on the host (`operators.torch_state`)."""

Lacking = dict[str, str]
"""Operations that torch computes for a set, each with the feature or size that the set lacks."""


def _no_faults(config: DecoderConfig) -> Lacking:
    return {}


@dataclass(frozen=True, slots=True)
class OperatorSet:
    """The declaration of one operator set."""

    name: str
    features: Mapping[str, frozenset[str]]  # for each operation of its own, the features beside the neutral decoder's
    size_faults: Callable[[DecoderConfig], Lacking] = _no_faults
    needs: Mapping[str, str] = field(default_factory=dict)  # operations that work only beside another one of the set
    layouts: frozenset[str] = frozenset({"Linear"})  # of weights that it multiplies; torch restores others

    def lacking(self, config: DecoderConfig) -> Lacking:
        """The operations of the set that it cannot compute for this decoder."""
        found = {
            operation: fault for operation, fault in self.size_faults(config).items() if operation in self.features
        }
        for feature, value in config.features().items():
            for operation, own in self.features.items():
                if feature in TORCH.features[operation] and feature not in own:
                    found.setdefault(operation, described(feature, value))
        for operation, needed in self.needs.items():
            if needed in found:
                found.setdefault(operation, found[needed])
        return {
            operation: found[operation]
            for operation in OPERATIONS
            if operation in found and is_needed(config, operation)
        }


def is_needed(config: DecoderConfig, operation: str) -> bool:
    """Whether the decoder needs an operation: those of a kind of mixers only where a layer has it."""
    if operation in ("place_latents", "attend_latents"):
        return config.latent is not None
    if operation in ("place_heads", "attend"):
        return not config.layer_mixers or "attention" in config.layer_mixers
    return True


NATIVE_LOOP = frozenset({"wiring=sandwich", "residual_scale", "experts"}) | {
    *("experts.scores=sigmoid", "experts.normalised=False", "experts.scale", "experts.router_bias"),
    *("experts.wide_router", "experts.correction", "experts.groups", "experts.shared_size", "experts.shared_router"),
}
"""The features of the layer loop and of experts that the C library computes in the loop of its own."""

LOOP = frozenset(
    {
        "wiring=post_norm",
        "wiring=output_norm",
        "wiring=normed_residual",
        "wiring=sandwich",
        "wiring=parallel",
        "wiring=alone",
        "first_norm=False",
        "layer_order",
        "text_conv",
        "residual_scale",
        "final_norm=False",
        "layer_intermediate_sizes",
        "layer_input_size",
        "layer_scalar",
        "experts.beside_mlp",
        "attention_gate",
        "head_gate",
        "delta",
        "conv",
        "ssd",
        "selective",
        "selective.norm=weighted",
        "selective.norm=plain",
        "ssd.norm=none",
        "ssd.input_scale",
        "ssd.gate_scale",
        "ssd.channel_scales",
        "ssd.dt_scale",
        "ssd.output_scale",
        "ssd_beside_attention",
        "attention_input_scale",
        "attention_output_scale",
        "gate_scale",
        "mlp_output_scale",
    }
)
"""The features that the layer loop itself computes (`models.decoder`), over the operations of any set."""

_BIASES = frozenset({"qkv_bias", "output_bias", "mlp_bias"})
_ROPE_KINDS = frozenset(
    f"rope.kind={kind}" for kind in ("linear", "dynamic", "llama3", "yarn", "longrope", "proportional")
)
_HEAD_SIZES = frozenset({"layer_head_dims", "layer_kv_heads", "shared_kv_layers"})
_HEADS = _ROPE_KINDS | {"qk_norm=head", "qk_norm=plain", "rope", "rope.reversed"}
_NORMS = frozenset({"norm=layer", "norm_bias", "norm_affine=False"})
_GATES = frozenset(
    {"activation=relu", "activation=relu2", "activation=gelu", "activation=gelu_tanh", "gated_mlp=False"}
)

_EXPERTS = frozenset(
    {
        *("experts", "experts.scores=sigmoid", "experts.scores=sparsemixer", "experts.normalised=False"),
        *(
            "experts.scale",
            "experts.scales_input",
            "experts.router_bias",
            "experts.wide_router",
            "experts.correction",
            "experts.groups",
            "experts.best_of_group",
        ),
        *("experts.shared_size", "experts.shared_router", "experts.router_norm", "experts.expert_scales"),
        "experts.latent_size",
    }
)

_LATENTS = _ROPE_KINDS | {"latent", "rope", "rope.interleaved", "rope.query_beta"}

TORCH = OperatorSet(
    "torch",
    {
        "embed": frozenset(
            {"position_offset", "embed_scale", "embed_norm", "embed_dim", "projects_sum", "token_types"}
        ),
        "add_norm": _NORMS,
        "linear": _BIASES,
        "place_heads": _HEADS
        | {"qk_norm=all", "qk_norm=layer", "qk_norm=layer_bias", "nope_beta", "qkv_clip", "clips_after_norm"}
        | {"rope_before_norm", "rope_layers", "local_rope", "rope.interleaved", "rope.query_beta"}
        | {"value_norm", "key_value_layers", "bidirectional"}
        | _HEAD_SIZES,
        "attend": frozenset({"attention_scale", "divides_scale_by_layer", "attention_soft_cap", "attention_sinks"})
        | {"sliding_window", "window_is_chunk", "alibi", "bidirectional", "distance_bias", "disentangled"}
        | _HEAD_SIZES,
        "place_latents": _LATENTS,
        "attend_latents": frozenset({"latent", "attention_scale"}),
        "convolve": frozenset({"delta", "conv", "ssd", "selective"}),
        "delta_rule": frozenset({"delta", "delta.tiled"}),
        "scan": frozenset({"ssd"}),
        "selective_scan": frozenset({"selective"}),
        "gated_norm": frozenset({"delta", "ssd", "ssd.norm=before_gate"}),
        "gate": _GATES | {"activation=xielu", "swiglu_limit"},
        "experts": _EXPERTS,
        "logits": frozenset({"embed_dim", "logits_scale", "logits_soft_cap", "head_bias"}),
    },
)

ONLY_CAUSAL = frozenset(
    {"attention_soft_cap", "attention_sinks", "window_is_chunk", "alibi", "latent", "delta", "conv", "ssd"}
) | {"shared_kv_layers"}
"""The features that no set computes in a model that is bidirectional."""

TORCH_MAX_GATHER = 32_768  # tokens whose K and V its attention copies at once for a group of decodes

TRITON_MAX_HIDDEN = 16384  # ember_kernels.norm.MAX_HIDDEN
TRITON_MAX_HEAD_DIM = 512  # ember_kernels.attention.MAX_HEAD_DIM
TRITON_MAX_STATE_ROWS = 256  # of a head's state, which a program holds in registers
# Of the matrices of all experts: one plain tensor, or one layer.
TRITON_EXPERT_LAYOUTS = tuple(
    frozenset({layout})
    for layout in ("Linear", "BlockLinear", "Float8Linear", "IntLinear", "TableLinear", SMALL_TABLES)
)
TRITON_EXPERT_ALIGNMENT = 16  # elements: row lengths of the experts' matrices are multiples of it


def _head_dims(config: DecoderConfig) -> set[int]:
    """The sizes of heads of the layers with attention."""
    if not config.layer_mixers:
        return {heads.head_dim for heads in config.all_heads()}
    return {config.heads(layer).head_dim for layer, mixer in enumerate(config.layer_mixers) if mixer == "attention"}


def _triton_faults(config: DecoderConfig) -> Lacking:
    faults: Lacking = {}
    if config.hidden_size > TRITON_MAX_HIDDEN:
        faults["add_norm"] = f"hidden_size={config.hidden_size} is above {TRITON_MAX_HIDDEN}"
    for head_dim in _head_dims(config):
        if head_dim % 16 or head_dim > TRITON_MAX_HEAD_DIM:
            faults["attend"] = f"head_dim={head_dim} is no multiple of 16 up to {TRITON_MAX_HEAD_DIM}"
    if config.latent is not None and config.latent.kv_rank > TRITON_MAX_HEAD_DIM:
        faults["attend_latents"] = f"kv_lora_rank={config.latent.kv_rank} is above {TRITON_MAX_HEAD_DIM}"
    if config.value_norm and (config.qk_norm is None or config.qk_norm_layers):
        faults["place_heads"] = "value_norm in layers without qk_norm"
    if config.delta is not None and config.delta.key_dim > TRITON_MAX_STATE_ROWS:
        faults["delta_rule"] = f"linear_key_head_dim={config.delta.key_dim} is above {TRITON_MAX_STATE_ROWS}"
    if config.ssd is not None and config.ssd.state_dim > TRITON_MAX_STATE_ROWS:
        faults["scan"] = f"a state of {config.ssd.state_dim} is above {TRITON_MAX_STATE_ROWS}"
    if config.selective is not None and config.selective.state_dim > TRITON_MAX_STATE_ROWS:
        faults["selective_scan"] = f"a state of {config.selective.state_dim} is above {TRITON_MAX_STATE_ROWS}"
    if config.ssd is not None and config.ssd.inner_size // config.ssd.groups > TRITON_MAX_HIDDEN:
        faults["gated_norm"] = f"a norm of {config.ssd.inner_size // config.ssd.groups} is above {TRITON_MAX_HIDDEN}"
    if config.experts is not None:
        width = config.experts.latent_size
        sizes = {"hidden_size": config.hidden_size} if width is None else {"moe_latent_size": width}
        sizes |= {config.experts.intermediate_field: config.experts.intermediate_size}
        for name, size in sizes.items():
            if size % TRITON_EXPERT_ALIGNMENT:
                faults["experts"] = f"{name}={size} is no multiple of {TRITON_EXPERT_ALIGNMENT}"
    return faults


TRITON = OperatorSet(
    "triton",
    {
        "add_norm": _NORMS,
        "place_heads": _HEADS
        | {"rope_layers", "local_rope", "rope.interleaved", "value_norm", "key_value_layers", "bidirectional"}
        | _HEAD_SIZES,
        "attend": frozenset({"attention_scale", "divides_scale_by_layer", "attention_soft_cap", "attention_sinks"})
        | {"sliding_window", "window_is_chunk", "alibi", "bidirectional", "distance_bias"}
        | _HEAD_SIZES,
        "place_latents": _LATENTS,
        "attend_latents": frozenset({"latent", "attention_scale"}),
        "gate": _GATES | {"swiglu_limit"},
        "experts": _EXPERTS,
        "convolve": frozenset({"delta", "conv", "ssd", "selective"}),
        "delta_rule": frozenset({"delta", "delta.tiled"}),
        "scan": frozenset({"ssd"}),
        "selective_scan": frozenset({"selective"}),
        "gated_norm": frozenset({"delta", "ssd", "ssd.norm=before_gate"}),
    },
    _triton_faults,
    # It writes keys to the cache alone, where torch's attention does not read them all, and absorbs queries.
    needs={"place_heads": "attend", "place_latents": "attend_latents", "attend_latents": "place_latents"},
    layouts=frozenset(
        {"Linear", "BlockLinear", "Float8Linear", "IntLinear", ORDERED_INTEGERS, "TableLinear", SMALL_TABLES}
    ),  # `operators.triton_linear.MODULES`
)

NATIVE_ALIGNMENT = 32  # elements: rows of matrices and heads are whole registers
NATIVE_MAX_HEAD_DIM = 256
NATIVE_MAX_SIZE = 1 << 17  # elements of a row: some are kept on a thread's stack


def native_sizes(config: DecoderConfig) -> dict[str, int]:
    """The row lengths of a decoder's matrices, by the fields that they come from."""
    sizes = {"hidden_size": config.hidden_size}
    if config.latent is not None:
        sizes |= {
            "kv_lora_rank": config.latent.kv_rank,
            "num_heads * v_head_dim": config.num_heads * config.latent.value_dim,
        }
        sizes |= {"q_lora_rank": config.latent.query_rank} if config.latent.query_rank else {}
    if config.delta is not None:
        sizes["linear_num_value_heads * linear_value_head_dim"] = config.delta.value_size
    if config.ssd is not None:
        sizes["the size of Mamba 2's heads"] = config.ssd.inner_size
    if config.selective is not None:
        sizes |= {"the inner size of Mamba": config.selective.inner_size, "its rank of dt": config.selective.dt_rank}
    for head_dim in sorted(_head_dims(config)):
        name = f"num_heads * {head_dim}" if config.layer_head_dims else "num_heads * head_dim"
        sizes[name] = config.num_heads * head_dim
    if any(map(config.has_mlp, range(config.num_layers))):
        sizes[config.intermediate_field] = config.intermediate_size
    if config.layer_intermediate_sizes:
        sizes |= {f"{config.intermediate_field} of a layer": max(config.layer_intermediate_sizes)}
    if config.layer_input_size:
        sizes["hidden_size_per_layer_input"] = config.layer_input_size
    if config.experts is not None:
        sizes[config.experts.intermediate_field] = config.experts.intermediate_size
        if config.experts.shared_size:
            sizes[config.experts.shared_field] = config.experts.shared_size
        if config.experts.latent_size is not None:
            sizes["moe_latent_size"] = config.experts.latent_size
    return sizes | ({"embed_dim": config.embed_dim} if config.embed_dim else {})


def _native_faults(config: DecoderConfig) -> Lacking:
    faults: Lacking = {}
    for name, size in native_sizes(config).items():
        if size % NATIVE_ALIGNMENT or size > NATIVE_MAX_SIZE:
            fault = f"{name}={size} is no multiple of {NATIVE_ALIGNMENT} up to {NATIVE_MAX_SIZE}"
            faults |= dict.fromkeys(("linear", "logits", "add_norm"), fault)
    if _head_dims(config) and (config.head_dim % NATIVE_ALIGNMENT or config.head_dim > NATIVE_MAX_HEAD_DIM):
        fault = f"head_dim={config.head_dim} is no multiple of {NATIVE_ALIGNMENT} up to {NATIVE_MAX_HEAD_DIM}"
        faults |= dict.fromkeys(("place_heads", "attend"), fault)
    return faults


NATIVE = OperatorSet(
    "native",
    {
        "add_norm": frozenset({"norm_affine=False"}),
        "linear": _BIASES,
        "place_heads": _HEADS
        | {"rope_before_norm", "rope_layers", "local_rope", "rope.interleaved", "rope.query_beta"},
        "attend": frozenset({"attention_scale", "divides_scale_by_layer", "attention_soft_cap"})
        | {"sliding_window", "window_is_chunk"},
        "gate": frozenset({"activation=gelu_tanh"}),
        "experts": _EXPERTS,  # each expert by its own products
        "logits": frozenset({"embed_dim", "logits_scale", "logits_soft_cap", "head_bias"}),
    },
    _native_faults,
    # `operators.native_matrix.matrix_of`
    layouts=frozenset(
        {"Linear", "BlockLinear", "IntLinear", ORDERED_INTEGERS, "Float8Linear", "TableLinear", "SparseTableLinear"}
    ),
)

SETS = (TORCH, TRITON, NATIVE)


def described(feature: str, value: object) -> str:
    """A feature with its value, for a message."""
    return feature if "=" in feature else f"{feature}={shown(value)}"


def check_features(config: DecoderConfig) -> None:
    """Raise ModelError that names the features that no operator set computes, with their values."""
    known = LOOP.union(*TORCH.features.values())
    where = ""
    if config.bidirectional:
        known, where = known - ONLY_CAUSAL, " with use_bidirectional_attention (or is_causal=false)"
    unknown = [described(name, value) for name, value in config.features().items() if name not in known]
    if unknown:
        raise ModelError(f"no operators compute {', '.join(unknown)}{where}: {config.architecture} cannot be served")
