"""The plan of loading: which bytes of which file are which rows of which parameter. This module does not import
torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from ember.engine.description.config import DecoderConfig
from ember.engine.description.pooling import POOLER_NAMES
from ember.engine.description.shells import text_entries
from ember.engine.description.weight_names import WeightNames
from ember.engine.description.weight_specs import weight_specs
from ember.engine.description.weights import LinearSpec, Rows, Spec
from ember.engine.errors import ModelError
from ember.engine.loading.cache_scales import is_cache_scale
from ember.engine.loading.counts import check_counts, misfit
from ember.engine.loading.files import some, weight_files
from ember.engine.loading.safetensors_header import ITEM_SIZES, TensorEntry, read_header
from ember.engine.loading.tied_head import is_tied
from ember.engine.quantization import held
from ember.engine.quantization.base import Source, WeightFormat
from ember.engine.quantization.formats import format_of
from ember.engine.quantization.held import Held

DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "I64": "int64",
    "U64": "uint64",
    "F64": "float64",
}  # safetensors' names -> torch's names
BYTES = {torch_name: ITEM_SIZES[name] for name, torch_name in DTYPES.items()}  # of an element
_BUFFERS = (".rotary_emb.inv_freq", ".attn.bias", ".masked_bias")  # buffers of old checkpoints, not weights
_OLDER_NORMS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # of old encoders
_AXES = {1: ("entries",), 2: ("rows", "columns"), 3: ("matrices", "rows", "columns")}


class Piece(NamedTuple):
    """Consecutive rows of a parameter, and the part of a stored tensor that contains them.

    `rows` and `columns` select from the stored matrix, whose shape is `matrix`, or from its transpose if `transposed`.
    """

    entry: TensorEntry
    offset: int  # of the matrix, in bytes from the file's start
    matrix: tuple[int, int]
    rows: Rows
    columns: tuple[int, int]  # the first one, and the one after the last
    transposed: bool
    row: int  # the parameter's row at which the piece begins

    @property
    def item_size(self) -> int:
        return ITEM_SIZES[self.entry.dtype]

    @property
    def width(self) -> int:
        """The number of the parameter's columns."""
        return self.columns[1] - self.columns[0]

    @property
    def is_flat(self) -> bool:
        """Whether the bytes have the same order in the parameter and in the file."""
        return not self.transposed and self.width == self.matrix[1]

    @property
    def is_one_span(self) -> bool:
        """Whether the bytes are contiguous in the file, so that they can be mapped."""
        return self.is_flat and self.rows.runs == 1

    def spans(self) -> Iterator[tuple[int, int]]:
        """The byte ranges of the file that a flat piece consists of, in the order of its rows: offset and length."""
        row_bytes = self.matrix[1] * self.item_size
        for run in range(self.rows.runs):
            start = self.rows.start + run * self.rows.step
            yield self.offset + start * row_bytes, self.rows.size * row_bytes

    def stored_runs(self) -> Iterator[tuple[int, int, int]]:
        """The stored rows that a piece which is not flat needs: the first, their number, and the row of the piece (or
        its column if the matrix is transposed) at which they begin."""
        if self.transposed:
            yield self.columns[0], self.width, 0
            return
        for run in range(self.rows.runs):
            yield self.rows.start + run * self.rows.step, self.rows.size, run * self.rows.size

    @property
    def nbytes(self) -> int:
        """The number of bytes to read from the file."""
        rows = self.width if self.transposed else self.rows.total
        return rows * self.matrix[1] * self.item_size


@dataclass(slots=True)
class Parameter:
    """One tensor to be filled: one part of a weight."""

    spec: str  # the weight's name
    part: str
    dtype: str  # torch's name
    width: int | None  # columns; None: a vector
    pieces: list[Piece] = field(default_factory=list)
    rows: int = 0

    @property
    def name(self) -> str:
        return f"{self.spec}.{self.part}"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows,) if self.width is None else (self.rows, self.width)

    @property
    def nbytes(self) -> int:
        return self.rows * (self.width or 1) * BYTES[self.dtype]

    def add(self, piece: Piece) -> None:
        """Append the rows of a piece. A piece that begins in the file where the last one ends is merged with it."""
        self.rows += piece.rows.total
        last = self.pieces[-1] if self.pieces else None
        if last is not None and _follows(piece, last):
            rows = last.rows.total + piece.rows.total
            self.pieces[-1] = last._replace(matrix=(rows, last.matrix[1]), rows=Rows(0, rows))
            return
        self.pieces.append(piece)


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """All parameters, and the weights that `weight_format` assembles from them."""

    specs: list[Spec]
    weight_format: WeightFormat
    dtype: str  # of the model, torch's name
    parameters: list[Parameter]
    skipped: tuple[TensorEntry, ...] = ()  # stored tensors of the other parts of a multimodal model
    predicting: tuple[TensorEntry, ...] = ()  # stored tensors that predict further tokens, which are not read
    cache_scales: tuple[TensorEntry, ...] = ()  # stored scales of a float8 KV cache
    is_tied: bool = False  # whether the embedding is the head (`tied_head`)

    def split(self, belongs: Callable[[Parameter], bool]) -> tuple[LoadPlan, LoadPlan]:
        """The plan of some parameters, and the plan of the others. Both have the weights of the whole plan."""
        parts: tuple[list[Parameter], list[Parameter]] = ([], [])
        for parameter in self.parameters:
            parts[0 if belongs(parameter) else 1].append(parameter)
        return replace(self, parameters=parts[0]), replace(self, parameters=parts[1])

    @property
    def nbytes(self) -> int:
        """The number of bytes to read."""
        return sum(piece.nbytes for parameter in self.parameters for piece in parameter.pieces)

    @property
    def resident_bytes(self) -> int:
        """The bytes of all weights on the device, at most."""
        return sum(self.held(spec).nbytes for spec in self.specs)

    def layouts(self) -> frozenset[str]:
        """The layouts of all linear layers but routers."""
        found = (self.held(spec).layouts for spec in self.specs if not spec.name.endswith("router"))
        return frozenset[str]().union(*found)

    def held(self, spec: Spec) -> Held:
        """How a weight lies on the device."""
        size = BYTES[self.dtype]
        if isinstance(spec, LinearSpec) and spec.is_restored:
            return held.plain(spec, size)
        return self.weight_format.held(spec, size)

    @property
    def files(self) -> set[Path]:
        return {piece.entry.file for parameter in self.parameters for piece in parameter.pieces}

    def in_file_order(self) -> list[tuple[Parameter, Piece]]:
        """Every piece with its parameter, in the order in which the files are read."""
        pairs = [(parameter, piece) for parameter in self.parameters for piece in parameter.pieces]
        return sorted(pairs, key=lambda pair: (pair[1].entry.file, pair[1].offset))


def read_headers(model_dir: Path, load_format: str = "auto") -> dict[str, TensorEntry]:
    """Every tensor of the checkpoint by name. `model_dir`: a directory, or a GGUF file. Raises ModelError."""
    if model_dir.is_file():
        from ember.engine.loading.gguf_tensors import gguf_entries  # few models need it

        return gguf_entries(model_dir)
    entries: dict[str, TensorEntry] = {}
    for file in weight_files(model_dir, load_format):
        if file.suffix == ".safetensors":
            entries.update(read_header(file))
        else:
            from ember.engine.loading.torch_file import read_torch_header  # few models need it

            entries.update(read_torch_header(file))
    return entries


def dummy_entries(config: DecoderConfig) -> dict[str, TensorEntry]:
    """The tensors that a checkpoint of this model has, without a file. Raises ModelError."""
    weight_format, entries, file = format_of(config), {}, Path("dummy")
    for spec in weight_specs(config):
        for source in weight_format.sources(spec):
            shape = tuple(size.extent for size in source.shape)
            entries[source.name] = TensorEntry(source.name, file, 0, 0, source.stored[0], shape)
    return entries


def make_plan(config: DecoderConfig, entries: Mapping[str, TensorEntry], dtype: str) -> LoadPlan:
    """Match the decoder's weights with the checkpoint. `dtype`: the model's, torch's name.

    Raises ModelError that names tensors that are missing, left over, or of another shape or dtype.
    """
    names, architecture = config.names, config.architecture
    skipped: Mapping[str, TensorEntry] = {}
    if config.is_shell:
        entries, skipped = text_entries(entries)
    if config.bidirectional or names.other_base is not None:
        entries = {_newer_name(name, names): entry for name, entry in entries.items()}
    config = replace(config, tie_word_embeddings=is_tied(config, entries))
    # A checkpoint of the bare model, without a head, lacks the first part of the names.
    base = "" if any(name.startswith(f"{names.embed_tokens}.") for name in entries) else names.base
    whole = {base + name: entry for name, entry in entries.items()} if base else entries
    config = _with_known_experts(config, whole)
    check_counts(config, entries, base)
    weight_format = format_of(config, whole)
    unused = (*_BUFFERS, *names.buffers, *weight_format.unused)

    further = tuple(names.layer.format(config.num_layers + layer) for layer in range(config.num_extra_layers))
    further += names.unused
    extra: tuple[str, ...] = ()
    for layer in range(config.num_layers - config.shared_kv_layers, config.num_layers):
        extra += tuple(names.layer.format(layer) + beginning for beginning in names.unused_kv)

    def may_be_unused(name: str) -> bool:
        """Whether a stored tensor is a copy of a tied head, of a pooler (`loading.pooler` reads it), a buffer, of a
        layer that predicts further tokens, or makes keys and values of a layer that reads those of another one."""
        if config.tie_word_embeddings and name.startswith(f"{names.lm_head}."):
            return True
        if config.pooling is not None and name.removeprefix("model.").startswith(POOLER_NAMES):
            return True
        return name.endswith(unused) or name.startswith((*further, *extra)) or is_cache_scale(name)

    plan = plan_specs(weight_specs(config), weight_format, entries, dtype, architecture, base, may_be_unused)
    scales = tuple(replace(entry, name=base + name) for name, entry in entries.items() if is_cache_scale(name))
    return replace(
        plan,
        skipped=tuple(skipped.values()),
        predicting=tuple(
            entry
            for name, entry in entries.items()
            if config.has_head and (name.startswith(further) or (base + name).startswith(further))
        ),
        cache_scales=scales,
        is_tied=config.tie_word_embeddings,
    )


def _newer_name(name: str, names: WeightNames) -> str:
    """The name of an encoder's tensor, of which some checkpoints have another prefix, and those that were converted
    from TensorFlow another end for norms."""
    if names.other_base is not None and name.startswith(names.other_base):
        name = names.base + name.removeprefix(names.other_base)
    for old, newer in _OLDER_NORMS.items():
        if name.endswith(old):
            return name.removesuffix(old) + newer
    return name


def _with_known_experts(config: DecoderConfig, entries: Mapping[str, TensorEntry]) -> DecoderConfig:
    """The configuration where it is known whether experts are stored in stacks, and these transposed. One of the two
    shapes tells it, also where the matrices of the other are square. Any family may have stacks by transformers' own
    names in place of tensors for each expert."""
    names, experts = config.names.experts, config.experts
    if names is None or experts is None:
        return config
    layer = next(layer for layer in range(config.num_layers) if config.has_experts(layer))
    module, _, each = names.down.partition(".{}")
    if each and names.gate is not None and f"{config.names.layer.format(layer)}{module}.gate_up_proj" in entries:
        names = replace(names, gate=None, up=None, gate_up=f"{module}.gate_up_proj", down=f"{module}.down_proj")
        return replace(config, names=replace(config.names, experts=names))
    if names.transposed is not None:
        return config
    if names.apart is not None:
        first = f"{config.names.layer.format(layer)}{names.apart.down.format(0)}."
        if any(name.startswith(first) for name in entries):
            return replace(config, names=replace(config.names, experts=names.apart))
    size, hidden = experts.intermediate_size, config.hidden_size
    plain = {names.gate_up: (2 * size, hidden), names.down: (hidden, size)}
    found = {name: entries.get(config.names.layer.format(layer) + str(name)) for name in plain}
    transposed = any(entry is not None and entry.shape[1:] != plain[name] for name, entry in found.items())
    return replace(config, names=replace(config.names, experts=replace(names, transposed=transposed)))


def plan_specs(
    specs: list[Spec],
    weight_format: WeightFormat,
    entries: Mapping[str, TensorEntry],
    dtype: str,
    architecture: str,
    base: str = "",
    may_be_unused: Callable[[str], bool] = lambda name: False,
) -> LoadPlan:
    """The plan for these weights. `base`: a prefix that the names in `entries` lack. Raises ModelError."""
    parameters: list[Parameter] = []
    missing: list[str] = []
    wrong: dict[str, str] = {}
    used: set[str] = set()
    for spec in specs:
        parts: dict[str, Parameter] = {}
        for source in weight_format.sources(spec):
            entry = entries.get(source.name.removeprefix(base))
            if entry is None:
                missing.append(f"{source.name} {[size.extent for size in source.shape]}")
                continue
            used.add(source.name.removeprefix(base))
            fault = _fault(source, entry, weight_format)
            if fault is not None:
                wrong[entry.name] = fault
                continue
            parameter = parts.get(source.part)
            if parameter is None:
                width = None if source.is_vector else source.columns[1] - source.columns[0]
                parameter = Parameter(spec.name, source.part, source.dtype or dtype, width)
                parts[source.part] = parameter
            parameter.add(_piece(source, entry, parameter.rows))
        parameters += parts.values()
    spare = [_described(entry) for name, entry in entries.items() if name not in used and not may_be_unused(name)]
    if missing:
        lacking = some(list(dict.fromkeys(missing)))
        instead = f", for it has {some(spare)}, which no {architecture} has" if spare else ""
        raise ModelError(f"the checkpoint lacks {lacking}: it is incomplete or not a {architecture}{instead}")
    if wrong:
        raise misfit(weight_format.name, some(list(wrong.values()), "; "))
    if spare:
        raise ModelError(f"the checkpoint has tensors that {architecture} does not know: {some(spare)}")
    return LoadPlan(specs, weight_format, dtype, parameters)


def _fault(source: Source, entry: TensorEntry, weight_format: WeightFormat) -> str | None:
    """What is wrong with a stored tensor, in the terms of config.json; None where nothing is."""
    name, wanted = entry.name, tuple(size.extent for size in source.shape)
    if entry.shape != wanted:
        where = f"{list(entry.shape)} in {entry.file.name}, not {list(wanted)}"
        axes = _AXES.get(len(wanted), ()) if len(entry.shape) == len(wanted) else ()
        for size, found, axis in zip(source.shape, entry.shape, axes, strict=False):
            if size.extent != found:
                return f"{size.says}, but {name} has {found} {axis} (it is {where})"
        return f"{name} is {where}"
    if entry.dtype not in source.stored:
        allowed = f"{', '.join(source.stored[:-1])} or {source.stored[-1]}" if source.stored[1:] else source.stored[0]
        return f"{name} is {entry.dtype} in {entry.file.name}, but {weight_format.name} weights have it as {allowed}"
    return None


def _described(entry: TensorEntry) -> str:
    return f"{entry.name} {list(entry.shape)} in {entry.file.name}"


def _piece(source: Source, entry: TensorEntry, row: int) -> Piece:
    (num_rows, num_columns), rows = source.matrix, source.rows
    offset = entry.offset + source.stack_index * num_rows * num_columns * ITEM_SIZES[entry.dtype]
    if rows.runs == 1 and not source.transposed:  # all rows of a matrix that begins with them
        offset += rows.start * num_columns * ITEM_SIZES[entry.dtype]
        return Piece(entry, offset, (rows.size, num_columns), Rows(0, rows.size), source.columns, False, row)
    return Piece(entry, offset, source.matrix, rows, source.columns, source.transposed, row)


def _follows(piece: Piece, last: Piece) -> bool:
    """Whether both are stretches of one tensor, and `piece` begins where `last` ends."""
    is_same = last.entry is piece.entry and last.is_one_span and piece.is_one_span
    return is_same and last.offset + last.nbytes == piece.offset
