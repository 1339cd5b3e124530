"""The first half of the engine's boot, without torch: find the model and start to read it.

`open_model` runs in a thread while torch is being imported. It starts to read weights whose bytes need no conversion.
`assemble` needs torch and does the rest.
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
from ember.engine.description.native_forms import refusal, runs_in_bfloat16
from ember.engine.errors import ModelError
from ember.engine.loading.dtype import choose_dtype_name
from ember.engine.loading.progress import Say
from ember.gguf.files import Choice
from ember.wire import Configure, Located, Notice

NO_GPU = "DEVICE=cuda, but torch sees no GPU; check the driver, or set DEVICE=cpu"

if TYPE_CHECKING:
    from ember.engine.loading.load import Started
    from ember_kernels.cache import CacheWatch


@dataclass(slots=True)
class Opened:
    """A model that was found, and the read of its weights if it has begun."""

    model_dir: Path  # or a GGUF file
    tokenizer_dir: Path
    config: DecoderConfig
    reading: Started | None
    kernels: CacheWatch | None = None  # on a GPU
    has_baked_key: bool = False  # of Triton's cache
    say: Say = lambda line: None  # called with progress lines of a long load
    load_format: str = "auto"


def open_model(configure: Configure, timeline: Timeline, tell: Callable[[Located | Notice], None]) -> Opened:
    """Find or download the files, tell the front where they are, and start to read. Raises ModelError."""
    from ember.engine.loading.cuda_context import create_context  # imported here, in the thread beside torch's import
    from ember.engine.loading.files import prefetch
    from ember.engine.loading.load import begin, config_reader
    from ember.engine.loading.resolve import Places, resolve_model, resolve_tokenizer

    is_cuda = configure.device != "cpu" and _has_nvidia_device()
    if is_cuda:
        threading.Thread(target=create_context, name="cuda-context", daemon=True).start()
    say = lambda line: tell(Notice(line))  # noqa: E731
    where = configure.base_path, configure.download_dir, configure.hf_token
    places = Places(*where, say, with_code=configure.trust_remote_code)
    with timeline.phase("locate"):
        read_config = config_reader(configure)
        load_format = configure.load_format
        choice = Choice(configure.gguf_quantization, configure.gguf_file)
        model_dir = resolve_model(configure.model, configure.revision, places, read_config, load_format, choice)
        tokenizer_dir = model_dir
        if configure.tokenizer:
            tokenizer_dir = resolve_tokenizer(configure.tokenizer, configure.tokenizer_revision, places)
        tell(Located(str(model_dir), str(tokenizer_dir)))
        config = read_config(model_dir).served_up_to(configure.max_model_len)
    reading = None
    with timeline.phase("start_reading"):
        if configure.device != "cuda" and not is_cuda:
            dtype = dtype_name(configure, config, "cpu")
            check_cpu_weights(configure, config, dtype)
            reading = begin(model_dir, config, dtype, "cpu", load_format)
        if reading is None and load_format != "dummy":
            prefetch(model_dir, load_format)
    return Opened(model_dir, tokenizer_dir, config, reading, say=say, load_format=load_format)


def check_cpu_weights(configure: Configure, config: DecoderConfig, dtype: str) -> None:
    """Raise ModelError if the matrices cannot be quantised as CPU_WEIGHTS says."""
    if configure.cpu_weights != "auto" and config.through_transformers:
        named = f"CPU_WEIGHTS={configure.cpu_weights} does not fit {config.architecture}"
        raise ModelError(f"{named}, which runs through transformers: leave it at auto")
    refused = refusal(config, dtype, configure.cpu_weights) if configure.cpu_weights != "auto" else None
    if refused is not None:
        raise ModelError(refused)


def cpu_settings_warnings(configure: Configure, config: DecoderConfig, is_cpu: bool) -> list[str]:
    """A warning for each setting of CPUs that is set and has no effect on this device."""
    values = {"CPU_WEIGHTS": configure.cpu_weights, "CPU_ACTIVATIONS": configure.cpu_activations}
    if is_cpu:
        if configure.cpu_activations == "auto" or configure.cpu_weights != "auto" or config.quantization:
            return []
        return [
            f"CPU_ACTIVATIONS={configure.cpu_activations} has no effect: the model's weights are not quantized, and "
            "activations of plain weights are not rounded to 8 bits"
        ]
    return [
        f"{name}={value} has no effect: the model runs on a GPU" for name, value in values.items() if value != "auto"
    ]


def dtype_name(configure: Configure, config: DecoderConfig, kind: str) -> str:
    """The dtype of weights and activations. Quantised weights are made from bfloat16. If the C library can compute the
    model on a CPU without bfloat16 instructions, a checkpoint in 16 bits stays in 16 bits."""
    name = choose_dtype_name(configure.dtype, config.dtype, kind)
    if kind != "cpu" or configure.dtype != "auto" or name == "bfloat16":
        return name
    if config.through_transformers:
        return name
    is_short = config.dtype in ("bfloat16", "float16") and runs_in_bfloat16(config)
    return "bfloat16" if is_short or configure.cpu_weights != "auto" else name


def _has_nvidia_device() -> bool:
    """Whether there may be an NVIDIA GPU, without using torch or the driver's library."""
    return os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg")
