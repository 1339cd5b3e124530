"""Ten thousand requests of random sizes and options, many aborted: nothing may stay behind in the engine."""

from __future__ import annotations

import gc
import random
from pathlib import Path

import pytest

from ember.engine.core.engine import Engine
from ember.wire import Generate, SamplingParams
from tests.engine_core.inline import make_engine
from tests.engine_models.tiny import make_tiny

NUM_REQUESTS = 10_000
MAX_ACTIVE = 96


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("qwen3", tmp_path_factory.mktemp("qwen3"))


def random_request(request_id: int, rng: random.Random, vocab_size: int) -> Generate:
    shared = rng.random() < 0.3  # a prefix that others have too
    prompt = [5] * rng.randint(8, 40) if shared else []
    prompt += [rng.randrange(vocab_size) for _ in range(round(10 ** rng.uniform(0, 1.6)))]
    sampling = SamplingParams(
        max_tokens=rng.randint(1, 6) if rng.random() < 0.98 else 500,  # more than the context holds: ends at its length
        n=rng.choice([1] * 9 + [3]),
        temperature=rng.choice([0.0, 1.0]),
        top_k=rng.choice([0, 5]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
        logprobs=rng.choice([None, None, None, 2]),
        prompt_logprobs=rng.choice([None] * 9 + [1]),
    )
    return Generate(request_id, prompt, sampling, priority=rng.randint(0, 3))


def drive(engine: Engine, num_requests: int) -> tuple[int, int]:
    """Returns how many requests ended by themselves and how many were aborted."""
    rng = random.Random(3)
    vocab_size = engine.runner.model.config.vocab_size
    open_samples: dict[int, int] = {}
    begun = aborted = ended = 0
    while begun < num_requests or engine.has_work:
        while begun < num_requests and len(open_samples) < MAX_ACTIVE:
            begun += 1
            request = random_request(begun, rng, vocab_size)
            open_samples[begun] = request.sampling.n
            assert engine.add(request) == []
        if rng.random() < 0.5 and open_samples:
            request_id = rng.choice(list(open_samples))
            engine.abort(request_id)
            del open_samples[request_id]
            aborted += 1
        for output in engine.step():
            if output.finish_reason is not None:
                assert output.finish_reason in ("length", "stop"), output
                open_samples[output.request_id] -= 1
                if not open_samples[output.request_id]:
                    del open_samples[output.request_id]
                    ended += 1
    assert not open_samples
    return ended, aborted


def test_ten_thousand_requests_leave_nothing_behind(directory: Path) -> None:
    engine = make_engine(directory, max_num_seqs=32, num_blocks=90, max_model_len=128, scheduling_policy="priority")
    drive(engine, 300)  # fills caches and pools
    gc.collect()
    before = len(gc.get_objects())
    ended, aborted = drive(engine, NUM_REQUESTS)
    assert ended + aborted == NUM_REQUESTS and aborted > 500
    stats = engine.stats()
    assert stats.num_preemptions > 0, "the cache was never full: the test shows less than it should"
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_free_blocks == stats.num_blocks
    assert not engine._sequences
    gc.collect()
    assert len(gc.get_objects()) < before + 1000, "objects pile up with every request"
