"""Checkpoints in float8, as the programs that publish them store their scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ember.engine.errors import ModelError
from ember.engine.layers.float8_linear import Float8Linear
from ember.engine.layers.joined import JoinedLinear
from ember.engine.loading.load import load_decoder, read_model_config
from tests.engine_models.tiny import make_tiny, rewrite_config
from tests.quantization.checkpoints import CPU, Store, check_answers, check_weights, is_matrix, load, matrices, twins


def by_blocks(height: int, width: int, suffix: str = ".weight_scale_inv", dtype: torch.dtype = torch.float32) -> Store:
    """A scale for each block, as DeepSeek and Qwen3 have it."""

    def store(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        codes, restored = torch.empty_like(weight, dtype=torch.float8_e4m3fn), torch.empty_like(weight)
        rows, columns = range(0, weight.shape[0], height), range(0, weight.shape[1], width)
        scales = torch.empty(len(rows), len(columns))
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                place = slice(row, row + height), slice(column, column + width)
                scales[i, j] = (weight[place].abs().max() / 448).to(dtype)
                codes[place] = (weight[place] / scales[i, j]).to(torch.float8_e4m3fn)
                restored[place] = codes[place].float() * scales[i, j]
        return {name: codes, name.removesuffix(".weight") + suffix: scales.to(dtype)}, restored

    return store


def by_matrix(suffix: str = ".weight_scale", shape: tuple[int, ...] = (), inputs: str | None = ".input_scale") -> Store:
    """One scale, and one for the inputs."""

    def store(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        scale = weight.abs().max() / 448
        codes = (weight / scale).to(torch.float8_e4m3fn)
        module = name.removesuffix(".weight")
        stored = {name: codes, module + suffix: scale.reshape(shape)}
        if inputs is not None:
            stored[module + inputs] = torch.tensor(0.5).reshape(shape)
        return stored, codes.float() * scale

    return store


def by_rows(suffix: str = ".weight_scale", as_column: bool = True) -> Store:
    def store(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        scale = weight.abs().amax(1, keepdim=True) / 448
        codes = (weight / scale).to(torch.float8_e4m3fn)
        stored = scale if as_column else scale[:, 0]
        return {name: codes, name.removesuffix(".weight") + suffix: stored}, codes.float() * scale

    return store


def fp8(blocks: list[int] | None = None, scheme: str = "dynamic", **fields: Any) -> dict[str, Any]:
    quantization = {"quant_method": "fp8", "activation_scheme": scheme, "fmt": "e4m3", **fields}
    return quantization if blocks is None else {**quantization, "weight_block_size": blocks}


FORMS: dict[str, tuple[dict[str, Any], Store]] = {
    "blocks": (fp8([32, 16]), by_blocks(32, 16)),
    "blocks that do not end with the rows of query, key, gate": (fp8([48, 40]), by_blocks(48, 40)),
    "blocks larger than the matrices": (fp8([128, 128]), by_blocks(128, 128)),
    "blocks with scales in bfloat16": (fp8([32, 32]), by_blocks(32, 32, dtype=torch.bfloat16)),
    "a scale for each matrix": (fp8(scheme="static"), by_matrix()),
    "a scale for each matrix, of Mistral": (
        fp8(scheme="static"),
        by_matrix(".weight_scale_inv", (), ".activation_scale"),
    ),
    "fbgemm": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, by_rows()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", ["llama_mha", "phi3", "qwen3_moe", "llama_tied"])
def test_weights_are_restored_exactly(variant: str, form: str, tmp_path: Path) -> None:
    quantization, store = FORMS[form]
    model = check_weights(*twins(variant, tmp_path, quantization, store))
    layouts = {type(linear) for linear in matrices(model)[:-1]}
    assert layouts == {Float8Linear}


@pytest.mark.parametrize("variant", ["llama", "qwen3", "qwen3_moe", "phi3", "deepseek_v3"])
def test_answers_are_those_of_the_restored_weights(variant: str, tmp_path: Path) -> None:
    check_answers(*twins(variant, tmp_path, fp8([32, 32]), by_blocks(32, 32)))


def test_bfloat16_is_rounded_once(tmp_path: Path) -> None:
    quantized, plain = twins("llama", tmp_path, fp8([32, 16]), by_blocks(32, 16))
    check_weights(quantized, plain, dtype=torch.bfloat16)


@pytest.mark.parametrize("store", [by_blocks(32, 32), by_rows("_scale"), by_matrix("_scale", (1,), None)])
def test_scales_of_stacked_experts(store: Store, tmp_path: Path) -> None:
    """All experts in one tensor, whose scales have one dimension more too."""

    def stacked(name: str, weight: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
        if weight.dim() == 2:
            return by_blocks(32, 32)(name, weight)
        each = [store(name, expert) for expert in weight]
        stored = {key: torch.stack([tensors[key] for tensors, _ in each]) for key in each[0][0]}
        renamed = {key if key == name else f"{name}_scale_inv": tensor for key, tensor in stored.items()}
        return renamed, torch.stack([restored for _, restored in each])

    def is_stored(name: str) -> bool:
        return is_matrix(name) or name.endswith(("input_linear.weight", "output_linear.weight"))

    twin = twins("granitemoe", tmp_path, fp8([32, 32]), stacked, is_stored)
    check_weights(*twin)
    check_answers(*twin)


def without(*parts: str) -> Callable[[str], bool]:
    return lambda name: is_matrix(name) and not any(part in name for part in parts)


@pytest.mark.parametrize("field", ["modules_to_not_convert", "ignored_layers"])
def test_modules_that_are_left_plain(field: str, tmp_path: Path) -> None:
    """Also one of those that are one matrix here."""
    left = ["layers.1.", "v_proj", "down_proj"]
    quantization = fp8([32, 32])
    quantization[field] = ["model.layers.1", "model.layers.0.self_attn.v_proj", "mlp.down_proj"]
    twin = twins("llama", tmp_path, quantization, by_blocks(32, 32), without(*left))
    model = check_weights(*twin)
    assert isinstance(model.parts.blocks[0].attention.qkv, JoinedLinear)
    assert not isinstance(model.parts.blocks[1].attention.qkv, JoinedLinear | Float8Linear)
    check_answers(*twin)


def test_a_quantised_head(tmp_path: Path) -> None:
    twin = twins("llama", tmp_path, fp8([32, 32]), by_blocks(32, 32), lambda name: is_matrix(name) or "lm_head" in name)
    assert isinstance(check_weights(*twin).parts.head, Float8Linear)
    check_answers(*twin)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"activation_scheme": "often"}, "activation_scheme is 'often': it must be dynamic or static"),
        ({"fmt": "e5m2"}, "fmt is 'e5m2': float8 weights must be e4m3"),
        ({"weight_block_size": [128]}, r"weight_block_size is \[128\]: it must be two positive numbers"),
        ({"weight_block_size": [0, 128]}, "weight_block_size"),
    ],
)
def test_fields_that_say_something_else(fields: dict[str, Any], error: str, tmp_path: Path) -> None:
    directory = make_tiny("llama", tmp_path)
    rewrite_config(directory, quantization_config=fp8() | fields)
    with pytest.raises(ModelError, match=error):
        load(directory)


def test_scales_of_another_shape_are_named(tmp_path: Path) -> None:
    quantized, _ = twins("llama", tmp_path, fp8([32, 16]), by_blocks(32, 32))
    with pytest.raises(ModelError, match=r"weight_scale_inv is \[2, 2\].* not \[2, 4\]|in blocks of 16, but"):
        load(quantized)


def test_scales_that_are_missing_are_named(tmp_path: Path) -> None:
    quantized, _ = twins(
        "llama",
        tmp_path,
        fp8(),
        lambda name, weight: ({name: weight.to(torch.float8_e4m3fn), f"{name}_": weight}, weight),
    )
    with pytest.raises(ModelError, match="lacks .*weight_scale"):
        load(quantized)


def test_a_plain_checkpoint_is_rounded_while_it_loads(tmp_path: Path) -> None:
    """The largest number of each row is exact, and the others are within half a step."""
    directory = make_tiny("qwen3_moe", tmp_path)
    found, plain = load(directory, quantization="fp8"), load(directory)
    for ours, theirs in zip(matrices(found)[:-1], matrices(plain)[:-1], strict=True):
        assert isinstance(ours, Float8Linear)
        error = (ours.weight - theirs.weight).abs()
        largest = theirs.weight.abs().amax(1, keepdim=True)
        assert (error <= theirs.weight.abs() / 16 + largest / 448 / 512).all()
    assert type(found.parts.head) is type(plain.parts.head)
    assert found.weight_bytes < plain.weight_bytes / 2


def test_random_weights(tmp_path: Path) -> None:
    directory = make_tiny("qwen3_moe", tmp_path)
    rewrite_config(directory, quantization_config=fp8([32, 32], modules_to_not_convert=["model.layers.0"]))
    config = read_model_config(directory)
    model = load_decoder(directory, config, dtype=torch.float32, device=CPU, load_format="dummy").decoder
    assert not isinstance(model.parts.blocks[0].attention.qkv, Float8Linear)
    assert isinstance(model.parts.blocks[1].attention.qkv, Float8Linear)
    assert all(linear.weight.isfinite().all() for linear in matrices(model))
