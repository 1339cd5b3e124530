"""Loading of a decoder from a model directory.

There are two ways. Weights that a CPU can use unchanged are mapped from the files. This needs no torch, so `begin` may
start it before torch is imported. All other weights (on a GPU; another dtype, a transposed matrix, separate rows; a
file system without mappings) are read: each reader thread has staging memory (pinned for a GPU) from which its chunks
are copied and converted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ember.engine.description.config import DecoderConfig
from ember.engine.description.pooling import TaskSettings
from ember.engine.description.read_config import ONLY_EMBER, RunsBy, load_config
from ember.engine.errors import ModelError
from ember.engine.loading import reader
from ember.engine.loading.files import prefetch
from ember.engine.loading.hub_errors import readable
from ember.engine.loading.mapped import Mapped, Pages, Warming, lies_ready
from ember.engine.loading.plan import LoadPlan, dummy_entries, make_plan, read_headers
from ember.engine.loading.progress import Say
from ember.engine.loading.reader import WeightRead, default_threads
from ember.engine.loading.safetensors_header import TensorEntry
from ember.engine.loading.stored import own_entries, plan_stored
from ember.engine.quantization.formats import format_of, with_quantization
from ember.gguf.files import forget
from ember.sizes import binary_size
from ember.wire import Configure

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ember.engine.layers.linear import Linear
    from ember.engine.models.decoder import Decoder


_DUMMY_SEED = 1234
_DUMMY_RANGE = 1e-3  # as in vLLM, so that sums stay finite in 16 bits


@dataclass(slots=True)
class LoadReport:
    """Statistics of loading. `seconds`: the time during which reads were running."""

    nbytes: int  # of all weights
    read_bytes: int  # the other bytes were mapped from the page cache
    seconds: float
    threads: int
    files: int

    @property
    def gigabytes_per_second(self) -> float:
        return self.read_bytes / max(self.seconds, 1e-9) / 1e9


@dataclass(slots=True)
class Loaded:
    """A decoder with its weights, and where these are."""

    decoder: Decoder
    report: LoadReport
    pages: Pages | None  # the mappings that weights are used from; None if no weight is mapped
    mapped_bytes: int  # of the mapped weights
    cache_scales: tuple[TensorEntry, ...] = ()  # stored scales of a float8 KV cache


@dataclass(slots=True)
class Started:
    """A plan, part of whose weights is mapped: what of it is not in the page cache is being read. The rest of the plan
    is to be read when torch is imported. To be handed to `load_decoder`."""

    plan: LoadPlan
    mapped: Mapped
    reading: WeightRead  # of the part that is mapped
    rest: LoadPlan


def read_model_config(
    model_dir: Path,
    overrides: Mapping[str, Any] | None = None,
    quantization: str | None = None,
    runs_by: RunsBy = ONLY_EMBER,
) -> DecoderConfig:
    """Read config.json, and refuse a model that cannot be served before its weights are downloaded. `quantization`:
    the value of QUANTIZATION. `runs_by`: whose code may run it. Raises ModelError."""
    config = load_config(model_dir, overrides, runs_by)
    try:
        if config.through_transformers and quantization is not None:
            raise ModelError(
                f"QUANTIZATION={quantization}, but {config.architecture} runs through transformers in plain weights"
            )
        config = with_quantization(config, quantization)
        format_of(config)
    except ModelError as error:
        file = model_dir if model_dir.is_file() else model_dir / "config.json"
        raise ModelError(f"{file}: {error}") from None
    return config


def tasks_of(configure: Configure) -> TaskSettings:
    return TaskSettings(configure.runner, configure.convert, configure.pooler_config)


def config_reader(configure: Configure) -> Callable[[Path], DecoderConfig]:
    """`read_model_config` with the settings' own part."""
    return partial(
        read_model_config,
        overrides=configure.hf_overrides,
        quantization=configure.quantization,
        runs_by=RunsBy(configure.model_impl, configure.trust_remote_code, tasks_of(configure)),
    )


def begin(model_dir: Path, config: DecoderConfig, dtype: str, device: str, load_format: str = "auto") -> Started | None:
    """Start to read before torch is imported. Returns None if no weight can be mapped.

    `dtype` is a torch dtype's name (`loading.dtype.choose_dtype_name`). Raises ModelError.
    """
    if load_format == "dummy":
        return None
    entries = read_headers(model_dir, load_format)
    if config.through_transformers:
        plan = plan_stored(own_entries(config, entries)[0], dtype)
    else:
        plan = make_plan(config, entries, dtype)
    started = begin_plan(plan, device)
    if started is not None and started.rest.parameters:
        prefetch(model_dir, load_format)
    return started


def begin_plan(plan: LoadPlan, device: str) -> Started | None:
    if device.split(":")[0] != "cpu":
        return None
    ready, rest = plan.split(lies_ready)
    try:
        mapped = Mapped(ready)
    except OSError:  # a file system without mappings
        return None
    return Started(plan, mapped, WeightRead(ready, lambda: Warming(mapped)), rest) if ready.parameters else None


def load_decoder(
    model_dir: Path,
    config: DecoderConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    started: Started | None = None,
    say: Say | None = None,
    load_format: str = "auto",
    free_bytes: int | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> Loaded:
    """Read the weights and build the decoder. `say` is called with progress lines if it takes long. `free_bytes`: the
    free memory of a GPU. `meanwhile` is called once while other threads read. Raises ModelError."""
    from ember.engine.models.decoder import Decoder

    name = str(dtype).removeprefix("torch.")
    if load_format == "dummy":
        return load_dummy(config, name, device)
    if started is not None and started.plan.dtype == name and device.type == "cpu":
        plan = started.plan
    else:
        plan, started = make_plan(config, read_headers(model_dir, load_format), name), None
    forget()
    if free_bytes is not None:
        check_room(plan.resident_bytes, free_bytes)
    if plan.skipped and say is not None:
        size = readable(sum(entry.nbytes for entry in plan.skipped))
        say(f"{config.architecture} is served as text: {len(plan.skipped)} weights of other parts, {size}, are skipped")
    if plan.predicting and say is not None:
        size = readable(sum(entry.nbytes for entry in plan.predicting))
        say(f"{len(plan.predicting)} weights that predict further tokens, {size}, are skipped")
    weights = load_weights(plan, device, started, say, meanwhile)
    config = replace(config, tie_word_embeddings=plan.is_tied)
    decoder = Decoder(config, weights.by_name)
    return Loaded(decoder, weights.report, weights.pages, weights.mapped_bytes, plan.cache_scales)


def check_room(weight_bytes: int, free_bytes: int) -> None:
    """Raise ModelError if the weights do not fit into the free memory of a GPU."""
    if weight_bytes > free_bytes:
        raise ModelError(
            f"the weights need {binary_size(weight_bytes)}, but the GPU has {binary_size(free_bytes)} free: use "
            "a larger GPU, a smaller model or a quantized one"
        )


def load_dummy(config: DecoderConfig, dtype: str, device: torch.device) -> Loaded:
    """A decoder with small random weights, the same ones each time. No weight file is read. Raises ModelError."""
    import torch

    from ember.engine.loading.place import assemble, empty_tensors
    from ember.engine.models.decoder import Decoder

    plan = make_plan(config, dummy_entries(config), dtype)
    tensors = empty_tensors(plan, device)
    generator = torch.Generator(device).manual_seed(_DUMMY_SEED)
    for (tensor,) in tensors.values():
        if tensor.is_floating_point() and tensor.dtype.itemsize == 1:  # torch draws no float8
            drawn = torch.empty(tensor.shape, device=device).uniform_(1 / 16, 1, generator=generator)
            tensor.copy_(drawn)
        elif tensor.is_floating_point():
            tensor.uniform_(-_DUMMY_RANGE, _DUMMY_RANGE, generator=generator)
        else:
            tensor.random_(0, 2, generator=generator)
    report = LoadReport(plan.nbytes, 0, 0.0, 0, 0)
    return Loaded(Decoder(config, assemble(plan, tensors)), report, None, 0)


@dataclass(slots=True)
class LoadedTensors:
    """The tensors by the names of their parameters, and the other fields of `Loaded`."""

    by_name: dict[str, tuple[Tensor, ...]]
    report: LoadReport
    pages: Pages | None
    mapped_bytes: int


@dataclass(slots=True)
class LoadedWeights:
    """The weights by the names of their specifications, and the other fields of `Loaded`."""

    by_name: dict[str, Linear | Tensor]
    report: LoadReport
    pages: Pages | None
    mapped_bytes: int


def load_weights(
    plan: LoadPlan,
    device: torch.device,
    started: Started | None = None,
    say: Say | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> LoadedWeights:
    """Execute a plan, or what is left of it. Raises ModelError."""
    from ember.engine.loading.place import assemble

    read = read_tensors(plan, device, started, say, meanwhile)
    return LoadedWeights(assemble(plan, read.by_name), read.report, read.pages, read.mapped_bytes)


def read_tensors(
    plan: LoadPlan,
    device: torch.device,
    started: Started | None = None,
    say: Say | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> LoadedTensors:
    """Map or read the parameters of a plan. Raises ModelError."""
    from ember.engine.loading.place import Arena, Staging, empty_tensors, mapped_tensors, release_pinned

    tensors: dict[str, tuple[Tensor, ...]] = {}
    readings: list[WeightRead] = []
    rest, pages, mapped_bytes = plan, None, 0
    started = started or begin_plan(plan, device.type)
    if started is not None:
        readings.append(started.reading)
        started.reading.wait(say)
        rest, mapped_bytes = started.rest, started.mapped.nbytes
        pages = started.mapped.pages() if mapped_bytes else None
        tensors = mapped_tensors(started.reading.plan, started.mapped)
    if rest.parameters:
        staged = empty_tensors(rest, device)
        is_gpu = device.type == "cuda"
        threads, chunk_bytes = default_threads(), reader.GPU_CHUNK_BYTES if is_gpu else reader.CHUNK_BYTES
        arena = Arena(threads, chunk_bytes, device)
        readings.append(WeightRead(rest, lambda: Staging(staged, device, arena), threads, chunk_bytes))
        if meanwhile is not None:
            meanwhile()
        readings[-1].wait(say)
        tensors |= staged
        if is_gpu:
            del arena
            release_pinned()
    read_bytes, seconds = sum(reading.nbytes for reading in readings), sum(reading.seconds for reading in readings)
    report = LoadReport(plan.nbytes, read_bytes, seconds, readings[-1].threads, len(plan.files))
    return LoadedTensors(tensors, report, pages, mapped_bytes)
