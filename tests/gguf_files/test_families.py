"""Models in GGUF compute what the checkpoint does that they were made from: one case for each kind of conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES

from ember.engine.core.prediction import Target, predict
from ember.engine.description.gguf.architectures import ARCHITECTURES
from ember.engine.errors import ModelError
from ember.engine.loading.load import load_decoder, read_model_config
from ember.engine.models.decoder import Decoder
from ember.engine.operators.choose import decision_for
from ember.wire import Configure
from tests.engine_models.paged import Paged
from tests.engine_models.tiny import VOCAB_SIZE, make_tiny, rewrite_config
from tests.gguf_files.convert import Case, Config, convert
from tests.gguf_files.state_cases import STATE_CASES

FACTORS = {"short_factor": [1.0 + 0.1 * i for i in range(6)], "long_factor": [2.0 + 0.7 * i for i in range(6)]}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, **FACTORS}


def gemma(config: Config) -> dict[str, Any]:
    caps = {name: config[name] for name in ("attn_logit_softcapping", "final_logit_softcapping") if config.get(name)}
    return caps | {"attention.sliding_window": config["sliding_window"]}


def gemma3(config: Config) -> dict[str, Any]:
    return gemma(config) | {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}


def window(config: Config) -> dict[str, Any]:
    flags = [kind == "sliding_attention" for kind in config["layer_types"]]
    return {"attention.sliding_window": config["sliding_window"], "attention.sliding_window_pattern": flags}


def yarn(config: Config) -> dict[str, Any]:
    rope = config["rope_parameters"]
    rope = rope.get("full_attention", rope)
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": rope["factor"],
        "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
    }


def granite(config: Config) -> dict[str, Any]:
    return {
        "attention.scale": config["attention_multiplier"],
        "embedding_scale": config["embedding_multiplier"],
        "residual_scale": config["residual_multiplier"],
        "logit_scale": config["logits_scaling"],
    }


def rope_share(config: Config) -> dict[str, Any]:
    rope = config.get("rope_parameters") or {}
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return {"rope.dimension_count": int(rope.get("partial_rotary_factor", 1.0) * head_dim)}


def experts(config: Config) -> dict[str, Any]:
    found = {"expert_feed_forward_length": config["moe_intermediate_size"]}
    if "shared_expert_intermediate_size" in config:
        found["expert_shared_feed_forward_length"] = config["shared_expert_intermediate_size"]
    return found


def ernie_moe(config: Config) -> dict[str, Any]:
    return {
        "expert_count": config["moe_num_experts"],
        "expert_used_count": config["moe_k"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_shared_count": config["moe_num_shared_experts"],
        "leading_dense_block_count": config["moe_layer_start_index"],
        "interleave_moe_layer_step": config["moe_layer_interval"],
    }


def glm_moe(config: Config) -> dict[str, Any]:
    return rope_share(config) | {
        "block_count": config["num_hidden_layers"],
        "expert_count": config["n_routed_experts"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_shared_count": config["n_shared_experts"],
        "leading_dense_block_count": config["first_k_dense_replace"],
        "expert_group_count": config["n_group"],
        "expert_group_used_count": config["topk_group"],
        "expert_weights_scale": config["routed_scaling_factor"],
        "expert_weights_norm": config["norm_topk_prob"],
    }


def phi_long(config: Config) -> dict[str, Any]:
    return rope_share(config) | {"rope.scaling.original_context_length": 128}


A = MODEL_ARCH
GEMMA3 = {"query_pre_attn_scalar": 32, "num_hidden_layers": 6, "layer_types": None}
CASES = {
    "llama": Case(A.LLAMA, "llama_mha", permutes=True),
    "llama_tied": Case(A.LLAMA, "llama_tied", permutes=True),
    "llama_linear": Case(
        A.LLAMA,
        "llama_linear",
        permutes=True,
        metadata=lambda _: {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
    ),
    "llama_linear_unnamed": Case(
        A.LLAMA, "llama_linear", permutes=True, metadata=lambda _: {"rope.scaling.factor": 2.0}
    ),
    "llama_yarn": Case(A.LLAMA, "llama_yarn", permutes=True, metadata=yarn),
    "mixtral": Case(A.LLAMA, "mixtral", {"sliding_window": None}, permutes=True),
    "qwen2": Case(A.QWEN2, "qwen2"),
    "qwen3": Case(A.QWEN3, "qwen3"),
    "qwen2_moe": Case(A.QWEN2MOE, "qwen2_moe", {"mlp_only_layers": [], "use_sliding_window": False}, metadata=experts),
    "qwen3_moe": Case(
        A.QWEN3MOE, "qwen3_moe", {"decoder_sparse_step": 1, "use_sliding_window": False}, metadata=experts
    ),
    "gemma2": Case(
        A.GEMMA2, "gemma2", {"query_pre_attn_scalar": 16, "attention_bias": False}, norm_offset=1.0, metadata=gemma
    ),
    "gemma3": Case(A.GEMMA3, "gemma3", GEMMA3, norm_offset=1.0, metadata=gemma3),
    "phi": Case(A.PHI2, "phi", metadata=rope_share),
    "phi3": Case(A.PHI3, "phi3", metadata=lambda config: {"attention.sliding_window": config["sliding_window"]}),
    "phi3_long": Case(
        A.PHI3,
        "phi3_long",
        {"original_max_position_embeddings": 128, "rope_parameters": LONGROPE},
        metadata=phi_long,
    ),
    "gpt_oss": Case(
        A.GPT_OSS,
        "gpt_oss",
        {"swiglu_limit": 7.0},
        metadata=lambda config: {
            **yarn(config),
            "attention.sliding_window": config["sliding_window"],
            "expert_feed_forward_length": config["intermediate_size"],
        },
    ),
    "gpt2": Case(A.GPT2, "gpt2", transposed=(".c_attn.weight", ".c_proj.weight", ".c_fc.weight")),
    "gpt_bigcode": Case(A.STARCODER, "gpt_bigcode", metadata=lambda _: {"attention.head_count_kv": 1}),
    "gpt_neox": Case(
        A.GPTNEOX,
        "gpt_neox",
        fused=("query_key_value", 4),
        metadata=lambda config: {**rope_share(config), "use_parallel_residual": True},
    ),
    "falcon": Case(
        A.FALCON,
        "falcon_new",
        {"bias": False},
        fused=("query_key_value", 2),
        metadata=lambda _: {"attention.head_count_kv": 2},
    ),
    "bloom": Case(A.BLOOM, "bloom", fused=("query_key_value", 5)),
    "stablelm": Case(A.STABLELM, "stablelm", metadata=rope_share),
    "starcoder2": Case(
        A.STARCODER2,
        "starcoder2",
        {"sliding_window": None},
        metadata=lambda config: {"attention.layer_norm_epsilon": config["norm_epsilon"]},
    ),
    "olmo2": Case(A.OLMO2, "olmo2"),
    "olmo3": Case(
        A.OLMO2, "olmo3", metadata=lambda config: {**yarn(config), **window(config), "rope.freq_base_swa": 1000.0}
    ),
    "granite": Case(A.GRANITE, "granite", permutes=True, metadata=granite),
    "cohere": Case(A.COMMAND_R, "cohere", metadata=lambda config: {"logit_scale": config["logit_scale"]}),
    "cohere2": Case(
        A.COHERE2,
        "cohere2",
        {"sliding_window_pattern": 4, "num_hidden_layers": 5},
        metadata=lambda config: {"logit_scale": config["logit_scale"], "attention.sliding_window": 9},
    ),
    "glm4": Case(A.GLM4, "glm4", metadata=rope_share),
    "glm4_moe": Case(A.GLM4_MOE, "glm4_moe", metadata=glm_moe),
    "exaone4": Case(A.EXAONE4, "exaone4", metadata=window),
    "smollm3": Case(A.SMOLLM3, "smollm3", {"no_rope_layer_interval": 4, "num_hidden_layers": 5}, permutes=True),
    "seed_oss": Case(A.SEED_OSS, "seed_oss"),
    "nemotron": Case(
        A.NEMOTRON,
        "nemotron",
        norm_offset=1.0,
        metadata=lambda config: {**rope_share(config), "attention.layer_norm_epsilon": config["norm_eps"]},
    ),
    "ernie_moe": Case(A.ERNIE4_5_MOE, "ernie_moe", metadata=ernie_moe),
    "minimax_m2": Case(
        A.MINIMAXM2, "minimax_m2", metadata=lambda config: {"rope.dimension_count": config["rotary_dim"]}
    ),
} | STATE_CASES


def load(path: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    return load_decoder(path, read_model_config(path), dtype=dtype, device=torch.device("cpu")).decoder


def logits(model: Decoder) -> list[torch.Tensor]:
    """Of two sequences, the prompts in pieces."""
    torch.manual_seed(3)
    paged = Paged(model, [torch.randint(3, VOCAB_SIZE, (29,)), torch.randint(3, VOCAB_SIZE, (40,))])
    paged.step([(0, 19), (1, 30)])
    paged.step([(1, 10), (0, 10)])
    return paged.finish()


def made(name: str, directory: Path, **options: Any) -> tuple[Path, Path]:
    case = CASES[name]
    checkpoint = make_tiny(case.variant, directory / "checkpoint", **case.fields)
    return checkpoint, convert(checkpoint, directory / "model.gguf", case, **options)


def test_the_names_of_architectures_are_the_packages():
    known = set(MODEL_ARCH_NAMES.values())
    assert set(ARCHITECTURES) <= known
    assert {MODEL_ARCH_NAMES[case.arch] for case in CASES.values()} <= set(ARCHITECTURES)


@pytest.mark.parametrize("name", CASES)
def test_a_model_computes_what_its_checkpoint_does(name, tmp_path):
    checkpoint, file = made(name, tmp_path)
    if name == "phi3_long":
        rewrite_config(checkpoint, original_max_position_embeddings=128)
        file = with_rope_factors(checkpoint, tmp_path)
    wanted = logits(load(checkpoint))
    model = load(file)
    assert len(model.config.warnings) == (name == "phi3_long")  # which says what lengths each list of factors is for
    assert model.config.eos_token_ids == [2]
    scale = max(each.abs().max().item() for each in wanted)
    for found, expected in zip(logits(model), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * scale)


def test_metadata_that_nothing_reads_are_named(tmp_path):
    """A metadata entry that nobody reads is named, as a field of a config.json is."""
    extra = {"llama.attention.clamp_kqv": 0.5, "llama.vocab_size": VOCAB_SIZE, "llama.logit_scale": 2.0}
    _, file = made("llama", tmp_path, extra=extra)
    (warning,) = load(file).config.warnings
    assert "metadata that Ember does not read for llama: attention.clamp_kqv, logit_scale." in warning


def with_rope_factors(checkpoint: Path, directory: Path) -> Path:
    def change(arrays: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, str]]:
        rope = json.loads((checkpoint / "config.json").read_text())["rope_parameters"]
        for kind in ("short", "long"):
            arrays[f"rope_factors_{kind}.weight"] = np.array(rope[f"{kind}_factor"], dtype=np.float32)
        return {name: (each, "F32") for name, each in arrays.items()}

    return convert(checkpoint, directory / "factors.gguf", CASES["phi3_long"], change=change)


def test_llama_3s_frequencies_are_a_tensor_of_divisors(tmp_path):
    """The rescaling of Llama 3.1, as the conversion writes it: rope_freqs.weight."""
    case = Case(A.LLAMA, "llama3", permutes=True)
    checkpoint = make_tiny(case.variant, tmp_path / "checkpoint")
    rope = json.loads((checkpoint / "config.json").read_text())["rope_parameters"]

    def change(arrays: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, str]]:
        frequencies = rope["rope_theta"] ** -(np.arange(0, 16, 2) / 16)
        turns = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        kept = np.clip((turns - low) / (high - low), 0, 1)
        arrays["rope_freqs.weight"] = (1 / (kept + (1 - kept) / rope["factor"])).astype(np.float32)
        assert len(set(arrays["rope_freqs.weight"])) > 1
        return {name: (each, "F32") for name, each in arrays.items()}

    file = convert(checkpoint, tmp_path / "model.gguf", case, change=change)
    for found, expected in zip(logits(load(file)), logits(load(checkpoint)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_the_first_files_of_mixtral_have_each_expert_in_tensors_of_its_own(tmp_path):
    def change(arrays: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, str]]:
        found = {}
        for name, each in arrays.items():
            if "_exps" in name:
                for expert, matrix in enumerate(each):
                    found[name.replace("_exps", f".{expert}")] = (matrix, "F32")
            else:
                found[name] = (each, "F32")
        return found

    checkpoint, file = made("mixtral", tmp_path, change=change)
    for found, expected in zip(logits(load(file)), logits(load(checkpoint)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_query_key_and_value_may_be_one_matrix_in_every_architecture(tmp_path):
    """As the conversion's option --fuse-qkv writes them."""

    def change(arrays: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, str]]:
        for layer in range(3):
            for end in ("weight", "bias"):
                parts = [arrays.pop(f"blk.{layer}.attn_{part}.{end}") for part in "qkv"]
                arrays[f"blk.{layer}.attn_qkv.{end}"] = np.concatenate(parts)
        return {name: (each, "F32") for name, each in arrays.items()}

    checkpoint, file = made("llama", tmp_path, change=change)
    for found, expected in zip(logits(load(file)), logits(load(checkpoint)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"general.architecture": "jamba"}, "the architecture jamba, which is not supported in GGUF files"),
        ({"general.architecture": "clip"}, "is a vision projector, not a language model"),
        ({"general.type": "adapter"}, "is a LoRA adapter, not a language model"),
        (
            {"llama.block_count": 4},
            "the metadata does not fit the weight files: num_hidden_layers=4, but the files have 3 layers",
        ),
        ({"llama.block_count": 2}, "num_hidden_layers=2, but the files have 3 layers"),
        ({"llama.block_count": 0}, "block_count must be from 1 to 100000, not 0"),
        ({"llama.block_count": 2**31}, "block_count must be from 1 to 100000"),
        ({"llama.block_count": "3"}, "llama.block_count must be an integer, not '3'"),
        ({"llama.attention.head_count": 0}, "head_count must be at least 1"),
        ({"llama.attention.head_count": [4, 4, 2]}, "the same for all layers"),
        ({"llama.attention.head_count": [4] * 100_001}, "head_count must be an array of at most 100000 numbers"),
        ({"llama.attention.head_count": 3}, "num_attention_heads=3 must be a multiple"),
        ({"llama.attention.value_length": 7}, "keys and values of different lengths"),
        ({"llama.embedding_length": 32}, "hidden_size=32, but token_embd.weight has 64 columns"),
        ({"llama.feed_forward_length": 2**31}, "intermediate_size must be an integer from 1"),
        ({"llama.attention.layer_norm_rms_epsilon": "small"}, "rms_epsilon must be a number in float32 or float64"),
        ({"llama.attention.layer_norm_rms_epsilon": 897988541}, "in float32 or float64, not 897988541"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "lacks llama.attention.layer_norm_rms_epsilon"),
        ({"llama.rope.freq_base": 10000}, "llama.rope.freq_base must be a number in float32 or float64, not 10000"),
        ({"llama.expert_count": 4.0}, "llama.expert_count must be an integer, not 4.0"),
        ({"llama.attention.sliding_window_pattern": 2.0, "llama.attention.sliding_window": 9}, "must be an integer"),
        ({"llama.rope.freq_base": 0.0}, "rope_theta must be a number above 0"),
        ({"llama.rope.dimension_count": 99}, "rotates 99 of head_dim=24 dimensions"),
        ({"llama.rope.scaling.type": "su", "llama.rope.scaling.factor": 2.0}, "the rope type 'su' is not supported"),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1e9}, "factor must be a number"),
        ({"llama.expert_count": 4, "llama.expert_used_count": 9}, "num_experts_per_tok=9 is more than"),
    ],
)
def test_what_the_metadata_says_wrongly_is_one_line(extra, message, tmp_path):
    _, file = made("llama_tied", tmp_path, extra=extra)
    with pytest.raises(ModelError) as raised:
        load(file)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_tensors_that_do_not_belong_are_named(tmp_path):
    def change(arrays: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, str]]:
        arrays["blk.1.attn_gate.weight"] = arrays.pop("blk.1.attn_norm.weight")
        return {name: (each, "F32") for name, each in arrays.items()}

    _, file = made("llama", tmp_path, change=change)
    with pytest.raises(ModelError, match=r"lacks blk.1.attn_norm.weight \[64\].*blk.1.attn_gate.weight \[64\]"):
        load(file)


def test_a_file_is_described_as_it_boots(tmp_path):
    """Without torch (`ember inspect`): the same operators, bytes and parameters, by the file's name or its folder's."""
    _, path = made("llama", tmp_path)
    model = load(path, torch.bfloat16)
    for name in (path, path.parent):
        predicted = predict(Configure(model=str(name), dtype="bfloat16"), [Target("cpu", "cpu", 1 << 33, 1 << 33)])
        (device,) = predicted.devices
        assert (predicted.model_dir, predicted.tokenizer_dir) == (str(path), str(path))
        assert (predicted.quantization, predicted.parameters) == ("gguf", model.num_parameters)
        assert device.fits and device.weight_bytes == model.weight_bytes
        decision = decision_for(model.config, model.parts, model.dtype, "cpu")
        assert f"{device.operators} ({device.operators_reason})" == str(decision)
