"""The engine's boot: from the first message to an engine that can take a step.

`open_model` runs in a thread while torch is being imported: it finds the model and starts reading its weights, where
their bytes need no conversion. `build` needs torch and does the rest.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ember.boot import Timeline
from ember.engine.description.config import DecoderConfig
from ember.engine.description.native_forms import library_fault, refusal, runs_in_bfloat16, serves
from ember.engine.errors import ModelError
from ember.engine.loading.dtype import choose_dtype_name
from ember.engine.loading.progress import Say
from ember.wire import Configure, Located, Notice, Ready

if TYPE_CHECKING:
    from ember.engine.core.engine import Engine
    from ember.engine.loading.load import Started
    from ember_kernels.cache import CacheWatch

DEFAULT_MAX_NUM_SEQS = {"cuda": 256, "cpu": 64}
DEFAULT_MAX_NUM_BATCHED_TOKENS = {"cuda": 8192, "cpu": 2048}


@dataclass(slots=True)
class Opened:
    """A model that was found, and the read of its weights if that could begin already."""

    model_dir: Path
    tokenizer_dir: Path
    config: DecoderConfig
    reading: Started | None
    kernels: CacheWatch | None = None  # on a GPU
    say: Say = lambda line: None  # gets lines about a long load


def open_model(configure: Configure, timeline: Timeline, tell: Callable[[Located | Notice], None]) -> Opened:
    """Find (or fetch) the files, tell the front where, and start reading. No torch. Raises ModelError."""
    from ember.engine.loading.cuda_context import create_context  # these too are imported beside torch
    from ember.engine.loading.files import prefetch
    from ember.engine.loading.load import begin, read_model_config
    from ember.engine.loading.resolve import Places, resolve_model, resolve_tokenizer

    is_cuda = configure.device != "cpu" and _has_nvidia_device()
    if is_cuda:
        threading.Thread(target=create_context, name="cuda-context", daemon=True).start()
    say = lambda line: tell(Notice(line))  # noqa: E731
    places = Places(configure.base_path, configure.download_dir, configure.hf_token, say)
    with timeline.phase("locate"):
        model_dir = resolve_model(configure.model, configure.revision, places, check=read_model_config)
        tokenizer_dir = model_dir
        if configure.tokenizer:
            tokenizer_dir = resolve_tokenizer(configure.tokenizer, configure.tokenizer_revision, places)
        tell(Located(str(model_dir), str(tokenizer_dir)))
        config = read_model_config(model_dir)
    reading = None
    with timeline.phase("start_reading"):
        if configure.device != "cuda" and not is_cuda:
            dtype = _dtype_name(configure, config, "cpu")
            refused = refusal(config, dtype, configure.cpu_weights) if configure.cpu_weights != "auto" else None
            if refused is not None:
                raise ModelError(refused)
            reading = begin(model_dir, config, dtype, "cpu")
        if reading is None:
            prefetch(model_dir)
    return Opened(model_dir, tokenizer_dir, config, reading, say=say)


def build(configure: Configure, opened: Opened, timeline: Timeline) -> tuple[Engine, Ready]:
    """Load the weights, size the cache, put the engine together. Raises ModelError."""
    with timeline.phase("import_engine"):
        import torch

        from ember.engine.core.block_pool import BlockPool
        from ember.engine.core.chores import Chore, Chores, settling
        from ember.engine.core.engine import TASKS, Engine
        from ember.engine.core.grammars.workers import GrammarWorkers
        from ember.engine.core.memory import kv_bytes_per_token, plan_memory, readable
        from ember.engine.core.runner import Runner, StepRunner
        from ember.engine.core.scheduler import Scheduler
        from ember.engine.core.threads import allowed_cpus, usable_cores
        from ember.engine.layers.batch import KVCache
        from ember.engine.loading.load import load_decoder

    with timeline.phase("device"):
        kind = configure.device
        if kind == "auto":
            kind = "cuda" if torch.cuda.is_available() else "cpu"
        elif kind == "cuda" and not torch.cuda.is_available():
            raise ModelError("DEVICE=cuda, but torch sees no GPU; check the driver, or set DEVICE=cpu")
        device = torch.device(kind)
        if configure.num_threads or kind == "cpu":
            torch.set_num_threads(configure.num_threads or usable_cores())

    config = opened.config
    dtype = getattr(torch, _dtype_name(configure, config, kind))
    with timeline.phase("load") as detail:
        loaded = load_decoder(
            opened.model_dir,
            config,
            dtype=dtype,
            device=device,
            started=opened.reading,
            say=opened.say,
        )
        report = loaded.report
        detail.update(
            bytes=report.nbytes,
            read_bytes=report.read_bytes,
            read_s=round(report.seconds, 4),
            threads=report.threads,
        )
        detail["gb_per_s"] = round(report.gigabytes_per_second, 2)
    model, pages = loaded.decoder, loaded.pages
    warnings = []
    cores = len(allowed_cpus())
    if configure.num_threads and configure.num_threads > cores:
        warnings.append(
            f"NUM_THREADS={configure.num_threads}, but this process may use {cores} cores: threads that wait for each "
            f"other there are many times slower; set {cores} or fewer, or none"
        )
    if kind == "cuda":
        with timeline.phase("kernels") as detail:
            try:
                from ember_kernels.cache import CacheWatch, use_baked_key

                opened.kernels = CacheWatch()
                opened.kernels.start()
                detail["baked_key"] = use_baked_key()
                if not model.use_kernels():
                    warnings.append(f"{config.architecture} runs on torch operators: no kernels for this form of it")
            except ImportError as error:
                warnings.append(f"{error}; the model runs on torch operators, which is slower")
        if configure.cpu_weights != "auto":
            warnings.append(f"CPU_WEIGHTS={configure.cpu_weights} has no effect: the model runs on a GPU")
    elif configure.cpu_weights == "auto":
        if not model.use_native() and dtype == torch.bfloat16 and serves(config):
            missing = library_fault()
            if missing is not None:
                warnings.append(f"the model runs on torch operators, which is slower, without the C library: {missing}")
    else:
        with timeline.phase("quantise"):
            if not model.use_native(configure.cpu_weights, pages):
                raise ModelError("CPU_WEIGHTS: the C library for CPUs cannot be used; the log says why")
        pages = None
    with timeline.phase("cache"):
        max_num_seqs = configure.max_num_seqs or DEFAULT_MAX_NUM_SEQS[kind]
        max_num_batched_tokens = configure.max_num_batched_tokens or DEFAULT_MAX_NUM_BATCHED_TOKENS[kind]
        # Every running sequence must get its token in every step, or the last ones would starve.
        max_num_seqs = min(max_num_seqs, max_num_batched_tokens)
        plan = plan_memory(
            config,
            dtype=dtype,
            device=device,
            block_size=configure.block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=configure.max_model_len,
            num_blocks=configure.num_blocks,
            kv_cache_memory_bytes=configure.kv_cache_memory_bytes,
            gpu_memory_utilization=configure.gpu_memory_utilization,
            pending_bytes=loaded.mapped_bytes if pages is not None else 0,
        )
        try:
            cache = KVCache.allocate(
                config.num_layers,
                plan.num_blocks,
                configure.block_size,
                config.num_kv_heads,
                config.head_dim,
                dtype,
                device,
            )
        except RuntimeError as error:
            size = plan.num_blocks * configure.block_size * kv_bytes_per_token(config, dtype)
            raise ModelError(
                f"a KV cache of {plan.num_blocks} pages, {readable(size)}, cannot be allocated; lower "
                f"NUM_GPU_BLOCKS_OVERRIDE, KV_CACHE_MEMORY_BYTES or GPU_MEMORY_UTILIZATION "
                f"({str(error).partition(chr(10))[0][:200]})"
            ) from None
    scheduler = Scheduler(
        BlockPool(plan.num_blocks, configure.enable_prefix_caching),
        configure.block_size,
        max_num_seqs,
        max_num_batched_tokens,
        configure.scheduling_policy,
    )
    grammars = GrammarWorkers(opened.tokenizer_dir, config.vocab_size, config.eos_token_ids)
    runner: StepRunner
    if model.fused is not None:
        from ember.engine.core.gpu.device_runner import DeviceRunner

        runner = device_runner = DeviceRunner(
            model,
            cache,
            device,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=plan.max_model_len,
            enforce_eager=configure.enforce_eager,
        )
        chores = [Chore("recording decode steps", device_runner.record_next)]
    else:
        runner = Runner(model, cache, device)
        chores = [settling(model, pages)]
    engine = Engine(runner, scheduler, grammars, plan.max_model_len, configure.seed, Chores(chores))
    ready = Ready(
        architecture=config.architecture,
        device=kind,
        dtype=str(dtype).removeprefix("torch."),
        vocab_size=config.vocab_size,
        max_model_len=plan.max_model_len,
        block_size=configure.block_size,
        num_blocks=plan.num_blocks,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        eos_token_ids=list(config.eos_token_ids),
        num_parameters=model.num_parameters,
        warnings=[*config.warnings, *warnings, *plan.warnings],
        boot_phases=timeline.report()["phases"],
        weights=configure.cpu_weights if kind == "cpu" else "auto",
        tasks=TASKS,
    )
    return engine, ready


def _dtype_name(configure: Configure, config: DecoderConfig, kind: str) -> str:
    """The dtype of weights and activations. Small weights are made of bfloat16 ones; and where our own products do
    without a CPU's bfloat16 instructions, 16 bits of a checkpoint stay 16."""
    name = choose_dtype_name(configure.dtype, config.dtype, kind)
    if kind != "cpu" or configure.dtype != "auto" or name == "bfloat16":
        return name
    is_short = config.dtype in ("bfloat16", "float16") and runs_in_bfloat16(config)
    return "bfloat16" if is_short or configure.cpu_weights != "auto" else name


def _has_nvidia_device() -> bool:
    """Whether an NVIDIA GPU may be there, found out without torch or the driver's library."""
    return os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg")
