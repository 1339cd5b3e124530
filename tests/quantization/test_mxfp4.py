"""gpt-oss with its experts in mxfp4, as it is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from ember.engine.errors import ModelError
from ember.engine.layers.experts import Experts
from ember.engine.layers.table_linear import TableLinear
from ember.engine.loading.load import load_decoder, read_model_config
from tests.quantization.checkpoints import CPU, check_answers, check_weights, load, twins

LEFT = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
CONFIG = {"quant_method": "mxfp4", "modules_to_not_convert": LEFT}
SIZES: dict[str, Any] = {"intermediate_size": 96}


def is_of_experts(name: str) -> bool:
    return name.endswith(("experts.gate_up_proj", "experts.down_proj"))


def store(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Random numbers of the shape of the weight [experts, in, out], restored by transformers."""
    experts, columns, rows = weight.shape
    torch.manual_seed(len(name))
    blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
    scales = torch.randint(121, 125, (experts, rows, columns // 32), dtype=torch.uint8)
    restored = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert restored.shape == weight.shape
    return {f"{name}_blocks": blocks, f"{name}_scales": scales}, restored


def gpt_oss(root: Path, **fields: Any) -> tuple[Path, Path]:
    return twins("gpt_oss", root, CONFIG, store, is_of_experts, **{**SIZES, **fields})


def test_experts_are_what_transformers_restores(tmp_path: Path) -> None:
    model = check_weights(*gpt_oss(tmp_path))
    mlp = model.parts.blocks[0].mlp
    assert isinstance(mlp, Experts) and all(isinstance(each.up, TableLinear) for each in mlp.each)
    assert not isinstance(model.parts.blocks[0].attention.qkv, TableLinear)


def test_answers_are_those_of_the_restored_weights(tmp_path: Path) -> None:
    check_answers(*gpt_oss(tmp_path))


def test_in_bfloat16(tmp_path: Path) -> None:
    check_weights(*gpt_oss(tmp_path), dtype=torch.bfloat16)


def test_random_weights(tmp_path: Path) -> None:
    directory, _ = gpt_oss(tmp_path)
    config = read_model_config(directory)
    model = load_decoder(directory, config, dtype=torch.float32, device=CPU, load_format="dummy").decoder
    mlp = model.parts.blocks[0].mlp
    assert isinstance(mlp, Experts) and isinstance(mlp.each[0].down, TableLinear)
    assert mlp.each[0].down.weight.isfinite().all()


def test_tensors_of_another_shape_are_named(tmp_path: Path) -> None:
    directory, _ = gpt_oss(tmp_path)
    file = directory / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.1.mlp.experts.down_proj_scales"
    save_file(weights | {name: weights[name][:, :, :2].contiguous()}, file)
    with pytest.raises(ModelError, match=r"in blocks of 32.*layers\.1\.mlp\.experts\.down_proj_scales"):
        load(directory)
