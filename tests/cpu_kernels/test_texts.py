"""Attention within texts and LayerNorm of the C library against torch's, in every build that this machine can run."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest
import torch

from ember.engine.description.config import DistanceBias, HeadSizes
from ember.engine.description.operator_choice import decide
from ember.engine.description.read_config import load_config
from ember.engine.layers.block import Attention, DistanceTable
from ember.engine.layers.linear import Linear
from ember.engine.layers.norm import LayerNorm
from ember.engine.loading.load import load_decoder
from ember.engine.operators import native_texts
from ember.engine.operators.torch_texts import TextPlan, attend_texts
from ember_cpu import library as native
from ember_cpu.variants import VARIANTS
from tests.engine_models.tiny_encoders import NO_CACHE, batch_of, make_encoder

LENGTHS = (1, 2, 17, 33, 64, 70, 500)  # the last one is several tasks


def _attention(
    heads: int, kv_heads: int, head_dim: int, window: int | None, distances: DistanceTable | None
) -> Attention:
    nothing = Linear(torch.empty(0, 0))
    return Attention(
        qkv=nothing,
        qk_norm=None,
        gate=None,
        output=nothing,
        rope=None,
        sinks=None,
        scale=None if window is None else 0.3,
        soft_cap=None,
        window=window,
        window_is_chunk=False,
        group=0,
        place=0,
        sizes=HeadSizes(heads, kv_heads, head_dim),
        value_norm=None,
        values_are_keys=False,
        has_own_kv=True,
        distances=distances,
    )


@pytest.fixture(params=[variant.name for variant in VARIANTS])
def texts(request: pytest.FixtureRequest) -> native_texts.NativeTexts:
    library = native.load(request.param)
    if library is None:
        pytest.skip(f"this machine cannot run {request.param}")
    return native_texts.NativeTexts(library, keeps_sums=True)


def test_attention_is_torchs(texts: native_texts.NativeTexts) -> None:
    bounds = list(accumulate(LENGTHS, initial=0))
    table = DistanceTable(torch.randn(3, 32), DistanceBias(32))
    for heads, kv_heads, head_dim, window, distances in (
        *((3, 3, 32, None, None), (4, 2, 48, None, None), (3, 1, 64, None, table)),
        *((2, 1, 16, 1, None), (2, 2, 256, 40, None), (1, 1, 32, 300, None)),
    ):
        qkv = torch.randn(bounds[-1], heads + 2 * kv_heads, head_dim)
        heads_of = qkv.split((heads, kv_heads, kv_heads), dim=1)
        attention, plan = (
            _attention(heads, kv_heads, head_dim, window, distances),
            TextPlan(bounds, qkv.dtype, qkv.device),
        )
        found = texts.attend(plan, attention, *heads_of)
        assert found is not None
        torch.testing.assert_close(found, attend_texts(plan, attention, *heads_of), atol=1e-4, rtol=1e-4)


def test_a_token_that_none_sees_has_no_part(texts: native_texts.NativeTexts) -> None:
    """Infinities outside of a window do not become NaN."""
    qkv = torch.randn(40, 3, 32)
    qkv[30:] = torch.inf
    plan = TextPlan([0, 40], qkv.dtype, qkv.device)
    found = texts.attend(plan, _attention(1, 1, 32, 3, None), *qkv.split(1, dim=1))
    assert found is not None
    assert found[:20].isfinite().all()


def test_norms_are_torchs(texts: native_texts.NativeTexts) -> None:
    x, delta = torch.randn(2, 70, 96) * 3 + 5
    for norm in (LayerNorm(torch.randn(96), torch.randn(96), 96, 1e-12), LayerNorm(None, None, 96, 1e-5)):
        for added in (None, delta):
            made = texts.add_norm(norm, x.clone(), added)
            assert made is not None
            total = x if added is None else x + added
            torch.testing.assert_close(made[0], norm(total), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(made[1], total)


@pytest.mark.parametrize("variant", ["mpnet", "modernbert", "deberta"])
@torch.inference_mode()
def test_encoders_have_the_hidden_states_of_torch(variant: str, tmp_path: Path) -> None:
    """With norms after the sums, whose inputs nobody reads, and before them."""
    make_encoder(variant, tmp_path)
    decoder = load_decoder(tmp_path, load_config(tmp_path), dtype=torch.float32, device=torch.device("cpu")).decoder
    batch = batch_of([[5, 6, 7], [8, 9, 10], [11] * 40])
    found = decoder.forward(batch, NO_CACHE)
    assert decoder.ops.texts is not None  # type: ignore[attr-defined]
    assert (
        "the C library computes attention within texts and LayerNorm" in decide(decoder.config, "float32", "cpu").reason
    )
    assert "C library computes attention" not in decide(decoder.config, "float16", "cpu").reason
    decoder.ops.texts = None  # type: ignore[attr-defined]
    torch.testing.assert_close(found, decoder.forward(batch, NO_CACHE), atol=1e-5, rtol=1e-4)
