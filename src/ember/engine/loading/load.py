"""From a model directory to a decoder with its weights in place.

Two ways. Where the checkpoint's dtype is the one wanted and the device is the CPU, the files are mapped and used as
they are, which needs no torch: `begin` may start that before torch is imported. Otherwise each reader thread has
staging memory (pinned for a GPU) from which its chunks are copied, converted on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ember.engine.description.config import DecoderConfig
from ember.engine.loading.mapped import Mapped, Pages, Warming
from ember.engine.loading.plan import DTYPES, LoadPlan, make_plan, read_headers
from ember.engine.loading.progress import Say
from ember.engine.loading.reader import Reading

if TYPE_CHECKING:
    import torch

    from ember.engine.models.decoder import Decoder


@dataclass(slots=True)
class LoadReport:
    """What loading took; `seconds` is the time during which reads were under way."""

    nbytes: int  # of weights
    read_bytes: int  # read; the rest lay in the page cache and was mapped
    seconds: float
    threads: int
    files: int

    @property
    def gigabytes_per_second(self) -> float:
        return self.read_bytes / max(self.seconds, 1e-9) / 1e9


@dataclass(slots=True)
class Loaded:
    """A decoder whose weights are in place, and where they are."""

    decoder: Decoder
    report: LoadReport
    pages: Pages | None  # the mappings that weights are used in, of their files; None where they are in own memory


@dataclass(slots=True)
class Started:
    """Mapped weights, and the read of what is not in the page cache under way; to be handed to `load_decoder`."""

    mapped: Mapped
    reading: Reading
    dtype: str  # as torch spells it


def begin(model_dir: Path, config: DecoderConfig, dtype: str, device: str) -> Started | None:
    """Start reading before torch is imported, where the bytes need no conversion; None where they do.

    `dtype` is a torch dtype's name (`loading.dtype.choose_dtype_name`). Raises ModelError.
    """
    return begin_plan(make_plan(config, read_headers(model_dir)), dtype, device)


def begin_plan(plan: LoadPlan, dtype: str, device: str) -> Started | None:
    if device.split(":")[0] != "cpu" or {DTYPES[found] for found in plan.dtypes} != {dtype}:
        return None
    try:
        mapped = Mapped(plan, next(iter(plan.dtypes)))
    except OSError:  # a file system that maps no files
        return None
    return Started(mapped, Reading(plan, lambda: Warming(mapped)), dtype)


def load_decoder(
    model_dir: Path,
    config: DecoderConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    started: Started | None = None,
    say: Say | None = None,
) -> Loaded:
    """Read the weights and build the decoder; `say` gets lines if it takes long. Raises ModelError."""
    from ember.engine.loading.place import Staging, parameter_tensors, wrap
    from ember.engine.models.decoder import Decoder

    name = str(dtype).removeprefix("torch.")
    if started is None or started.dtype != name or device.type != "cpu":
        plan = make_plan(config, read_headers(model_dir))
        started = begin_plan(plan, name, device.type)
    if started is not None:
        reading = started.reading
        reading.wait(say)
        pages = started.mapped.pages()
        weights = wrap(reading.plan, started.mapped, dtype)
    else:
        pages = None
        weights = parameter_tensors(plan, dtype, device)
        reading = Reading(plan, lambda: Staging(weights, device))
        reading.wait(say)
    files = len({copy.entry.file for copy in reading.plan.copies})
    report = LoadReport(reading.plan.nbytes, reading.nbytes, reading.seconds, reading.threads, files)
    return Loaded(Decoder(config, weights), report, pages)
