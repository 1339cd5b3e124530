"""Families whose published checkpoints bring code of their own, which transformers does not have.

Their equations are those of families that transformers has, so a checkpoint of such a family is rewritten into theirs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from ember.engine.description.read_config import load_config
from ember.engine.errors import ModelError
from tests.engine_models.paged import Paged
from tests.engine_models.test_parity import assert_same, load, mixed, reference, tokens
from tests.engine_models.tiny import make_tiny, rewrite_config

INTERNLM2_NAMES = {
    "model.embed_tokens": "model.tok_embeddings",
    "lm_head": "output",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}


def check(directory: Path, expected: list[Tensor]) -> None:
    paged = Paged(load(directory), tokens())
    mixed(paged)
    found = paged.finish()
    seen = [theirs[: len(ours)] for ours, theirs in zip(found, expected, strict=True)]
    assert_same(found, seen, 2e-4 if paged.has_states else 2e-5)


def test_internlm2_is_a_llama_with_names_and_a_fused_matrix_of_its_own(tmp_path: Path) -> None:
    """`wqkv` has, for each key-value head, its queries, its key and its value."""
    directory = make_tiny("llama", tmp_path)
    expected = reference(directory, tokens())
    rewrite_as_internlm2(directory)
    check(directory, expected)
    (warning,) = load_config(directory).warnings
    assert "the rope type dynamic changes longer contexts only" in warning and "=256 are served" in warning


def rewrite_as_internlm2(directory: Path) -> None:
    """Give the tiny Llama the names and the configuration of InternLM 2."""
    config, file = load_config(directory), directory / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    for layer in range(config.num_layers):
        prefix, heads = f"model.layers.{layer}.self_attn.", config.num_kv_heads
        parts = [weights.pop(f"{prefix}{name}_proj.weight").unflatten(0, (heads, -1)) for name in "qkv"]
        weights[f"model.layers.{layer}.attention.wqkv.weight"] = torch.cat(parts, dim=1).flatten(0, 1).contiguous()
    for theirs, ours in INTERNLM2_NAMES.items():
        weights = {name.replace(theirs, ours): tensor for name, tensor in weights.items()}
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    scaling = {"type": "dynamic", "factor": 2.0}
    rewrite_config(directory, architectures=["InternLM2ForCausalLM"], model_type="internlm2", bias=False)
    rewrite_config(directory, rope_parameters=None, rope_theta=10000.0, rope_scaling=scaling)
    rewrite_config(directory, attention_bias=None, mlp_bias=None)


LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + n for n in range(8)],
    "long_factor": [3.0] * 8,
    "attention_factor": 1.3,
}


@pytest.mark.parametrize("original", [None, 1, 256], ids=["MiniCPM 2", "MiniCPM 4, long", "MiniCPM 4, short"])
def test_minicpm_is_a_granite_with_other_factors(original: int | None, tmp_path: Path) -> None:
    factors: dict[str, Any] = {
        "embedding_multiplier": 12.0,
        "attention_multiplier": 16**-0.5,
        "residual_multiplier": 1.4 / 3**0.5,
        "logits_scaling": 64 / 16,
    }
    rope = {"rope_theta": 777.0, **({"original_max_position_embeddings": original, **LONGROPE} if original else {})}
    directory = make_tiny("granite", tmp_path, **factors, mlp_bias=False, rope_parameters=dict(rope))
    expected = reference(directory, tokens())
    rewrite_config(directory, architectures=["MiniCPMForCausalLM"], model_type="minicpm", mlp_bias=None)
    rewrite_config(directory, **dict.fromkeys(factors), scale_emb=12, scale_depth=1.4, dim_model_base=16)
    rewrite_config(directory, rope_parameters=None, rope_theta=rope.pop("rope_theta"), rope_scaling=rope or None)
    rewrite_config(directory, mup_denominator=32)
    check(directory, expected)
    assert ["MAX_MODEL_LEN up to 1," in warning for warning in load_config(directory).warnings] == [True] * (
        original == 1
    )
    rewrite_config(directory, num_experts=8)
    with pytest.raises(ModelError, match="num_experts must be 0: experts of MiniCPM are not supported, not 8"):
        load_config(directory)


def test_internlm3_has_biases_by_its_own_names(tmp_path: Path) -> None:
    directory = make_tiny("internlm3", tmp_path)
    saved = load_config(directory)
    content = json.loads((directory / "config.json").read_text())
    assert content["attention_bias"] and content["mlp_bias"]
    rewrite_config(directory, attention_bias=None, mlp_bias=None, qkv_bias=True, bias=True)
    assert load_config(directory) == saved
