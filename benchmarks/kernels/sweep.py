"""A kernel with each of several configurations, in several cases; the best is printed as an entry of its table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.kernels.common import Row


@dataclass
class Case:
    """One call of the kernel, with what it must move and compute, and what it is compared with."""

    name: str
    call: Callable[[], torch.Tensor]
    bytes: float
    flops: float
    peers: dict[str, Callable[[], Any]] = field(default_factory=dict)


def sweep(
    kernel: str,
    module: Any,
    configurations: Iterable[Any],
    cases: Iterable[Case],
    timer: Callable[[Callable[[], Any]], float],
    entry: str,
) -> Iterator[Row]:
    """Rows of every case and configuration, each beside the one that the table has. A configuration that does not
    compile, or whose result is not the same within rounding, is told of and left out.

    module: where the kernel's launch looks `config` up. entry: which entry of the table this is.
    """
    from benchmarks.kernels.common import measure_peer

    tried = list(configurations)
    times: dict[Any, list[float]] = {each: [] for each in tried}
    for case in cases:
        expected, usual = case.call(), timer(case.call)
        yield Row(kernel, f"{case.name} as it is", usual, case.bytes, case.flops)
        for name, peer in case.peers.items():
            seconds = measure_peer(peer, timer)
            if seconds:
                yield Row(f"{kernel}: {name}", case.name, seconds, case.bytes, case.flops, "ember", usual)
        for each in list(times):
            with patch.object(module, "config", lambda *arguments, each=each: each):
                problem, seconds = _try(case.call, expected, timer)
            if problem:
                print(f"{kernel} {case.name} {each}: {problem}", flush=True)
                del times[each]
                continue
            times[each].append(seconds / usual)
            yield Row(kernel, f"{case.name} {_short(each)}", seconds, case.bytes, case.flops, "as it is", usual)
    means = {each: math.exp(sum(map(math.log, ratios)) / len(ratios)) for each, ratios in times.items() if ratios}
    for each, mean in sorted(means.items(), key=lambda pair: pair[1])[:3]:
        print(f"{entry}: {each} takes {mean:.3f} of the time of the present one, in the mean of the cases", flush=True)


def _try(
    call: Callable[[], torch.Tensor], expected: torch.Tensor, timer: Callable[[Callable[[], Any]], float]
) -> tuple[str, float]:
    """What is wrong with a configuration, or the seconds of a call."""
    try:
        result = call()
        if not result.is_meta:
            torch.testing.assert_close(result.float(), expected.float(), rtol=2e-2, atol=2e-2)
        return "", timer(call)
    except AssertionError:
        return "another result", 0.0
    except Exception as error:  # too much shared memory, or nothing that the compiler can do
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}", 0.0


def _short(configuration: Any) -> str:
    return " ".join(str(value) for value in vars(configuration).values())
