"""Experts that no token has are not read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ember.engine.description.read_config import load_config
from ember.engine.layers.experts import Experts
from ember.engine.loading.load import load_decoder
from ember.engine.models.decoder import Decoder
from tests.engine_models.paged import Paged
from tests.engine_models.test_parity import tokens
from tests.engine_models.tiny import make_tiny


@pytest.fixture
def model(tmp_path: Path) -> Decoder:
    directory = make_tiny("mixtral", tmp_path)
    return load_decoder(directory, load_config(directory), dtype=torch.float32, device=torch.device("cpu")).decoder


def test_experts_that_are_not_chosen_change_nothing(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[set[int]] = []
    route = Experts.route

    def watched(experts: Experts, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = route(experts, logits)
        chosen.append(set(ids.flatten().tolist()))
        return weights, ids

    def logits() -> torch.Tensor:
        paged = Paged(model, tokens((1,)))
        paged.step([(0, 1)])
        return paged.finish()[0]

    monkeypatch.setattr(Experts, "route", watched)
    expected = logits()
    for block, ids in zip(model.parts.blocks, chosen, strict=True):
        assert isinstance(block.mlp, Experts) and len(ids) == 2 < len(block.mlp.each)
        for number, mlp in enumerate(block.mlp.each):
            if number not in ids:
                for rows in (*mlp.up.rows, *mlp.down.rows):
                    rows.copy_(torch.full_like(rows, torch.nan))
    assert torch.equal(logits(), expected)


def test_the_bytes_that_a_step_reads(model: Decoder) -> None:
    """Mixtral of 4 experts, of which a token has 2: one token reads half of them, many read all."""
    experts = 3 * 4 * 3 * 64 * 112 * 4  # layers, experts, matrices, sizes, bytes of a number
    assert model.bytes_read(1) == pytest.approx(model.weight_bytes - experts / 2)
    assert model.bytes_read(1000) == pytest.approx(model.weight_bytes)
