"""Models with sliding windows, far beyond them: they say what transformers says, however the engine schedules the work,
while pages that were given back hold NaN.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ember.engine.core.engine import Engine
from ember.engine.description.cache_groups import cache_groups, most_pages
from ember.engine.description.read_config import load_config
from ember.engine.errors import ModelError
from ember.wire import Generate
from tests.engine_core.inline import NUM_OUTPUT, generated, greedy, make_engine, poison, run, tokens
from tests.engine_models.tiny import VOCAB_SIZE, make_tiny

LENGTHS = [5, 6, 7, 5, 60, 131, 87, 131]
FIVE_TO_ONE: dict[str, Any] = {
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    "sliding_window": 9,
}
VARIANTS: dict[str, tuple[str, dict[str, Any], int]] = {  # family, overrides, groups
    "mistral": ("mistral_window", {}, 1),
    "alternating": ("ministral", {"sliding_window": 12}, 2),
    "five to one": ("ministral", FIVE_TO_ONE, 6),
    "qwen2": ("qwen2_window", {"sliding_window": 20}, 3),
    "shared": ("gemma4_small", {}, 2),
    "chunks": ("llama4", {"attention_chunk_size": 12}, 3),
}


def prompts() -> list[list[int]]:
    rng = random.Random(3)
    made = [[rng.randrange(6, VOCAB_SIZE) for _ in range(length)] for length in LENGTHS]
    made[6][:70] = made[5][:70]
    made[7][:100] = made[5][:100]
    return made


def answers(engine: Engine, count: int = len(LENGTHS)) -> list[list[int]]:
    """To the first prompts."""
    outputs = run(engine, [Generate(i, prompt, greedy(NUM_OUTPUT)) for i, prompt in enumerate(prompts()[:count])])
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks
    return [tokens(outputs[i, 0]) for i in range(count)]


def smallest(directory: Path, max_model_len: int, **configure: Any) -> Engine:
    """An engine whose cache holds one sequence."""
    groups = cache_groups(load_config(directory), 4)
    num_blocks = most_pages(groups, max_model_len, 1, 8)
    configure |= {"num_blocks": num_blocks, "max_model_len": max_model_len, "max_num_batched_tokens": 16}
    with pytest.raises(ModelError, match=f"a context of {max_model_len} needs"):
        make_engine(directory, **{**configure, "num_blocks": num_blocks - 1})
    return poison(make_engine(directory, **configure))


@pytest.fixture(scope="module", params=VARIANTS)
def case(request, tmp_path_factory):
    family, overrides, num_groups = VARIANTS[request.param]
    directory = make_tiny(family, tmp_path_factory.mktemp("windows"), **overrides)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return directory, [generated(model, prompt) for prompt in prompts()], num_groups


@pytest.mark.parametrize("budget", [2048, 37])
def test_together_and_in_chunks(case, budget):
    directory, expected, num_groups = case
    engine = poison(make_engine(directory, max_num_batched_tokens=budget, enable_prefix_caching=False))
    assert len(engine.scheduler.blocks.groups) == num_groups
    assert answers(engine) == expected


@pytest.mark.parametrize("budget", [2048, 37])
def test_prefixes_beyond_the_window(case, budget):
    directory, expected, _ = case
    engine = poison(make_engine(directory, max_num_batched_tokens=budget))
    assert answers(engine) == expected
    before = engine.stats().prefix_cache_hits
    assert answers(engine) == expected
    assert engine.stats().prefix_cache_hits - before == sum((length - 1) // 8 * 8 for length in LENGTHS)


@pytest.mark.parametrize("caching", [True, False])
def test_preemption(case, caching):
    """In the pages that the longest sequence needs."""
    directory, expected, _ = case
    engine = smallest(directory, 66 + NUM_OUTPUT, enable_prefix_caching=caching)
    assert answers(engine, 5) == expected[:5]
    assert engine.stats().num_preemptions > 0
    engine = smallest(directory, max(LENGTHS) + NUM_OUTPUT, enable_prefix_caching=caching)
    assert answers(engine) == expected
