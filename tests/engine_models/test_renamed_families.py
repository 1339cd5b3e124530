"""Families whose published checkpoints bring code of their own, with the equations of a family of transformers: a
checkpoint of that family with their names gives the same logits."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from ember.engine.core.prediction import predict
from ember.engine.description.classic_decoder import alibi_slopes
from ember.engine.description.families.registry import ARCHITECTURES, MODEL_TYPES, find_family
from ember.engine.description.read_config import load_config
from ember.engine.errors import ModelError
from ember.engine.loading.load import load_decoder
from ember.wire import Configure
from tests.engine_models.test_own_code_families import check
from tests.engine_models.test_parity import reference, tokens
from tests.engine_models.tiny import make_tiny, rewrite_config


def rename(directory: Path, names: Mapping[str, str], fused: str | None = None, transposed: bool = False) -> None:
    """Replace patterns in the weights' names. `fused`: the new name of query, key and value as one matrix.
    `transposed`: turn the matrices of GPT-2's layers around."""
    file = directory / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    for name in [name for name in weights if fused and ".self_attn.q_proj." in name]:
        parts = [weights.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        weights[name.replace("self_attn.q_proj", str(fused))] = torch.cat(parts)
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if transposed and tensor.dim() == 2 and ".h." in name:
            tensor = tensor.T.contiguous()
        for pattern, new in names.items():
            name = re.sub(pattern, new, name)
        renamed[name] = tensor
    safetensors.torch.save_file(renamed, file, metadata={"format": "pt"})


def replace_config(directory: Path, **fields: Any) -> None:
    """A config.json with these fields, and the sizes of the one that is there."""
    path = directory / "config.json"
    kept = ("vocab_size", "hidden_size", "num_attention_heads", "eos_token_id")
    old = json.loads(path.read_text())
    path.write_text(json.dumps({name: old[name] for name in kept if name in old} | fields))


LLAMA_SIZES: dict[str, Any] = {
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}


OTHER_NAMES = {
    "LLaMAForCausalLM": "LlamaForCausalLM",
    "AquilaForCausalLM": "LlamaForCausalLM",
    "AquilaModel": "LlamaForCausalLM",
    "XverseForCausalLM": "LlamaForCausalLM",
    "MPTForCausalLM": "MptForCausalLM",
    "PhiMoEForCausalLM": "PhimoeForCausalLM",
    "StableLMEpochForCausalLM": "StableLmForCausalLM",
    "BaiChuanForCausalLM": "BaichuanForCausalLM",
    "ChatGLMForConditionalGeneration": "ChatGLMModel",
}


@pytest.mark.parametrize("architecture", OTHER_NAMES)
def test_a_class_by_another_name_is_read_as_its_family(architecture: str, tmp_path: Path) -> None:
    assert find_family(architecture) is find_family(OTHER_NAMES[architecture])
    assert MODEL_TYPES[ARCHITECTURES[OTHER_NAMES[architecture]][0]] == OTHER_NAMES[architecture]
    if OTHER_NAMES[architecture] == "LlamaForCausalLM":
        directory = make_tiny("llama", tmp_path)
        rewrite_config(directory, architectures=[architecture])
        assert load_config(directory).architecture == architecture


@pytest.mark.parametrize("bias", [True, False])
def test_internlm1_has_one_field_for_the_biases_of_attention(bias: bool, tmp_path: Path) -> None:
    directory = make_tiny("llama", tmp_path, attention_bias=bias)
    expected = reference(directory, tokens())
    replace_config(directory, architectures=["InternLMForCausalLM"], bias=bias, num_key_value_heads=2, **LLAMA_SIZES)
    check(directory, expected)


def test_orion_has_layer_norms(tmp_path: Path) -> None:
    directory = make_tiny("stablelm", tmp_path, partial_rotary_factor=1.0, use_qkv_bias=False, layer_norm_eps=1e-5)
    expected = reference(directory, tokens())
    fields: dict[str, Any] = {"num_key_value_heads": 1, **LLAMA_SIZES}
    replace_config(directory, architectures=["OrionForCausalLM"], **fields)
    check(directory, expected)


def test_mimo_is_a_qwen2_whose_layers_for_further_tokens_are_not_read(tmp_path: Path) -> None:
    directory = make_tiny("qwen2", tmp_path, tie_word_embeddings=False)
    expected, file = reference(directory, tokens()), directory / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    extra = {"model.mtp_layers.0.input_proj.weight": torch.zeros(64, 128)}
    safetensors.torch.save_file(weights | extra, file, metadata={"format": "pt"})
    rewrite_config(directory, architectures=["MiMoForCausalLM"], model_type="mimo", num_nextn_predict_layers=1)
    check(directory, expected)
    assert load_config(directory).warnings == ()


def test_layers_of_ernie_for_further_tokens_are_not_read(tmp_path: Path) -> None:
    directory = make_tiny("ernie_moe", tmp_path)
    expected, file = reference(directory, tokens()), directory / "model.safetensors"
    extra = {"model.mtp_block.0.input_layernorm.weight": torch.zeros(64)}
    safetensors.torch.save_file(safetensors.torch.load_file(file) | extra, file, metadata={"format": "pt"})
    rewrite_config(directory, num_nextn_predict_layers=1, moe_gate="topk", moe_use_aux_free=True)
    check(directory, expected)
    assert load_config(directory).warnings == ()


EXAONE3 = {
    r"^model\.layers\.(\d+)\.": r"transformer.h.\1.",
    r"^model\.embed_tokens": "transformer.wte",
    r"^model\.norm": "transformer.ln_f",
    r"self_attn\.o_proj": "attn.attention.out_proj",
    r"self_attn\.": "attn.attention.",
    r"input_layernorm": "ln_1",
    r"post_attention_layernorm": "ln_2",
    r"mlp\.gate_proj": "mlp.c_fc_0",
    r"mlp\.up_proj": "mlp.c_fc_1",
    r"mlp\.down_proj": "mlp.c_proj",
}


def test_exaone3(tmp_path: Path) -> None:
    directory = make_tiny("llama3", tmp_path)
    scaling = json.loads((directory / "config.json").read_text())["rope_parameters"]
    expected = reference(directory, tokens())
    rename(directory, EXAONE3)
    replace_config(
        directory,
        architectures=["ExaoneForCausalLM"],
        model_type="exaone",
        num_layers=3,
        intermediate_size=112,
        num_key_value_heads=2,
        max_position_embeddings=256,
        layer_norm_epsilon=1e-5,
        activation_function="silu",
        rope_theta=scaling.pop("rope_theta"),
        rope_scaling=scaling,
    )
    check(directory, expected)
    assert load_config(directory).warnings == ()


def with_alibi(model: Any, slopes: list[float]) -> list[Tensor]:
    """The logits of a Llama of transformers without rotary positions, and with ALiBi (arXiv 2108.12409) as its mask."""
    model.model.rotary_emb.inv_freq.zero_()
    found = []
    for sequence in tokens():
        positions = torch.arange(len(sequence))
        distances = positions[:, None] - positions
        mask = torch.where(distances < 0, -torch.inf, -torch.tensor(slopes)[:, None, None] * distances)
        with torch.inference_mode():
            found.append(model(sequence[None], attention_mask=mask[None]).logits[0])
    return found


def test_baichuan(tmp_path: Path) -> None:
    directory = make_tiny("llama", tmp_path, num_key_value_heads=4)
    expected = reference(directory, tokens())
    plain = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    rename(directory, {}, fused="self_attn.W_pack")
    replace_config(directory, architectures=["BaiChuanForCausalLM"], model_type="baichuan", **LLAMA_SIZES)
    check(directory, expected)
    assert load_config(directory).warnings == ()
    rewrite_config(directory, max_position_embeddings=None, model_max_length=256)
    larger = load_config(directory)
    assert larger.alibi == alibi_slopes(4) and larger.rope is None and larger.max_position_embeddings == 256
    check(directory, with_alibi(plain, [0.25, 0.0625, 0.015625, 0.00390625]))
    rewrite_config(directory, rope_scaling={"type": "linear", "factor": 2.0})
    scaled = load_config(directory)
    assert "rope_scaling of the kind 'linear' changes nothing" in scaled.warnings[0]
    assert (scaled.max_position_embeddings, scaled.alibi) == (256, larger.alibi)


def test_the_head_of_baichuan_2_has_rows_of_length_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ember.engine.description.families.baichuan.VOCAB_SIZE_2", 199)
    directory = make_tiny("llama", tmp_path, num_key_value_heads=4)
    lengths = safetensors.torch.load_file(directory / "model.safetensors")["lm_head.weight"].norm(dim=-1)
    expected = [logits / lengths for logits in reference(directory, tokens())]
    rename(directory, {}, fused="self_attn.W_pack")
    replace_config(directory, architectures=["BaichuanForCausalLM"], **LLAMA_SIZES)
    check(directory, expected)


CHATGLM = {
    r"^model\.layers\.": "transformer.encoder.layers.",
    r"^model\.embed_tokens": "transformer.embedding.word_embeddings",
    r"^model\.norm": "transformer.encoder.final_layernorm",
    r"^lm_head": "transformer.output_layer",
    r"self_attn\.o_proj": "self_attention.dense",
    r"mlp\.gate_up_proj": "mlp.dense_h_to_4h",
    r"mlp\.down_proj": "mlp.dense_4h_to_h",
}


def test_chatglm(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 500_000.0, "partial_rotary_factor": 0.5}
    directory = make_tiny("glm", tmp_path, rope_parameters=rope, attention_bias=True)
    expected = reference(directory, tokens())
    rename(directory, CHATGLM, fused="self_attention.query_key_value")
    replace_config(
        directory,
        architectures=["ChatGLMModel"],
        model_type="chatglm",
        num_layers=3,
        padded_vocab_size=199,
        ffn_hidden_size=112,
        kv_channels=16,
        multi_query_attention=True,
        multi_query_group_num=2,
        seq_length=256,
        layernorm_epsilon=1e-5,
        add_qkv_bias=True,
        rope_ratio=50,
        rmsnorm=True,
    )
    check(directory, expected)
    assert load_config(directory).warnings == ()
    rewrite_config(directory, max_position_embeddings=999, quantization_bit=4)
    (warning,) = load_config(directory).warnings
    assert "ChatGLMModel: max_position_embeddings, quantization_bit. Where" in warning
    rewrite_config(directory, multi_query_group_num=3)
    with pytest.raises(ModelError, match="num_attention_heads=4 must be a multiple of multi_query_group_num=3"):
        load_config(directory)


LING = {
    r"^model\.embed_tokens": "model.word_embeddings",
    r"self_attn\.o_proj": "attention.dense",
    r"self_attn\.q_norm": "attention.query_layernorm",
    r"self_attn\.k_norm": "attention.key_layernorm",
    r"e_score_correction_bias": "expert_bias",
}


def test_ling_is_a_glm_with_experts(tmp_path: Path) -> None:
    directory = make_tiny("glm4_moe", tmp_path, attention_bias=False)
    expected = reference(directory, tokens())
    rename(directory, LING, fused="attention.query_key_value")
    replace_config(
        directory,
        architectures=["BailingMoeV2ForCausalLM"],
        model_type="bailing_moe",
        num_experts=8,
        num_experts_per_tok=3,
        num_shared_experts=1,
        moe_intermediate_size=48,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=1.5,
        rope_theta=10_000.0,
        partial_rotary_factor=0.5,
        head_dim=16,
        num_key_value_heads=3,
        score_function="sigmoid",
        moe_shared_expert_intermediate_size=48,
        **LLAMA_SIZES,
    )
    check(directory, expected)
    assert load_config(directory).warnings == ()
    rewrite_config(directory, moe_shared_expert_intermediate_size=80, num_shared_experts=2, n_group=None, topk_group=2)
    experts = load_config(directory).experts
    assert experts is not None and (experts.shared_size, experts.groups, experts.groups_per_token) == (160, 8, 2)


# Each family with a field of its published files, and a value that would change what it computes.
NOT_READ: list[tuple[str, dict[str, Any]]] = [
    ("hunyuan_moe", {"group_limited_greedy": True}),
    ("hunyuan_moe", {"routed_scaling_factor": 2.5}),
    ("exaone_moe", {"scoring_func": "softmax"}),
    ("exaone_moe", {"topk_method": "greedy"}),
    ("mpt", {"ffn_config": {"ffn_type": "mptgeglu"}}),
    ("mpt", {"norm_type": "rmsnorm"}),
]


@pytest.mark.parametrize(("family", "fields"), NOT_READ)
def test_a_field_with_a_value_that_is_not_computed_is_named(
    family: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    directory = make_tiny(family, tmp_path)
    rewrite_config(directory, **fields)
    (warning,) = load_config(directory).warnings
    assert f": {next(iter(fields))}. Where one of them" in warning


def test_mpt_with_learned_positions_and_biases_is_a_gpt2(tmp_path: Path) -> None:
    directory = make_tiny("gpt2", tmp_path, activation_function="gelu", n_inner=240)
    expected = reference(directory, tokens())
    names = {
        r"\.h\.(\d+)\.": r".blocks.\1.",
        r"attn\.c_attn": "attn.Wqkv",
        r"attn\.c_proj": "attn.out_proj",
        r"mlp\.c_fc": "ffn.up_proj",
        r"mlp\.c_proj": "ffn.down_proj",
        r"ln_(\d)": r"norm_\1",
        r"ln_f": "norm_f",
    }
    rename(directory, names, transposed=True)
    fields = {"d_model": 60, "n_layers": 3, "n_heads": 5, "max_seq_len": 256, "no_bias": False}
    replace_config(directory, architectures=["MPTForCausalLM"], attn_config={"alibi": False}, **fields)
    check(directory, expected)
    assert load_config(directory).warnings == ()
    rewrite_config(directory, logit_scale="inv_sqrt_d_model")
    check(directory, [logits / 60**0.5 for logits in expected])
    rewrite_config(directory, logit_scale=0.5, learned_pos_emb=False)
    config = load_config(directory)
    assert config.logits_scale == 0.5 and config.position_offset is None and not config.alibi
    rewrite_config(directory, attn_config={"qk_ln": True})
    with pytest.raises(ModelError, match="attn_config.qk_ln must be false"):
        load_config(directory)


def test_qwen_3_5_with_all_experts_in_one_tensor_and_layers_for_further_tokens(tmp_path: Path) -> None:
    """As it is published; transformers saves a tensor for each expert. What is not read is counted."""
    directory = make_tiny("qwen3_5_moe", tmp_path)
    expected, file = reference(directory, tokens()), directory / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    count = load_config(directory).experts.count  # type: ignore[union-attr]
    for layer in range(4):
        own = f"model.layers.{layer}.mlp.experts."
        each = [[weights.pop(f"{own}{i}.{name}_proj.weight") for name in ("gate", "up", "down")] for i in range(count)]
        weights[f"{own}gate_up_proj"] = torch.stack([torch.cat(matrices[:2]) for matrices in each])
        weights[f"{own}down_proj"] = torch.stack([matrices[2] for matrices in each])
    further = {"mtp.fc.weight": torch.zeros(64, 128), "mtp.norm.weight": torch.zeros(64)}
    safetensors.torch.save_file(weights | further, file, metadata={"format": "pt"})
    check(directory, expected)
    said: list[str] = []
    config, device = load_config(directory), torch.device("cpu")
    load_decoder(directory, config, dtype=torch.float32, device=device, say=said.append)
    assert said == ["2 weights that predict further tokens, 33.0 kB, are skipped"]
    predicted = predict(Configure(model=str(directory)), [])
    assert (predicted.predicting_tensors, predicted.predicting_bytes) == (2, 4 * 129 * 64)
