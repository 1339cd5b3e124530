"""Models of each layout that has kernels give the logits of torch's operators on the restored weights."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from ember.engine.layers.experts import Experts
from ember.engine.layers.float8_linear import Float8Linear
from ember.engine.layers.int_linear import IntLinear
from ember.engine.layers.table_linear import TableLinear
from ember.engine.models.decoder import Decoder
from ember.engine.operators import triton_linear
from ember.engine.operators.choose import has_kernels
from ember_kernels import int_gemm, table_gemm
from tests.engine_models.paged import Paged
from tests.engine_models.test_parity import tokens
from tests.quantization.checkpoints import Store, load, matrices, twins
from tests.quantization.test_awq import AWQ, awq
from tests.quantization.test_bitsandbytes import FOUR, double_nf4
from tests.quantization.test_fp8 import by_blocks, by_rows, fp8
from tests.quantization.test_gptq import config as gptq_config
from tests.quantization.test_gptq import gptq
from tests.quantization.test_modelopt import nvfp4
from tests.quantization.test_mxfp4 import gpt_oss
from tests.support.operators import use_triton

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
FORMS: dict[str, tuple[dict[str, Any], Store, type]] = {
    "float8 of blocks": (fp8([32, 32]), by_blocks(32, 32), Float8Linear),
    "nvfp4": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, nvfp4, TableLinear),
    "nf4": (FOUR, double_nf4, TableLinear),
    "float8 of rows": ({"quant_method": "fbgemm_fp8"}, by_rows(), Float8Linear),
    "AWQ": (AWQ, awq(), IntLinear),
    "GPTQ of 8 bits with act-order": (gptq_config(bits=8, desc_act=True), gptq(bits=8, order="share"), IntLinear),
}


def logits(model: Decoder) -> list[torch.Tensor]:
    """A prompt of more rows than kernels multiply as they are stored, one of fewer, and single tokens."""
    paged = Paged(model, tokens((90, 14)))
    paged.step([(0, 80)])
    paged.step([(1, 12), (0, 1)])
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


def test_inputs_are_rounded_where_torch_can_multiply_float8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For many rows, and a checkpoint that is made for it."""
    model = load(twins("llama", tmp_path, *FORMS["float8 of rows"][:2], **SIZES)[0], torch.bfloat16)
    expected = logits(model)
    use_triton(model)
    monkeypatch.setattr(triton_linear, "has_scaled", lambda device: True)
    calls, multiply = [], torch._scaled_mm

    def watched(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(len(arguments[0]))
        return multiply(*arguments, **options)

    monkeypatch.setattr(torch, "_scaled_mm", watched)
    found = logits(model)
    assert set(calls) == {80} and len(calls) == 3 * 4
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() < 0.3 * theirs.norm()


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


def test_experts_in_awq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = twins("qwen3_moe", tmp_path, AWQ, awq(), **SIZES, moe_intermediate_size=64)[0]
    model = load(directory, torch.bfloat16)
    expected = logits(model)
    use_triton(model)
    monkeypatch.setattr(IntLinear, "__call__", None)  # no expert is torch's on restored weights
    for ours, theirs in zip(logits(model), expected, strict=True):
        errors = (ours - theirs).norm(dim=1) / theirs.norm(dim=1)
        assert errors.median() < 0.15  # bfloat16 alone may choose other experts for some tokens


def test_which_experts_are_in_kernels(tmp_path: Path) -> None:
    def experts(directory: Path) -> Experts:
        blocks = load(directory, torch.bfloat16).parts.blocks
        return next(block.mlp for block in blocks if isinstance(block.mlp, Experts))

    found = experts(gpt_oss(tmp_path)[0])
    assert has_kernels(found.up) and has_kernels(found.down)
    found = experts(twins("qwen3_moe", tmp_path / "float8", *FORMS["float8 of rows"][:2], **SIZES)[0])
    assert not has_kernels(found.up) and not has_kernels(None)


@pytest.mark.parametrize(("k", "group"), [(64, 32), (96, 96), (80, 16), (48, 48), (64, 8), (24, 8), (40, 40), (96, 48)])
def test_the_choice_knows_the_sizes_that_kernels_of_experts_take(k: int, group: int) -> None:
    codes, scales = torch.zeros(2, k // 2, dtype=torch.uint8), torch.ones(2, k // group)
    assert has_kernels(IntLinear(codes, scales, 4, torch.bfloat16)) == int_gemm.can_multiply(k, group)
    table = TableLinear(codes, torch.zeros(16), scales, torch.bfloat16)
    assert has_kernels(table) == table_gemm.can_multiply(k, group)
