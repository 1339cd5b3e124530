"""Multimodal checkpoints whose language model is served as text. This module does not import torch.

A shell is the class of such a checkpoint. Its config.json has the fields of the language model in `text_config`, or
beside those of the vision part (older files). Its weights have the language model's names with a prefix, and weights
of the vision and audio parts, which are skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from ember.engine.description.family import field_names
from ember.engine.description.fields import Fields, listed, shown
from ember.engine.description.known_fields import HARMLESS, HARMLESS_VALUES, NEUTRAL
from ember.engine.errors import ModelError

Entry = TypeVar("Entry")


class Shell(NamedTuple):
    """The class of a multimodal checkpoint.

    `defaults`: the fields of its language model whose defaults differ from those of the family of text models.
    """

    model_type: str
    architecture: str | None  # of the language model. None: that of the model type in `text_config`
    defaults: Mapping[str, Any] = MappingProxyType({})


_QWEN_VL = {"rope_theta": 1e6, "rms_norm_eps": 1e-5, "max_window_layers": 80, "num_key_value_heads": 8}
_QWEN3_VL = {"rope_theta": 500_000.0, "max_position_embeddings": 128_000}
_GLM_V = {
    "attention_bias": True,  # of every checkpoint: the classes have no field for it
    "head_dim": None,  # hidden_size / num_attention_heads
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 32768,
    "partial_rotary_factor": 1.0,
}

SHELLS = {
    "Qwen2VLForConditionalGeneration": Shell("qwen2_vl", "Qwen2ForCausalLM", _QWEN_VL),
    "Qwen2_5_VLForConditionalGeneration": Shell("qwen2_5_vl", "Qwen2ForCausalLM", _QWEN_VL),
    "Qwen3VLForConditionalGeneration": Shell("qwen3_vl", "Qwen3ForCausalLM", _QWEN3_VL),
    "Qwen3VLMoeForConditionalGeneration": Shell("qwen3_vl_moe", "Qwen3VLMoeForCausalLM"),
    "Qwen3_5ForConditionalGeneration": Shell("qwen3_5", "Qwen3_5ForCausalLM"),
    "Qwen3_5MoeForConditionalGeneration": Shell("qwen3_5_moe", "Qwen3_5MoeForCausalLM"),
    "Gemma3ForConditionalGeneration": Shell("gemma3", "Gemma3ForCausalLM"),
    "Gemma4ForConditionalGeneration": Shell("gemma4", "Gemma4ForCausalLM"),
    "Gemma4UnifiedForConditionalGeneration": Shell("gemma4_unified", "Gemma4UnifiedForCausalLM"),
    "Mistral3ForConditionalGeneration": Shell("mistral3", None),
    "LlavaForConditionalGeneration": Shell("llava", None),
    "Llama4ForConditionalGeneration": Shell("llama4", "Llama4ForCausalLM"),
    "Lfm2VlForConditionalGeneration": Shell("lfm2_vl", "Lfm2ForCausalLM"),
    "Lfm3VlForConditionalGeneration": Shell("lfm3_vl", "Lfm3ForCausalLM"),
    "Glm4vForConditionalGeneration": Shell("glm4v", "Glm4ForCausalLM", _GLM_V),
    "Glm46VForConditionalGeneration": Shell("glm46v", "Glm4ForCausalLM", _GLM_V),
    "Glm4vMoeForConditionalGeneration": Shell("glm4v_moe", "Glm4vMoeForCausalLM"),
}
SHELL_TYPES = {shell.model_type: architecture for architecture, shell in SHELLS.items()}

# The prefixes of the language model's weights -> their prefixes in a checkpoint of text alone. The first one holds.
PREFIXES = {
    "model.language_model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "language_model.": "model.",
}
# The prefixes of weights of other parts, also after `model.`.
OTHER_PARTS = (
    *("visual.", "vision_tower.", "vision_model.", "vision_embedder.", "multi_modal_projector.", "image_newline"),
    *("audio_tower.", "embed_vision.", "embed_audio."),
)
# The fields of the shell's config.json that describe its other parts, or that the language model has too.
_OTHER_FIELDS = field_names(
    """
    text_config vision_config audio_config projector_hidden_act vision_feature_layer vision_feature_select_strategy
    multimodal_projector_bias spatial_merge_size image_seq_length mm_tokens_per_image projector_patch_merger
    vision_soft_tokens_per_image use_image_newline_parameter
    projector_hidden_size projector_bias projector_use_layernorm downsample_factor
    """
)
_FROM_SHELL = field_names("dtype torch_dtype quantization_config compression_config eos_token_id tie_word_embeddings")
# Fields that a shell has beside its text_config, and that are read there or change nothing.
_BESIDE = _FROM_SHELL | HARMLESS | HARMLESS_VALUES.keys() | NEUTRAL.keys() | {"architectures", "model_type"}
_MROPE = field_names("mrope_section mrope_interleaved")


def text_fields(fields: Fields, architecture: str, text_types: Mapping[str, str]) -> tuple[Fields, str]:
    """The fields of a shell's language model, and its architecture. `text_types`: `model_type` of text models -> the
    architecture. Raises ModelError."""
    shell, nested = SHELLS[architecture], fields.mapping("text_config")
    if not nested and fields.values.get("hidden_size") is None:
        raise ModelError(f"the field {fields.prefix}text_config is missing")
    given = Fields(nested or fields.values, "text_config." if nested else fields.prefix)
    values = {name: value for name, value in given.values.items() if nested or not _is_of_other_parts(name)}
    text = shell.architecture
    if text is None:
        kind = given.text("model_type") or "llama"
        if kind not in text_types:
            place = f"{given.prefix}model_type" if nested else "model_type, without a text_config,"
            raise ModelError(f"the language model of {architecture} ({place} {shown(kind)}) is not supported")
        text = text_types[kind]
    if nested:
        top = {name: fields.values[name] for name in _FROM_SHELL if fields.values.get(name) is not None}
        values |= {name: value for name, value in top.items() if name != "eos_token_id" or values.get(name) is None}
        _warn_of_others(fields, values)
    for name, default in shell.defaults.items():
        if values.get(name) is None and not (name == "rope_theta" and _has_rope_theta(values)):
            values[name] = default
    for name in ("rope_scaling", "rope_parameters"):
        if isinstance(values.get(name), dict):
            values[name] = _without_mrope(values[name])
    found = Fields(values, given.prefix)
    found.warnings = fields.warnings
    return found, text


def text_entries(entries: Mapping[str, Entry]) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """The stored tensors of a shell's language model by their names in a checkpoint of text alone, and those of its
    other parts."""
    own: dict[str, Entry] = {}
    others: dict[str, Entry] = {}
    for name, entry in entries.items():
        if name.removeprefix("model.").startswith(OTHER_PARTS):
            others[name] = entry
            continue
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
        own[PREFIXES.get(prefix, "") + name.removeprefix(prefix)] = entry
    return own, others


def _is_of_other_parts(name: str) -> bool:
    return name in _OTHER_FIELDS or (name.endswith(("_token_id", "_token_index")) and name != "eos_token_id")


def _warn_of_others(fields: Fields, values: Mapping[str, Any]) -> None:
    """Warn of fields beside `text_config` with another value than in it: those in it hold. And of fields that it lacks
    and that are not read."""
    names = [name for name, value in fields.values.items() if name in values and values[name] != value]
    names = [name for name in names if name not in ("model_type", "architectures", "eos_token_id")]
    names = [name for name in names if not name.endswith(("_token_id", "_token_index")) and name != "initializer_range"]
    if names:
        fields.warnings.append(f"{listed(names)} has another value in text_config, which holds")
    beside = [name for name in fields.unread(values.keys() | _BESIDE) if not _is_of_other_parts(name)]
    if beside:
        fields.warnings.append(f"fields beside text_config that Ember does not read: {listed(beside)}")


def _has_rope_theta(values: Mapping[str, Any]) -> bool:
    ropes = (values.get("rope_scaling"), values.get("rope_parameters"))
    return any(isinstance(rope, dict) and rope.get("rope_theta") is not None for rope in ropes)


def _without_mrope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary positions of text. The three positions of multimodal rope (arXiv 2409.12191) are equal for text, so that
    it is the ordinary one."""
    plain = {name: value for name, value in rope.items() if name not in _MROPE}
    return {
        name: "default" if value == "mrope" and name in ("type", "rope_type") else value
        for name, value in plain.items()
    }
