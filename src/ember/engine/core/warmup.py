"""Warm-up: steps before the engine reports that it is ready, for platforms that snapshot a ready process.

A normal boot has no warm-up: the first request loads only what it needs.
"""

from __future__ import annotations

from ember.engine.core.engine import Engine
from ember.wire import Generate, Pool, SamplingParams

_REQUEST_ID = 1 << 62  # an id that the front does not use
_TOKENS = 4


def warm_up(engine: Engine, mode: str) -> None:
    """`eager`: run one short request, which loads libraries and kernels. `full`: also do all deferred chores (packed
    weights, CUDA graphs)."""
    if mode == "none":
        return
    prompt = list(range(_TOKENS))
    pooling = engine.runner.model.config.pooling
    for temperature in (0.0, 1.0):
        if pooling is not None:
            engine.pool(Pool(_REQUEST_ID, prompt, pooling.tasks[0], cache_salt="warmup"))
        else:
            sampling = SamplingParams(max_tokens=_TOKENS, temperature=temperature, ignore_eos=True)
            engine.add(Generate(_REQUEST_ID, prompt, sampling, cache_salt="warmup"))
        while engine.has_work:
            engine.step()
    if mode == "full":
        while engine.do_chore():
            pass
    engine.reset_counters()
