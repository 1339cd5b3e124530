"""Greedy output equals transformers' `generate` token for token, in float32, however the engine schedules the work."""

import os
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from ember.engine.description.read_config import load_config
from ember.wire import Generate
from tests.engine_core.inline import NUM_OUTPUT, generated, greedy, make_engine, run, tokens
from tests.engine_models.test_shells import TINY, make_shell
from tests.engine_models.tiny import COVERING, VARIANTS, VOCAB_SIZE, make_tiny

LENGTHS = [1, 3, 9, 16, 24, 33, 50, 7, 16, 2]


IS_LONG = "EMBER_TEST_TOKENS" in os.environ  # `make test-real`
# Of multimodal checkpoints, the suite compares the logits alone (`test_shells`).
SHELLS = [f"{name} shell" for name in TINY] if IS_LONG else []
CASES = [*COVERING, *sorted(VARIANTS.keys() - set(COVERING)), *SHELLS]
# The scheduler sees a model's features, all of which are in COVERING.
every_feature = pytest.mark.parametrize("case", CASES if IS_LONG else COVERING, indirect=True)


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A checkpoint, prompts of many lengths (some with a common prefix), and what transformers says to them."""
    directory = tmp_path_factory.mktemp(request.param.replace(" ", "_"))
    if request.param in SHELLS:
        make_shell(request.param.removesuffix(" shell"), directory)
    else:
        make_tiny(request.param, directory)
    rng = random.Random(request.param)
    lengths = LENGTHS if IS_LONG or request.param in COVERING else LENGTHS[:6]
    prompts = [[rng.randrange(9, VOCAB_SIZE) for _ in range(length)] for length in lengths]
    prompts[5][:17] = prompts[4][:17]
    auto = AutoModelForImageTextToText if request.param in SHELLS else AutoModelForCausalLM
    model = auto.from_pretrained(directory, dtype=torch.float32).eval()
    expected = [generated(model, prompt) for prompt in prompts]
    assert len({tuple(answer) for answer in expected}) > len(prompts) // 2  # the weights say something
    return directory, prompts, expected


def requests(prompts: list[list[int]]) -> list[Generate]:
    return [Generate(i, prompt, greedy(NUM_OUTPUT)) for i, prompt in enumerate(prompts)]


def answers(engine, prompts) -> list[list[int]]:
    outputs = run(engine, requests(prompts))
    return [tokens(outputs[i, 0]) for i in range(len(prompts))]


def test_alone_and_in_a_mixed_batch(case):
    directory, prompts, expected = case
    engine = make_engine(directory, enable_prefix_caching=False)
    assert [answers(engine, [prompt])[0] for prompt in prompts] == expected
    assert answers(engine, prompts) == expected
    assert engine.stats().prefix_cache_hits == 0


@every_feature
def test_joining_at_different_times(case):
    directory, prompts, expected = case
    engine = make_engine(directory, enable_prefix_caching=False)
    found: dict[int, list[int]] = {i: [] for i in range(len(prompts))}
    pending = requests(prompts)
    while pending or engine.has_work:
        if pending:
            engine.add(pending.pop(0))
        for output in engine.step():
            found[output.request_id] += output.token_ids
    assert list(found.values()) == expected


@every_feature
def test_chunked_prefill(case):
    directory, prompts, expected = case
    engine = make_engine(directory, max_num_batched_tokens=11, enable_prefix_caching=False)
    assert answers(engine, prompts) == expected
    assert engine.stats().num_steps > NUM_OUTPUT + sum(LENGTHS) // 11


@every_feature
def test_prefix_cache_hits(case):
    directory, prompts, expected = case
    engine = make_engine(directory)
    assert answers(engine, prompts) == expected
    before = engine.stats().prefix_cache_hits
    assert answers(engine, prompts) == expected
    assert engine.stats().prefix_cache_hits - before == sum((length - 1) // 8 * 8 for length in LENGTHS)
    assert answers(engine, list(reversed(prompts))) == list(reversed(expected))


@every_feature
@pytest.mark.parametrize("caching", [True, False])
def test_forced_preemption(case, caching):
    directory, prompts, expected = case
    max_model_len = max(LENGTHS) + NUM_OUTPUT
    num_blocks = 6 + -(-max_model_len // 8)
    engine = make_engine(directory, num_blocks=num_blocks, max_model_len=max_model_len, enable_prefix_caching=caching)
    outputs = run(engine, requests(prompts))
    assert [tokens(outputs[i, 0]) for i in range(len(prompts))] == expected
    stats = engine.stats()
    assert sum(made[-1].num_preemptions for made in outputs.values()) == stats.num_preemptions
    if None in load_config(directory).windows():  # otherwise pages that a window left may be enough
        assert stats.num_preemptions > 0
    assert stats.num_free_blocks == stats.num_blocks == num_blocks
