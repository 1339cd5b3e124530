"""Integers of compressed-tensors: checkpoints that the package compressed, and weights that it restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file
from torch import Tensor

from ember.engine.errors import ModelError
from ember.engine.layers.int_linear import IntLinear
from ember.engine.layers.joined import JoinedLinear
from tests.engine_models.tiny import rewrite_config
from tests.quantization.checkpoints import Store, check_answers, check_weights, load, matrices, twins
from tests.quantization.packing import integers, restore, words
from tests.quantization.test_compressed_tensors import config

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
PACKED, BYTES = "pack-quantized", "int-quantized"
GROUPS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
ROWS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "W4A16": (PACKED, GROUPS),
    "W4A16 with zero points": (PACKED, {**GROUPS, "symmetric": False}),
    "W8A16 of groups": (PACKED, {**GROUPS, "num_bits": 8, "symmetric": False}),
    "W8A16 of rows": (PACKED, ROWS),
    "W4A16 of rows with zero points": (PACKED, {**ROWS, "num_bits": 4, "symmetric": False}),
    "2 bits": (PACKED, {**GROUPS, "num_bits": 2}),
    "W8A8": (BYTES, ROWS),
    "W8A8 with zero points": (BYTES, {**ROWS, "symmetric": False}),
    "W8A8 with one scale": (BYTES, {**ROWS, "strategy": "tensor"}),
    "W4A8 in bytes": (BYTES, GROUPS),
    "W4A8 in bytes with zero points": (BYTES, {**GROUPS, "symmetric": False}),
}


def compressed(form: str, arguments: dict[str, Any]) -> Store:
    args = QuantizationArgs(**arguments)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(form)

    def store(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        module, rows = name.removesuffix("weight"), len(weight)
        groups = {"group": weight.unflatten(1, (-1, args.group_size or 1)), "channel": weight}
        grouped = groups.get(str(args.strategy), weight.reshape(1, -1))
        scale, zero = calculate_qparams(grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True), args)
        shape = {"tensor": (1,), "channel": (rows, 1)}.get(str(args.strategy), grouped.shape[:-1])
        parameters = {"weight_scale": scale.reshape(shape)}
        if not args.symmetric:
            parameters["weight_zero_point"] = zero.reshape(shape).to(torch.int8)
        made = compressor.compress({"weight": weight, **parameters}, scheme)
        restored = compressor.decompress(dict(made), scheme)["weight"]
        assert isinstance(restored, Tensor)
        return {module + key: tensor for key, tensor in made.items()}, restored

    return store


def fields_of(variant: str) -> dict[str, Any]:
    return {**SIZES, "moe_intermediate_size": 32} if variant == "qwen3_moe" else SIZES


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_what_the_package_restores(form: str, tmp_path: Path) -> None:
    twin = twins("llama_mha", tmp_path, config(*FORMS[form], False), compressed(*FORMS[form]), **SIZES)
    model = check_weights(*twin, rtol=1e-6)
    assert {type(linear) for linear in matrices(model)[:-1]} == {IntLinear}
    check_answers(*twin)


@pytest.mark.parametrize("form", ["W4A16 with zero points", "W8A8"])
@pytest.mark.parametrize("variant", ["phi3", "llama_tied", "qwen3_moe"])
def test_families(variant: str, form: str, tmp_path: Path) -> None:
    twin = twins(variant, tmp_path, config(*FORMS[form], True), compressed(*FORMS[form]), **fields_of(variant))
    check_weights(*twin, rtol=1e-6)
    check_answers(*twin)


@pytest.mark.parametrize(("order", "is_shared"), [("group", True), ("group", False), ("dynamic", True)])
def test_act_order(order: str, is_shared: bool, tmp_path: Path) -> None:
    """As versions up to 0.14 wrote it; the package has no act-order any more."""

    def store(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        module, inputs = name.removesuffix("weight"), weight.shape[1]
        seed = inputs if is_shared else crc32(name.encode())
        groups = np.random.default_rng(seed).permutation(np.arange(inputs) // 32)
        whole, zeros, scales = integers(weight, 4, 32, False, groups, "float32")
        stored = {
            "weight_packed": words(whole, 4),
            "weight_zero_point": words(zeros.T, 4).T,
            "weight_scale": torch.from_numpy(scales),
            "weight_g_idx": torch.from_numpy(groups.astype(np.int32)),
            "weight_shape": torch.tensor(weight.shape),
        }
        return {module + key: tensor for key, tensor in stored.items()}, restore(whole, zeros, scales, groups)

    arguments = {**GROUPS, "symmetric": False, "actorder": order}
    twin = twins("llama", tmp_path, config(PACKED, arguments, False), store, **SIZES)
    model = check_weights(*twin)
    assert isinstance(model.parts.blocks[0].attention.qkv, IntLinear if is_shared else JoinedLinear)
    check_answers(*twin)
    rewrite_config(twin[0], quantization_config=config(PACKED, {**arguments, "actorder": None}, False))
    with pytest.raises(ModelError, match="g_idx gives inputs to groups in another order"):
        load(twin[0])


@pytest.mark.parametrize(
    ("form", "changed", "error"),
    [
        (
            PACKED,
            {"num_bits": 5},
            "'num_bits': 5.* with the format 'pack-quantized' are not supported: integers may have 4",
        ),
        (PACKED, {"group_size": 0}, "group_size must be a positive even number, not 0"),
        (
            PACKED,
            {"group_size": 48},
            "config_groups.group_0.weights .* does not divide the inputs of model.layers.0.self",
        ),
        (PACKED, {"strategy": "block"}, "the strategy must be group, channel or tensor, not 'block'"),
        (
            PACKED,
            {"num_bits": 8},
            "hidden_size=64: 16, but model.layers.0.self_attn.q_proj.weight_packed has 8 columns",
        ),
        (PACKED, {"actorder": "rows"}, "actorder must be group, dynamic, weight or static, not 'rows'"),
        (PACKED, {"symmetric": "yes"}, "symmetric must be true or false, not 'yes'"),
        (
            PACKED,
            {"symmetric": False},
            r"not symmetric, but the files lack model.layers.0.self_attn.q_proj.weight_ze",
        ),
        ("marlin-24", {}, "with the format 'marlin-24' are not supported"),
    ],
)
def test_arguments_that_cannot_be_served(
    form: str, changed: dict[str, Any], error: str, w4a16: Path, tmp_path: Path
) -> None:
    for file in w4a16.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    rewrite_config(tmp_path, quantization_config=config(form, {**GROUPS, **changed}, False))
    with pytest.raises(ModelError, match=error):
        load(tmp_path)


def test_another_shape_than_the_files_say(w4a16: Path, tmp_path: Path) -> None:
    for file in w4a16.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight_shape"
    assert tensors[name].tolist() == [SIZES["hidden_size"], SIZES["intermediate_size"]]
    save_file({**tensors, name: tensors[name].flip(0).contiguous()}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"hidden_size=64 and intermediate_size=.*, but .*down_proj.weight_shape is"):
        load(tmp_path)


@pytest.fixture(scope="module")
def w4a16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    form = FORMS["W4A16"]
    return twins("llama", tmp_path_factory.mktemp("w4a16"), config(*form, False), compressed(*form), **SIZES)[0]
