"""Steps of the engine before it reports itself ready, for platforms that snapshot a process once it is.

A normal boot does none of this: the first request finds the same work undone and pays only for what it needs.
"""

from __future__ import annotations

from ember.engine.core.engine import Engine
from ember.wire import Generate, SamplingParams

_REQUEST_ID = 1 << 62  # none that the front will use
_TOKENS = 4


def warm_up(engine: Engine, mode: str) -> None:
    """`eager`: one short request, so that libraries and kernels are loaded. `full`: also every chore that would wait
    for an idle moment (packed weights, CUDA graphs)."""
    if mode == "none":
        return
    prompt = list(range(_TOKENS))
    for temperature in (0.0, 1.0):
        sampling = SamplingParams(max_tokens=_TOKENS, temperature=temperature, ignore_eos=True)
        engine.add(Generate(_REQUEST_ID, prompt, sampling, cache_salt="warmup"))
        while engine.has_work:
            engine.step()
    if mode == "full":
        while engine.do_chore():
            pass
    engine.reset_counters()
