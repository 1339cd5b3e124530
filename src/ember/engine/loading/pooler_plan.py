"""The plan of loading a pooler: which stored tensors are the layers after pooling. torch is not imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from ember import untrusted_json
from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import shown
from ember.engine.description.pooling import DenseConfig, TokenHead
from ember.engine.errors import ModelError
from ember.engine.loading.plan import read_headers
from ember.engine.loading.safetensors_header import TensorEntry
from ember.untrusted_json import UntrustedJsonError

_FLOATS = ("F32", "BF16", "F16")
_MAX_TOKENIZER_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class DensePlan:
    """A layer after pooling."""

    weights: tuple[TensorEntry, ...]  # one after the other
    bias: TensorEntry | None = None
    activation: str = "identity"
    norm: tuple[TensorEntry, TensorEntry | None] | None = None  # weight and bias of a LayerNorm after the activation
    norm_eps: float = 1e-5
    normalizes_inputs: bool = False  # whether each row is divided by its length before the layer
    is_difference: bool = False  # its only row is the second stored one less the first

    @property
    def outputs(self) -> int:
        return 1 if self.is_difference else sum(entry.shape[0] for entry in self.weights)

    @property
    def num_parameters(self) -> int:
        stored = (*self.weights, self.bias, *(self.norm or ()))
        return sum(prod(entry.shape) for entry in stored if entry is not None)


@dataclass(frozen=True, slots=True)
class PoolerPlan:
    """The layers of a pooler in their order, and the width of its outputs."""

    layers: tuple[DensePlan, ...]
    outputs: int


def pooled_width(config: DecoderConfig) -> int:
    """The width of what pooling gives to the layers after it."""
    assert config.pooling is not None, "the model has pooling"
    width = config.hidden_size if config.embed_dim is None or not config.has_head else config.embed_dim
    return width * len(config.pooling.types)


def plan_pooler(
    model_dir: Path, tokenizer_dir: Path, config: DecoderConfig, entries: Mapping[str, TensorEntry]
) -> PoolerPlan:
    """The plan of a model's pooler. `entries`: the tensors of the model. Raises ModelError that names what the files
    lack."""
    pooling, width = config.pooling, pooled_width(config)
    assert pooling is not None, "the model has pooling"
    layers = []
    if pooling.token_head is not None:
        layers.append(_token_layer(pooling.token_head, config, entries, model_dir, tokenizer_dir))
        width = layers[-1].outputs
    for each in pooling.dense:
        own = entries if not each.directory else _module_entries(model_dir / each.directory)
        found = _layer(each, own, model_dir / each.directory, width, config.architecture)
        if found is not None:
            layers.append(found)
            width = found.outputs
    return PoolerPlan(tuple(layers), width)


def _layer(
    config: DenseConfig, entries: Mapping[str, TensorEntry], place: Path, inputs: int, architecture: str
) -> DensePlan | None:
    """A layer; None: the files have none, and it is not required."""
    stems = [f"{prefix}{name}" for name in config.names for prefix in ("", "model.")]
    stem = next((stem for stem in stems if f"{stem}.weight" in entries), None)
    if stem is None:
        if not config.is_required:
            return None
        wanted = " or ".join(f"{name}.weight" for name in config.names)
        advice = ""
        if "score" in config.names:
            advice = (
                ": its head is missing. To make one of tokens, name them in HF_OVERRIDES: "
                '{"method": "no_post_processing", "classifier_from_token": ["yes", "no"]}'
            )
        raise ModelError(f"{place} has no {wanted} for {architecture}{advice}")
    weight, bias = entries[f"{stem}.weight"], entries.get(f"{stem}.bias") or entries.get(config.bias or "")
    outputs = weight.shape[0] if config.outputs is None else config.outputs
    norm, norm_bias = (entries.get(f"{config.norm}.{part}") for part in ("weight", "bias"))
    if norm is None and config.norm is not None:
        raise ModelError(f"{place} has no {config.norm}.weight for {architecture}")
    shapes = ((weight, (outputs, inputs)), (bias, (outputs,)), (norm, (outputs,)), (norm_bias, (outputs,)))
    for entry, shape in shapes:
        if entry is not None and (entry.shape != shape or entry.dtype not in _FLOATS):
            raise ModelError(
                f"{entry.name} is {entry.dtype} {list(entry.shape)} in {entry.file.name}, not {list(shape)} of floats: "
                f"{_sizes(config, place)} does not fit the weight files"
            )
    if config.is_difference:
        return DensePlan((_row(weight, 1), _row(weight, 0)), is_difference=True)
    of_norm = None if norm is None else (norm, norm_bias)
    return DensePlan((weight,), bias, config.activation, of_norm, config.norm_eps, config.normalizes_inputs)


def _sizes(config: DenseConfig, place: Path) -> str:
    """The fields that demand a layer's sizes."""
    if config.directory:
        return f"out_features in {place / 'config.json'}, or the width of what is before it,"
    if config.outputs is None or {"score.2", "v_head"} & set(config.names):  # a reward's number is the class's
        return "config.json"
    return f"the number of classes ({config.outputs}, num_labels or id2label in config.json)"


def _module_entries(directory: Path) -> Mapping[str, TensorEntry]:
    """The tensors of a module of sentence-transformers, which has files of its own."""
    try:
        return read_headers(directory)
    except ModelError as error:
        raise ModelError(f"the module Dense of sentence-transformers: {error}") from None


def _token_layer(
    head: TokenHead,
    config: DecoderConfig,
    entries: Mapping[str, TensorEntry],
    model_dir: Path,
    tokenizer_dir: Path,
) -> DensePlan:
    """The head that the rows of some tokens make in the head of the language model, or in its embedding."""
    names = config.names
    whole = [f"{names.lm_head}.weight", f"{names.embed_tokens}.weight"]
    candidates = [*whole, *(name.removeprefix(names.base) for name in whole)]
    entry = next((entries[name] for name in candidates if name in entries), None)
    if entry is None or entry.dtype not in _FLOATS:
        raise ModelError(
            f"the head of tokens needs the head of the language model as plain numbers, and {model_dir} has none"
        )
    numbers = list(head.ids) or token_ids(tokenizer_dir, head.tokens)
    rows = []
    for token, number in zip(head.tokens or head.ids, numbers, strict=True):
        if number >= entry.shape[0]:
            raise ModelError(f"the head of tokens: {shown(token)} has id {number}, beyond the {entry.shape[0]} rows")
        rows.append(_row(entry, number))
    return DensePlan(tuple(rows), is_difference=head.is_difference)


def _row(entry: TensorEntry, number: int) -> TensorEntry:
    """One row of a stored matrix."""
    size = entry.nbytes // entry.shape[0]
    return replace(
        entry, name=f"{number}", offset=entry.offset + number * size, nbytes=size, shape=(1, *entry.shape[1:])
    )


def token_ids(tokenizer_dir: Path, tokens: Iterable[str]) -> list[int]:
    """The ids of tokens by their text in tokenizer.json. Raises ModelError for those that it lacks."""
    path = tokenizer_dir / "tokenizer.json"
    try:
        values = untrusted_json.read_file(path, _MAX_TOKENIZER_BYTES)
        vocabulary = values["model"]["vocab"]
        if isinstance(vocabulary, list):  # Unigram: [text, score] of each id
            vocabulary = {entry[0]: number for number, entry in enumerate(vocabulary)}
        ids = dict(vocabulary) | {entry["content"]: entry["id"] for entry in values.get("added_tokens") or []}
        found = {token: ids[token] for token in tokens if token in ids}
        if not all(type(number) is int and number >= 0 for number in found.values()):
            raise UntrustedJsonError("an id of a token is no number")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"classifier_from_token needs the tokens of {path}, which cannot be read ({reason})") from None
    missing = [token for token in tokens if token not in found]
    if missing:
        raise ModelError(f"classifier_from_token: {shown(missing[0])} is not a token of {path}")
    return [found[token] for token in tokens]
