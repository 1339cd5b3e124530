"""Layers with states on the GPU's runner: it runs ahead, and steps are recorded, with the slots on the device."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ember.wire import Generate
from tests.device_step.engines import all_said, check_empty, device_engine, recorded_engine
from tests.engine_core.inline import greedy, make_engine, poison_states, run
from tests.engine_models.tiny import VOCAB_SIZE, make_tiny

VARIANTS: dict[str, dict[str, Any]] = {  # the delta rule beside attention, Mamba 1 and 2 alone
    "qwen3_5": {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]},
    "falcon_mamba": {"num_hidden_layers": 1},
    "mamba2": {"num_hidden_layers": 1, "num_heads": 4, "head_dim": 32},
}


@pytest.fixture(scope="module", params=VARIANTS)
def case(request, tmp_path_factory):
    directory = make_tiny(request.param, tmp_path_factory.mktemp("states"), **VARIANTS[request.param])
    rng = random.Random(1)
    prompts = [[rng.randrange(6, VOCAB_SIZE) for _ in range(length)] for length in (21, 1, 13)]
    prompts[2][:9] = prompts[0][:9]
    requests = [Generate(i, prompt, greedy(5 + i)) for i, prompt in enumerate(prompts)]
    return directory, requests, all_said(run(make_engine(directory), requests))


@pytest.mark.parametrize("case", ["qwen3_5", "falcon_mamba"], indirect=True)
def test_in_chunks_by_checkpoints_and_with_preemption(case):
    """States go on from chunk to chunk and from the prefix cache. Slots are used again, and hold NaN in between."""
    directory, requests, expected = case
    engine = poison_states(device_engine(directory, max_num_seqs=2, max_num_batched_tokens=11))
    assert engine.runner.runs_ahead
    assert all_said(run(engine, requests)) == expected
    before = engine.stats().prefix_cache_hits
    assert all_said(run(engine, requests)) == expected
    assert engine.stats().prefix_cache_hits - before == 16 + 0 + 8
    check_empty(engine)
    configure = {"num_blocks": 4, "max_model_len": 32, "max_num_batched_tokens": 16}
    engine = poison_states(device_engine(directory, enable_prefix_caching=False, **configure))
    assert all_said(run(engine, requests)) == expected
    assert engine.stats().num_preemptions > 0
    check_empty(engine)


def test_in_recorded_steps(case):
    directory, requests, expected = case
    engine, launched = recorded_engine(directory, max_num_seqs=2, max_num_batched_tokens=32)
    assert all_said(run(poison_states(engine), requests)) == expected
    assert {unit for unit, _ in launched} == {"rows", "tokens"}
    check_empty(engine)
