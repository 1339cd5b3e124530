"""A GGUF file's metadata as a config.json, and what the decoder of the file differs in. No torch is imported."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import listed, shown
from ember.engine.description.gguf.architectures import ARCHITECTURES, Architecture, Values
from ember.engine.description.gguf.facts import Facts
from ember.engine.description.gguf.names import gguf_names
from ember.engine.description.gguf.pooling import classifier_fields, read_modules
from ember.engine.description.pooling import Modules
from ember.engine.errors import ModelError
from ember.gguf.header import Metadata, Tensor
from ember.gguf.types import BLOCKS
from ember.gguf.vocabulary import end_token_ids

_OTHER_KINDS = {"adapter": "a LoRA adapter", "imatrix": "an importance matrix", "mmproj": "a vision projector"}


@dataclass(frozen=True, slots=True)
class GgufModel:
    """What a file says of its model. `fields`: a config.json, of which a family reads the fields that it knows."""

    facts: Facts
    architecture: Architecture
    fields: Values

    def adapted(self, config: DecoderConfig) -> DecoderConfig:
        """The decoder that the family read from `fields`, with the names and the forms of the file's tensors."""
        has, rope = self.facts.has, config.rope
        if rope is not None:
            rope = replace(rope, interleaved=self.architecture.interleaved)
        local = config.local_rope
        if local is not None:
            local = replace(local, interleaved=self.architecture.interleaved)
        experts = config.experts
        if experts is not None:
            experts = replace(
                experts,
                router_bias=has("ffn_gate_inp.bias"),
                correction=has("exp_probs_b.bias"),
                shared_size=self._shared_size(config.gated_mlp) if experts.shared_size else 0,
                shared_router=has("ffn_gate_inp_shexp.weight"),
            )
        own = dict(self.architecture.names)
        if has("attn_norm_2.weight"):  # Falcon's norm of attention; `attn_norm` is that of the MLP
            own |= {"attention_norm": "attn_norm_2", "mlp_norm": "attn_norm"}
        config = replace(
            config,
            names=gguf_names(config, self.facts.of_layers, own),
            rope=rope,
            local_rope=local,
            experts=experts,
            qkv_bias=has("attn_q.bias") or has("attn_qkv.bias"),
            output_bias=has("attn_output.bias"),
            mlp_bias=has("ffn_down.bias") or has("ffn_down_exps.bias"),
            head_bias=has("output.bias"),
            tie_word_embeddings=not has("output.weight"),
            dtype=self._dtype(),
            quantization={"quant_method": "gguf", "types": self._types()},
            num_extra_layers=self.facts.integer("nextn_predict_layers", 0),
        )
        config = self.architecture.adapt(self.facts, config)
        if not (unread := self.facts.unread()):
            return config
        warning = (
            f"metadata that Ember does not read for {self.facts.architecture}: {listed(unread)}. Where one of them "
            "changes what the model computes, its answers are not those that it was trained for"
        )
        return replace(config, warnings=(*config.warnings, warning))

    def modules(self) -> Modules:
        """What the file says of pooling."""
        return read_modules(self.facts)

    def _shared_size(self, is_gated: bool) -> int:
        """The size of the MLP that computes every token, 0 if there is none: a matrix of it with its gate has twice as
        many rows."""
        rows = self.facts.rows("ffn_up_shexp.weight") or 0
        return rows // 2 if is_gated and not self.facts.has("ffn_gate_shexp.weight") else rows

    def _types(self) -> dict[str, str]:
        """The type of each quantised tensor."""
        return {name: each.type.name for name, each in self.facts.tensors.items() if each.type.name in BLOCKS}

    def _dtype(self) -> str:
        """The dtype that most of the matrices' bytes have; bfloat16 for those that are quantised."""
        sizes: Counter[str] = Counter()
        for tensor in self.facts.tensors.values():
            if len(tensor.shape) > 1:
                sizes[tensor.type.name] += tensor.nbytes
        largest = sizes.most_common(1)[0][0] if sizes else "F32"
        return {"F32": "float32", "F64": "float32", "F16": "float16"}.get(largest, "bfloat16")


def read_gguf_model(metadata: Metadata, tensors: Mapping[str, Tensor]) -> GgufModel:
    """Read the metadata of a model. Raises ModelError for a file of another kind or an unknown architecture."""
    name, kind = metadata.text("general.architecture"), metadata.text("general.type")
    if name == "clip" or kind in _OTHER_KINDS:
        what = _OTHER_KINDS.get(kind or "", "a vision projector")
        raise ModelError(f"{metadata.file} is {what}, not a language model: set MODEL_NAME to that model's file")
    if name not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        given = "no general.architecture" if name is None else f"the architecture {shown(name)[1:-1]}"
        raise ModelError(
            f"{metadata.file} has {given}, which is not supported in GGUF files; supported are {supported}"
        )
    architecture, facts = ARCHITECTURES[name], Facts(metadata, name, tensors)
    model = architecture.model if isinstance(architecture.model, str) else architecture.model(facts)
    fields = {"architectures": [model], **_common_fields(facts, architecture), **architecture.fields(facts)}
    if not facts.flag("attention.causal", True) and name not in ("bert", "nomic-bert"):
        fields["is_causal"] = False
    if classes := classifier_fields(facts):
        fields |= {"architectures": [_with_classes(model)], **classes}
    if ends := end_token_ids(metadata):
        fields["eos_token_id"] = ends
    return GgufModel(facts, architecture, fields)


def _with_classes(model: str) -> str:
    """The class for classification of a class of models."""
    return model.removesuffix("ForCausalLM").removesuffix("Model") + "ForSequenceClassification"


def _common_fields(facts: Facts, architecture: Architecture) -> Values:
    """The fields that most families read, under their usual names."""
    layers, hidden = facts.num_layers, facts.integer("embedding_length")
    heads = facts.integer("attention.head_count")
    if heads < 1 and architecture.has_attention:
        raise ModelError(f"{facts.metadata.file}: attention.head_count must be at least 1, not {heads}")
    head_dim = facts.integer("attention.key_length", hidden // max(heads, 1))
    if architecture.is_latent:
        head_dim = facts.integer("rope.dimension_count")
    elif facts.integer("attention.value_length", head_dim) != head_dim:
        raise ModelError(f"{facts.metadata.file}: keys and values of different lengths are not supported")

    def size(name: str, default: int) -> int:
        """The largest of all layers, if they may differ."""
        return max(facts.of_each_layer(name, default)) if architecture.differs else facts.integer(name, default)

    embedding = facts.tensors.get("token_embd.weight")
    if embedding is None or not embedding.shape:
        raise ModelError(f"{facts.metadata.file} has no tensor token_embd.weight: it is no language model")
    window = facts.integer("attention.sliding_window", 0) or None
    values: Values = {
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": facts.integer("context_length"),
        "intermediate_size": size("feed_forward_length", 0) or None,
        "attention_bias": facts.has("attn_q.bias") or facts.has("attn_qkv.bias"),
        "num_local_experts": facts.integer("expert_count", 0) or None,
        "num_experts_per_tok": facts.integer("expert_used_count", 0) or None,
        "sliding_window": window,
        "layer_types": None if window is None else _layer_types(facts, layers),
        "rope_parameters": _rope(facts, layers, None if architecture.is_latent else head_dim),
        "original_max_position_embeddings": facts.integer("rope.scaling.original_context_length", 0) or None,
    }
    for key, names in _EPSILONS.items():
        if facts.optional(key) is not None or key == _required_epsilon(facts):
            values |= dict.fromkeys(names, facts.number(key))
    return {name: value for name, value in values.items() if value is not None or name == "sliding_window"}


_EPSILONS = {
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
}
# The architectures whose norms subtract the mean.
_LAYER_NORMS = (
    *("gpt2", "starcoder", "starcoder2", "gptneox", "falcon", "bloom", "mpt", "stablelm", "olmo", "phi2"),
    *("command-r", "cohere2", "nemotron", "jais2", "orion", "bert", "nomic-bert"),
)


def _required_epsilon(facts: Facts) -> str | None:
    """The key that a file without any epsilon lacks: what a family's config.json has by default is none of it."""
    if any(facts.optional(key) is not None for key in _EPSILONS):
        return None
    is_layer_norm = facts.architecture in _LAYER_NORMS
    return "attention.layer_norm_epsilon" if is_layer_norm else "attention.layer_norm_rms_epsilon"


def _layer_types(facts: Facts, layers: int) -> list[str] | None:
    """The layers with the sliding window, from a flag for each layer, or the distance of those without it."""
    flags = facts.array("attention.sliding_window_pattern")
    if flags is None:
        period = facts.integer("attention.sliding_window_pattern", 0)
        if period < 1:
            return None
        flags = [(layer + 1) % period != 0 for layer in range(layers)]
    return ["sliding_attention" if flag else "full_attention" for flag in flags[:layers]]


def _rope(facts: Facts, layers: int, head_dim: int | None) -> Values:
    """The rotary positions as `rope_parameters`, for each type of layers where a second base is known. `head_dim`: None
    of latent attention, which rotates parts of their own."""
    rope: Values = {"rope_theta": facts.number("rope.freq_base", 10_000.0), "rope_type": "default"}
    if head_dim is None:
        return rope | _scaling(facts)
    turned = facts.integer("rope.dimension_count", head_dim)
    rope["partial_rotary_factor"] = share = turned / max(head_dim, 1)
    if int(share * head_dim) < turned:  # the quotient was rounded down
        rope["partial_rotary_factor"] = math.nextafter(share, 2.0)
    rope |= _scaling(facts)
    if facts.architecture not in ("gemma3", "gemma-embedding", "olmo2"):
        return rope
    base = rope["rope_theta"] if facts.architecture == "olmo2" else 10_000.0
    local = {"rope_theta": facts.number("rope.freq_base_swa", base), "rope_type": "default"}
    if facts.architecture == "olmo2" and not facts.integer("attention.sliding_window", 0):
        return rope
    return {"full_attention": rope, "sliding_attention": local}


def _scaling(facts: Facts) -> Values:
    """How the frequencies are rescaled."""
    context = facts.integer("context_length")
    original = facts.integer("rope.scaling.original_context_length", 0) or context
    long, short = facts.factors("rope_factors_long.weight"), facts.factors("rope_factors_short.weight")
    if long is not None and short is not None:
        factors = {"short_factor": short, "long_factor": long, "original_max_position_embeddings": original}
        if facts.optional("rope.scaling.attn_factor"):
            factors["attention_factor"] = facts.number("rope.scaling.attn_factor")
        return {"rope_type": "longrope", **factors}
    divisors = facts.factors("rope_freqs.weight")
    if divisors is not None and any(divisor != 1.0 for divisor in divisors):
        # One list of divisors for all lengths, which is what Llama 3's rescaling comes to.
        same = {"short_factor": divisors, "long_factor": divisors, "original_max_position_embeddings": original}
        return {"rope_type": "longrope", "attention_factor": 1.0, **same}
    kind = facts.text("rope.scaling.type") or "linear"  # as in llama.cpp
    factor = facts.number("rope.scaling.factor", 0.0)
    if not factor and facts.optional("rope.scale_linear"):
        kind, factor = "linear", facts.number("rope.scale_linear")
    if factor in (0.0, 1.0) or kind == "none":
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **_yarn(facts)}
    raise ModelError(f"{facts.metadata.file}: the rope type {shown(kind)} is not supported; supported are linear, yarn")


def _yarn(facts: Facts) -> Values:
    values: Values = {"truncate": False} if facts.architecture == "gpt-oss" else {}
    for name in ("beta_fast", "beta_slow"):
        if facts.optional(f"rope.scaling.yarn_{name}"):
            values[name] = facts.number(f"rope.scaling.yarn_{name}")
    if facts.optional("rope.scaling.yarn_attn_factor"):
        values["attention_factor"] = facts.number("rope.scaling.yarn_attn_factor")
    elif facts.optional("rope.scaling.yarn_log_multiplier"):
        weight = facts.number("rope.scaling.yarn_log_multiplier")
        if facts.optional("attention.kv_lora_rank"):  # a tenth in files with latent attention
            weight *= 10
        values |= {"mscale": weight if facts.architecture == "deepseek2" else 1.0, "mscale_all_dim": weight}
    if facts.optional("attention.temperature_scale"):
        values["llama_4_scaling_beta"] = facts.number("attention.temperature_scale")
    return values
