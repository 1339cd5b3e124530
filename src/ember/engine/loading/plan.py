"""Which bytes of which file become which rows of which parameter: the whole read as data. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ember.engine.description.config import DecoderConfig
from ember.engine.description.weights import Parameter, parameters
from ember.engine.errors import ModelError
from ember.engine.loading.counts import check_counts
from ember.engine.loading.files import some, weight_files
from ember.engine.loading.safetensors_header import ITEM_SIZES, TensorEntry, read_header

FLOATS = ("BF16", "F16", "F32", "F64")
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
_IGNORED = (".rotary_emb.inv_freq", ".attn.bias", ".masked_bias")  # buffers that old checkpoints carry


@dataclass(frozen=True, slots=True)
class Copy:
    """One checkpoint tensor on its way: `element` is where it begins in the flat parameter, in elements."""

    entry: TensorEntry
    parameter: str
    element: int


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """All copies, ordered by file and offset, and the parameters they fill."""

    parameters: list[Parameter]
    copies: list[Copy]
    nbytes: int  # to be read
    dtypes: frozenset[str]  # of the tensors to be read, as safetensors spells them


def read_headers(model_dir: Path) -> dict[str, TensorEntry]:
    """Every tensor of the checkpoint by name. Raises ModelError."""
    entries: dict[str, TensorEntry] = {}
    for file in weight_files(model_dir):
        entries.update(read_header(file))
    return entries


def make_plan(config: DecoderConfig, entries: Mapping[str, TensorEntry]) -> LoadPlan:
    """Match the decoder's parameters with the checkpoint.

    Raises ModelError naming what is missing, has another shape, or is left over.
    """
    strip = (
        f"{config.names.embed_tokens}.weight" not in entries
    )  # a checkpoint of the bare model has no "model." prefix
    check_counts(config, entries, strip)
    wanted = parameters(config)
    copies: list[Copy] = []
    missing: list[str] = []
    wrong: list[str] = []
    for parameter in wanted:
        columns = math.prod(parameter.shape[1:])
        for part in parameter.parts:
            entry = entries.get(part.source.removeprefix("model.") if strip else part.source)
            if entry is None:
                missing.append(part.source)
            elif entry.shape != part.shape:
                wrong.append(f"{part.source} is {list(entry.shape)}, not {list(part.shape)}")
            elif entry.dtype not in FLOATS:
                wrong.append(f"{part.source} is {entry.dtype}, which needs a quantization format we do not support")
            else:
                copies.append(Copy(entry, parameter.name, part.row * columns))
    if missing:
        raise ModelError(f"the checkpoint lacks {some(missing)}: it is incomplete or not a {config.architecture}")
    if wrong:
        raise ModelError(f"the checkpoint does not fit its config.json: {some(wrong)}")
    used = {copy.entry.name for copy in copies}
    spare = [name for name in entries if name not in used and not _may_be_unused(config, name, strip)]
    if spare:
        raise ModelError(f"the checkpoint has tensors that {config.architecture} does not know: {some(spare)}")
    copies.sort(key=lambda copy: (copy.entry.file, copy.entry.offset))
    return LoadPlan(
        wanted,
        copies,
        sum(copy.entry.nbytes for copy in copies),
        frozenset(copy.entry.dtype for copy in copies),
    )


def parameter_bytes(parameter: Parameter, dtype: str) -> int:
    """Bytes of a parameter in a safetensors dtype."""
    return math.prod(parameter.shape) * ITEM_SIZES[dtype]


def _may_be_unused(config: DecoderConfig, name: str, strip: bool) -> bool:
    """A stored copy of a tied head, and buffers of old checkpoints, are not weights."""
    if config.tie_word_embeddings and name == f"{config.names.lm_head}.weight":
        return True
    return name.endswith(_IGNORED)
