"""Sliding windows in the C library: each cache group has its own block tables, and what was given back is not read."""

from typing import Any

import pytest
import torch

from ember.engine.core.engine import Engine
from ember.engine.models.decoder import Decoder
from ember.engine.operators.native_ops import NativeOperators
from ember_cpu import library as native
from tests.cpu_kernels.test_native_forward import SIZES
from tests.engine_core.inline import make_engine, poison
from tests.engine_core.test_window_parity import LENGTHS, VARIANTS, answers, smallest
from tests.engine_models.tiny import make_tiny


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_c_library_says_the_same_however_the_work_is_cut(variant, tmp_path, monkeypatch):
    """Steps of up to 128 tokens add up in one order, so the answers are equal to the bit."""
    if native.load() is None:
        pytest.skip("this machine can run no build of it")
    monkeypatch.setattr("ember.engine.description.operator_choice.cpu_flags", frozenset)
    family, overrides, _ = VARIANTS[variant]
    more = {"llama4": {"intermediate_size_mlp": 96}, "gemma4_small": {"hidden_size_per_layer_input": 32}}
    sizes = {**overrides, **SIZES, **more.get(family, {})}
    directory = make_tiny(family, tmp_path, **sizes, dtype=torch.bfloat16)

    def engine(**configure: Any) -> Engine:
        made = make_engine(directory, dtype="bfloat16", **{"max_num_batched_tokens": 128, **configure})
        model = made.runner.model
        assert isinstance(model, Decoder) and isinstance(model.ops, NativeOperators)
        return made

    expected = answers(engine(enable_prefix_caching=False, max_num_seqs=1))
    assert answers(poison(engine(enable_prefix_caching=False))) == expected
    chunked = poison(engine(max_num_batched_tokens=23))
    assert answers(chunked) == expected and answers(chunked) == expected
    assert chunked.stats().prefix_cache_hits > sum(LENGTHS) / 2
    assert answers(smallest(directory, 145, dtype="bfloat16")) == expected
