"""Loading of a pooler: the layers after pooling, from the model's files and from modules of sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ember import untrusted_json
from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import shown
from ember.engine.description.pooling import DenseConfig, PoolingConfig, TokenHead
from ember.engine.errors import ModelError
from ember.engine.layers.pooler import Dense, Pooler
from ember.engine.loading.load import read_tensors
from ember.engine.loading.plan import read_headers
from ember.engine.loading.safetensors_header import TensorEntry
from ember.engine.loading.stored import plan_stored

_FLOATS = ("F32", "BF16", "F16")
_DUMMY_RANGE = 1e-3
_MAX_TOKENIZER_BYTES = 256 << 20


def load_pooler(
    model_dir: Path,
    tokenizer_dir: Path,
    config: DecoderConfig,
    device: torch.device,
    load_format: str = "auto",
) -> Pooler:
    """Read the pooler of a model. Raises ModelError that names what the files lack."""
    pooling = config.pooling
    assert pooling is not None, "the model has pooling"
    width = config.hidden_size if config.embed_dim is None else config.embed_dim
    width *= len(pooling.types)
    if load_format == "dummy":
        return _dummy(pooling, width, device)
    dense = []
    if pooling.token_head is not None or any(not each.directory for each in pooling.dense):
        entries = read_headers(model_dir, load_format)
        if pooling.token_head is not None:
            dense.append(_token_dense(pooling.token_head, config, entries, model_dir, tokenizer_dir, device))
    for each in pooling.dense:
        own = entries if not each.directory else _module_entries(model_dir / each.directory)
        found = _dense(each, own, model_dir / each.directory, width, device, config.architecture)
        if found is not None:
            dense.append(found)
            width = found.outputs
    return Pooler(pooling, dense, width if not dense else dense[-1].outputs, device)


def _dummy(pooling: PoolingConfig, width: int, device: torch.device) -> Pooler:
    dense, generator = [], torch.Generator(device).manual_seed(0)
    layers = pooling.dense or ((DenseConfig(("score",), len(pooling.labels)),) if pooling.token_head else ())
    for each in layers:
        outputs = width if each.outputs is None else each.outputs
        weight = torch.empty(outputs, width, device=device).uniform_(-_DUMMY_RANGE, _DUMMY_RANGE, generator=generator)
        dense.append(Dense(weight, None, each.activation))
        width = outputs
    return Pooler(pooling, dense, width, device)


def _dense(
    config: DenseConfig,
    entries: Mapping[str, TensorEntry],
    place: Path,
    inputs: int,
    device: torch.device,
    architecture: str,
) -> Dense | None:
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
    weight, bias = entries[f"{stem}.weight"], entries.get(f"{stem}.bias")
    outputs = weight.shape[0] if config.outputs is None else config.outputs
    for entry, shape in ((weight, (outputs, inputs)), (bias, (outputs,))):
        if entry is not None and (entry.shape != shape or entry.dtype not in _FLOATS):
            raise ModelError(
                f"{entry.name} is {entry.dtype} {list(entry.shape)} in {entry.file.name}, not {list(shape)} of floats: "
                "config.json does not fit the weight files"
            )
    read = _read([each for each in (weight, bias) if each is not None], device)
    return Dense(read[weight.name], None if bias is None else read[bias.name], config.activation)


def _module_entries(directory: Path) -> Mapping[str, TensorEntry]:
    """The tensors of a module of sentence-transformers, which has files of its own."""
    try:
        return read_headers(directory)
    except ModelError as error:
        raise ModelError(f"the module Dense of sentence-transformers: {error}") from None


def _token_dense(
    head: TokenHead,
    config: DecoderConfig,
    entries: Mapping[str, TensorEntry],
    model_dir: Path,
    tokenizer_dir: Path,
    device: torch.device,
) -> Dense:
    """The head that the rows of some tokens make in the head of the language model, or in its embedding."""
    names = config.names
    whole = [f"{names.lm_head}.weight", f"{names.embed_tokens}.weight"]
    candidates = [*whole, *(name.removeprefix(names.base) for name in whole)]
    entry = next((entries[name] for name in candidates if name in entries), None)
    if entry is None or entry.dtype not in _FLOATS:
        raise ModelError(
            f"classifier_from_token needs the head of the language model as plain numbers, and {model_dir} has none"
        )
    rows = []
    for token, number in zip(head.tokens, token_ids(tokenizer_dir, head.tokens), strict=True):
        if number >= entry.shape[0]:
            raise ModelError(f"classifier_from_token: {shown(token)} has id {number}, beyond the {entry.shape[0]} rows")
        size = entry.nbytes // entry.shape[0]
        offset = entry.offset + number * size
        rows.append(replace(entry, name=f"{number}", offset=offset, nbytes=size, shape=(1, *entry.shape[1:])))
    read = _read(rows, device)
    weight = torch.cat([read[row.name] for row in rows])
    if head.is_difference:
        weight = weight[1:2] - weight[0:1]
    return Dense(weight, None)


def token_ids(tokenizer_dir: Path, tokens: tuple[str, ...]) -> list[int]:
    """The ids of tokens by their text in tokenizer.json. Raises ModelError for those that it lacks."""
    path = tokenizer_dir / "tokenizer.json"
    try:
        values = untrusted_json.read_file(path, _MAX_TOKENIZER_BYTES)
        vocabulary = values["model"]["vocab"]
        if isinstance(vocabulary, list):  # Unigram: [text, score] of each id
            vocabulary = {entry[0]: number for number, entry in enumerate(vocabulary)}
        ids = dict(vocabulary) | {entry["content"]: entry["id"] for entry in values.get("added_tokens", [])}
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"classifier_from_token needs the tokens of {path}, which cannot be read ({reason})") from None
    missing = [token for token in tokens if token not in ids]
    if missing:
        raise ModelError(f"classifier_from_token: {shown(missing[0])} is not a token of {path}")
    return [ids[token] for token in tokens]


def _read(entries: list[TensorEntry], device: torch.device) -> dict[str, Tensor]:
    """Stored tensors by name, as float32 on the device."""
    read = read_tensors(plan_stored({entry.name: entry for entry in entries}, "float32"), device)
    return {entry.name: read.by_name[f"{entry.name}.stored"][0].to(device, torch.float32).clone() for entry in entries}
