"""SqueezeLLM, dense and sparse, and the files beside config.json in which old checkpoints describe their format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ember.engine.errors import ModelError
from ember.engine.layers.sparse_table_linear import SparseTableLinear
from ember.engine.layers.table_linear import TableLinear
from ember.engine.loading.load import read_model_config
from tests.engine_models.tiny import make_tiny, rewrite_config
from tests.quantization.checkpoints import Store, check_answers, check_weights, load, twins
from tests.quantization.packing import words
from tests.quantization.test_awq import AWQ, awq
from tests.quantization.test_gptq import SIZES, config, gptq


def squeezed(bits: int, share: float) -> Store:
    """`share`: of the numbers of a matrix that are outliers; an output may have none."""

    def store(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        module, numbers = name.removesuffix(".weight"), weight.double().numpy()
        table = np.quantile(numbers, np.linspace(0.02, 0.98, 2**bits), axis=1).T.astype(np.float32)
        codes = np.abs(numbers[:, :, None] - table[:, None]).argmin(-1)
        restored = torch.from_numpy(np.take_along_axis(table, codes, 1))
        stored = {
            f"{module}.qweight": words(codes, bits).T,
            f"{module}.lookup_table": torch.from_numpy(table),
        }
        if share:
            error = weight - restored
            error[error.abs() < error.abs().flatten().kthvalue(int(error.numel() * (1 - share))).values] = 0
            error[3] = 0
            outputs, columns = error.nonzero(as_tuple=True)
            counts = torch.bincount(outputs, minlength=len(error))
            stored |= {
                f"{module}.rows": torch.cat((torch.zeros(1), counts.cumsum(0))).int(),
                f"{module}.cols": columns.int(),
                f"{module}.vals": error[outputs, columns],
                f"{module}.startrows": torch.zeros(7, dtype=torch.int32),
            }
            restored = restored + error
        return stored, restored

    return store


@pytest.mark.parametrize(
    ("variant", "bits", "share"), [("llama", 4, 0.0), ("llama", 3, 0.01), ("phi3", 4, 0.02), ("qwen3_moe", 4, 0.02)]
)
def test_a_checkpoint_is_the_weights_it_stands_for(variant: str, bits: int, share: float, tmp_path: Path) -> None:
    fields = {**SIZES, "moe_intermediate_size": 64} if variant == "qwen3_moe" else SIZES
    quantization = {"quant_method": "squeezellm", "wbits": bits}
    twin = twins(variant, tmp_path, quantization, squeezed(bits, share), **fields)
    model = check_weights(*twin, rtol=1e-6)
    assert model.parts.layouts() >= {SparseTableLinear if share else TableLinear}
    check_answers(*twin)


def test_the_table_of_a_row_is_looked_up_by_ids() -> None:
    stored, restored = squeezed(4, 0.05)("x.weight", torch.randn(12, 64))
    rows = stored["x.rows"]
    codes = stored["x.qweight"].T.contiguous().view(torch.uint8)
    table = TableLinear(codes, stored["x.lookup_table"], torch.ones(12, 1), torch.float32)
    layer = SparseTableLinear(table, rows[:-1], rows.diff(), stored["x.cols"], stored["x.vals"])
    ids = torch.tensor([11, 3, 0, 11])
    torch.testing.assert_close(layer.look_up(ids), restored[ids])
    torch.testing.assert_close(torch.cat([part.weight for part in layer.split(3)]), restored)


def test_bits_that_it_does_not_have(tmp_path: Path) -> None:
    directory = make_tiny("llama", tmp_path)
    rewrite_config(directory, quantization_config={"quant_method": "squeezellm", "wbits": 2})
    with pytest.raises(ModelError, match="quantization_config.wbits must be 3 or 4, not 2"):
        read_model_config(directory)


@pytest.mark.parametrize(
    ("part", "number", "error"),
    [
        ("rows", 2**31 - 1, "rows is damaged: it must ascend from 0 to the"),
        ("rows", -1, "rows is damaged"),
        ("cols", -1, "cols is damaged: it must have numbers of the 128 inputs"),
        ("cols", 2**31 - 1, "cols is damaged"),
        ("vals", None, r"cols|vals"),
    ],
)
def test_outliers_outside_the_matrix(part: str, number: int | None, error: str, tmp_path: Path) -> None:
    quantized, _ = twins("llama", tmp_path, {"quant_method": "squeezellm", "wbits": 4}, squeezed(4, 0.01), **SIZES)
    tensors = load_file(quantized / "model.safetensors")
    name = f"model.layers.0.mlp.down_proj.{part}"
    if number is None:
        tensors[name] = torch.tensor(1.0)
    else:
        tensors[name][-1 if part == "rows" else 0] = number
    save_file(tensors, quantized / "model.safetensors")
    with pytest.raises(ModelError, match=error):
        load(quantized)


def test_whole_inputs_that_are_not_quantized(tmp_path: Path) -> None:
    quantized, _ = twins("llama", tmp_path, {"quant_method": "squeezellm", "wbits": 4}, squeezed(4, 0.01), **SIZES)
    tensors = load_file(quantized / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.full_rows"] = torch.zeros(10, 64)
    save_file(tensors, quantized / "model.safetensors")
    with pytest.raises(ModelError, match="full_rows has whole inputs that are not quantized, which is not supported"):
        load(quantized)


OLD: dict[str, tuple[str, dict[str, Any], Store]] = {
    "gptq": ("quantize_config.json", config(), gptq()),
    "awq": ("quant_config.json", {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"}, awq()),
    "squeezellm": ("quant_config.json", {"wbits": 4}, squeezed(4, 0.01)),
}


@pytest.mark.parametrize("method", OLD)
def test_a_file_beside_config_json_says_the_format(method: str, tmp_path: Path) -> None:
    file, fields, store = OLD[method]
    quantized, plain = twins("llama", tmp_path, {"quant_method": method}, store, **SIZES)
    rewrite_config(quantized, quantization_config=None)
    fields.pop("quant_method", None)
    (quantized / file).write_text(json.dumps(fields))
    assert (read_model_config(quantized, quantization=method).quantization or {})["quant_method"] == method
    check_weights(quantized, plain, rtol=1e-6)
    rewrite_config(quantized, quantization_config={**AWQ, "bits": 3})
    with pytest.raises(ModelError, match="bits must be 4"):
        read_model_config(quantized)
