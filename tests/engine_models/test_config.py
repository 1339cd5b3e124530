"""config.json to DecoderConfig: old and new spellings, defaults, and one-line errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ember.engine.description.config import DecoderConfig
from ember.engine.description.read_config import load_config
from ember.engine.errors import ModelError
from ember.engine.loading.load import read_model_config

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

QWEN3: dict[str, Any] = {"architectures": ["Qwen3ForCausalLM"]}
MISTRAL: dict[str, Any] = {"architectures": ["MistralForCausalLM"], "num_key_value_heads": 2}
ALTERNATING = ["full_attention", "sliding_attention", "full_attention"]
LLAMA3 = {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def load(directory: Path, generation: dict[str, Any] | None = None, /, **fields: Any) -> DecoderConfig:
    fields = {name: value for name, value in (LLAMA | fields).items() if value != "absent"}
    (directory / "config.json").write_text(json.dumps(fields))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return read_model_config(directory)


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
        ([2, -1], {"eos_token_id": [999, 7]}, [2, 7]),
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
    assert load(tmp_path, **MISTRAL, sliding_window=None).windows() == (None, None, None)
    longer = MISTRAL | {"max_position_embeddings": 4097}
    assert load(tmp_path, **longer).windows() == (4096, 4096, 4096)
    assert load(tmp_path, **longer, sliding_window=4097).windows() == (None, None, None), "as long as any context"
    for architecture in ("MistralForCausalLM", "MinistralForCausalLM"):
        fields = MISTRAL | {"architectures": [architecture], "sliding_window": 16}
        assert load(tmp_path, **fields, layer_types=ALTERNATING).windows() == (None, 16, None)
        assert load(tmp_path, **fields, layer_types=None).windows() == (16, 16, 16)
    old_names = ["attention", "sliding_attention", "attention"]
    assert load(tmp_path, **MISTRAL, sliding_window=16, layer_types=old_names).windows() == (None, 16, None)


def test_a_number_of_layers_that_no_memory_holds_is_refused_at_once(tmp_path: Path) -> None:
    """Lists of that length are made before the files say how many there are."""
    for fields in (MISTRAL, QWEN3, QWEN3 | {"use_sliding_window": True}, LLAMA):
        assert load(tmp_path, **fields | {"num_hidden_layers": 10_000}).num_layers == 10_000
        with pytest.raises(ModelError, match="num_hidden_layers must be an integer from 1 to 10000, not 1000000000"):
            load(tmp_path, **fields | {"num_hidden_layers": 10**9})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"attn_logit_softcapping": 30.0, "query_pre_attn_scalar": 9}, "attn_logit_softcapping, query_pre_attn_scalar"),
        ({"sliding_window": 16, "layer_types": ALTERNATING}, "sliding_window, layer_types"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({f"own_{i}": 1 for i in range(20)}, "own_7 and 12 more"),
        ({"own" + chr(27) + "[31m": 1}, r"own\x1b[31m"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "short_factor": [1.0]}}, "rope_scaling.short_factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 5e5}}, "rope_scaling"),
        ({"model_type": "qwen3"}, "model_type qwen3 is that of Qwen3ForCausalLM"),
        ({"eos_token_id": [2, -1, 100]}, "eos_token_id [-1, 100] is out of the vocabulary"),
        ({"dtype": "int7"}, "dtype 'int7'"),
    ],
)
def test_what_is_odd_or_not_read_is_said_once(tmp_path: Path, fields: dict[str, Any], named: str) -> None:
    (warning,) = load(tmp_path, **fields).warnings
    assert named in warning and "config.json" in warning and "\n" not in warning and len(warning) < 500


def test_what_is_known_is_not_named(tmp_path: Path) -> None:
    harmless = {"attention_dropout": 0.1, "use_cache": True, "transformers_version": "5.23.0", "pretraining_tp": 2}
    harmless |= {"rope_interleaved": False, "use_mrope": False, "is_llama_config": True}
    assert load(tmp_path, **harmless, unknown=None, is_encoder_decoder=False, per_layer_config={}).warnings == ()
    assert load(tmp_path, {"eos_token_id": [7, 1000]}).warnings != ()


def test_model_type_stands_in_for_architectures(tmp_path: Path) -> None:
    assert load(tmp_path, architectures="absent").architecture == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"architectures": ["RwkvForCausalLM"]}, ["RwkvForCausalLM", "LlamaForCausalLM", "OPTForCausalLM"]),
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
        ({"quantization_config": {"quant_method": "hqq"}}, ["hqq", "unquantized"]),
        (QWEN3 | {"layer_types": ["full_attention"]}, ["layer_types", "num_hidden_layers=3"]),
        (QWEN3 | {"layer_types": "full_attention"}, ["layer_types", "a list of names"]),
        (QWEN3 | {"layer_types": ["full_attention", "full_attention", "conv"]}, ["layer_types", "'conv'"]),
        (MISTRAL | {"layer_types": ALTERNATING, "sliding_window": None}, ["layer_types", "sliding_window"]),
        (QWEN3 | {"layer_types": ALTERNATING, "sliding_window": 8}, ["layer_types", "use_sliding_window"]),
        (MISTRAL | {"sliding_window": -8}, ["sliding_window", "-8", "from 1"]),
        (MISTRAL | {"sliding_window": 8.0}, ["sliding_window", "8.0", "an integer"]),
        (QWEN3 | {"max_window_layers": -1}, ["max_window_layers", "-1", "from 0"]),
        (QWEN3 | {"use_sliding_window": "false"}, ["use_sliding_window", "'false'", "true or false"]),
        ({"attention_bias": "no"}, ["attention_bias", "'no'", "true or false"]),
        ({"tie_word_embeddings": 1}, ["tie_word_embeddings", "1", "true or false"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads=3", "num_attention_heads=4"]),
        ({"num_key_value_heads": True}, ["num_key_value_heads", "True"]),
        ({"head_dim": 0}, ["head_dim", "0"]),
        ({"vocab_size": 1e9}, ["vocab_size", "an integer"]),
        ({"vocab_size": 10**12}, ["vocab_size", "to 2147483647"]),
        ({"intermediate_size": [1]}, ["intermediate_size", "[1]"]),
        ({"rms_norm_eps": -1e-6}, ["rms_norm_eps", "-1e-06", "at least 0"]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps", "nan"]),
        ({"rope_theta": 0}, ["rope_theta", "0", "above 0"]),
        ({"rope_theta": -1e4}, ["rope_theta", "-10000.0"]),
        ({"rope_theta": float("inf")}, ["rope_theta", "inf"]),
        ({"rope_theta": -1, "rope_scaling": LLAMA3}, [": rope_theta", "-1"]),
        ({"head_dim": 15}, ["head_dim=15 must be even"]),
        (
            {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 64}},
            ["rope_scaling.factor is missing"],
        ),
        ({"rope_parameters": {"rope_theta": 0.0}}, ["rope_parameters.rope_theta", "0.0"]),
        ({"rope_scaling": []}, ["rope_scaling", "an object", "[]"]),
        ({"rope_parameters": "default"}, ["rope_parameters", "an object"]),
        ({"rope_scaling": {"type": 5}}, ["rope_scaling.type", "text", "5"]),
        ({"rope_scaling": {"type": "linear", "factor": -2}}, ["rope_scaling.factor", "-2"]),
        ({"rope_scaling": {"type": "linear", "factor": 1e9}}, ["rope_scaling.factor", "at most 1e+06"]),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 0.5}}, ["high_freq_factor", "at least low_freq_factor=1"]),
        ({"rope_scaling": {"type": "yarn", "factor": 4, "beta_fast": 0}}, ["beta_fast", "above 0"]),
        ({"rope_scaling": {"type": "yarn", "factor": 4, "rope_theta": 1}}, ["rope_theta", "above 1"]),
        ({"rope_scaling": {"type": "yarn", "factor": 4, "truncate": 1}}, ["truncate", "true or false"]),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, ["rope_parameters.full_attention"]),
        ({"architectures": 5}, ["architectures", "a list of names", "5"]),
        ({"architectures": [5]}, ["architectures", "a list of names"]),
        ({"architectures": "absent", "model_type": 5}, ["model_type", "text"]),
        ({"architectures": ["x" * 500 + chr(10)]}, ["is not supported"]),
        ({"dtype": 5}, ["dtype", "text"]),
        ({"quantization_config": "gptq"}, ["quantization_config", "an object"]),
        ({"eos_token_id": "2"}, ["eos_token_id", "'2'", "a token id"]),
        ({"eos_token_id": True}, ["eos_token_id", "True"]),
        ({"eos_token_id": [2, [3]]}, ["eos_token_id", "[2, [3]]"]),
        ({"per_layer_config": {"0": {"rms_norm_eps": 1e-2}}}, ["per_layer_config", "not supported"]),
        ({"is_encoder_decoder": True}, ["is_encoder_decoder", "not supported"]),
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
    ("content", "word"), [(None, "does not exist"), ("{", "cannot be read as JSON"), ("[]", "JSON object")]
)
def test_config_that_is_no_config(tmp_path: Path, content: str | None, word: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=word):
        load_config(tmp_path)
