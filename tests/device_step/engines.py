"""Two engines on one model: the runner for GPUs, and the plain one that it is compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ember.engine.core import sampler
from ember.engine.core.chores import Chore, Chores
from ember.engine.core.engine import Engine
from ember.engine.core.gpu.device_runner import DeviceRunner
from ember.engine.core.gpu.graphs import StepGraphs
from ember.engine.core.grammars import masks
from ember.engine.core.runner import Runner
from ember.engine.models.decoder import Decoder
from ember.wire import Generate, SequenceOutput
from ember_kernels.sampling_reference import gumbel, kept_tokens
from tests.engine_core.inline import Outputs, make_engine, run
from tests.support.gpu import DEVICE
from tests.support.operators import use_triton


def device_engine(directory: Path, *, enforce_eager: bool = False, **configure: Any) -> Engine:
    """An engine with the runner for GPUs, whatever the device, which runs ahead from its first step on."""
    engine = make_engine(directory, device=DEVICE, **configure)
    engine.is_cold = False
    if isinstance(engine.runner, DeviceRunner) and not enforce_eager:
        return engine
    plain, model = engine.runner, engine.runner.model
    assert isinstance(plain, Runner | DeviceRunner) and isinstance(model, Decoder)
    if not model.ops.is_recordable:
        use_triton(model)
    engine.runner = runner = DeviceRunner(
        model,
        plain.cache,
        plain.device,
        engine.limits,
        enforce_eager=enforce_eager,
    )
    engine.chores = Chores([Chore("recording steps", runner.record_next)])
    return engine


def recorded_engine(directory: Path, **configure: Any) -> tuple[Engine, list[tuple[str, int]]]:
    """An engine that has recorded all it can, and the list of the kind and size of each graph that it launches."""
    engine = device_engine(directory, **configure)
    while engine.do_chore():
        pass
    launched: list[tuple[str, int]] = []
    assert isinstance(engine.runner, DeviceRunner)
    for graphs in (engine.runner.decode_graphs, engine.runner.mixed_graphs):

        def note(size: int, graphs: StepGraphs = graphs, launch: Callable[[int], None] = graphs.launch) -> None:
            launched.append((graphs.kind.unit, size))
            launch(size)

        graphs.launch = note  # type: ignore[method-assign]
        graphs.observe_eager = None  # type: ignore[assignment, method-assign]  # a step without a graph would fail
    return engine, launched


def draw_as_the_kernels_do(monkeypatch: Any) -> None:
    """Let the plain engine's sampler draw by the noise of the kernels' specification, from the tokens that its options
    leave. Everything before the draw stays its own."""

    def draw(logits: torch.Tensor, sequences: list[Any], width: int) -> list[int]:
        tokens = []
        for row, sequence in zip(logits, sequences, strict=True):
            params = sequence.sampling
            x = row / params.temperature
            kept = kept_tokens(x, {"top_k": params.top_k, "top_p": params.top_p, "min_p": params.min_p})
            noisy = x + gumbel(sequence.seed, sequence.num_tokens, len(x)).to(x.device)
            tokens.append(int(torch.where(kept, noisy, -torch.inf).argmax()))
        return tokens

    monkeypatch.setattr(sampler, "_draw", draw)
    monkeypatch.setattr(masks, "list_few", lambda bits, vocab_size: None)  # noise goes by token id: whole rows


@dataclasses.dataclass(frozen=True)
class Said:
    """What a sample said, without what depends on how many steps it took."""

    token_ids: list[int]
    finish_reason: str | None
    stop_reason: int | str | None
    error: str | None
    param: str | None


def said(outputs: list[SequenceOutput]) -> Said:
    last = outputs[-1]
    token_ids = [token_id for output in outputs for token_id in output.token_ids]
    return Said(token_ids, last.finish_reason, last.stop_reason, last.error, last.error_param)


def all_said(outputs: Outputs) -> dict[tuple[int, int], Said]:
    return {key: said(made) for key, made in outputs.items()}


def compare(directory: Path, requests: list[Generate], **configure: Any) -> tuple[Outputs, Engine]:
    """Run the requests on both engines; what they say must be the same. Returns what came from the runner under test,
    and its engine, which holds nothing any more."""
    expected = run(make_engine(directory, **configure), requests)
    engine = device_engine(directory, **configure)
    outputs = run(engine, requests)
    assert all_said(outputs) == all_said(expected)
    check_empty(engine)
    return outputs, engine


def check_empty(engine: Engine) -> None:
    stats = engine.stats()
    assert not engine.has_work
    assert (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (0, 0, stats.num_blocks)
