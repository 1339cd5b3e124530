"""Sampling by kind of request, against torch (argmax, softmax + multinomial, sort), and log probabilities.

Bytes: the logits read once; what filtered rows move besides is the kernels' own affair. Logits are a few hundred likely
tokens over a wide bell, as a model's are. `python -m benchmarks.kernels.sampling`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.common import SHAPES, Ceilings, Row, Shape, main, measure_graph

BATCHES = (1, 16, 64, 256)
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {},
    "top-k 50": {"top_k": 50},
    "top-p 0.95": {"top_p": 0.95},
    "top-k 50 top-p 0.95": {"top_k": 50, "top_p": 0.95},
    "min-p 0.05": {"min_p": 0.05},
    "top-p 0.99 hot": {"temperature": 2.0, "top_p": 0.99},
}


def cases() -> Iterator[tuple[Shape, int]]:
    for shape in SHAPES[:2]:  # both vocabularies
        for batch in BATCHES:
            yield shape, batch


def run(ceilings: Ceilings) -> Iterator[Row]:
    from ember_kernels.sampling import Workspace, sample
    from ember_kernels.sampling_logprobs import logprobs
    from ember_kernels.step_update import sampling_words

    for shape, batch in cases():
        logits = torch.randn(batch, shape.vocabulary, device="cuda") * 2
        logits[:, :300] += 9 * torch.rand(batch, 300, device="cuda")
        logits = logits.bfloat16()
        workspace = Workspace.create(batch, shape.vocabulary, "cuda")
        positions = torch.arange(batch, dtype=torch.int32, device="cuda")
        moved = 2 * logits.numel()
        case = f"{shape.name} {batch} x {shape.vocabulary}"
        for kind, options in KINDS.items():
            values = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0, "seed": 1} | options
            row = torch.tensor(sampling_words(**values), dtype=torch.int32, device="cuda")
            words = row.repeat_interleave(batch).view(-1, batch)
            has_filters = kind not in ("greedy", "temperature")

            def kernel(words=words, has_filters=has_filters, logits=logits, positions=positions, workspace=workspace):  # type: ignore[no-untyped-def]
                sample(logits, words, positions, has_filters=has_filters, workspace=workspace)

            peer = measure_graph(_torch_sampler(logits, options))
            yield Row(kind, case, measure_graph(kernel), bytes=moved, peer="torch", peer_seconds=peer)
        tokens = torch.zeros(batch, dtype=torch.int64, device="cuda")
        for count in (1, 20):
            seconds = measure_graph(lambda a=(logits, tokens, count): logprobs(*a))  # type: ignore[misc]
            yield Row(f"logprobs top {count}", case, seconds, bytes=moved)


def _torch_sampler(logits: Tensor, options: dict[str, Any]) -> Callable[[], Tensor]:
    """The plain way: a softmax, a sort if there are filters, exponential noise."""

    def greedy() -> Tensor:
        return logits.argmax(dim=-1)

    def draw() -> Tensor:
        x = logits.float() / options.get("temperature", 1.0)
        if options.keys() & {"top_k", "top_p", "min_p"}:
            x, ids = x.sort(dim=-1, descending=True)
            if "top_k" in options:
                x[:, options["top_k"] :] = float("-inf")
            probabilities = x.softmax(dim=-1)
            before = probabilities.cumsum(dim=-1) - probabilities
            probabilities = probabilities.masked_fill(before >= options.get("top_p", 2.0), 0.0)
            least = options.get("min_p", 0.0) * probabilities[:, :1]
            probabilities = probabilities.masked_fill(probabilities < least, 0.0)
            chosen = (probabilities / torch.empty_like(probabilities).exponential_()).argmax(dim=-1, keepdim=True)
            return ids.gather(1, chosen)
        return (x.softmax(dim=-1) / torch.empty_like(x).exponential_()).argmax(dim=-1)

    return greedy if options.get("temperature") == 0.0 else draw


if __name__ == "__main__":
    main(run)
