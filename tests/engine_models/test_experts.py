"""Experts that no token has are not read, and no layer has to have experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ember.engine.description.read_config import load_config
from ember.engine.layers.experts import Experts
from ember.engine.loading.load import load_decoder
from ember.engine.models.decoder import Decoder
from tests.engine_models.paged import Paged
from tests.engine_models.test_parity import assert_same, load, reference, tokens
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


_ALONE = {"layers_block_type": ["linear_attention", "full_attention", "mlp"]}


@pytest.mark.parametrize(
    ("variant", "fields"),
    [*((name, {}) for name in ("deepseek_v3", "qwen3_next", "lfm2_moe", "qwen3_moe")), ("nemotron_h", _ALONE)],
)
def test_files_may_have_the_names_of_transformers_own_code(
    variant: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    """Stacks of experts, and another beginning of all names."""
    directory, sequences = make_tiny(variant, tmp_path, **fields), tokens((20,))
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "own", save_original_format=False)
    paged = Paged(load(tmp_path / "own"), sequences)
    paged.step([(0, 20)])
    assert_same(paged.finish(), reference(directory, sequences), 2e-4)


@pytest.mark.parametrize(
    ("variant", "fields"),
    [
        ("deepseek_v3", {"first_k_dense_replace": 4}),
        ("glm4_moe_lite", {"mlp_layer_types": ["dense"] * 3}),
        ("qwen3_next", {"mlp_only_layers": [0, 1, 2, 3]}),
        ("qwen3_moe", {"decoder_sparse_step": 4}),
        ("lfm2_moe", {"num_dense_layers": 4}),
        ("ernie_moe", {"moe_layer_start_index": 3}),
    ],
)
def test_no_layer_has_to_have_experts(variant: str, fields: dict[str, Any], tmp_path: Path) -> None:
    directory, sequences = make_tiny(variant, tmp_path, **fields), tokens((20,))
    model = load(directory)
    paged = Paged(model, sequences)
    paged.step([(0, 20)])
    assert model.config.experts is None
    assert_same(paged.finish(), reference(directory, sequences), 2e-4)
