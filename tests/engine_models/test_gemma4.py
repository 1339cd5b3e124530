"""What only Gemma 4 has: layers without keys and values of their own, and a table of which a step reads some rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ember.engine.core.chores import settle_weights
from ember.engine.description.read_config import load_config
from ember.engine.errors import ModelError
from ember.engine.loading import mapped
from ember.engine.loading.load import Loaded, load_decoder
from tests.engine_models.paged import Paged
from tests.engine_models.test_parity import assert_same, reference, tokens
from tests.engine_models.tiny import VOCAB_SIZE, make_tiny


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("gemma4_small", tmp_path_factory.mktemp("gemma4"))


def load(directory: Path) -> Loaded:
    return load_decoder(directory, load_config(directory), dtype=torch.float32, device=torch.device("cpu"))


def with_tensors(source: Path, target: Path, **more: torch.Tensor) -> Path:
    """A copy of a checkpoint with more tensors."""
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file(load_file(source / "model.safetensors") | more, target / "model.safetensors", {"format": "pt"})
    return target


def test_keys_and_values_that_no_layer_uses_are_passed_over(small: Path, tmp_path: Path) -> None:
    """Files may have them for layers that read those of an earlier one, and for no others."""
    parts = {f"model.layers.4.self_attn.{name}": torch.zeros(16) for name in ("k_norm.weight", "v_proj.bias")}
    loaded = load(with_tensors(small, tmp_path, **parts))
    assert loaded.report.nbytes == load(small).report.nbytes
    foreign = {"model.layers.2.self_attn.v_norm.weight": torch.zeros(32)}
    with pytest.raises(ModelError, match=r"does not know: model.layers.2.self_attn.v_norm.weight"):
        load(with_tensors(small, tmp_path, **foreign))


def test_mapped_weights_give_the_same_before_and_after_they_are_moved(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "SMALL_BYTES", 0)
    loaded, sequences = load(small), tokens((30, 12))
    expected = reference(small, sequences)
    assert loaded.pages is not None
    for _ in range(2):
        paged = Paged(loaded.decoder, sequences)
        paged.step([(0, 20), (1, 12)])
        paged.step([(0, 10)])
        assert_same(paged.finish(), expected)
        for _ in settle_weights(loaded.decoder, loaded.pages):
            pass


def test_a_step_reads_rows_of_the_table_of_inputs(small: Path) -> None:
    model = load(small).decoder
    assert model.parts.layer_inputs is not None
    table = model.parts.layer_inputs.table
    assert isinstance(table, torch.Tensor) and table.shape == (VOCAB_SIZE, 6 * 24)
    assert model.bytes_read(1) == model.weight_bytes - table.nbytes


def test_layers_that_share_keys_and_values_have_one_place(small: Path) -> None:
    blocks: Any = load(small).decoder.parts.blocks
    places = [(block.attention.group, block.attention.place) for block in blocks]
    assert places[3] == places[4] == places[1] and places[5] == places[2] and len(set(places)) == 3
    assert [block.attention.has_own_kv for block in blocks] == [True] * 3 + [False] * 3
    assert [block.mlp.down.in_features for block in blocks] == [112] * 3 + [224] * 3
