"""Checkpoints of bitsandbytes: small matrices that the package stored and restored, and models by its arithmetic."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ember.engine.description.weights import LinearSpec, Output, Rows, Size, Stored
from ember.engine.errors import ModelError
from ember.engine.layers.int_linear import IntLinear
from ember.engine.layers.linear import Linear
from ember.engine.layers.table_linear import NF4, TableLinear
from ember.engine.loading.load import load_weights
from ember.engine.loading.plan import plan_specs, read_headers
from ember.engine.quantization.bitsandbytes import bitsandbytes
from tests.engine_models.test_features import neutral
from tests.engine_models.tiny import make_tiny, rewrite_config
from tests.quantization.checkpoints import CPU, check_answers, check_weights, is_matrix, load, matrices, twins

FILE = Path(__file__).with_name("bitsandbytes.safetensors")  # of make_bitsandbytes.py

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def layer(directory: Path, *outputs: Output) -> Linear:
    """A layer of rows of stored matrices, as a plan reads it."""
    columns = outputs[0].stored.columns.extent
    config = replace(neutral(), quantization={"quant_method": "bitsandbytes", "load_in_4bit": True})
    entries = read_headers(directory)
    spec = LinearSpec("layer", outputs, columns)
    plan = plan_specs(
        [spec], bitsandbytes(config, entries), entries, "float32", "test", may_be_unused=lambda name: True
    )
    made = load_weights(plan, CPU).by_name["layer"]
    assert isinstance(made, Linear)
    return made


def matrix(name: str, rows: int, columns: int) -> Stored:
    return Stored(name, Size(rows, f"rows={rows}"), Size(columns, f"columns={columns}"))


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    save_file(load_file(FILE), tmp_path / "model.safetensors")
    return tmp_path, load_file(FILE)


@pytest.mark.parametrize("name", ["nf4", "nf4_double", "fp4", "fp4_double_bfloat16", "nf4_wide_blocks"])
def test_four_bits_are_restored_as_the_package_does(name: str, stored: Any) -> None:
    directory, tensors = stored
    rows, columns = tensors[f"restored.{name}"].shape
    made = layer(directory, matrix(name, rows, columns).whole())
    assert isinstance(made, TableLinear)
    torch.testing.assert_close(made.weight, tensors[f"restored.{name}"], rtol=1e-6, atol=1e-7)


def test_int8_is_restored_as_the_package_does(stored: Any) -> None:
    directory, tensors = stored
    made = layer(directory, matrix("int8", 5, 32).whole())
    assert isinstance(made, IntLinear)
    torch.testing.assert_close(made.weight, tensors["restored.int8"], rtol=1e-5, atol=1e-6)


def test_rows_of_a_matrix(stored: Any) -> None:
    """As of a fused query, key and value: rows in another order than they are stored in."""
    directory, tensors = stored
    whole = matrix("nf4_double", 24, 192)
    made = layer(directory, Output(whole, Rows(16, 8)), Output(whole, Rows(0, 2, 4, 4)))
    expected = tensors["restored.nf4_double"][[*range(16, 24), 0, 1, 4, 5, 8, 9, 12, 13]]
    torch.testing.assert_close(made.weight, expected, rtol=1e-6, atol=1e-7)


def test_a_quant_state_that_cannot_be_read_is_named(stored: Any) -> None:
    directory, tensors = stored
    key = "nf4.weight.quant_state.bitsandbytes__nf4"
    for text, error in (
        ("{", "cannot be read as a JSON object"),
        ("[" * 100_000, "cannot be read as a JSON object"),
        ('{"blocksize": 0}', "blocksize is 0"),
    ):
        save_file(
            tensors | {key: torch.tensor(list(text.encode()), dtype=torch.uint8)}, directory / "model.safetensors"
        )
        with pytest.raises(ModelError, match=f"nf4.weight.quant_state.*{error}"):
            layer(directory, matrix("nf4", 6, 128).whole())


@pytest.mark.parametrize(
    ("ending", "found"),
    [("nested_quant_map", torch.zeros(255)), ("nested_absmax", torch.zeros(9)), ("absmax", torch.zeros(1))],
)
def test_scales_of_another_number_are_named(ending: str, found: Tensor, stored: Any) -> None:
    directory, tensors = stored
    save_file(tensors | {f"nf4_double.weight.{ending}": found}, directory / "model.safetensors")
    with pytest.raises(ModelError, match=r"nf4_double.weight.absmax (is quantised, but|has 1 scales)"):
        layer(directory, matrix("nf4_double", 24, 192).whole())


def test_a_block_of_scales_may_be_larger_than_all_of_them(stored: Any) -> None:
    directory, tensors = stored
    name = "nf4_double.weight.quant_state.bitsandbytes__nf4"
    state = json.loads(bytes(tensors[name].numpy())) | {"nested_blocksize": 10**15}
    data = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    save_file(tensors | {name: data}, directory / "model.safetensors")
    made = layer(directory, matrix("nf4_double", 24, 192).whole())
    torch.testing.assert_close(made.weight, tensors["restored.nf4_double"], rtol=1e-6, atol=1e-7)


def double_nf4(name: str, weight: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
    """nf4 in blocks of 64 whose scales are quantised, by the arithmetic of the paper."""
    blocks = weight.flatten().numpy().reshape(-1, 64)
    largest = np.abs(blocks).max(1)
    offset = float(largest.mean())
    table = np.linspace(-1, 1, 256, dtype=np.float32)
    groups = np.pad(largest - offset, (0, -len(largest) % 256)).reshape(-1, 256)
    nested = np.abs(groups).max(1)
    absmax = (
        np.abs((groups / nested[:, None])[..., None] - table).argmin(-1).reshape(-1)[: len(largest)].astype(np.uint8)
    )
    scales = table[absmax] * np.repeat(nested, 256)[: len(largest)] + np.float32(offset)
    nf4 = np.array(NF4, dtype=np.float32)
    codes = np.abs((blocks / largest[:, None])[..., None] - nf4).argmin(-1).reshape(-1)
    packed = (codes[0::2] << 4 | codes[1::2]).astype(np.uint8)[:, None]
    state = {"quant_type": "nf4", "blocksize": 64, "nested_blocksize": 256, "nested_offset": offset, "dtype": "float32"}
    data = np.frombuffer(json.dumps(state).encode(), dtype=np.uint8)
    kept = {"absmax": absmax, "nested_absmax": nested, "nested_quant_map": table, "quant_map": nf4}
    kept["quant_state.bitsandbytes__nf4"] = data
    found = {name: torch.from_numpy(packed)}
    found |= {f"{name}.{key}": torch.from_numpy(value.copy()) for key, value in kept.items()}
    return found, torch.from_numpy(nf4[codes].reshape(-1, 64) * scales[:, None]).view(weight.shape)


def int8(name: str, weight: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
    largest = weight.abs().amax(1)
    codes = (weight * (127 / largest)[:, None]).round().to(torch.int8)
    module = name.removesuffix(".weight")
    stored = {name: codes, f"{module}.SCB": largest, f"{module}.weight_format": torch.tensor(0, dtype=torch.uint8)}
    return stored, codes.float() * (largest / 127)[:, None]


FOUR = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
EIGHT = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0}


@pytest.mark.parametrize(
    ("quantization", "store", "layout"), [(FOUR, double_nf4, TableLinear), (EIGHT, int8, IntLinear)]
)
@pytest.mark.parametrize("variant", ["llama", "phi3", "mixtral", "llama_tied"])
def test_models(variant: str, quantization: dict[str, Any], store: Any, layout: type[Linear], tmp_path: Path) -> None:
    twin = twins(variant, tmp_path, quantization, store, **SIZES)
    model = check_weights(*twin, rtol=1e-6)
    assert {type(linear) for linear in matrices(model)[:-1]} == {layout}
    check_answers(*twin)


@pytest.mark.parametrize(("quantization", "store"), [(FOUR, double_nf4), (EIGHT, int8)])
def test_matrices_that_the_plain_checkpoint_has_transposed(
    quantization: dict[str, Any], store: Any, tmp_path: Path
) -> None:
    """transformers turns the Conv1D of GPT-2 before it quantises it, and stores it so."""

    def turned(name: str, weight: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
        stored, restored = store(name, weight.T.contiguous())
        return stored, restored.T

    sizes = {"n_inner": 128, "n_embd": 64, "n_head": 4}
    twin = twins(
        "gpt2", tmp_path, quantization, turned, lambda name: ".c_" in name and name.endswith(".weight"), **sizes
    )
    check_weights(*twin, rtol=1e-6)
    check_answers(*twin)


def test_modules_that_are_left_plain(tmp_path: Path) -> None:
    quantization = {**FOUR, "llm_int8_skip_modules": ["lm_head", "v_proj", "model.layers.1"]}
    twin = twins(
        "llama",
        tmp_path,
        quantization,
        double_nf4,
        lambda name: is_matrix(name) and "v_proj" not in name and "layers.1" not in name,
        **SIZES,
    )
    check_weights(*twin, rtol=1e-6)
    check_answers(*twin)


def test_an_unknown_type_is_named(tmp_path: Path) -> None:
    directory = make_tiny("llama", tmp_path)
    rewrite_config(directory, quantization_config={**FOUR, "bnb_4bit_quant_type": "nf5"})
    with pytest.raises(ModelError, match="bnb_4bit_quant_type is 'nf5': it must be nf4 or fp4"):
        load(directory)


def test_a_plain_checkpoint_is_rounded_as_the_package_does(tmp_path: Path) -> None:
    directory = make_tiny("qwen3_moe", tmp_path, **{**SIZES, "moe_intermediate_size": 64})
    found, plain = load(directory, quantization="bitsandbytes"), load(directory)
    for ours, theirs in zip(matrices(found)[:-1], matrices(plain)[:-1], strict=True):
        assert isinstance(ours, TableLinear)
        blocks = theirs.weight.unflatten(1, (-1, 64))
        largest = blocks.abs().amax(-1, keepdim=True)
        nearest = ((blocks / largest)[..., None] - torch.tensor(NF4)).abs().argmin(-1)
        torch.testing.assert_close(ours.weight, (torch.tensor(NF4)[nearest] * largest).flatten(1))
    assert found.weight_bytes < plain.weight_bytes / 2
