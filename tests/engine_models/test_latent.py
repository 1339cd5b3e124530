"""Latent attention: what the cache holds, every way to compute it, and the published files of its families.

`test_parity` of this folder and of the engine compare the families with transformers.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from ember.engine.core.memory import activation_bytes
from ember.engine.description.cache_groups import bytes_per_page_token, cache_groups
from ember.engine.description.config import DecoderConfig
from ember.engine.description.expansion import EXPANDED_BYTES, LEAST_KEYS, expands, keys_at_once
from ember.engine.description.read_config import load_config
from ember.engine.errors import ModelError
from ember.engine.layers.cache import KVCache
from ember.engine.operators import torch_latent
from ember.wire import Generate
from ember_cpu import library as native
from tests.engine_core.inline import NUM_OUTPUT, generated, greedy, make_engine, poison, run
from tests.engine_core.inline import tokens as said
from tests.engine_models.paged import Paged
from tests.engine_models.test_parity import assert_same, load, reference, tokens
from tests.engine_models.tiny import make_tiny
from tests.support.operators import use_native

_YARN = {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 4096}
_ROUTER = {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True, "moe_layer_freq": 1}
_TRAINING = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "use_cache": True,
    "pretraining_tp": 1,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.3",
}
_HEADS = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
# The fields of published files, with as many layers as they have.
PUBLISHED: dict[str, dict[str, Any]] = {
    "DeepSeek-V2-Lite": {
        **_TRAINING,
        **_HEADS,
        "architectures": ["DeepseekV2ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV2Config"},
        "model_type": "deepseek_v2",
        "aux_loss_alpha": 0.001,
        "seq_aux": True,
        "bos_token_id": 100000,
        "eos_token_id": 100001,
        "first_k_dense_replace": 1,
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "max_position_embeddings": 163840,
        "moe_intermediate_size": 1408,
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "norm_topk_prob": False,
        "num_attention_heads": 16,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 27,
        "num_key_value_heads": 16,
        "q_lora_rank": None,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        "rope_theta": 10000,
        "routed_scaling_factor": 1.0,
        "scoring_func": "softmax",
        "topk_group": 1,
        "topk_method": "greedy",
        "vocab_size": 102400,
    },
    "DeepSeek-V3": {
        **_TRAINING,
        **_HEADS,
        **_ROUTER,
        "architectures": ["DeepseekV3ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
        "model_type": "deepseek_v3",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "ep_size": 1,
        "first_k_dense_replace": 3,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "max_position_embeddings": 163840,
        "moe_intermediate_size": 2048,
        "n_group": 8,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_attention_heads": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 61,
        "num_key_value_heads": 128,
        "num_nextn_predict_layers": 1,
        "q_lora_rank": 1536,
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
        },
        "rms_norm_eps": 1e-06,
        "rope_scaling": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        "rope_theta": 10000,
        "routed_scaling_factor": 2.5,
        "topk_group": 4,
        "vocab_size": 129280,
    },
    "Kimi-K2": {
        **_TRAINING,
        **_HEADS,
        **_ROUTER,
        "architectures": ["DeepseekV3ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
        "model_type": "kimi_k2",
        "aux_loss_alpha": 0.001,
        "seq_aux": True,
        "bos_token_id": 163584,
        "eos_token_id": 163585,
        "ep_size": 1,
        "first_k_dense_replace": 1,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "max_position_embeddings": 131072,
        "moe_intermediate_size": 2048,
        "n_group": 1,
        "n_routed_experts": 384,
        "n_shared_experts": 1,
        "num_attention_heads": 64,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 61,
        "num_key_value_heads": 64,
        "num_nextn_predict_layers": 0,
        "q_lora_rank": 1536,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {**_YARN, "factor": 32.0, "beta_fast": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0},
        "rope_theta": 50000.0,
        "routed_scaling_factor": 2.827,
        "topk_group": 1,
        "vocab_size": 163840,
    },
    "Moonlight-16B-A3B": {
        **_TRAINING,
        **_HEADS,
        **_ROUTER,
        "architectures": ["DeepseekV3ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
        "model_type": "deepseek_v3",
        "aux_loss_alpha": 0.001,
        "seq_aux": True,
        "bos_token_id": 163584,
        "eos_token_id": 163585,
        "ep_size": 1,
        "first_k_dense_replace": 1,
        "hidden_size": 2048,
        "intermediate_size": 11264,
        "max_position_embeddings": 8192,
        "moe_intermediate_size": 1408,
        "n_group": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_attention_heads": 16,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 27,
        "num_key_value_heads": 16,
        "num_nextn_predict_layers": 0,
        "q_lora_rank": None,
        "rms_norm_eps": 1e-05,
        "rope_theta": 50000.0,
        "routed_scaling_factor": 2.446,
        "topk_group": 1,
        "vocab_size": 163840,
    },
    "GLM-4.7-Flash": {
        "architectures": ["Glm4MoeLiteForCausalLM"],
        "model_type": "glm4_moe_lite",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
        "eos_token_id": [154820, 154827, 154829],
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 10240,
        "kv_lora_rank": 512,
        "max_position_embeddings": 202752,
        "moe_intermediate_size": 1536,
        "n_group": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 20,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 47,
        "num_key_value_heads": 20,
        "num_nextn_predict_layers": 1,
        "pad_token_id": 154820,
        "partial_rotary_factor": 1.0,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "routed_scaling_factor": 1.8,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "transformers_version": "5.0.0rc0",
        "v_head_dim": 256,
        "vocab_size": 154880,
    },
}


def config_of(directory: Path, name: str, **changes: Any) -> DecoderConfig:
    (directory / "config.json").write_text(json.dumps(PUBLISHED[name] | changes))
    return load_config(directory)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_read_without_a_word_in_both_spellings(name: str, tmp_path: Path) -> None:
    """The newer spelling is what transformers writes. It does not know the type of Kimi K2, which is V3's class."""
    config = config_of(tmp_path, name)
    assert config.warnings == () and config.latent is not None and config.latent.size == 576
    known = {"kimi_k2": "deepseek_v3"}.get(PUBLISHED[name]["model_type"], PUBLISHED[name]["model_type"])
    without = ("auto_map", "quantization_config", "model_type")
    fields = {key: value for key, value in PUBLISHED[name].items() if key not in without}
    AutoConfig.for_model(known, **fields).save_pretrained(tmp_path)
    again = load_config(tmp_path)
    assert replace(again, quantization=config.quantization) == config


def test_a_token_takes_what_arithmetic_says(tmp_path: Path) -> None:
    """GLM-4.7-Flash: 47 layers of 512 + 64 numbers, and no values."""
    config = config_of(tmp_path, "GLM-4.7-Flash")
    (group,) = cache_groups(config, 2)
    assert (group.kind, group.window, group.unused_bytes) == ("latent", None, 0)
    assert group.bytes_per_token == bytes_per_page_token([group]) == 47 * 576 * 2
    cache = KVCache.allocate([group], 3, 16, torch.bfloat16, torch.device("cpu"))
    assert cache.keys.nbytes == 3 * 16 * group.bytes_per_token and cache.values.nbytes == 0
    keys, values = cache.by_slot[5]
    keys[7] = 1.5
    assert values.shape == (48, 1, 512) and (values[7] == 1.5).all(), "the latent is a part of the key"


@pytest.mark.parametrize(("name", "least"), [("GLM-4.7-Flash", 399), ("DeepSeek-V3", 171)])
def test_expanded_keys_and_values_are_in_the_plan_of_memory(name: str, least: int, tmp_path: Path) -> None:
    """What the kernels get for a long context in pieces: keys, values and latents, queries, outputs and sums."""
    config = config_of(tmp_path, name)
    sizes, heads, tokens = config.latent, config.num_heads, 8192
    assert sizes is not None and next(queries for queries in range(500) if expands(sizes, queries)) == least
    keys = keys_at_once(sizes, heads, 2)
    elements = keys * (heads * (sizes.plain_dim + sizes.value_dim) + sizes.size)
    assert keys >= LEAST_KEYS and 2 * elements <= EXPANDED_BYTES
    needed = 2 * elements + tokens * heads * (2 * (sizes.head_dim + sizes.value_dim) + 4 * (sizes.value_dim + 2))
    without = replace(config, latent=None)
    planned = activation_bytes(config, 2, tokens, 1, 65536) - activation_bytes(without, 2, tokens, 1, 65536)
    assert needed <= planned < 1.5 * needed


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("DeepSeek-V3", {"scoring_func": "softmax"}, "scoring_func must be one of sigmoid"),
        ("DeepSeek-V3", {"topk_method": "greedy"}, "topk_method must be one of noaux_tc"),
        ("DeepSeek-V3", {"moe_layer_freq": 2}, "moe_layer_freq=2 is not supported"),
        ("DeepSeek-V3", {"n_group": 7}, "n_group=7 must divide n_routed_experts=256"),
        ("DeepSeek-V3", {"q_lora_rank": 0}, "q_lora_rank must be an integer from 1"),
        ("Kimi-K2", {"kv_lora_rank": "512"}, "kv_lora_rank must be an integer from 1"),
        ("Moonlight-16B-A3B", {"attention_bias": True}, "attention_bias=true is not supported with q_lora_rank=null"),
        ("Moonlight-16B-A3B", {"qk_rope_head_dim": 63}, "qk_rope_head_dim must be an even number"),
        ("DeepSeek-V2-Lite", {"norm_topk_prob": True}, "norm_topk_prob must be false"),
        ("DeepSeek-V2-Lite", {"topk_method": "noaux_tc"}, "topk_method must be one of greedy, group_limited_greedy"),
        ("GLM-4.7-Flash", {"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1, by qk_rope_head_dim=64"),
        ("GLM-4.7-Flash", {"mlp_layer_types": ["dense"]}, "mlp_layer_types has 1 entries for num_hidden_layers=47"),
    ],
)
def test_misfits_are_named(name: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=said):
        config_of(tmp_path, name, **changes)


def test_chunks_expand_a_prefix_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some heads at a time, and some queries at a time."""
    directory, sequences = make_tiny("deepseek_v3", tmp_path), tokens((200, 130))
    model, expected = load(directory), reference(directory, sequences)
    sizes = model.config.latent
    assert sizes is not None and expands(sizes, 60) and not expands(sizes, 20)
    monkeypatch.setattr(torch_latent, "_MAX_EXPANDED", 1 << 14)
    monkeypatch.setattr(torch_latent, "MAX_QUERIES", 32)
    paged = Paged(model, sequences)
    paged.step([(0, 75), (1, 61)])
    paged.step([(1, 69), (0, 125)])
    assert_same(paged.finish(), expected)


def test_bfloat16_is_as_exact_as_transformers(tmp_path: Path) -> None:
    """In torch, and with the C library for all but attention. A token whose experts are others by rounding differs
    much, so it is the typical one that counts."""
    sizes: dict[str, Any] = {
        "kv_lora_rank": 64,
        "q_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 32,
        "v_head_dim": 32,
    }
    sizes |= {"moe_intermediate_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
    directory = make_tiny("glm4_moe_lite", tmp_path, dtype=torch.bfloat16, initializer_range=0.08, **sizes)
    sequences, model = tokens((120, 37)), load(directory, torch.bfloat16)
    expected, theirs = (reference(directory, sequences, dtype) for dtype in (torch.float32, torch.bfloat16))

    def error(found: list[Tensor]) -> float:
        errors = zip(found, expected, strict=True)
        return max(float(((ours - exact).norm(dim=1) / exact.norm(dim=1)).median()) for ours, exact in errors)

    assert native.load() is not None
    for use in (lambda: None, lambda: use_native(model)):
        use()
        paged = Paged(model, sequences)
        paged.step([(0, 100), (1, 20)])
        for _ in range(17):
            paged.step([(0, 1), (1, 1)])
        paged.step([(0, 3)])
        assert error(paged.finish()) < 2 * error(theirs)


def test_an_abort_in_the_middle_of_a_prompt_frees_its_pages(tmp_path: Path) -> None:
    """The next prompt finds the latents of the pages that were full, and says what transformers says."""
    directory = make_tiny("glm4_moe_lite", tmp_path)
    prompt, other = (sequence.tolist() for sequence in tokens((60, 20)))
    engine = poison(make_engine(directory, num_blocks=30, max_num_batched_tokens=13))
    engine.add(Generate(0, prompt, greedy(NUM_OUTPUT)))
    engine.add(Generate(1, other, greedy(NUM_OUTPUT)))
    for _ in range(3):
        engine.step()
    engine.abort(0)
    run(engine, [])
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks
    again = run(engine, [Generate(2, prompt, greedy(NUM_OUTPUT))])
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    assert said(again[2, 0]) == generated(model, prompt) and again[2, 0][0].num_cached_tokens == 32
    assert engine.stats().num_free_blocks == stats.num_blocks


def test_a_cache_in_float8(tmp_path: Path) -> None:
    """A prompt alone and decodes read the same rounded latents."""
    directory, sequences = make_tiny("glm4_moe_lite", tmp_path), tokens((40,))
    model, expected, found = load(directory), reference(directory, sequences), []
    for chunks in ((40,), (13, 20, 1, 1, 5)):
        paged = Paged(model, sequences, cache_scales=(0.25, 1.0))
        for count in chunks:
            paged.step([(0, count)])
        found.append(paged.finish())
    assert_same(found[0], found[1])
    error = (found[0][0] - expected[0]).abs().max() / expected[0].abs().max()
    assert 1e-3 < error < 1.0  # random layers make much of a little
