"""Ember's engine, in this process, which imports torch as the worker's engine process does."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the worker does for its engine process
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src"), str(ROOT / "kernels")]

from ember.engine.lean import lean_import  # noqa: E402

lean = lean_import.prepare(lambda line: print(line, file=sys.stderr))
import torch  # noqa: E402, F401

if lean is not None:
    lean.finish()

from benchmarks.peer_runs.timing import measure, request  # noqa: E402
from ember.boot import Timeline  # noqa: E402
from ember.engine.core.assemble import assemble  # noqa: E402
from ember.engine.core.boot import open_model  # noqa: E402
from ember.wire import Configure, Generate, SamplingParams  # noqa: E402


def main() -> None:
    asked = request()
    configure = Configure(
        model=asked["directory"],
        dtype="bfloat16",
        device="cpu",
        max_model_len=asked["prompt"] + asked["output"] + 16,
        max_num_seqs=max(asked["batches"]),
        enable_prefix_caching=False,
        num_threads=asked["threads"],
    )
    timeline = Timeline("bench")
    engine, _ = assemble(configure, open_model(configure, timeline, lambda located: None), timeline)
    while engine.do_chore():
        pass

    def generate(prompts: list[list[int]], tokens: int) -> None:
        sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        for number, prompt in enumerate(prompts, 1):
            engine.add(Generate(number, prompt, sampling))
        while engine.has_work:
            engine.step()

    measure(asked, generate)


main()
