"""The second half of the engine's boot, which needs torch: from an opened model to an engine that can run steps.

The steps of `assemble` are the functions below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from msgspec.structs import replace

from ember.boot import Timeline
from ember.engine.core.block_manager import BlockManager
from ember.engine.core.block_pool import BlockPool
from ember.engine.core.boot import NO_GPU, Opened, check_cpu_weights, cpu_settings_warnings, dtype_name
from ember.engine.core.chores import Chore, Chores, settling
from ember.engine.core.engine import Engine
from ember.engine.core.grammars.workers import GrammarWorkers
from ember.engine.core.limits import EngineLimits
from ember.engine.core.memory import Memory, available_host_bytes, plan_memory
from ember.engine.core.pool_runner import PoolRunner
from ember.engine.core.runner import Model, Runner, StepRunner
from ember.engine.core.scheduler import Scheduler
from ember.engine.core.state_slots import StateSlots
from ember.engine.core.threads import allowed_cpus, usable_cores
from ember.engine.description.cache_format import is_float8
from ember.engine.description.cache_groups import CacheGroup, bytes_per_page_token, cache_groups, paged, state_bytes
from ember.engine.description.config import DecoderConfig
from ember.engine.errors import ModelError
from ember.engine.layers.cache import CacheScales, KVCache
from ember.engine.layers.mixers import StateMixer
from ember.engine.layers.pooler import Pooler
from ember.engine.loading.cache_scales import read_cache_scales
from ember.engine.loading.load import Loaded, load_decoder
from ember.engine.loading.pooler import load_pooler
from ember.engine.operators.choose import choose
from ember.engine.quantization.cpu_int import quantise
from ember.sizes import binary_size
from ember.wire import Configure, Pooling, Ready, Task


def assemble(configure: Configure, opened: Opened, timeline: Timeline) -> tuple[Engine, Ready]:
    """Load the weights, choose operators, allocate the cache and make the engine. Raises ModelError."""
    config, warnings = opened.config, list(opened.config.warnings)
    with timeline.phase("device"):
        device = choose_device(configure, warnings)
    dtype = getattr(torch, dtype_name(configure, config, device.type))
    if config.through_transformers:
        return assemble_foreign(configure, opened, dtype, device, timeline, warnings)
    loaded = load_weights(opened, dtype, device, timeline, configure.block_size)
    model = loaded.decoder
    cache_dtype = dtype
    if is_float8(configure.kv_cache_dtype, config, device.type, warnings):
        cache_dtype = torch.float8_e4m3fn
        use_cache_scales(loaded)
    operators = choose_operators(configure, opened, loaded, timeline, warnings)
    if loaded.pages is not None:
        loaded.pages.map_ahead()  # until the first request comes
    with timeline.phase("cache"):
        memory = measure_memory(device, loaded.mapped_bytes if loaded.pages is not None else 0)
        groups = cache_groups(config, cache_dtype.itemsize)
        plan = plan_memory(config, groups, configure, element_size=dtype.itemsize, memory=memory)
        warnings += plan.warnings
        cache = allocate_cache(config, groups, plan.limits, cache_dtype, device)
    limits = plan.limits
    if config.pooling is not None:
        with timeline.phase("pooler"):
            pooler = load_pooler(opened.model_dir, opened.tokenizer_dir, config, device, opened.load_format)
        runner: StepRunner = PoolRunner(model, cache, device, pooler)
        chore = settling(model, loaded.pages)
    else:
        pooler = None
        runner, chore = make_runner(loaded, cache, device, limits, configure.enforce_eager)
    engine = make_engine(configure, opened, runner, groups, limits, [chore])
    return engine, describe(configure, model, operators, device, limits, warnings, timeline, pooler)


def assemble_foreign(
    configure: Configure,
    opened: Opened,
    dtype: torch.dtype,
    device: torch.device,
    timeline: Timeline,
    warnings: list[str],
) -> tuple[Engine, Ready]:
    """The engine around a model that transformers computes over the paged cache, and what it tells the front. Raises
    ModelError."""
    from ember.engine.fallback.load import load_foreign  # few models need it

    is_float8(configure.kv_cache_dtype, opened.config, device.type, warnings)  # refuses it
    loaded = load_foreign(
        opened.model_dir,
        opened.config,
        timeline,
        dtype=dtype,
        device=device,
        overrides=configure.hf_overrides,
        started=opened.reading,
        say=opened.say,
        load_format=opened.load_format,
        trust_remote_code=configure.trust_remote_code,
        max_model_len=configure.max_model_len,
    )
    model, config = loaded.model, loaded.model.config
    warnings += loaded.warnings
    if loaded.pages is not None:
        loaded.pages.map_ahead()
    with timeline.phase("cache"):
        configure = replace(configure, enforce_eager=True)  # its steps are planned on the host
        memory = measure_memory(device, loaded.mapped_bytes)
        plan = plan_memory(config, model.groups, configure, element_size=dtype.itemsize, memory=memory)
        warnings += plan.warnings
        cache = allocate_cache(config, model.groups, plan.limits, dtype, device)
    engine = make_engine(configure, opened, Runner(model, cache, device), model.groups, plan.limits, [])
    operators = f"torch, through transformers {loaded.version}"
    return engine, describe(configure, model, operators, device, plan.limits, warnings, timeline)


def make_engine(
    configure: Configure,
    opened: Opened,
    runner: StepRunner,
    groups: Sequence[CacheGroup],
    limits: EngineLimits,
    chores: list[Chore],
) -> Engine:
    """The engine around a runner."""
    config = runner.model.config
    caches = configure.enable_prefix_caching and not config.bidirectional
    pool = BlockPool(limits.num_blocks, caches, len(paged(groups)))
    states = None
    if limits.num_checkpoints is not None:
        states = StateSlots(limits.max_num_seqs, limits.num_checkpoints, limits.block_size)
    blocks = BlockManager(pool, groups, limits.block_size, states)
    scheduler = Scheduler(blocks, limits, configure.scheduling_policy)
    grammars = GrammarWorkers(opened.tokenizer_dir, config.vocab_size, config.eos_token_ids)
    return Engine(runner, scheduler, grammars, limits, configure.seed, Chores(chores))


def choose_device(configure: Configure, warnings: list[str]) -> torch.device:
    """The device of DEVICE, by default a GPU if there is one. On a CPU this also sets the number of threads."""
    kind = configure.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    elif kind == "cuda" and not torch.cuda.is_available():
        raise ModelError(NO_GPU)
    if configure.num_threads or kind == "cpu":
        torch.set_num_threads(configure.num_threads or usable_cores())
    cores = len(allowed_cpus())
    if configure.num_threads and configure.num_threads > cores:
        warnings.append(
            f"NUM_THREADS={configure.num_threads}, but this process may use {cores} cores: threads that wait for each "
            f"other there are many times slower; set {cores} or fewer, or none"
        )
    return torch.device(kind)


def load_weights(
    opened: Opened, dtype: torch.dtype, device: torch.device, timeline: Timeline, block_size: int
) -> Loaded:
    """Load the decoder. Its weights are on the device afterwards, or mapped. Meanwhile a GPU's kernels are loaded."""

    def touch_kernels() -> None:
        from ember.engine.core.gpu.touch import touch

        use_kernel_cache(opened)
        touch(opened.config, dtype, device, block_size)

    with timeline.phase("load") as detail:
        loaded = load_decoder(
            opened.model_dir,
            opened.config,
            dtype=dtype,
            device=device,
            started=opened.reading,
            say=opened.say,
            load_format=opened.load_format,
            free_bytes=torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None,
            meanwhile=touch_kernels if device.type == "cuda" else None,
        )
        report = loaded.report
        detail.update(
            bytes=report.nbytes,
            read_bytes=report.read_bytes,
            read_s=round(report.seconds, 4),
            threads=report.threads,
            gb_per_s=round(report.gigabytes_per_second, 2),
        )
    return loaded


def use_kernel_cache(opened: Opened) -> bool:
    """Use the baked key of Triton's cache, and count what is found there, from the first call on. Returns whether there
    is such a key."""
    if opened.kernels is None:
        with suppress(ImportError):  # a missing triton is in the reason of the operators' choice
            from ember_kernels.cache import CacheWatch, use_baked_key

            opened.kernels = CacheWatch()
            opened.kernels.start()
            opened.has_baked_key = use_baked_key()
    return opened.has_baked_key


def use_cache_scales(loaded: Loaded) -> None:
    """Give every attention layer the scales of a float8 cache. Raises ModelError."""
    decoder = loaded.decoder
    scales = read_cache_scales(decoder.config, loaded.cache_scales)
    for block, (key, value) in zip(decoder.parts.blocks, scales, strict=True):
        if block.mixer is not None and not isinstance(block.mixer, StateMixer):
            block.mixer.cache_scales = CacheScales.of(key, value, decoder.device)


def choose_operators(
    configure: Configure, opened: Opened, loaded: Loaded, timeline: Timeline, warnings: list[str]
) -> str:
    """Set the decoder's operators to the fastest ones for it. Returns their name with the reason.

    Before that, the matrices are quantised if CPU_WEIGHTS says so.
    """
    model = loaded.decoder
    is_gpu = model.device.type == "cuda"
    warnings += cpu_settings_warnings(configure, model.config, not is_gpu)
    if not is_gpu and configure.cpu_weights != "auto":
        with timeline.phase("quantise"):
            quantise_weights(configure, loaded)
    with timeline.phase("operators") as detail:
        if is_gpu:
            detail["baked_key"] = use_kernel_cache(opened)
        weights = "auto" if is_gpu else configure.cpu_weights
        choice = choose(model.config, model.parts, model.dtype, model.device, weights, configure.cpu_activations)
        model.ops = choice.ops
        detail["chosen"] = str(choice)
        if choice.warning is not None:
            warnings.append(choice.warning)
    return str(choice)


def quantise_weights(configure: Configure, loaded: Loaded) -> None:
    """Quantise the decoder's matrices as CPU_WEIGHTS says."""
    model = loaded.decoder
    check_cpu_weights(configure, model.config, str(model.dtype).removeprefix("torch."))
    model.weight_bytes = quantise(model.parts, configure.cpu_weights, loaded.pages)
    loaded.pages = None  # no weight is mapped any more


def measure_memory(device: torch.device, pending_bytes: int) -> Memory:
    """The device's memory with the weights on it. `pending_bytes`: of mapped weights that will be copied later."""
    if device.type == "cuda":
        return Memory("cuda", *torch.cuda.mem_get_info(device))
    return Memory("cpu", available_host_bytes() - pending_bytes)


def allocate_cache(
    config: DecoderConfig, groups: Sequence[CacheGroup], limits: EngineLimits, dtype: torch.dtype, device: torch.device
) -> KVCache:
    """Allocate the memory of all pages and states. Raises ModelError."""
    try:
        return KVCache.allocate(groups, limits.num_blocks, limits.block_size, dtype, device, limits.num_states)
    except RuntimeError as error:
        size = limits.num_blocks * limits.block_size * bytes_per_page_token(groups)
        size += limits.num_states * state_bytes(groups)
        states = f" and {limits.num_states} states" if limits.num_states else ""
        lower = "MAX_NUM_SEQS, " if states else ""
        raise ModelError(
            f"a KV cache of {limits.num_blocks} pages{states}, {binary_size(size)}, cannot be allocated; lower "
            f"NUM_GPU_BLOCKS_OVERRIDE, {lower}KV_CACHE_MEMORY_BYTES or GPU_MEMORY_UTILIZATION "
            f"({str(error).partition(chr(10))[0][:200]})"
        ) from None


def make_runner(
    loaded: Loaded, cache: KVCache, device: torch.device, limits: EngineLimits, enforce_eager: bool
) -> tuple[StepRunner, Chore]:
    """The runner of the engine's steps, and its work that is deferred until after the first answer."""
    model = loaded.decoder
    if not model.ops.is_recordable:
        return Runner(model, cache, device), settling(model, loaded.pages)
    from ember.engine.core.gpu.device_runner import DeviceRunner  # it needs triton

    runner = DeviceRunner(model, cache, device, limits, enforce_eager=enforce_eager)
    return runner, Chore("recording steps", runner.record_next)


def describe(
    configure: Configure,
    model: Model,
    operators: str,
    device: torch.device,
    limits: EngineLimits,
    warnings: list[str],
    timeline: Timeline,
    pooler: Pooler | None = None,
) -> Ready:
    """The message that tells the front about the engine."""
    config = model.config
    tasks: tuple[Task, ...] = ("generate",) if pooler is None else pooler.config.tasks
    return Ready(
        architecture=config.architecture,
        device=device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        vocab_size=config.vocab_size,
        max_model_len=limits.max_model_len,
        block_size=limits.block_size,
        num_blocks=limits.num_blocks,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        eos_token_ids=list(config.eos_token_ids),
        num_parameters=model.num_parameters + (0 if pooler is None else pooler.num_parameters),
        warnings=warnings,
        boot_phases=timeline.report()["phases"],
        weights=configure.cpu_weights if device.type == "cpu" else "auto",
        tasks=tasks,
        operators=operators,
        pooling=None if pooler is None else describe_pooling(pooler),
    )


def describe_pooling(pooler: Pooler) -> Pooling:
    """What the front needs to know of a pooler."""
    config = pooler.config
    return Pooling(
        dimensions=min(config.dimensions or pooler.outputs, pooler.outputs),
        most_dimensions=pooler.outputs,
        is_matryoshka=config.is_matryoshka,
        matryoshka_dimensions=list(config.matryoshka_dimensions),
        labels=list(config.labels),
        activation=config.activation,
        has_token_types=config.has_token_types,
        includes_prompt=config.includes_prompt,
    )
