"""Checkpoints as NVIDIA's ModelOpt exports them: float8 and nvfp4, described in either file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from torch import Tensor

from ember.engine.description.cache_format import is_float8
from ember.engine.description.read_config import load_config
from ember.engine.errors import ModelError
from ember.engine.layers.float8_linear import Float8Linear
from ember.engine.layers.linear import Linear
from ember.engine.layers.table_linear import TableLinear
from tests.engine_models.tiny import make_tiny, rewrite_config
from tests.quantization.checkpoints import check_answers, check_weights, is_matrix, load, matrices, twins
from tests.quantization.test_fp8 import by_blocks, by_matrix, by_rows

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}


def nvfp4(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Random numbers: codes of 4 bits, scales of blocks of 16 in e4m3, and one of the matrix to multiply by."""
    rows, columns = weight.shape
    torch.manual_seed(rows + len(name))
    codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8)
    scales = (torch.rand(rows, columns // 16) * 400 + 20).to(torch.float8_e4m3fn)
    matrix_scale = torch.rand(()) * 1e-3 + 1e-4
    numbers = unpack_fp4_from_uint8(codes, rows, columns, dtype=torch.float32)
    restored = numbers.unflatten(1, (-1, 16)) * (scales.float() * matrix_scale)[..., None]
    module = name.removesuffix(".weight")
    stored = {name: codes, f"{module}.weight_scale": scales, f"{module}.weight_scale_2": matrix_scale}
    return {**stored, f"{module}.input_scale": torch.tensor(0.01)}, restored.flatten(1)


def with_file(directory: Path, description: dict[str, Any]) -> Path:
    """The description in ModelOpt's own file, and none in config.json."""
    config = json.loads((directory / "config.json").read_text())
    del config["quantization_config"]
    (directory / "config.json").write_text(json.dumps(config))
    file = {"producer": {"name": "modelopt", "version": "0.29.0"}, "quantization": description}
    (directory / "hf_quant_config.json").write_text(json.dumps(file))
    return directory


ALGORITHMS: dict[str, Any] = {
    "FP8": by_matrix(),
    "FP8_PER_CHANNEL_PER_TOKEN": by_rows(),
    "NVFP4": nvfp4,
}


@pytest.mark.parametrize("in_own_file", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("variant", ["llama", "qwen3_moe"])
def test_weights_are_restored(variant: str, algorithm: str, in_own_file: bool, tmp_path: Path) -> None:
    fields: dict[str, Any] = {**SIZES, "moe_intermediate_size": 32} if variant == "qwen3_moe" else SIZES
    description = {"quant_algo": algorithm, "exclude_modules": ["lm_head"], "kv_cache_quant_algo": "FP8"}
    quantization = {"quant_method": "modelopt", **description}
    quantized, plain = twins(variant, tmp_path, quantization, ALGORITHMS[algorithm], **fields)
    if in_own_file:
        with_file(quantized, {**description, "group_size": 16})
    model = check_weights(quantized, plain, rtol=1e-6)
    assert {type(each) for each in matrices(model)[:-1]} == {TableLinear if algorithm == "NVFP4" else Float8Linear}
    assert is_float8("auto", load_config(quantized), "cuda", [])
    check_answers(quantized, plain)


def test_blocks_with_dimensions_of_one(tmp_path: Path) -> None:
    def store(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        stored, restored = by_blocks(128, 128, ".weight_scale")(name, weight)
        key = name.removesuffix(".weight") + ".weight_scale"
        return {**stored, key: stored[key][:, None, :, None]}, restored

    fields: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 384, "head_dim": 64}
    quantization = {"quant_method": "modelopt", "quant_algo": "FP8_PB_WO", "exclude_modules": ["lm_head"]}
    model = check_weights(*twins("llama", tmp_path, quantization, store, **fields))
    linear = matrices(model)[0]
    assert isinstance(linear, Float8Linear) and linear.block == (128, 128) and not linear.quantises_inputs


def test_mixed_precision_goes_by_the_files(tmp_path: Path) -> None:
    def store(name: str, weight: Tensor) -> tuple[Any, Tensor]:
        return (nvfp4 if "mlp" in name else by_matrix())(name, weight)

    quantization = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": {}}
    twin = twins(
        "llama", tmp_path, quantization, store, lambda name: is_matrix(name) and "layers.1" not in name, **SIZES
    )
    model = check_weights(*twin, rtol=1e-6)
    assert [type(each) for each in matrices(model)[:4]] == [Float8Linear] * 2 + [TableLinear] * 2
    check_answers(*twin)


def test_the_cache_alone_may_be_quantized(tmp_path: Path) -> None:
    directory = make_tiny("llama", tmp_path)
    file = {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}
    (directory / "hf_quant_config.json").write_text(json.dumps(file))
    assert {type(each) for each in matrices(load(directory))} == {Linear}
    assert is_float8("auto", load_config(directory), "cuda", [])


def test_algorithms_that_are_not_supported(tmp_path: Path) -> None:
    quantized, _ = twins("llama", tmp_path, {"quant_method": "modelopt", "quant_algo": "FP8"}, by_matrix(), **SIZES)
    rewrite_config(quantized, quantization_config={"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"})
    with pytest.raises(ModelError, match="quant_algo is 'W4A8_AWQ': of ModelOpt's, FP8, .* are supported"):
        load(quantized)
