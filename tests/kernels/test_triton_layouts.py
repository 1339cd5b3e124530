"""Models of each layout that has kernels give the logits of torch's operators on the restored weights."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

# Other projects' formats, which a machine with a GPU need not have: these models are computed on the CPU.
pytest.importorskip("compressed_tensors")
from ember.engine.layers.block_linear import BlockLinear
from ember.engine.layers.experts import Experts
from ember.engine.layers.float8_linear import Float8Linear
from ember.engine.layers.int_linear import IntLinear
from ember.engine.layers.joined import joined
from ember.engine.layers.linear import Linear
from ember.engine.layers.restored import RestoredLinear
from ember.engine.layers.table_linear import TableLinear
from ember.engine.models.decoder import Decoder
from ember.engine.operators import triton_float8
from ember.engine.operators.choose import has_kernels
from ember.engine.operators.triton_linear import MODULES
from ember.engine.operators.triton_rounded import RoundedOutputs
from ember_kernels import float8_gemm, int_gemm, table_gemm
from tests.engine_models.paged import Paged
from tests.engine_models.test_parity import load as load_plain
from tests.engine_models.test_parity import tokens
from tests.engine_models.tiny import make_tiny
from tests.quantization.checkpoints import Store, load, matrices, twins
from tests.quantization.test_awq import AWQ, awq
from tests.quantization.test_bitsandbytes import FOUR, double_nf4
from tests.quantization.test_fp8 import by_blocks, by_rows, fp8
from tests.quantization.test_gptq import config as gptq_config
from tests.quantization.test_gptq import gptq
from tests.quantization.test_modelopt import nvfp4
from tests.quantization.test_mxfp4 import gpt_oss
from tests.support.gguf_blocks import random_blocks
from tests.support.operators import use_triton

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "num_hidden_layers": 1}
WITH_EXPERTS = SIZES | {"num_hidden_layers": 2, "moe_intermediate_size": 64}  # Qwen 3 has them in its second layer
FORMS: dict[str, tuple[dict[str, Any], Store, type]] = {
    "float8 of blocks": (fp8([32, 32]), by_blocks(32, 32), Float8Linear),
    "nvfp4": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, nvfp4, TableLinear),
    "nf4": (FOUR, double_nf4, TableLinear),
    "float8 of rows": ({"quant_method": "fbgemm_fp8"}, by_rows(), Float8Linear),
    "AWQ": (AWQ, awq(), IntLinear),
    "GPTQ of 8 bits with act-order": (gptq_config(bits=8, desc_act=True), gptq(bits=8, order="share"), IntLinear),
}


def logits(model: Decoder, many: int = 80, few: int = 12) -> list[torch.Tensor]:
    """A prompt of more rows than kernels multiply as they are stored, one of fewer, and single tokens."""
    paged = Paged(model, tokens((90, 14)))
    paged.step([(0, many)])
    paged.step([(1, few), (0, 1)])
    paged.step([(0, 1), (1, 1)])
    return paged.finish()


@pytest.mark.parametrize(
    ("variant", "form"),
    [
        *product(("llama", "phi3"), ("float8 of blocks", "float8 of rows")),
        ("llama", "AWQ"),
        ("phi3", "GPTQ of 8 bits with act-order"),
        ("llama", "nvfp4"),
        ("phi3", "nf4"),
    ],
)
def test_logits_are_those_of_restored_weights(
    variant: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantization, store, layout = FORMS[form]
    model = load(twins(variant, tmp_path, quantization, store, **SIZES)[0], torch.bfloat16)
    assert {type(linear) for linear in matrices(model)[:-1]} == {layout}
    expected = logits(model)
    use_triton(model)
    monkeypatch.setattr(layout, "__call__", None)  # no product is torch's on a restored weight
    for ours, theirs in zip(logits(model), expected, strict=True):
        assert (ours - theirs).norm() < 0.15 * theirs.norm()  # of bfloat16 in these random models


@pytest.mark.parametrize("variant", ["gemma2", "qwen2_moe"])
def test_inputs_are_rounded_where_torch_can_multiply_float8(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For many rows, and a checkpoint that is made for it: by the norms and activations, and by a launch of its own for
    the output of attention alone. Launches for all of them give the same bits."""
    directory, _ = twins(variant, tmp_path, *FORMS["float8 of rows"][:2], **SIZES)
    model = load(directory, torch.bfloat16)

    def prompt() -> torch.Tensor:
        paged = Paged(model, tokens((66,)))
        paged.step([(0, 66)])
        return paged.finish()[0]

    expected = prompt()
    use_triton(model)
    monkeypatch.setattr(triton_float8, "has_scaled", lambda device: True)
    products = watch(monkeypatch, torch, "_scaled_mm")
    launches = watch(monkeypatch, float8_gemm, "quantise_rows")
    found = prompt()
    assert products == [66] * 4 and launches == [66]
    assert (found - expected).norm() < 0.3 * expected.norm()
    monkeypatch.setattr(RoundedOutputs, "allocate", lambda *arguments: None)
    assert torch.equal(prompt(), found)
    assert products == [66] * 8 and launches == [66] * 5


def watch(monkeypatch: pytest.MonkeyPatch, place: Any, name: str) -> list[int]:
    """The numbers of rows that a function is called with from now on."""
    calls: list[int] = []
    function = getattr(place, name)

    def watched(x: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        calls.append(len(x))
        return function(x, *arguments, **options)

    monkeypatch.setattr(place, name, watched)
    return calls


def test_float32_and_other_sizes_are_torchs(tmp_path: Path) -> None:
    directory, _ = twins("llama", tmp_path, fp8([48, 40]), by_blocks(48, 40), **SIZES)
    for dtype in (torch.float32, torch.bfloat16):
        model = load(directory, dtype)
        expected = logits(model)
        use_triton(model)
        for ours, theirs in zip(logits(model), expected, strict=True):
            assert (ours - theirs).norm() < 0.08 * theirs.norm()


def test_experts_in_mxfp4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gpt-oss: prompts by sorted pairs, single tokens by gathered ones. Attention and activations are torch's on both
    sides, since another rounding there chooses other experts. In kernels too, nothing in a step is read on the host."""
    model = load(gpt_oss(tmp_path)[0], torch.bfloat16)
    expected = logits(model)
    use_triton(model)
    assert model.ops.is_recordable
    use_triton(model, dict.fromkeys(("place_heads", "attend", "gate"), "a test"))
    monkeypatch.setattr(TableLinear, "__call__", None)  # no expert is torch's on restored weights
    for ours, theirs in zip(logits(model), expected, strict=True):
        errors = (ours - theirs).norm(dim=1) / theirs.norm(dim=1)
        assert errors.median() < 0.08  # bfloat16 alone may choose other experts for some tokens


@pytest.mark.parametrize("form", ["AWQ", "float8 of blocks"])
def test_experts_in_one_layer(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantization, store, layout = FORMS[form]
    directory = twins("qwen3_moe", tmp_path, quantization, store, **WITH_EXPERTS)[0]
    model = load(directory, torch.bfloat16)
    expected = logits(model)
    use_triton(model)
    monkeypatch.setattr(layout, "__call__", None)  # no expert is torch's on restored weights
    for ours, theirs in zip(logits(model), expected, strict=True):
        errors = (ours - theirs).norm(dim=1) / theirs.norm(dim=1)
        assert errors.median() < 0.15  # bfloat16 alone may choose other experts for some tokens


def test_which_experts_are_in_kernels(tmp_path: Path) -> None:
    def experts(directory: Path) -> Experts:
        blocks = load(directory, torch.bfloat16).parts.blocks
        return next(block.mlp for block in blocks if isinstance(block.mlp, Experts))

    found = experts(gpt_oss(tmp_path)[0])
    assert has_kernels(found.up) and has_kernels(found.down)
    found = experts(twins("qwen3_moe", tmp_path / "float8", *FORMS["float8 of rows"][:2], **WITH_EXPERTS)[0])
    assert has_kernels(found.up) and has_kernels(found.down) and not has_kernels(None)


@pytest.mark.parametrize(("k", "group"), [(64, 32), (96, 96), (80, 16), (48, 48), (64, 8), (24, 8), (40, 40), (96, 48)])
def test_the_choice_knows_the_sizes_that_kernels_of_experts_take(k: int, group: int) -> None:
    codes, scales = torch.zeros(2, k // 2, dtype=torch.uint8), torch.ones(2, k // group)
    assert has_kernels(IntLinear(codes, scales, 4, torch.bfloat16)) == int_gemm.can_multiply(k, group)
    table = TableLinear(codes, torch.zeros(16), scales, torch.bfloat16)
    assert has_kernels(table) == table_gemm.can_multiply(k, group)
    float8 = Float8Linear(torch.zeros(2, k).to(torch.float8_e4m3fn), scales, (1, group), torch.bfloat16)
    assert has_kernels(float8) == float8_gemm.can_multiply(2, k, (1, group))


def in_blocks(linear: Linear, *names: str) -> Linear:
    """Random blocks of these types, each with an equal part of the rows, in place of a layer."""
    rows, columns = linear.out_features // len(names), linear.in_features
    spread = {"Q4_K": 1e-4, "Q6_K": 2e-5, "Q8_0": 3e-4}
    return joined(
        [
            BlockLinear(random_blocks(name, rows, columns, i, spread[name]), type=name, dtype=torch.bfloat16)
            for i, name in enumerate(names)
        ]
    )


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_gguf_blocks(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in files in Q4_K_M, where values and others have more bits; also the head, and all experts of a layer."""
    sizes = SIZES | dict.fromkeys(("hidden_size", "intermediate_size", "moe_intermediate_size"), 256)
    sizes["num_hidden_layers"] = 1 if family == "llama" else 2  # of which the second has experts
    model = load_plain(make_tiny(family, tmp_path, **sizes), torch.bfloat16)
    for block in model.parts.blocks:
        block.attention.qkv = in_blocks(block.attention.qkv, "Q4_K", "Q6_K")
        mlp = block.mlp
        if isinstance(mlp, Experts):
            up, down = ([getattr(each, name) for each in mlp.each] for name in ("up", "down"))
            stacks = in_blocks(all_rows(up), "Q4_K"), in_blocks(all_rows(down), "Q6_K")
            for each, *parts in zip(mlp.each, *(stack.split(len(up)) for stack in stacks), strict=True):
                each.up, each.down = parts
            up_rows, down_rows = stacks
            assert isinstance(up_rows, RestoredLinear) and isinstance(down_rows, RestoredLinear)
            mlp.up, mlp.down = up_rows, down_rows
            assert has_kernels(mlp.up) and has_kernels(mlp.down)
        elif mlp is not None:
            mlp.up, mlp.down = in_blocks(mlp.up, "Q4_K"), in_blocks(mlp.down, "Q8_0")
    model.parts.head = in_blocks(model.parts.head, "Q6_K")
    expected = logits(model, 66, 5)
    use_triton(model)
    monkeypatch.setattr(BlockLinear, "__call__", None)  # no product is torch's on a restored weight
    for ours, theirs in zip(logits(model, 66, 5), expected, strict=True):
        errors = (ours - theirs).norm(dim=1) / theirs.norm(dim=1)
        assert errors.median() < 0.1  # bfloat16 alone may choose other experts for some tokens


def all_rows(linears: list[Linear]) -> Linear:
    return Linear(torch.cat([linear.weight for linear in linears]))


IMPORTS = """
import sys, torch
from ember.engine.operators import triton_ops
from ember.engine.operators.triton_linear import MODULES, load
from ember.engine.layers.linear import Linear

def loaded():
    return {name.partition(".")[2] for name in sys.modules if name.startswith("ember_kernels.")}

quantised = ("int_", "table_", "float8_", "block_", "expert", "grouped_")
load([Linear], torch.device("cpu"))
print([name for name in loaded() if name.startswith(quantised)])
for layout, name in MODULES.items():
    before = loaded()
    load([layout], torch.device("cpu"))
    print(name, sorted(loaded() - before))
"""


def test_kernels_are_imported_with_a_layout_that_has_them() -> None:
    result = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    none, *lines = result.stdout.splitlines()
    assert none == "[]", result.stderr[-2000:]
    assert len(lines) == len(MODULES) and all("_gemm" in line for line in lines), lines
