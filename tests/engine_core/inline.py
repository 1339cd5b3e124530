"""An engine in this process, for tests: built as the engine process builds it, stepped by hand."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from ember.boot import Timeline
from ember.engine.core.assemble import assemble
from ember.engine.core.boot import open_model
from ember.engine.core.engine import Engine
from ember.engine.core.scheduler import Scheduled
from ember.wire import Configure, Generate, SamplingParams, SequenceOutput

NUM_OUTPUT = int(os.environ.get("EMBER_TEST_TOKENS", "12"))
"""The number of tokens of each answer that is compared with transformers. `make test-real` asks for more."""


def make_engine(directory: Path, **configure) -> Engine:
    settings = {"device": "cpu", "dtype": "float32", "block_size": 8, "seed": 0, **configure}
    message = Configure(model=str(directory), **settings)
    timeline = Timeline("test")
    engine, _ = assemble(message, open_model(message, timeline, lambda located: None), timeline)
    return engine


def greedy(max_tokens: int, **params) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, **{"temperature": 0.0, "ignore_eos": True, **params})


Outputs = dict[tuple[int, int], list[SequenceOutput]]


def run(engine: Engine, requests: list[Generate], max_steps: int = 10_000) -> Outputs:
    """Add all, step to the end. Returns the outputs of each (request id, sample)."""
    outputs: Outputs = defaultdict(list)
    for request in requests:
        for output in engine.add(request):
            outputs[output.request_id, output.index].append(output)
    for _ in range(max_steps):
        if not engine.has_work:
            return outputs
        for output in engine.step():
            outputs[output.request_id, output.index].append(output)
    raise AssertionError(f"not finished after {max_steps} steps")


def poison(engine: Engine) -> Engine:
    """From here on, pages that no sequence holds and that no prefix is found in are filled with NaN before each step:
    whoever reads them shows it."""
    runner: Any = engine.runner
    launch, cache, pool = runner.launch, runner.cache, engine.scheduler.pool

    def poisoned(step: list[Scheduled]) -> Any:
        free = [block for block in range(pool.num_blocks) if pool.is_free(block) and pool._hashes[block] is None]
        cache.keys[:, free] = torch.nan
        cache.values[:, free] = torch.nan
        return launch(step)

    runner.launch = poisoned
    return engine


def poison_states(engine: Engine) -> Engine:
    """From here on, slots that hold no state are filled with NaN before each step."""
    runner: Any = engine.runner
    launch, slots = runner.launch, engine.scheduler.blocks.states
    assert slots is not None

    def poisoned(step: Any) -> Any:
        moves = [move for scheduled in step for move in scheduled.states]
        read = {move.read for move in moves} - {move.write for move in moves}
        holds = [each.states for each in engine.scheduler.running if each.states is not None]
        held = {hold.current for hold in holds} | {kept.slot for hold in holds for kept in hold.kept}
        free = [slot for slot in range(slots.num_own + slots.num_checkpoints) if slot not in slots._hash_of]
        free = [slot for slot in free if slot not in read | held]
        for states in runner.cache.states:
            states.windows[:, free] = torch.nan
            states.matrices[:, free] = torch.nan
        return launch(step)

    runner.launch = poisoned
    return poison(engine)


def tokens(outputs: list[SequenceOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def generated(model: Any, prompt: list[int]) -> list[int]:
    """The greedy tokens of a model of transformers after a prompt."""
    ids = torch.tensor([prompt])
    options = {"max_new_tokens": NUM_OUTPUT, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.inference_mode():
        made = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    tokens: list[int] = made[0, len(prompt) :].tolist()
    return tokens
