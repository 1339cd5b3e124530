"""Latent attention on the GPU's runner: steps whose prompts expand keys and values, and recorded ones, which absorb."""

from __future__ import annotations

import random

from ember.engine.core.gpu import device_runner
from ember.engine.core.gpu.device_runner import DeviceRunner
from ember.engine.operators import triton_expansion
from ember.wire import Generate
from tests.device_step.engines import all_said, check_empty, recorded_engine
from tests.engine_core.inline import greedy, make_engine, run
from tests.engine_models.tiny import VOCAB_SIZE, make_tiny


def test_long_chunks_beside_short_ones_and_decodes(tmp_path, monkeypatch):
    """Chunks come in any order of lengths, and the second time after a cached prefix."""
    directory = make_tiny("youtu", tmp_path, num_hidden_layers=1)
    rng = random.Random(1)
    prompts = [[rng.randrange(6, VOCAB_SIZE) for _ in range(length)] for length in (21, 13)]
    requests = [Generate(i, prompt, greedy(2)) for i, prompt in enumerate(prompts)]
    expected = all_said(run(make_engine(directory), requests))
    for module in (device_runner, triton_expansion):
        monkeypatch.setattr(module, "expands", lambda sizes, queries: queries >= 8)
    monkeypatch.setattr(triton_expansion, "keys_at_once", lambda *sizes: 16)
    divided = []
    divide = triton_expansion.Expander._divide

    def noted(self, step, group):
        divided.append(divide(self, step, group))
        return divided[-1]

    monkeypatch.setattr(triton_expansion.Expander, "_divide", noted)
    engine, launched = recorded_engine(directory, max_num_seqs=2, max_num_batched_tokens=19)
    assert isinstance(engine.runner, DeviceRunner)
    engine.runner.mixed_graphs.observe_eager = lambda seconds: None  # type: ignore[method-assign]
    divided.clear()
    assert all_said(run(engine, requests)) == expected
    made = [each for each in divided if each is not None]
    assert any(each.absorbed is not None for each in made) and any(len(each.pieces) > 1 for each in made)
    assert {unit for unit, _ in launched} == {"rows"}
    assert all_said(run(engine, requests)) == expected  # with cached prefixes, so that all chunks are short
    assert {unit for unit, _ in launched} == {"rows", "tokens"}
    check_empty(engine)
