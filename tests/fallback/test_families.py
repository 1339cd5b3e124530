"""Families that Ember does not know as data, through transformers: they say what transformers says by itself, however
the engine schedules the work, while pages that no sequence holds have NaN."""

import random

import pytest
import torch
import transformers

from ember.engine.core.engine import Engine
from ember.engine.description.cache_groups import most_pages
from ember.wire import Generate
from tests.engine_core.inline import NUM_OUTPUT, generated, greedy, make_engine, poison, run, tokens
from tests.engine_models.tiny import VOCAB_SIZE
from tests.fallback.models import FAMILIES, make_model

LENGTHS = (5, 6, 7, 5, 1, 40, 31, 44)


def prompts() -> list[list[int]]:
    rng = random.Random(3)
    made = [[rng.randrange(6, VOCAB_SIZE) for _ in range(length)] for length in LENGTHS]
    made[6][:20] = made[5][:20]
    made[7][:33] = made[5][:33]
    return made


def answers(engine: Engine) -> list[list[int]]:
    outputs = run(engine, [Generate(i, prompt, greedy(NUM_OUTPUT)) for i, prompt in enumerate(prompts())])
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks
    return [tokens(outputs[i, 0]) for i in range(len(LENGTHS))]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_says_what_transformers_says(name, tmp_path):
    directory = make_model(name, tmp_path)
    model = getattr(transformers, name).from_pretrained(directory, dtype=torch.float32).eval()
    expected = [generated(model, prompt) for prompt in prompts()]
    engine = poison(make_engine(directory, num_blocks=600, model_impl="transformers"))
    assert answers(engine) == expected  # a batch of eight, of which two find the beginning of another one's prompt
    again = run(engine, [Generate(9, prompts()[5], greedy(NUM_OUTPUT))])
    assert tokens(again[9, 0]) == expected[5] and again[9, 0][0].num_cached_tokens >= 32
    engine.add(Generate(10, prompts()[7], greedy(NUM_OUTPUT)))
    for _ in range(3):
        engine.step()
    engine.abort(10)
    engine.step()
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks
    # The same in chunks of prompts at awkward places, with pages for hardly more than a sequence: others are preempted.
    length = max(LENGTHS) + NUM_OUTPUT
    limits = {"max_num_batched_tokens": 13, "max_model_len": length}
    pages = most_pages(engine.scheduler.blocks.groups, length, 13, 8) * 5 // 4
    small = poison(make_engine(directory, num_blocks=pages, **limits, model_impl="transformers"))
    assert answers(small) == expected
    assert small.stats().num_preemptions > 0
