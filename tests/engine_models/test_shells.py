"""Multimodal checkpoints are served as text: their language models give transformers' logits, and nothing else of them
is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ember.engine.description.families.registry import ARCHITECTURES, find_family
from ember.engine.description.read_config import load_config
from ember.engine.description.shells import SHELLS, Shell
from ember.engine.errors import ModelError
from ember.engine.loading.load import load_decoder
from tests.engine_models.paged import Paged
from tests.engine_models.tiny import VOCAB_SIZE

_TEXT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
_TOKENS = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}
_VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
_MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
_HALF = {**_MROPE, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}
_INTERLEAVED_MROPE = {**_HALF, "mrope_interleaved": True}
_DELTA = {
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 8,
}
_PIXTRAL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 16,
}
_MINISTRAL3 = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 8,
    "llama_4_scaling_beta": 0.3,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}

# name -> (the classes' name, fields of text_config, of vision_config, others)
TINY: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "qwen2_vl": ("Qwen2VL", {"rope_parameters": _MROPE}, {"depth": 1, "embed_dim": 32, "num_heads": 2}, _TOKENS),
    "qwen2_5_vl": ("Qwen2_5_VL", {"rope_parameters": _MROPE, "tie_word_embeddings": True}, _VISION, _TOKENS),
    "qwen3_vl": (
        "Qwen3VL",
        {"head_dim": 16, "rope_parameters": {**_MROPE, "mrope_interleaved": True}},
        {**_VISION, "deepstack_visual_indexes": [0]},
        _TOKENS,
    ),
    "mistral3": ("Mistral3", {"model_type": "mistral", "head_dim": 24, "sliding_window": 9}, _PIXTRAL, {}),
    "ministral3": (
        "Mistral3",
        {"model_type": "ministral3", "head_dim": 16, "rope_parameters": _MINISTRAL3, "tie_word_embeddings": False},
        _PIXTRAL,
        {"tie_word_embeddings": False},
    ),
    "mistral4": (
        "Mistral3",
        {
            "model_type": "mistral4",
            "kv_lora_rank": 40,
            "q_lora_rank": 24,
            "qk_nope_head_dim": 20,
            "qk_rope_head_dim": 12,
            "v_head_dim": 24,
            "num_key_value_heads": 4,
            "n_routed_experts": 6,
            "n_group": 3,
            "topk_group": 2,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "rope_parameters": {**_MINISTRAL3, "mscale_all_dim": 0.8},
            "tie_word_embeddings": False,
        },
        _PIXTRAL,
        {"tie_word_embeddings": False},
    ),
    "llava": ("Llava", {"model_type": "llama"}, _PIXTRAL | {"model_type": "pixtral"}, {}),
    "lfm2_vl": (
        "Lfm2Vl",
        {"model_type": "lfm2", "layer_types": ["conv", "full_attention", "conv"], "tie_word_embeddings": True},
        {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        {"tie_word_embeddings": True},
    ),
    "lfm3_vl": (
        "Lfm3Vl",
        {
            "model_type": "lfm3",
            "head_dim": 16,
            "num_hidden_layers": 5,
            "sliding_window": 9,
            "tie_word_embeddings": True,
        },
        {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16},
        {**_TOKENS, "tie_word_embeddings": True},
    ),
    "glm4v": (
        "Glm4v",
        {"rope_parameters": _HALF},
        _VISION,
        _TOKENS,
    ),
    "qwen3_vl_moe": (
        "Qwen3VLMoe",
        {
            "head_dim": 16,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "mlp_only_layers": [1],
            "rope_parameters": {**_MROPE, "mrope_interleaved": True},
        },
        {**_VISION, "deepstack_visual_indexes": [0]},
        _TOKENS,
    ),
    "qwen3_5": (
        "Qwen3_5",
        {**_DELTA, "rope_parameters": _INTERLEAVED_MROPE, "tie_word_embeddings": True},
        _VISION,
        {**_TOKENS, "tie_word_embeddings": True},
    ),
    "qwen3_5_moe": (
        "Qwen3_5Moe",
        {
            **_DELTA,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 40,
            "rope_parameters": _INTERLEAVED_MROPE,
        },
        _VISION,
        _TOKENS,
    ),
    "glm4v_moe": (
        "Glm4vMoe",
        {
            "n_routed_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "routed_scaling_factor": 1.5,
            "rope_parameters": _HALF,
        },
        _VISION,
        _TOKENS,
    ),
    "llama4": (
        "Llama4",
        {
            "head_dim": 16,
            "intermediate_size_mlp": 80,
            "num_local_experts": 4,
            "attention_chunk_size": 16,
            "floor_scale": 8,
        },
        {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "vision_output_dim": 32,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
        },
        {},
    ),
    "glm46v": (
        "Glm46V",
        {"rope_parameters": _HALF},
        _VISION,
        _TOKENS,
    ),
}
_GEMMA4 = {
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 9,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
}
_GEMMA4_INPUTS = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB_SIZE, "num_kv_shared_layers": 1}
_GEMMA4_VISION = {**_PIXTRAL, "num_key_value_heads": 2, "pooling_kernel_size": 1, "position_embedding_size": 16}
TINY["gemma4"] = ("Gemma4", {**_GEMMA4, **_GEMMA4_INPUTS}, _GEMMA4_VISION, {})
TINY["gemma4_unified"] = (
    "Gemma4Unified",
    _GEMMA4,
    {"mm_embed_dim": 64, "mm_posemb_size": 16, "output_proj_dims": 64},
    {"audio_config": {"audio_embed_dim": 32}},
)
if "Gemma3ForCausalLM" in ARCHITECTURES:
    TINY["gemma3"] = (
        "Gemma3",
        {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 24},
        {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
        },
        {"mm_tokens_per_image": 4},
    )


def shell_config(name: str) -> Any:
    """transformers' configuration of a tiny checkpoint."""
    kind, text, vision, others = TINY[name]
    made = getattr(transformers, f"{kind}Config")(text_config={**_TEXT, **text}, vision_config=vision, **others)
    made.architectures = [f"{kind}ForConditionalGeneration"]
    return made


def make_shell(name: str, directory: Path) -> torch.nn.Module:
    """Save a tiny random checkpoint and return its model."""
    kind, made = TINY[name][0], shell_config(name)
    torch.manual_seed(3)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(made).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    return model


def logits(directory: Path, tokens: torch.Tensor, said: list[str] | None = None) -> torch.Tensor:
    say = None if said is None else said.append
    config = load_config(directory)
    loaded = load_decoder(directory, config, dtype=torch.float32, device=torch.device("cpu"), say=say)
    paged = Paged(loaded.decoder, [tokens])
    paged.step([(0, len(tokens))])
    return paged.finish()[0]


@pytest.mark.parametrize("name", TINY)
def test_text_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    said: list[str] = []
    model = make_shell(name, tmp_path)
    tokens = torch.randint(9, VOCAB_SIZE, (40,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(input_ids=tokens[None]).logits[0]
    found = logits(tmp_path, tokens, said)
    assert (found - expected).abs().max() < 5e-5 * expected.abs().max()
    config = load_config(tmp_path)
    assert config.architecture == f"{TINY[name][0]}ForConditionalGeneration" and config.eos_token_ids == [2]
    assert not config.warnings
    stored = [
        tensor
        for tensor in load_file(tmp_path / "model.safetensors")
        if any(part in tensor for part in ("vis", "projector", "audio"))
    ]
    assert said == [line for line in said if "served as text" in line] and f"{len(stored)} weights" in said[0]


def test_fields_beside_the_text_config_are_named(tmp_path: Path) -> None:
    made = shell_config("mistral3")
    made.save_pretrained(tmp_path)
    assert not any("beside text_config" in warning for warning in load_config(tmp_path).warnings)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    more = {"rope_base_scale": 2.0, "logit_bias_scale": None, "audio_token_id": 9, "unsloth_version": "1"}
    path.write_text(json.dumps(fields | more))
    (warning,) = load_config(tmp_path).warnings
    assert warning.endswith("fields beside text_config that Ember does not read: rope_base_scale")


@pytest.mark.parametrize("name", TINY)
def test_what_transformers_writes_beside_the_text_config_is_known(name: str, tmp_path: Path) -> None:
    shell_config(name).save_pretrained(tmp_path)
    assert not any("beside text_config" in warning for warning in load_config(tmp_path).warnings)


def test_older_names_and_flat_fields_give_the_same(tmp_path: Path) -> None:
    make_shell("qwen2_5_vl", tmp_path)
    tokens = torch.randint(9, VOCAB_SIZE, (20,), generator=torch.Generator().manual_seed(1))
    expected = logits(tmp_path, tokens)
    file, path = tmp_path / "model.safetensors", tmp_path / "config.json"
    given = load_file(file)
    for prefix, old in (("model.language_model.", "model."), ("model.language_model.", "language_model.model.")):
        renamed = {
            name.replace(prefix, old).replace("model.visual.", "visual."): value for name, value in given.items()
        }
        save_file(renamed, file, {"format": "pt"})
        assert torch.equal(logits(tmp_path, tokens), expected)
    fields = json.loads(path.read_text())
    text = fields.pop("text_config")
    text["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 3, 3]}
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    path.write_text(json.dumps({**text, **fields}))
    assert torch.equal(logits(tmp_path, tokens), expected) and not load_config(tmp_path).warnings


def write(directory: Path, **fields: Any) -> Path:
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


def test_unknown_language_models_and_faulty_fields_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHELLS, "OwlForConditionalGeneration", Shell("owl", "OwlForCausalLM"))
    with pytest.raises(ModelError, match="whose language model is OwlForCausalLM, is not supported"):
        load_config(write(tmp_path, architectures=["OwlForConditionalGeneration"], text_config=_TEXT))
    with pytest.raises(ModelError, match=r"Mistral3ForConditionalGeneration \(text_config.model_type 'xyz'\)"):
        load_config(write(tmp_path, model_type="mistral3", text_config={"model_type": "xyz"}))
    with pytest.raises(ModelError, match=r"text_config.hidden_size must be an integer from 1"):
        load_config(write(tmp_path, model_type="qwen3_vl", text_config={**_TEXT, "hidden_size": [64]}))
    with pytest.raises(ModelError, match="text_config must be an object"):
        load_config(write(tmp_path, model_type="qwen3_vl", text_config=[1]))
    warned = load_config(write(tmp_path, model_type="qwen3_vl", vocab_size=7, text_config=_TEXT)).warnings
    assert "vocab_size has another value in text_config" in warned[0]


@pytest.mark.parametrize("architecture", [name for name in SHELLS if SHELLS[name].architecture in ARCHITECTURES])
def test_defaults_are_those_of_the_configuration_class(architecture: str, tmp_path: Path) -> None:
    kind = architecture.removesuffix("ForConditionalGeneration")
    sizes = {name: _TEXT[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    sizes |= {"hidden_size": 128, "num_attention_heads": 32}
    whole = getattr(transformers, f"{kind}Config")(text_config=dict(sizes)).get_text_config().to_dict()
    text = find_family(str(SHELLS[architecture].architecture))
    read = [name for name in whole if name in text.fields or name == "rope_parameters"]
    full = write(tmp_path, architectures=[architecture], text_config={name: whole[name] for name in read})
    explicit = load_config(full)
    short = load_config(write(tmp_path, architectures=[architecture], text_config=sizes))
    changed = [n for n in explicit.__slots__ if getattr(explicit, n) != getattr(short, n)]
    assert set(changed) <= {"warnings", "dtype", "eos_token_ids", "windowed_layers", "first_window_layer"}, changed
    assert explicit.windows() == short.windows()


@pytest.mark.parametrize("sizes", [{}, {"moe_intermediate_size": 32}, {"moe_intermediate_size": 64}])
def test_stacks_of_experts_are_read_as_they_are_published_and_as_transformers_saves_them(
    sizes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published files have them transposed. One of the two matrices is square with these sizes."""
    kind, text, vision, others = TINY["qwen3_vl_moe"]
    monkeypatch.setitem(TINY, "qwen3_vl_moe", (kind, text | sizes, vision, others))
    make_shell("qwen3_vl_moe", tmp_path)
    tokens = torch.randint(9, VOCAB_SIZE, (20,), generator=torch.Generator().manual_seed(1))
    expected, file = logits(tmp_path, tokens), tmp_path / "model.safetensors"
    given = load_file(file)
    turned = {
        name: value.transpose(1, 2).contiguous() if ".mlp.experts." in name else value for name, value in given.items()
    }
    save_file(turned, file, {"format": "pt"})
    assert torch.equal(logits(tmp_path, tokens), expected)
