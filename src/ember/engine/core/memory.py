"""The size of the KV cache, computed from known sizes without a profiling run. This module does not import torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ember.engine.core.gpu.graph_sizes import MIXED
from ember.engine.core.limits import EngineLimits
from ember.engine.description.cache_groups import (
    CacheGroup,
    bytes_per_page_token,
    longest_sequence,
    most_pages,
    paged,
    state_bytes,
)
from ember.engine.description.config import DecoderConfig
from ember.engine.description.expansion import expanded_bytes
from ember.engine.description.mixers import STATE_CHUNK
from ember.engine.description.operator_sets import TORCH_MAX_GATHER
from ember.engine.errors import ModelError
from ember.sizes import binary_size
from ember.wire import Configure

CPU_KV_BYTES = 4 << 30  # maximum of the default on a CPU
STATES_SHARE = 0.5  # most of the cache for the states of running sequences
CHECKPOINTS_SHARE = 0.25  # of the rest for states in the prefix cache
MOST_RUNS = 3  # of a sequence in a step: ember_kernels.state_math.RUNS
EMPTY_PAGES = 1 << 17  # of a model whose layers all have states: pages without content
DEFAULT_CHECKPOINTS = 4  # most of them for each sequence in a step
CPU_KV_SHARE = 0.5  # share of the available memory on a CPU
DEVICE_RESERVE_BYTES = 512 << 20  # libraries' workspaces, fragmentation, graphs of decode steps
# An estimate that no device has confirmed: what a graph keeps on the device for a launch, and the launches of a layer.
GRAPH_BYTES_PER_LAUNCH, LAUNCHES_PER_LAYER = 16 << 10, 12

DEFAULT_MAX_NUM_SEQS = {"cuda": 256, "cpu": 64}
DEFAULT_MAX_NUM_BATCHED_TOKENS = {"cuda": 8192, "cpu": 1024}  # on a CPU 2048 take more memory and no less time
POOLED_TOKENS = 2048  # of whole texts in a step on a CPU


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of a device in bytes: what is free when the weights are on it, and all that a GPU has."""

    device: str  # cuda, cpu
    free: int
    total: int = 0


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The engine's limits, and warnings where they differ from the settings."""

    limits: EngineLimits
    warnings: list[str]


def activation_bytes(
    config: DecoderConfig, element_size: int, num_tokens: int, num_rows: int, max_model_len: int
) -> int:
    """An upper bound of one step's memory in bytes: that of the tokens, the K and V of one context gathered from its
    pages, those that latent attention expands, and the logits. Logits exist at most three times (the step's, the output
    layer's, those of deferred rows), with the samplers' tables (8 bytes per row and token, 2 of counts, masks) and one
    float32 copy."""
    kv_size = max(heads.kv_size for heads in config.all_heads())
    gathered = 2 * max(max_model_len, TORCH_MAX_GATHER) * kv_size * element_size
    logits = num_rows * config.vocab_size * (3 * element_size + 15)
    expanded = 0
    if config.latent is not None:
        expanded = expanded_bytes(config.latent, config.num_heads, element_size, num_tokens)
    if config.selective is not None:  # what each chunk of each run adds to a state, one chunk more than are full
        part = (config.selective.state_dim + 1) * config.selective.inner_size
        expanded += 4 * part * (num_tokens // STATE_CHUNK + MOST_RUNS * num_rows)
    return gathered + expanded + num_tokens * token_bytes(config, element_size) + logits


def token_bytes(config: DecoderConfig, element_size: int) -> int:
    """An upper bound of a token's memory in a forward pass: the widest layer's inputs and outputs."""
    widths = 4 * config.hidden_size + 3 * max(config.intermediate_size, *config.layer_intermediate_sizes, 0)
    widths += 4 * config.num_layers * config.layer_input_size
    widths += 2 * max(heads.query_size + 2 * heads.kv_size for heads in config.all_heads())
    if config.experts is not None:
        inner = 3 * config.experts.intermediate_size
        widths += config.experts.per_token * (3 * config.hidden_size + inner) + 3 * config.experts.shared_size
    return widths * element_size + _state_token_bytes(config)


def _state_token_bytes(config: DecoderConfig) -> int:
    """An upper bound of what a token takes in the mixers with a state. Torch computes them in float32, with the keys of
    each head, and with two matrices [chunk, chunk] for the tokens of a chunk (`operators.torch_state`)."""
    most = 0
    if config.conv is not None:
        most = 4 * config.hidden_size
    if config.delta is not None:
        delta = config.delta
        heads = 8 * (delta.key_dim + delta.value_dim) + 3 * STATE_CHUNK
        most = max(most, 3 * delta.channels + delta.value_heads * heads)
    if config.ssd is not None:
        ssd = config.ssd
        heads = 8 * ssd.state_dim + 6 * ssd.head_dim + 3 * STATE_CHUNK
        most = max(most, 3 * ssd.channels + ssd.heads * heads)
    if config.selective is not None:
        inner = config.selective.inner_size
        most = max(most, 10 * inner + 4 * config.selective.state_dim * inner // STATE_CHUNK)
    return 4 * most


def mixed_graph_bytes(config: DecoderConfig, element_size: int, max_num_batched_tokens: int) -> int:
    """The memory of the recorded steps with prompt chunks. All graphs share a pool for activations. It may have to be
    made twice, since a size that is recorded later does not fit into the parts that a smaller one left."""
    sizes = MIXED.sizes_up_to(max_num_batched_tokens)
    launches = len(sizes) * _launches_per_layer(config) * config.num_layers
    hidden = sizes[-1] * config.hidden_size * element_size
    return 2 * sizes[-1] * token_bytes(config, element_size) + hidden + launches * GRAPH_BYTES_PER_LAUNCH


def _launches_per_layer(config: DecoderConfig) -> int:
    """More than usual where a layer has an input of its own, a factor of its output, or experts beside the MLP."""
    more = 8 * bool(config.layer_input_size) + 2 * config.layer_scalar
    return LAUNCHES_PER_LAYER + more + (12 if config.experts is not None and config.experts.beside_mlp else 0)


def block_table_bytes(num_groups: int, num_rows: int, max_model_len: int, block_size: int) -> int:
    """The int32 block tables on a GPU: of all rows, the same in batch order, and those of a step with prompt chunks."""
    return 3 * num_groups * num_rows * -(-max_model_len // block_size) * 4


def plan_memory(
    config: DecoderConfig,
    groups: Sequence[CacheGroup],
    asked: Configure,
    *,
    element_size: int,
    memory: Memory,
) -> MemoryPlan:
    """The limits that the settings (`asked`) and the memory allow. Any of the `groups` may use any page.
    `element_size`: bytes of a number in the model's dtype.

    Raises ModelError, with advice, if not even one context of the wanted length fits.
    """
    default = DEFAULT_MAX_NUM_BATCHED_TOKENS[memory.device]
    if config.pooling is not None:
        default = max(default, POOLED_TOKENS)
    max_num_batched_tokens = asked.max_num_batched_tokens or default
    # Every running sequence must get its token in every step, or the last ones would starve.
    # Of texts to be pooled a step takes as many as its tokens allow.
    default = DEFAULT_MAX_NUM_SEQS["cuda" if config.pooling is not None else memory.device]
    max_num_seqs = min(asked.max_num_seqs or default, max_num_batched_tokens)
    block_size, num_blocks = asked.block_size, asked.num_blocks
    bytes_per_block, per_sequence = bytes_per_page_token(groups) * block_size, state_bytes(groups)
    num_checkpoints = None if not per_sequence else 0 if not asked.enable_prefix_caching else asked.state_checkpoints
    longest = config.max_position_embeddings
    if config.pooling is not None and config.pooling.max_length is not None:
        longest = min(longest, config.pooling.max_length)
    wanted = longest if asked.max_model_len is None else asked.max_model_len
    warnings: list[str] = []
    if asked.state_checkpoints is not None and (unused_by := _unused_checkpoints(asked, per_sequence)):
        warnings.append(f"STATE_CHECKPOINTS={asked.state_checkpoints} has no effect: {unused_by}")
    if wanted > config.max_position_embeddings:
        raise ModelError(
            f"MAX_MODEL_LEN={wanted} is more than the model's {config.max_position_embeddings} positions; "
            f"set MAX_MODEL_LEN to at most {config.max_position_embeddings}"
        )
    budget = _cache_bytes(config, groups, asked, element_size, memory, (max_num_batched_tokens, max_num_seqs, wanted))
    if per_sequence:
        pages = None if num_blocks is None else num_blocks * bytes_per_block
        states = plan_states(budget, per_sequence, max_num_seqs, asked, warnings, memory.device, pages)
        max_num_seqs, num_checkpoints = states
        budget -= (max_num_seqs + num_checkpoints) * per_sequence
    if num_blocks is None:
        # More pages than all sequences at full length are useless. Pages before a window count, since they are cached.
        num_blocks = max_num_seqs * -(-wanted // block_size) * len(paged(groups))
        most = max(budget, 0) // bytes_per_block if bytes_per_block else max(EMPTY_PAGES, -(-wanted // block_size))
        num_blocks = min(num_blocks, most)
    capacity = longest_sequence(groups, num_blocks, block_size, wanted)
    if capacity < min(wanted, block_size if asked.max_model_len is None else wanted):
        needed = most_pages(groups, wanted, 1, block_size) * bytes_per_block
        raise ModelError(
            f"the KV cache has room for {capacity} tokens, but a context of {wanted} needs {binary_size(needed)}; "
            f"lower MAX_MODEL_LEN, MAX_NUM_BATCHED_TOKENS or MAX_NUM_SEQS, {_more_memory(memory.device)}"
        )
    if capacity < wanted:
        warnings.append(f"MAX_MODEL_LEN is {capacity} instead of the model's {wanted}: that is what the KV cache holds")
        wanted = capacity
    limits = EngineLimits(
        block_size,
        num_blocks,
        max_num_seqs,
        max_num_batched_tokens,
        max_model_len=wanted,
        num_checkpoints=num_checkpoints,
        whole_texts=config.bidirectional,
    )
    return MemoryPlan(limits, warnings)


def _cache_bytes(
    config: DecoderConfig,
    groups: Sequence[CacheGroup],
    asked: Configure,
    element_size: int,
    memory: Memory,
    limits: tuple[int, int, int],
) -> int:
    """The bytes that pages and states may take. `limits`: tokens and sequences of a step, and the longest context."""
    max_num_batched_tokens, max_num_seqs, wanted = limits
    if asked.kv_cache_memory_bytes is not None:
        return asked.kv_cache_memory_bytes
    if memory.device != "cuda":
        return min(CPU_KV_BYTES, int(memory.free * CPU_KV_SHARE))
    activations = activation_bytes(config, element_size, max_num_batched_tokens, max_num_seqs, wanted)
    tables = block_table_bytes(len(groups), max_num_seqs, wanted, asked.block_size)
    if not asked.enforce_eager and config.pooling is None:  # graphs are of steps that sample
        activations += mixed_graph_bytes(config, element_size, max_num_batched_tokens)
    unused = int(memory.total * (1 - asked.gpu_memory_utilization)) + DEVICE_RESERVE_BYTES
    return memory.free - unused - activations - tables


def _more_memory(device: str) -> str:
    """What to do for a larger cache."""
    if device == "cuda":
        return "raise GPU_MEMORY_UTILIZATION or KV_CACHE_MEMORY_BYTES, or use a smaller model"
    return "set or raise KV_CACHE_MEMORY_BYTES, use a machine with more memory, or a smaller model"


def _unused_checkpoints(asked: Configure, per_sequence: int) -> str | None:
    """Why checkpoints of states are not used; None: they are."""
    if not per_sequence:
        return "no layer of this model has states"
    return None if asked.enable_prefix_caching else "ENABLE_PREFIX_CACHING is off"


def plan_states(
    budget: int,
    per_sequence: int,
    max_num_seqs: int,
    asked: Configure,
    warnings: list[str],
    device: str,
    pages: int | None,
) -> tuple[int, int]:
    """The number of sequences in a step, and of checkpoints of the prefix cache, for which a cache of `budget` bytes
    has states. Each has `per_sequence` bytes. Running sequences get half of the cache at most, and checkpoints a
    quarter of the rest, unless the settings say how many. `pages`: the bytes of as many pages as the settings say;
    states may take all that they leave. Raises ModelError."""
    share = int(max(budget, 0) * STATES_SHARE) if pages is None else max(budget - pages, 0)
    fitting = share // per_sequence
    if fitting < 1:
        raise ModelError(
            f"the KV cache of {binary_size(max(budget, 0))} has no room for the states of one sequence, "
            f"{binary_size(per_sequence)}, beside its pages{' of NUM_GPU_BLOCKS_OVERRIDE' if pages else ''}; "
            f"lower {'NUM_GPU_BLOCKS_OVERRIDE' if pages else 'MAX_NUM_BATCHED_TOKENS'}, {_more_memory(device)}"
        )
    if fitting < max_num_seqs:
        warnings.append(
            f"MAX_NUM_SEQS is {fitting} instead of {max_num_seqs}: the layers of this model have states of "
            f"{binary_size(per_sequence)} for each sequence, which may take "
            f"{'half of the KV cache' if pages is None else 'what its pages leave of the KV cache'}"
        )
        max_num_seqs = fitting
    rest = (budget - (pages or 0) - max_num_seqs * per_sequence) // per_sequence
    if not asked.enable_prefix_caching:
        return max_num_seqs, 0
    if asked.state_checkpoints is None:
        most = rest if pages is not None else int(rest * CHECKPOINTS_SHARE)
        return max_num_seqs, min(DEFAULT_CHECKPOINTS * max_num_seqs, most)
    if asked.state_checkpoints > rest:
        warnings.append(f"STATE_CHECKPOINTS is {rest} instead of {asked.state_checkpoints}: that is what fits")
    return max_num_seqs, min(asked.state_checkpoints, rest)


def available_host_bytes(root: Path = Path("/")) -> int:
    """Memory in bytes that is available without swapping, within the container's limit. The page cache, for example of
    weights just read, counts as available. `root`: the parent of /proc and /sys."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cgroup = root / "sys/fs/cgroup"
    try:
        available = _counts(root / "proc/meminfo").get("MemAvailable", available // 1024) * 1024
        limit = (cgroup / "memory.max").read_text().strip()
        if limit != "max":
            current = int((cgroup / "memory.current").read_text())
            stat = _counts(cgroup / "memory.stat")
            files = stat.get("active_file", 0) + stat.get("inactive_file", 0)
            files -= stat.get("file_dirty", 0) + stat.get("file_writeback", 0)
            available = min(available, int(limit) - current + max(files, 0))
    except (OSError, ValueError):
        pass
    return available


def _counts(path: Path) -> dict[str, int]:
    """The content of a file with lines of a name and a number; empty if the file is missing."""
    if not path.exists():
        return {}
    words = (line.replace(":", " ").split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdecimal()}
