"""config.json to DecoderConfig: old and new spellings, defaults, and one-line errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ember.engine.errors import ModelError
from ember.engine.models.config import DecoderConfig, load_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
    "eos_token_id": 2,
}


def load(directory: Path, generation: dict[str, Any] | None = None, /, **fields: Any) -> DecoderConfig:
    fields = {name: value for name, value in (LLAMA | fields).items() if value != "absent"}
    (directory / "config.json").write_text(json.dumps(fields))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return load_config(directory)


def test_llama_defaults(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert (config.num_kv_heads, config.head_dim, config.norm_eps, config.dtype) == (4, 16, 1e-6, "float32")
    assert config.rope is not None and config.rope.theta == 10_000.0
    assert not config.tie_word_embeddings and config.eos_token_ids == [2]


def test_old_and_new_spellings_mean_the_same(tmp_path: Path) -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
    old = load(tmp_path, torch_dtype="bfloat16", rope_theta=5e5, rope_scaling=scaling | {"type": "llama3"})
    new = load(tmp_path, dtype="bfloat16", rope_parameters=scaling | {"rope_type": "llama3", "rope_theta": 5e5})
    assert old == new
    assert new.rope is not None and new.rope.kind == "llama3" and new.dtype == "bfloat16"


def test_rope_scaling_lengthens_the_context(tmp_path: Path) -> None:
    linear = load(tmp_path, rope_scaling={"type": "linear", "factor": 2.0})
    yarn = load(tmp_path, rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096})
    assert (linear.max_position_embeddings, yarn.max_position_embeddings) == (8192, 16384)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (2, {"eos_token_id": [2, 7]}, [2, 7]),
        ([3, 4], None, [3, 4]),
        (None, {"eos_token_id": 5}, [5]),
        (None, {}, []),
    ],
)
def test_stop_tokens_come_from_both_files(tmp_path: Path, config: Any, generation: Any, expected: list[int]) -> None:
    assert load(tmp_path, generation, eos_token_id=config).eos_token_ids == expected


def test_windows_by_layer(tmp_path: Path) -> None:
    qwen = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 32}
    assert load(tmp_path, **qwen, use_sliding_window=False).windows() == (None, None, None)
    assert load(tmp_path, **qwen, use_sliding_window=True, max_window_layers=2).windows() == (None, None, 32)
    types = ["sliding_attention", "full_attention", "full_attention"]
    assert load(tmp_path, **qwen, use_sliding_window=True, layer_types=types).windows() == (32, None, None)
    mistral = {"architectures": ["MistralForCausalLM"], "num_key_value_heads": 2}
    assert load(tmp_path, **mistral, sliding_window=None).windows() == (None, None, None)
    assert load(tmp_path, **mistral).windows() == (4096, 4096, 4096)


def test_model_type_stands_in_for_architectures(tmp_path: Path) -> None:
    assert load(tmp_path, architectures="absent").architecture == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, ["GPT2LMHeadModel", "LlamaForCausalLM", "OPTForCausalLM"]),
        ({"architectures": [], "model_type": "rwkv"}, ["rwkv", "supported are"]),
        ({"rope_scaling": {"type": "su", "factor": 2}}, ["'su'", "llama3"]),
        ({"rope_scaling": {"type": "linear"}}, ["factor", "missing"]),
        ({"rope_scaling": 3}, ["rope"]),
        ({"hidden_size": "absent"}, ["hidden_size", "missing"]),
        ({"hidden_size": "64"}, ["hidden_size", "'64'"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "0"]),
        ({"hidden_size": 66}, ["66", "4 heads"]),
        ({"hidden_act": "swishy"}, ["hidden_act", "swishy", "silu"]),
        ({"rms_norm_eps": "small"}, ["rms_norm_eps", "small"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["gptq", "unquantized"]),
        ({"architectures": ["Qwen3ForCausalLM"], "layer_types": ["full_attention"]}, ["layer_types", "3 layers"]),
    ],
)
def test_errors_are_one_line_and_name_the_field(tmp_path: Path, fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        load(tmp_path, **fields)
    message = str(caught.value)
    assert "\n" not in message and str(tmp_path) in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("share", [0.0, 1.5, 0.95, -1.0])
def test_a_share_of_dimensions_that_cannot_be_turned(tmp_path: Path, share: float) -> None:
    """Of 16 dimensions at most all, in pairs."""
    with pytest.raises(ModelError, match="partial_rotary_factor"):
        load(tmp_path, partial_rotary_factor=share)


@pytest.mark.parametrize(
    ("content", "word"), [(None, "does not exist"), ("{", "not valid JSON"), ("[]", "JSON object")]
)
def test_config_that_is_no_config(tmp_path: Path, content: str | None, word: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=word):
        load_config(tmp_path)
