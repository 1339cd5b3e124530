"""A checkpoint of Hugging Face as a GGUF file: its metadata, and the names and forms of its tensors. No torch is
imported.

It is the inverse of `common` and `architectures` for families whose tensors are stored in the same parts. What the
metadata cannot say is found by `check_equal`, which compares the model that the file describes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple

from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import shown
from ember.engine.description.gguf.architectures import ARCHITECTURES
from ember.engine.description.gguf.names import gguf_names
from ember.engine.description.rope_config import RopeConfig
from ember.engine.description.weight_names import WeightNames
from ember.engine.description.weight_specs import weight_specs
from ember.engine.description.weights import TensorSpec
from ember.engine.errors import ModelError

# The class of a checkpoint's language model -> general.architecture.
EXPORTED = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "MixtralForCausalLM": "llama",
    "ArceeForCausalLM": "arcee",
    "SmolLM3ForCausalLM": "smollm3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3moe",
    "GemmaForCausalLM": "gemma",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Gemma3TextForCausalLM": "gemma3",
    "GraniteForCausalLM": "granite",
    "SeedOssForCausalLM": "seed_oss",
}
_GLOBAL = ("embed_tokens", "final_norm", "lm_head")
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"),
    *("max_position_embeddings", "norm_eps"),
)
# Parts of the description -> the fields of config.json that say them.
_FIELDS = {
    "experts.layers": "decoder_sparse_step and mlp_only_layers",
    "experts.normalised": "norm_topk_prob",
}
_NUMBER = re.compile(r"\{\}")


class Exported(NamedTuple):
    """A tensor of the file. `sources`: the stored tensors, several for the matrices of experts."""

    name: str
    sources: tuple[str, ...]
    heads: int = 0  # the rows of each of so many heads are stored in pairs; 0: as they are
    offset: float = 0.0  # added to the stored values
    is_router: bool = False


def architecture_of(config: DecoderConfig) -> str:
    """The value of general.architecture. Raises ModelError for a family that cannot be written."""
    name = EXPORTED.get(config.text_architecture)
    if name is None:
        raise ModelError(
            f"{config.text_architecture} cannot be written as a GGUF file; these can: {', '.join(EXPORTED)}"
        )
    return name


def metadata_of(config: DecoderConfig) -> dict[str, Any]:
    """The entries that describe the model."""
    name = architecture_of(config)
    is_rms, scaled = config.norm == "rms", name == "granite"
    experts, window = config.experts, config.sliding_window
    values: dict[str, Any] = {
        "block_count": config.num_layers,
        "context_length": _context_length(config),
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps if is_rms else None,
        "attention.layer_norm_epsilon": None if is_rms else config.norm_eps,
        "attention.sliding_window": window,
        "attn_logit_softcapping": config.attention_soft_cap,
        "final_logit_softcapping": config.logits_soft_cap,
        "vocab_size": config.vocab_size,
        "attention.scale": config.attention_scale if scaled else None,
        "embedding_scale": config.embed_scale if scaled else None,
        "residual_scale": config.residual_scale if scaled else None,
        "logit_scale": 1 / config.logits_scale if scaled else None,
    }
    if experts is not None:
        values |= {
            "expert_count": experts.count,
            "expert_used_count": experts.per_token,
            "expert_feed_forward_length": experts.intermediate_size,
        }
    if config.rope is not None:
        values |= _rope(config.rope)
    if config.local_rope is not None:
        values["rope.freq_base_swa"] = config.local_rope.theta
    if config.windowed_layers and name == "gemma3":
        values["attention.sliding_window_pattern"] = list(config.windowed_layers)
    return {f"{name}.{key}": value for key, value in values.items() if value is not None}


def _context_length(config: DecoderConfig) -> int:
    """The longest context without linear scaling, which most families multiply it by."""
    rope = config.rope
    if rope is None or rope.kind != "linear" or architecture_of(config) == "gemma3":
        return config.max_position_embeddings
    return round(config.max_position_embeddings / rope.factor)


def _rope(rope: RopeConfig) -> dict[str, Any]:
    values: dict[str, Any] = {"rope.freq_base": float(rope.theta), "rope.dimension_count": rope.rotary_dim}
    if rope.kind == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope.factor)}
    elif rope.kind == "yarn":
        values |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(rope.factor),
            "rope.scaling.original_context_length": rope.original_max_position_embeddings,
        }
    return values


def rope_divisors(config: DecoderConfig) -> list[float] | None:
    """The divisors of the frequencies that rescale them as Llama 3.1 does (rope_freqs.weight); None for other kinds."""
    rope = config.rope
    if rope is None or rope.kind != "llama3":
        return None
    found = []
    for pair in range(0, rope.rotary_dim, 2):
        turns = rope.original_max_position_embeddings * rope.theta ** -(pair / rope.rotary_dim) / (2 * math.pi)
        low, high = rope.low_freq_factor, rope.high_freq_factor
        kept = min(max((turns - low) / (high - low), 0.0), 1.0) if high > low else float(turns >= low)
        found.append(1 / (kept + (1 - kept) / rope.factor))
    return found


def exported(config: DecoderConfig, stored: Collection[str], is_tied: bool) -> list[Exported]:
    """The tensors of the file, of those that a checkpoint has. Raises ModelError for one that has no place."""
    architecture = ARCHITECTURES[architecture_of(config)]
    ours, theirs = config.names, gguf_names(config, {"ffn_gate.weight"}, dict(architecture.names))
    base = "" if any(name.startswith(f"{ours.embed_tokens}.") for name in stored) else ours.base
    offsets = {spec.source: spec.offset for spec in weight_specs(config) if isinstance(spec, TensorSpec)}
    permutes = config.rope is not None and architecture.interleaved and not config.rope.interleaved
    if permutes and config.rope is not None and config.rope.rotary_dim != config.head_dim:
        raise ModelError(f"{config.architecture} rotates a part of each head, which cannot be written as a GGUF file")
    heads = {"query": config.num_heads, "key": config.num_kv_heads} if permutes else {}
    left = set(stored)
    found = []
    for field, name, places in _names(ours, theirs, config):
        for end in (".weight", ".bias"):
            for layer, place in enumerate(places):
                sources = [f"{each}{end}".removeprefix(base) for each in place]
                present = [source for source in sources if source in left]
                if not present or (field == "lm_head" and is_tied):
                    left -= set(present)
                    continue
                if len(present) < len(sources):
                    raise ModelError(f"the checkpoint lacks the weights of some experts, such as {sources[-1]}")
                left -= set(sources)
                offset = offsets.get(base + sources[0], 0.0)
                router = field == "router"
                found.append(Exported(name.format(layer) + end, tuple(sources), heads.get(field, 0), offset, router))
    left = {name for name in left if not name.endswith((*ours.buffers, "rotary_emb.inv_freq"))}
    left = {name for name in left if not ours.unused or not name.startswith(ours.unused)}
    if left:
        raise ModelError(
            f"{config.architecture} has tensors that cannot be written as a GGUF file: {shown(sorted(left)[:5])}"
        )
    return found


def _names(ours: WeightNames, theirs: WeightNames, config: DecoderConfig) -> list[tuple[str, str, list[list[str]]]]:
    """The modules of the decoder: the field of `WeightNames`, the module's name in the file, with {} for the layer, and
    for each layer the modules of the checkpoint, several for the matrices of experts."""
    found: list[tuple[str, str, list[list[str]]]] = []
    for each in fields(WeightNames):
        our, their = getattr(ours, each.name), getattr(theirs, each.name)
        if not isinstance(our, str) or not isinstance(their, str) or each.name in ("layer", "base", "qkv_order"):
            continue
        if each.name in _GLOBAL:
            found.append((each.name, their, [[our]]))
        elif not each.name.startswith(("embed", "layer", "project")):
            layers = [[ours.layer.format(layer) + our] for layer in range(config.num_layers)]
            found.append((each.name, theirs.layer + their, layers))
    experts = config.experts
    if experts is None or ours.experts is None or theirs.experts is None:
        return found
    for name in ("router", "gate", "up", "down"):
        our, their = getattr(ours.experts, name), getattr(theirs.experts, name)
        if our is None or their is None or (name != "router" and not _NUMBER.search(our)):
            raise ModelError(
                f"{config.architecture} has the matrices of all experts in one tensor, which cannot be written as a "
                "GGUF file: name a checkpoint with a tensor for each expert"
            )
        layers = [
            [ours.layer.format(layer) + our.format(number) for number in range(experts.count)]
            if name != "router"
            else [ours.layer.format(layer) + our]
            for layer in range(config.num_layers)
        ]
        found.append((name, theirs.layer + their, layers))
    return found


def check_equal(config: DecoderConfig, written: DecoderConfig) -> None:
    """Raise ModelError unless the file describes the same model, apart from how its tensors are stored."""
    is_listed = config.rope is not None and config.rope.kind == "llama3"  # in the file it is a list of divisors
    ours, theirs = (_comparable(each, is_listed) for each in (config, written))
    for name in sorted(ours.keys() & theirs.keys()):  # the fields of experts and of rotary positions, one by one
        if is_dataclass(ours[name]) and type(ours[name]) is type(theirs[name]):
            for made in (ours, theirs):
                made |= {f"{name}.{each.name}": getattr(made[name], each.name) for each in fields(made[name])}
                del made[name]
    names = sorted(ours.keys() | theirs.keys())
    if different := [name for name in names if not _is_same(ours.get(name), theirs.get(name))]:
        name = different[0]
        given = f"{name} ({_FIELDS[name]} in config.json)" if name in _FIELDS else name
        raise ModelError(
            f"{config.architecture} cannot be written as a GGUF file: {given} is {shown(ours.get(name))}, and the file "
            f"would say {shown(theirs.get(name))}"
        )


def _comparable(config: DecoderConfig, is_listed: bool) -> dict[str, Any]:
    rope, local = (
        each and replace(each, interleaved=False, served_length=0) for each in (config.rope, config.local_rope)
    )
    if rope is not None and rope.kind in ("llama3", "longrope") and is_listed:
        rope = RopeConfig(rope.rotary_dim, rope.theta)
    features = replace(config, rope=rope, local_rope=local, tie_word_embeddings=False).features()
    return features | {name: getattr(config, name) for name in _SIZES}


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)
