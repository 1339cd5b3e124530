"""Cache groups: how layers are put together, how many pages a sequence holds, and what fits into a memory."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from ember.engine.core.block_manager import BlockManager
from ember.engine.core.block_pool import BlockPool, root_hash
from ember.engine.core.limits import EngineLimits
from ember.engine.core.memory import Memory, block_table_bytes, mixed_graph_bytes, plan_memory, token_bytes
from ember.engine.core.scheduler import Scheduler
from ember.engine.core.sequence import Sequence
from ember.engine.description.cache_groups import (
    CacheGroup,
    CacheLayout,
    bytes_per_page_token,
    bytes_seen,
    cache_groups,
    cache_places,
    longest_sequence,
    most_pages,
)
from ember.engine.description.config import DecoderConfig
from ember.engine.description.rotary_decoder import LLAMA_NAMES
from ember.engine.errors import ModelError
from ember.engine.layers.cache import KVCache
from ember.wire import Configure, SamplingParams

BLOCK = 16
PLAIN = DecoderConfig(
    architecture="test",
    vocab_size=100,
    hidden_size=64,
    intermediate_size=64,
    num_layers=24,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    max_position_embeddings=32768,
    names=LLAMA_NAMES,
)
MISTRAL = replace(PLAIN, sliding_window=512)
FIVE_TO_ONE = replace(PLAIN, sliding_window=512, windowed_layers=tuple(layer % 6 != 5 for layer in range(24)))


def windowed(num_full: int, num_windowed: int, window: int, max_tokens: int = 32768) -> DecoderConfig:
    """The last layers have the window."""
    return replace(
        PLAIN,
        num_layers=num_full + num_windowed,
        sliding_window=window,
        first_window_layer=num_full,
        max_position_embeddings=max_tokens,
    )


def test_layers_that_are_alike_are_one_group():
    for config in (PLAIN, MISTRAL, replace(PLAIN, sliding_window=32768)):
        (group,) = cache_groups(config, 2)
        assert group.layers == tuple(range(24)) and group.bytes_per_token == 24 * 2 * 2 * 32 * 2
    assert cache_groups(MISTRAL, 2)[0].kind == "window"
    assert cache_groups(replace(PLAIN, sliding_window=32768), 2)[0].window is None, "as long as any context"


def test_five_windowed_layers_to_a_full_one():
    groups = cache_groups(FIVE_TO_ONE, 2)
    assert [group.window for group in groups] == [512] * 5 + [None]
    assert {len(group.layers) for group in groups} == {4} and groups[-1].layers == (5, 11, 17, 23)
    places = list(cache_places(FIVE_TO_ONE, groups).values())
    assert places[:7] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (5, 0), (1, 1)]
    assert len(set(places)) == 24


@pytest.mark.parametrize(("num_full", "num_windowed"), [(1, 1), (4, 22), (10, 52), (27, 1), (1, 27), (3, 17), (7, 5)])
@pytest.mark.parametrize("window", [1, 512, 30000])
def test_padding_costs_little_and_every_layer_has_its_place(num_full, num_windowed, window):
    config = windowed(num_full, num_windowed, window)
    groups = cache_groups(config, 2)
    assert sorted(layer for group in groups for layer in group.layers) == list(range(config.num_layers))
    for group in groups:
        assert {config.windows()[layer] for layer in group.layers} == {group.window}
    assert len(set(cache_places(config, groups).values())) == config.num_layers
    page = bytes_per_page_token(groups)
    assert page == CacheLayout.of(groups).rows * 2 * 2 * 32 * 2
    tokens = sum(min(group.window or 32768, 32768) * page for group in groups)
    assert bytes_seen(groups, 32768) <= tokens <= 1.05 * bytes_seen(groups, 32768)


# The sizes of Gemma 4: the layers with the window have 8 key-value heads of 256, the others 2 of 512.
GEMMA4 = replace(
    FIVE_TO_ONE,
    num_layers=30,
    num_heads=16,
    num_kv_heads=8,
    head_dim=256,
    windowed_layers=tuple(layer % 6 != 5 for layer in range(30)),
    layer_head_dims=tuple(512 if layer % 6 == 5 else 256 for layer in range(30)),
    layer_kv_heads=tuple(2 if layer % 6 == 5 else 8 for layer in range(30)),
)
SHARED = replace(GEMMA4, shared_kv_layers=13)


def test_layers_with_smaller_heads_lie_side_by_side():
    groups = cache_groups(GEMMA4, 2)
    layout = CacheLayout.of(groups)
    assert layout.slot_size == 8 * 256
    full = groups[-1]
    assert full.layers == (5, 11, 17, 23, 29) and full.bytes_per_token == 5 * 2 * 2 * 512 * 2
    assert [(place.row, place.first) for place in full.places] == [(0, 0), (0, 1024), (1, 0), (1, 1024), (2, 0)]
    assert all(place[2:] == (2, 512, 0) for place in full.places)
    assert all(place.first == 0 and place[2:] == (8, 256, 0) for group in groups[:-1] for place in group.places)
    page = bytes_per_page_token(groups)
    assert page == layout.rows * 2 * 2048 * 2 == full.bytes_per_token + full.unused_bytes


def test_shared_layers_have_the_place_of_the_last_layer_of_their_kind():
    groups = cache_groups(SHARED, 2)
    assert sorted(layer for group in groups for layer in group.layers) == list(range(17))
    places = list(cache_places(SHARED, groups).values())
    assert len(set(places[:17])) == 17
    for layer in range(17, 30):
        assert places[layer] == places[11 if layer % 6 == 5 else 16]
    assert bytes_seen(groups, 4) == 4 * 2 * 2 * (15 * 8 * 256 + 2 * 2 * 512)


@pytest.mark.parametrize("config", [GEMMA4, SHARED, FIVE_TO_ONE], ids=["gemma4", "shared", "equal"])
def test_places_of_a_group_do_not_overlap(config):
    """Every element of a page belongs to one layer of a group at most, and the memory is what pages are counted as."""
    groups = cache_groups(config, 2)
    cache = KVCache.allocate(groups, 3, BLOCK, torch.bfloat16, torch.device("cpu"))
    assert cache.keys.nbytes + cache.values.nbytes == 3 * BLOCK * bytes_per_page_token(groups)
    places = cache_places(config, groups)
    for tensors in (cache.keys, cache.values):
        tensors.zero_()
    for number, group in enumerate(groups):
        for layer in group.layers:
            assert places[layer][0] == number
            heads = config.heads(layer)
            keys, values = cache.by_page[places[layer][1]]
            assert keys.shape == values.shape == (3, BLOCK, heads.kv_heads, heads.head_dim)
            keys[number % 3] += 1
            values[number % 3] += 1
        assert cache.keys[:, number % 3].max() == cache.values[:, number % 3].max() == 1
        assert cache.keys[:, number % 3].sum() * 2 * 2 == BLOCK * group.bytes_per_token
        cache.keys.zero_()
        cache.values.zero_()


def test_a_group_can_say_what_is_no_paged_key_or_value():
    """A state of fixed size, beside one compressed vector a token."""
    state = CacheGroup((0, 2), "state", None, bytes_per_token=0, bytes_per_sequence=4096)
    latent = CacheGroup((1,), "latent", None, bytes_per_token=1152)
    assert bytes_per_page_token([state, latent]) == 1152
    assert (state.bytes_per_sequence, latent.bytes_per_sequence) == (4096, 0)


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_most_pages_are_what_steps_of_any_size_hold_at_most(block_size):
    rng = random.Random(block_size)
    for _ in range(300):
        window, length, chunk = rng.randint(1, 40), rng.randint(1, 120), rng.randint(1, 50)
        group = CacheGroup((0,), "window", window, 1)
        bound, held = group.most_pages(length, chunk, block_size), 0
        for first in range(length):  # a step may begin anywhere
            last = min(first + chunk, length) - 1
            held = max(held, last // block_size - max(0, first - window + 1) // block_size + 1)
        assert held <= bound <= held + 1
        assert CacheGroup((0,), "full", None, 1).most_pages(length, chunk, block_size) == -(-length // block_size)


@pytest.mark.parametrize("config", [PLAIN, MISTRAL, FIVE_TO_ONE])
def test_the_longest_sequence_is_the_last_that_fits(config):
    groups = cache_groups(config, 2)
    for num_pages in (0, 1, 5, 33, 34, 36, 180, 200, 1000, 3000):
        longest = longest_sequence(groups, num_pages, BLOCK, 32768)
        assert not longest or most_pages(groups, longest, 1, BLOCK) <= num_pages
        assert longest == 32768 or most_pages(groups, longest + 1, 1, BLOCK) > num_pages
    assert longest_sequence(groups, 10**6, BLOCK, 32768) == 32768


def plan(config: DecoderConfig, **asked):
    return plan_memory(
        config,
        cache_groups(config, 2),
        Configure(model="", **asked),
        element_size=2,
        memory=Memory("cpu", 64 << 30),
    )


def test_windows_let_a_long_context_fit_into_a_small_memory():
    """33 pages of 24 layers hold what a window of 512 tokens needs, whatever the length."""
    page = 24 * 2 * 2 * 32 * 2 * BLOCK
    made = plan(MISTRAL, max_model_len=32768, kv_cache_memory_bytes=33 * page)
    assert (made.limits.num_blocks, made.limits.max_model_len, made.warnings) == (33, 32768, [])
    with pytest.raises(ModelError, match=r"room for 512 tokens, but a context of 32768 needs 3\.1 MiB") as raised:
        plan(MISTRAL, max_model_len=32768, kv_cache_memory_bytes=32 * page)
    assert "KV_CACHE_MEMORY_BYTES" in str(raised.value)
    made = plan(MISTRAL, kv_cache_memory_bytes=32 * page)
    assert made.limits.max_model_len == 512 and "512 instead of the model's 32768" in made.warnings[0]
    with pytest.raises(ModelError, match="room for 512 tokens, but a context of 32768"):
        plan(PLAIN, max_model_len=32768, kv_cache_memory_bytes=32 * page)


def test_groups_add_up():
    """Five groups of windows and one without, of four layers each: 5 * 33 pages, and the rest for the whole context."""
    page = 4 * 2 * 2 * 32 * 2 * BLOCK
    made = plan(FIVE_TO_ONE, kv_cache_memory_bytes=(5 * 33 + 100) * page)
    assert (made.limits.num_blocks, made.limits.max_model_len) == (265, 1600)
    made = plan(FIVE_TO_ONE, max_model_len=32768, num_blocks=5 * 33 + 2048)
    assert made.limits.max_model_len == 32768
    with pytest.raises(ModelError, match="room for 32752 tokens"):
        plan(FIVE_TO_ONE, max_model_len=32768, num_blocks=5 * 33 + 2047)


def test_block_tables_are_taken_off_a_gpus_memory():
    """More groups have more of them: 6 groups of 4 layers have as many bytes of pages less as they have tables more."""
    free = 8 << 30
    configure = Configure(model="", gpu_memory_utilization=1.0, max_num_seqs=256)
    left = []
    for config in (MISTRAL, FIVE_TO_ONE):
        groups = cache_groups(config, 2)
        made = plan_memory(config, groups, configure, element_size=2, memory=Memory("cuda", free, free))
        left.append(free - made.limits.num_blocks * bytes_per_page_token(groups) * BLOCK)
    one_group = block_table_bytes(1, 256, 32768, BLOCK)
    assert one_group == 3 * 256 * 2048 * 4
    assert left[1] - left[0] == pytest.approx(5 * one_group, abs=24 * 256 * BLOCK)


def test_recorded_steps_are_taken_off_a_gpus_memory():
    free, groups, left = 8 << 30, cache_groups(MISTRAL, 2), {}
    for enforce_eager in (True, False):
        configure = Configure(model="", gpu_memory_utilization=1.0, enforce_eager=enforce_eager)
        made = plan_memory(MISTRAL, groups, configure, element_size=2, memory=Memory("cuda", free, free))
        left[enforce_eager] = made.limits.num_blocks * bytes_per_page_token(groups) * BLOCK
    graphs = mixed_graph_bytes(MISTRAL, 2, 8192)
    assert left[True] - left[False] == pytest.approx(graphs, abs=bytes_per_page_token(groups) * BLOCK)
    assert graphs > 2 * 1024 * token_bytes(MISTRAL, 2)
    assert mixed_graph_bytes(MISTRAL, 2, 40) < graphs / 2  # no step is larger than the budget


def test_no_more_pages_than_all_sequences_can_use():
    for config in (PLAIN, MISTRAL, FIVE_TO_ONE):
        made = plan(config, max_num_seqs=2, max_model_len=100, kv_cache_memory_bytes=1 << 40)
        assert made.limits.num_blocks == 2 * 7 * len(cache_groups(config, 2))


@pytest.mark.parametrize("config", [MISTRAL, FIVE_TO_ONE])
@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("budget", [2048, 8192])
def test_a_context_of_32k_holds_less_than_a_quarter_of_the_cache(config, caching, budget):
    """At the end of its prompt and in each step before and after, in bytes, against K and V of every layer."""
    groups = cache_groups(config, 2)
    whole = 32768 * config.num_layers * 2 * config.heads(0).kv_size * 2
    pool = BlockPool(4000, caching, len(groups))
    limits = EngineLimits(BLOCK, 4000, 8, budget, 32768)
    scheduler = Scheduler(BlockManager(pool, groups, BLOCK), limits)
    prompt = list(range(32500))
    sequence = Sequence(1, 0, prompt, len(prompt), SamplingParams(max_tokens=200), 0, 0, 1, root_hash(None))
    scheduler.add(sequence)
    most, steps = 0, 0
    while sequence.num_tokens < 32768:
        step = scheduler.schedule()
        held = pool.num_blocks - pool.num_free
        assert held == sum(block >= 0 for table in sequence.block_tables for block in table)
        assert held <= most_pages(groups, sequence.num_tokens, 2048, BLOCK)
        most, steps = max(most, held), steps + 1
        scheduler.complete(step)
        if not sequence.num_uncomputed_tokens:
            sequence.token_ids.append(7)
    assert steps == 16 + 267
    page = bytes_per_page_token(groups) * BLOCK
    assert most * page < whole / 4
    assert held * page < whole / 5.5
    assert held == most_pages(groups, 32768, 1, BLOCK)
