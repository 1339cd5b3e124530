"""Encoders with Triton's operators give torch's hidden states."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from ember.engine.description.read_config import load_config
from ember.engine.loading.load import load_decoder
from ember.engine.operators.triton_ops import TritonOperators
from tests.engine_models.tiny_encoders import NO_CACHE, batch_of, make_encoder
from tests.support.gpu import HAS_GPU
from tests.support.operators import use_triton


@pytest.mark.skipif(HAS_GPU, reason="the batch of this test is on the CPU")
@pytest.mark.parametrize("variant", ["bert", "modernbert", "eurobert", "mpnet", "deberta"])
@torch.inference_mode()
def test_hidden_states_are_those_of_torch(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ember.engine.operators.triton_texts.SMALL_ROWS", 8)  # the longest text is a part of its own
    make_encoder(variant, tmp_path)
    decoder = load_decoder(tmp_path, load_config(tmp_path), dtype=torch.float32, device=torch.device("cpu")).decoder
    batch = batch_of(
        [[5, 6, 7], [8, 9, 10], [11] * 20], [[0, 1, 1], [0, 0, 0], [0] * 20] if variant == "bert" else None
    )
    expected = decoder.forward(batch, NO_CACHE)
    use_triton(decoder)
    assert not decoder.ops.is_recordable
    has_kernel = variant != "deberta"  # whose scores have products with vectors of positions
    assert isinstance(decoder.ops, TritonOperators)
    assert (decoder.ops.attend != decoder.ops.torch_ops.attend) == has_kernel
    torch.testing.assert_close(decoder.forward(batch, NO_CACHE), expected, atol=1e-4, rtol=0)
