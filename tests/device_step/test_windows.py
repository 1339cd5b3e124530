"""Sliding windows on the GPU's runner: a block table for each cache group, and what was given back is not read."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ember.wire import Generate
from tests.device_step.engines import all_said, check_empty, device_engine, recorded_engine
from tests.engine_core.inline import greedy, make_engine, poison, run
from tests.engine_models.tiny import VOCAB_SIZE, make_tiny

TWICE = ["sliding_attention", "full_attention"] * 2
VARIANTS: dict[str, tuple[str, dict[str, Any], int]] = {  # family, overrides, groups
    "all": ("mistral_window", {"num_hidden_layers": 1}, 1),
    "some": ("ministral", {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}, 2),
    # Layers with other heads, and layers that read the keys and values of earlier ones.
    "heads by layer": ("gemma4_small", {"num_hidden_layers": 4, "layer_types": TWICE, "num_kv_shared_layers": 2}, 2),
    # Torch normalises and rotates its heads, the kernels do the rest.
    "heads in torch": ("olmo3", {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}, 2),
}


@pytest.fixture(scope="module", params=VARIANTS)
def case(request, tmp_path_factory):
    family, overrides, num_groups = VARIANTS[request.param]
    directory = make_tiny(family, tmp_path_factory.mktemp("windows"), **overrides)
    rng = random.Random(1)
    prompts = [[rng.randrange(6, VOCAB_SIZE) for _ in range(length)] for length in (40, 3, 25)]
    prompts[2][:17] = prompts[0][:17]
    requests = [Generate(i, prompt, greedy(7 + i)) for i, prompt in enumerate(prompts)]
    expected = all_said(run(make_engine(directory), requests))
    return directory, requests, expected, num_groups


def test_in_chunks_and_by_cached_prefixes(case):
    directory, requests, expected, num_groups = case
    engine = poison(device_engine(directory, max_num_batched_tokens=19))
    assert engine.runner.rows.block_tables.shape[0] == num_groups
    assert all_said(run(engine, requests)) == expected
    before = engine.stats().prefix_cache_hits
    assert all_said(run(engine, requests)) == expected
    assert engine.stats().prefix_cache_hits - before == 32 + 0 + 24
    check_empty(engine)


@pytest.mark.parametrize("case", ["all", "some"], indirect=True, scope="module")
def test_with_preemption(case):
    directory, requests, expected, num_groups = case
    configure = {"num_blocks": {1: 4, 2: 11}[num_groups], "max_model_len": 48, "max_num_batched_tokens": 16}
    engine = poison(device_engine(directory, enable_prefix_caching=False, **configure))
    assert all_said(run(engine, requests)) == expected
    check_empty(engine)


def test_in_recorded_steps(case):
    directory, requests, expected, _ = case
    engine, launched = recorded_engine(directory, max_num_seqs=4, max_num_batched_tokens=32)
    assert all_said(run(poison(engine), requests)) == expected
    assert {unit for unit, _ in launched} == {"rows", "tokens"}
    check_empty(engine)
