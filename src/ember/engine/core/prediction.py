"""What a boot of a model would choose and need, on this machine and on GPUs that it does not have.

Only config.json and the headers of the weight files are read. This module does not import torch. Everything is computed
by the functions of the boot: `read_model_config`, `make_plan`, `decide` and `plan_memory`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from ember.engine.core.boot import NO_GPU, check_cpu_weights, cpu_settings_warnings, dtype_name
from ember.engine.core.memory import Memory, available_host_bytes, plan_memory
from ember.engine.description.cache_format import is_float8
from ember.engine.description.cache_groups import bytes_per_page_token, cache_groups, most_pages
from ember.engine.description.config import DecoderConfig
from ember.engine.description.foreign import has_sizes
from ember.engine.description.native_forms import quantised_bytes
from ember.engine.description.operator_choice import decide, triton_fault
from ember.engine.description.operator_sets import TRITON_EXPERT_LAYOUTS
from ember.engine.description.pooling import PoolingConfig
from ember.engine.description.weights import Spec, count_parameters
from ember.engine.errors import ModelError
from ember.engine.loading.checkpoint import Checkpoint, open_checkpoint
from ember.engine.loading.cuda_context import find_device
from ember.engine.loading.load import check_room
from ember.engine.loading.plan import BYTES, LoadPlan, make_plan
from ember.engine.loading.pooler_plan import plan_pooler, pooled_width
from ember.engine.loading.resolve import Places, resolve_tokenizer
from ember.engine.loading.stored import own_entries
from ember.wire import Configure

CONTEXT_BYTES = 600 << 20  # of the CUDA context and its libraries, before the weights

# The memory that torch sees on the smallest common card of each size.
GPUS = {
    "80 GB GPU": int(79.1 * 2**30),  # A100, H100
    "48 GB GPU": int(44.4 * 2**30),  # L40S with ECC
    "24 GB GPU": int(22.0 * 2**30),  # L4, A10G with ECC
}


@dataclass(frozen=True, slots=True)
class Target:
    """A device to boot on. `total`: its memory in bytes; `free`: what of it the boot may use."""

    name: str
    device: str  # cuda, cpu
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class GroupReport:
    """A cache group: layers that share pages."""

    layers: int
    kind: str  # full, window, latent, state
    window: int | None  # tokens
    bytes_per_token: int
    bytes_per_sequence: int


@dataclass(slots=True)
class DeviceReport:
    """What a boot on one device would choose. The fields after `fits` are known if the model fits."""

    name: str
    device: str  # cuda, cpu
    memory_bytes: int  # what the boot may use
    fits: bool = False
    reason: str | None = None  # why it does not fit, or cannot be served there
    dtype: str | None = None
    operators: str | None = None  # torch, triton, native
    operators_reason: str | None = None
    torch_computes: dict[str, str] = field(default_factory=dict)  # operation -> the feature or size that needs it
    weight_bytes: int | None = None
    cache_dtype: str | None = None
    cache_groups: list[GroupReport] = field(default_factory=list)
    cache_bytes_per_token: int | None = None
    cache_bytes: int | None = None
    num_blocks: int | None = None
    block_size: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    concurrency: float | None = None  # sequences of max_model_len tokens that the cache holds at the same time
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PoolingReport:
    """How a model of pooling tasks makes vectors or classes."""

    types: list[str]  # kinds of pooling, whose results are joined
    layers: int | None  # linear layers after pooling; None: not known without the files
    dimensions: int | None  # of the outputs
    activation: str  # none, normalize, softmax, sigmoid
    labels: list[str]
    matryoshka_dimensions: list[int]
    is_matryoshka: bool


@dataclass(slots=True)
class Prediction:
    """A model, and what a boot on each device would choose."""

    model_dir: str
    tokenizer_dir: str
    architecture: str
    text_architecture: str  # the language model's; of a multimodal checkpoint, another one
    features: list[str]
    quantization: str  # the weight format: plain, or quant_method of config.json
    checkpoint_dtype: str
    num_layers: int
    vocab_size: int
    max_position_embeddings: int
    parameters: int
    active_parameters: int  # that compute one token
    file_bytes: int  # of the weights that are read
    is_estimate: bool  # whether the weights are computed from config.json, as their headers cannot be read
    skipped_tensors: int  # of a multimodal checkpoint's other parts
    skipped_bytes: int
    predicting_tensors: int  # that predict further tokens, which are not read
    predicting_bytes: int
    warnings: list[str]
    devices: list[DeviceReport]
    through_transformers: bool = False  # whether transformers' code computes it
    tasks: list[str] = field(default_factory=lambda: ["generate"])  # what the model serves
    pooling: PoolingReport | None = None  # of pooling tasks


class _Weights(NamedTuple):
    """The weights in one dtype."""

    plan: LoadPlan
    nbytes: int  # on the device
    layouts: frozenset[str]
    own_experts: bool  # whether Triton's kernels take the experts' matrices


def predict(configure: Configure, targets: Sequence[Target] | None = None) -> Prediction:
    """Describe the model of the settings. Raises ModelError with the words of the boot if it cannot be served."""
    checkpoint = open_checkpoint(configure)
    config = checkpoint.config.served_up_to(configure.max_model_len)
    if config.through_transformers:
        return _predict_foreign(configure, checkpoint, config, targets)

    @cache
    def weights_in(dtype: str) -> _Weights:
        plan = make_plan(config, checkpoint.entries, dtype)
        return _Weights(plan, plan.resident_bytes, plan.layouts(), _own_experts(plan))

    read = weights_in(dtype_name(configure, config, "cuda")).plan
    skipped = read.skipped
    tokenizer_dir = _tokenizer_dir(configure, checkpoint.model_dir)
    return Prediction(
        model_dir=str(checkpoint.model_dir),
        tokenizer_dir=str(tokenizer_dir),
        architecture=config.architecture,
        text_architecture=config.text_architecture,
        features=list(config.features()),
        quantization=read.weight_format.name,
        checkpoint_dtype=config.dtype,
        num_layers=config.num_layers,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        parameters=count_parameters(read.specs),
        active_parameters=_active_parameters(config, read),
        file_bytes=_file_bytes(read) or checkpoint.file_bytes,
        is_estimate=checkpoint.is_estimate,
        skipped_tensors=len(skipped),
        skipped_bytes=sum(entry.nbytes for entry in skipped),
        predicting_tensors=len(read.predicting),
        predicting_bytes=sum(entry.nbytes for entry in read.predicting),
        warnings=list(config.warnings),
        devices=[
            _report(target, lambda report, target: _fill(report, configure, config, weights_in, target))
            for target in (here_and_gpus(configure) if targets is None else targets)
        ],
        tasks=["generate"] if config.pooling is None else list(config.pooling.tasks),
        pooling=None if config.pooling is None else _pooling(checkpoint, tokenizer_dir, config, config.pooling),
    )


def _pooling(
    checkpoint: Checkpoint, tokenizer_dir: Path, config: DecoderConfig, pooling: PoolingConfig
) -> PoolingReport:
    """The report on a pooler. Raises ModelError for a head that the files lack."""
    directories = [checkpoint.model_dir / each.directory for each in pooling.dense]
    layers, outputs = None, pooling.dense[-1].outputs if pooling.dense else pooled_width(config)
    if not checkpoint.is_estimate and all(any(each.glob("*model*")) for each in directories):
        plan = plan_pooler(checkpoint.model_dir, tokenizer_dir, config, checkpoint.entries)
        layers, outputs = len(plan.layers), plan.outputs
    return PoolingReport(
        types=list(pooling.types),
        layers=layers,
        dimensions=pooling.dimensions or outputs,
        activation=pooling.activation,
        labels=list(pooling.labels),
        matryoshka_dimensions=list(pooling.matryoshka_dimensions),
        is_matryoshka=pooling.is_matryoshka,
    )


def _predict_foreign(
    configure: Configure, checkpoint: Checkpoint, config: DecoderConfig, targets: Sequence[Target] | None
) -> Prediction:
    """Describe a model that transformers computes, by its config.json and its stored tensors. What transformers' own
    configuration says is not known here."""
    entries, skipped = own_entries(config, checkpoint.entries)
    parameters = sum(prod(entry.shape) for entry in entries.values())

    def fill(report: DeviceReport, target: Target) -> None:
        report.dtype = dtype_name(configure, config, target.device)
        check_cpu_weights(configure, config, report.dtype)
        is_float8(configure.kv_cache_dtype, config, target.device, report.warnings)
        report.operators, report.operators_reason = "torch", "through transformers"
        report.weight_bytes = parameters * BYTES[report.dtype]
        if not has_sizes(config):
            raise ModelError("config.json does not tell the sizes that the cache depends on, but transformers may")
        _fill_room(report, replace(configure, enforce_eager=True), config, target)

    return Prediction(
        model_dir=str(checkpoint.model_dir),
        tokenizer_dir=str(_tokenizer_dir(configure, checkpoint.model_dir)),
        architecture=config.architecture,
        text_architecture=config.text_architecture,
        features=[],
        quantization="plain",
        checkpoint_dtype=config.dtype,
        num_layers=config.num_layers,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        parameters=parameters,
        active_parameters=parameters,
        file_bytes=sum(entry.nbytes for entry in entries.values()) or checkpoint.file_bytes,
        is_estimate=checkpoint.is_estimate,
        skipped_tensors=len(skipped),
        skipped_bytes=sum(entry.nbytes for entry in skipped.values()),
        predicting_tensors=0,
        predicting_bytes=0,
        warnings=list(config.warnings),
        devices=[_report(target, fill) for target in (here_and_gpus(configure) if targets is None else targets)],
        through_transformers=True,
    )


def _tokenizer_dir(configure: Configure, model_dir: Path) -> Path:
    """The directory of the tokenizer. One of its own on the Hub is downloaded, as by a boot."""
    if not configure.tokenizer:
        return model_dir
    places = Places(configure.base_path, configure.download_dir, configure.hf_token)
    return resolve_tokenizer(configure.tokenizer, configure.tokenizer_revision, places)


def here_and_gpus(configure: Configure) -> list[Target]:
    """The device of this machine that a boot would choose, and common GPUs."""
    gpus = [Target(name, "cuda", total, total - CONTEXT_BYTES) for name, total in GPUS.items()]
    return [here(configure.device), *gpus]


def here(device: str) -> Target:
    """The device of this machine. `device`: DEVICE (auto, cpu, cuda)."""
    found = find_device() if device != "cpu" else None
    if found is not None:
        return Target(f"this machine ({found.name})", "cuda", found.total, found.total - CONTEXT_BYTES)
    if device == "cuda":
        return Target("this machine (no GPU)", "cuda", 0, 0)
    free = available_host_bytes()
    return Target("this machine (CPU)", "cpu", free, free)


def _report(target: Target, fill: Callable[[DeviceReport, Target], None]) -> DeviceReport:
    report = DeviceReport(target.name, target.device, target.free)
    try:
        if not target.total:
            raise ModelError(NO_GPU)
        fill(report, target)
        report.fits = True
    except ModelError as error:
        report.reason = str(error)
    return report


def _fill(
    report: DeviceReport,
    configure: Configure,
    config: DecoderConfig,
    weights_in: Callable[[str], _Weights],
    target: Target,
) -> None:
    """Follow the steps of a boot on one device. Raises ModelError in the step at which the boot would fail."""
    report.dtype = dtype_name(configure, config, target.device)
    is_cpu, weights = target.device == "cpu", "auto"
    if is_cpu:
        weights = configure.cpu_weights
        check_cpu_weights(configure, config, report.dtype)
    report.warnings += cpu_settings_warnings(configure, config, is_cpu)
    loaded = weights_in(report.dtype)
    report.weight_bytes = loaded.nbytes if weights == "auto" else quantised_bytes(loaded.plan.specs, weights)
    # A GPU that is not here is one in an image with Triton.
    is_here = target.name not in GPUS
    fault = triton_fault() if is_here and not is_cpu else None
    float8_cache = is_float8(configure.kv_cache_dtype, config, target.device, report.warnings)
    decision = decide(
        config,
        report.dtype,
        target.device,
        weights,
        fault,
        float8_cache,
        loaded.layouts if weights == "auto" else frozenset({"BlockLinear"}),
        loaded.own_experts,
        configure.cpu_activations,
    )
    report.operators, report.operators_reason = decision.name, decision.reason
    report.torch_computes = decision.lacking
    if decision.warning is not None:
        report.warnings.append(decision.warning)
    report.cache_dtype = "float8_e4m3fn" if float8_cache else report.dtype
    _fill_room(report, configure, config, target)


def _fill_room(report: DeviceReport, configure: Configure, config: DecoderConfig, target: Target) -> None:
    """The cache beside the weights on one device. Raises ModelError if they do not fit."""
    report.cache_dtype = report.cache_dtype or report.dtype
    assert report.dtype is not None and report.cache_dtype is not None and report.weight_bytes is not None
    groups = cache_groups(config, BYTES[report.cache_dtype])
    report.cache_groups = [
        GroupReport(len(group.layers), group.kind, group.window, group.bytes_per_token, group.bytes_per_sequence)
        for group in groups
    ]
    report.cache_bytes_per_token = sum(group.bytes_per_token for group in groups)
    if target.device != "cpu":
        check_room(report.weight_bytes, target.free)
    memory = Memory(target.device, target.free - report.weight_bytes, target.total)
    planned = plan_memory(config, groups, configure, element_size=BYTES[report.dtype], memory=memory)
    report.warnings += planned.warnings
    limits = planned.limits
    report.num_blocks, report.block_size = limits.num_blocks, limits.block_size
    report.cache_bytes = limits.num_blocks * limits.block_size * bytes_per_page_token(groups)
    report.max_model_len, report.max_num_seqs = limits.max_model_len, limits.max_num_seqs
    report.max_num_batched_tokens = limits.max_num_batched_tokens
    held = limits.num_blocks / most_pages(groups, limits.max_model_len, 1, limits.block_size)
    report.concurrency = round(min(held, limits.max_num_seqs), 2)


def _own_experts(plan: LoadPlan) -> bool:
    """Whether the matrices of all experts of a layer are one plain tensor or one layer that the kernels take."""
    held = map(plan.held, _expert_specs(plan))
    return all(each.parts == 1 and each.layouts in TRITON_EXPERT_LAYOUTS for each in held)


def _expert_specs(plan: LoadPlan) -> list[Spec]:
    """The matrices of all experts, of each layer."""
    return [spec for spec in plan.specs if spec.name.endswith(("experts.up", "experts.down"))]


def _active_parameters(config: DecoderConfig, plan: LoadPlan) -> int:
    """The parameters that compute one token: those of all experts in proportion to the chosen ones."""
    total = count_parameters(plan.specs)
    if config.experts is None:
        return total
    experts = count_parameters(_expert_specs(plan))
    return total - experts + experts * config.experts.per_token // config.experts.count


def _file_bytes(plan: LoadPlan) -> int:
    """The bytes of the stored tensors that are read."""
    entries = {
        (piece.entry.file, piece.entry.name): piece.entry.nbytes
        for parameter in plan.parameters
        for piece in parameter.pieces
    }
    return sum(entries.values())
