"""What every peer is asked, and how it is timed: the same prompts, `t(1)` for one token each and `t(N)` for N.

prefill = prompt tokens / t(1), so it holds the call's overhead and one sample; decode = (N - 1) tokens / (t(N) - t(1)).
Imports nothing but the standard library: it runs in each peer's own environment.
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

Generate = Callable[[list[list[int]], int], Any]
"""Prompts as token ids, and how many tokens each gets: greedy, without an end."""


def request() -> dict[str, Any]:
    """directory, batches, prompt, output, rounds, threads, vocab_size."""
    asked: dict[str, Any] = json.loads(sys.argv[1])
    return asked


def measure(asked: dict[str, Any], generate: Generate) -> None:
    """Time every batch size and print a row for each; the first round warms up."""
    for batch in asked["batches"]:
        times: list[tuple[float, float]] = []
        for number in range(asked["rounds"] + 1):
            rng = random.Random(1000 * batch + number)
            top = min(asked["vocab_size"], 150_000)
            prompts = [[rng.randrange(300, top) for _ in range(asked["prompt"])] for _ in range(batch)]
            times.append((_timed(generate, prompts, 1), _timed(generate, prompts, asked["output"])))
        first = statistics.median(one for one, _ in times[1:])
        step = statistics.median((many - one) / (asked["output"] - 1) for one, many in times[1:])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        row = {"batch": batch, "prefill": batch * asked["prompt"] / first, "decode": batch / step, "peak_mb": peak}
        print(f"ROW {json.dumps(row)}", flush=True)


def _timed(generate: Generate, prompts: list[list[int]], tokens: int) -> float:
    start = time.perf_counter()
    generate(prompts, tokens)
    return time.perf_counter() - start
