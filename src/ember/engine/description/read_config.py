"""Reading of a model's configuration from the files of a Hugging Face directory. This module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ember import untrusted_json
from ember.config_overrides import overridden
from ember.engine.description.config import MAX_POSITIONS, DecoderConfig
from ember.engine.description.families.registry import (
    ARCHITECTURES,
    ENCODERS,
    MODEL_TYPES,
    WHOLE_TEXT,
    find_family,
    with_head,
)
from ember.engine.description.family import Family
from ember.engine.description.fields import Fields, listed, shown
from ember.engine.description.foreign import ForeignClass, find_class, read_foreign
from ember.engine.description.known_fields import HARMLESS, HARMLESS_VALUES, NEUTRAL
from ember.engine.description.operator_sets import check_features
from ember.engine.description.pooling import POOLING_TYPES, Modules, PoolingType, TaskSettings, pooling_type
from ember.engine.description.quantization_config import quantization_of, read_beside
from ember.engine.description.read_pooling import read_pooling
from ember.engine.description.sentence_transformers import read_model_modules
from ember.engine.description.shells import SHELL_TYPES, SHELLS, text_fields
from ember.engine.errors import ModelError
from ember.regular_file import MAX_JSON_BYTES
from ember.untrusted_json import UntrustedJsonError, broken_text


class RunsBy(NamedTuple):
    """Whose code may run a model, and what it is asked for."""

    model_impl: str = "auto"  # ember: Ember's alone; transformers: transformers'; auto: transformers' for other classes
    trust_remote_code: bool = False  # whether code in the model's repository may run
    tasks: TaskSettings = TaskSettings()


ONLY_EMBER = RunsBy("ember")


def load_config(
    model_dir: Path, overrides: Mapping[str, Any] | None = None, runs_by: RunsBy = ONLY_EMBER
) -> DecoderConfig:
    """Read `config.json`, with the fields of HF_OVERRIDES, and the stop tokens of `generation_config.json`. Of a GGUF
    file (`model_dir`), read the metadata. `runs_by`: whose code may run the model.

    Raises ModelError with one line: for a missing or invalid config.json, an unknown architecture or rope type, a
    missing or invalid field, or a feature that no operators compute.
    """
    if model_dir.is_file():
        if runs_by.model_impl == "transformers":
            raise ModelError(f"{model_dir}: MODEL_IMPL=transformers does not read GGUF files; leave it at auto")
        return _load_gguf(model_dir, overrides or {}, runs_by)
    path = model_dir / "config.json"
    values = overridden(read_json(path, required=True), overrides or {})
    if (place := broken_text(values)) is not None:
        raise ModelError(f"{path}: {'.'.join(place) or 'a name'} holds a lone surrogate, which is no text: correct it")
    beside = read_beside(lambda name: read_json(model_dir / name, required=False))
    try:
        config = read_config(values, beside, runs_by)
    except ModelError as error:
        raise ModelError(f"{path}{' with HF_OVERRIDES' if overrides else ''}: {error}") from None
    try:
        modules = Modules() if runs_by.tasks.runner == "generate" else read_model_modules(model_dir)
    except ModelError as error:
        raise ModelError(f"{model_dir}: {error}") from None
    try:
        config = with_pooling(config, values, runs_by.tasks, modules)
    except ModelError as error:
        raise ModelError(f"{path}{' with HF_OVERRIDES' if overrides else ''}: {error}") from None
    source = f"{path}{' with HF_OVERRIDES' if overrides else ''}"
    warnings = [f"{source}: {warning}" for warning in config.warnings]
    path = model_dir / "generation_config.json"
    generation = Fields(read_json(path, required=False))
    try:
        theirs = _token_ids(generation, config.vocab_size or MAX_POSITIONS)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    warnings += [f"{path}: {warning}" for warning in generation.warnings]
    eos_token_ids = list(dict.fromkeys(config.eos_token_ids + theirs))
    config = replace(config, eos_token_ids=eos_token_ids, warnings=tuple(warnings))
    check_features(config)
    return config


def _load_gguf(file: Path, overrides: Mapping[str, Any], runs_by: RunsBy) -> DecoderConfig:
    """Read a GGUF file's metadata as a config.json. Raises ModelError."""
    from ember.engine.description.gguf.common import read_gguf_model
    from ember.engine.description.gguf.pooling import with_head as with_gguf_head
    from ember.gguf.files import read_model
    from ember.gguf.header import GgufError

    try:
        model = read_model(file)
        described = read_gguf_model(model.metadata, model.tensors)
    except GgufError as error:
        raise ModelError(str(error)) from None
    model_class, _ = with_head(described.fields["architectures"][0])
    assert model_class is not None, "a file has an architecture"
    known = {*find_family(model_class).fields, "is_causal", "num_labels", "id2label"}
    values = {name: value for name, value in described.fields.items() if name in known}
    try:
        fields = overridden(values, overrides)
        modules = Modules() if runs_by.tasks.runner == "generate" else described.modules()
        config = with_pooling(described.adapted(read_config(fields)), fields, runs_by.tasks, modules)
        config = with_gguf_head(described.facts, config)
    except ModelError as error:
        raise ModelError(f"{file}{' with HF_OVERRIDES' if overrides else ''}: {error}") from None
    source = f"{file}{' with HF_OVERRIDES' if overrides else ''}"
    config = replace(config, warnings=tuple(f"{source}: {warning}" for warning in config.warnings))
    check_features(config)
    return config


def read_config(
    values: Mapping[str, Any], beside: Mapping[str, Any] = MappingProxyType({}), runs_by: RunsBy = ONLY_EMBER
) -> DecoderConfig:
    """The configuration that the fields of a config.json describe. `beside`: what `read_beside` found. `runs_by`: whose
    code may run the model. Raises ModelError that names a field."""
    fields = Fields(values)
    architecture = text = _architecture(fields, MODEL_TYPES | SHELL_TYPES)
    if runs_by.model_impl == "transformers":
        unknown = f"MODEL_IMPL=transformers, and {_named(fields, architecture)} is not one of Ember's alone"
        return _read_foreign(fields, beside, find_class(fields, architecture, runs_by.trust_remote_code, unknown))
    if architecture in SHELLS:
        fields, text = text_fields(fields, architecture, MODEL_TYPES)
    text, _ = with_head(text)
    if text not in ARCHITECTURES and text not in ENCODERS:
        inner = f", whose language model is {text}," if architecture in SHELLS else ""
        unknown = f"{_named(fields, architecture)}{inner} is not supported"
        if runs_by.model_impl == "ember" or architecture in SHELLS:
            raise ModelError(f"{unknown}; supported are {', '.join(ARCHITECTURES)}")
        unknown += " by Ember's own code (docs/models.md lists its families)"
        return _read_foreign(fields, beside, find_class(fields, architecture, runs_by.trust_remote_code, unknown))
    assert architecture is not None, "it is one of the supported ones"
    family = find_family(text)
    config = family.read(fields)
    if config.experts is not None and config.experts.layers and not any(config.experts.layers):
        config = replace(config, experts=None)
    if not fields.flag("is_causal", True) or WHOLE_TEXT in architecture:
        config = replace(config, bidirectional=True)
    _check_unread(fields, architecture, family)
    own = _token_ids(fields, config.vocab_size)
    dtype, quantization = _dtype(fields), quantization_of(fields, beside)
    return replace(
        config,
        architecture=architecture,
        is_shell=architecture in SHELLS,
        text_architecture=text,
        dtype=dtype,
        quantization=quantization,
        eos_token_ids=own,
        warnings=tuple(fields.warnings),
    )


def with_pooling(
    config: DecoderConfig, values: Mapping[str, Any], settings: TaskSettings, modules: Modules
) -> DecoderConfig:
    """The configuration with what the settings, the class and the files say of pooling. Raises ModelError."""
    _, kind = with_head(config.architecture)
    pooling = read_pooling(
        kind,
        values,
        settings,
        modules,
        default=_default_pooling(config, Fields(values)),
        has_token_types=config.token_types > 1,
        head=config.classifier_head,
        mask_head=config.mask_head,
    )
    if pooling is None and config.bidirectional:
        raise ModelError(
            f"{config.architecture} sees the whole text, and only causal models generate: set RUNNER=pooling"
        )
    if pooling is None:
        return config
    if config.through_transformers:
        raise ModelError(
            f"{config.architecture} runs through transformers, which serves no pooling: set RUNNER=generate"
        )
    # Nothing reads the head for tokens, so that it is not loaded.
    return replace(config, pooling=pooling, tie_word_embeddings=True, head_bias=False)


def _default_pooling(config: DecoderConfig, fields: Fields) -> PoolingType:
    """The pooling of a model whose files have none of sentence-transformers."""
    if WHOLE_TEXT in config.architecture:
        kind = pooling_type(fields.text("pooling") or "avg")
        if kind is None:
            raise fields.error("pooling", f"avg, or one of {', '.join(POOLING_TYPES)}")
        return kind
    return "last" if config.has_head else "cls"


def _named(fields: Fields, architecture: str | None) -> str:
    """The model's class for a message, or its type if no class is named."""
    if not fields.names("architectures"):
        return f"model_type {shown(fields.values.get('model_type'))}"
    return f"architectures: {shown(architecture)[1:-1]}"


def _read_foreign(fields: Fields, beside: Mapping[str, Any], found: ForeignClass) -> DecoderConfig:
    config = read_foreign(fields, found)
    quantization = quantization_of(fields, beside)
    if quantization:
        method = shown(str(quantization.get("quant_method")))[1:-1]
        raise ModelError(f"{found.name} runs through transformers in plain weights, and these are {method} quantized")
    own = _token_ids(fields, config.vocab_size or MAX_POSITIONS)
    return replace(config, dtype=_dtype(fields), eos_token_ids=own, warnings=tuple(fields.warnings))


def read_json(path: Path, *, required: bool) -> dict[str, Any]:
    """A JSON object from a file; {} if it is absent and not required. Raises ModelError."""
    try:
        value = untrusted_json.read_object(path, MAX_JSON_BYTES)
    except UntrustedJsonError as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}): download the file again") from None
    if value is None and required:
        raise ModelError(f"{path} does not exist: {path.parent} is not a model directory")
    return value or {}


def _architecture(fields: Fields, model_types: Mapping[str, str]) -> str | None:
    """The class that saved the weights: by its name, or by the model's type if no class is named."""
    architectures = fields.names("architectures")
    by_type = model_types.get(fields.text("model_type", "") or "")
    if not architectures:
        return by_type
    if by_type is not None and architectures[0] != by_type and architectures[0] in model_types.values():
        named = f"model_type {fields.values['model_type']} is that of {by_type}"
        fields.warnings.append(f"{named}, but architectures names {architectures[0]}, which is what is served")
    return architectures[0]


def _dtype(fields: Fields) -> str:
    dtype = (fields.text("dtype") or fields.text("torch_dtype") or "float32").removeprefix("torch.")
    if dtype not in ("bfloat16", "float16", "float32", "float64", "auto"):
        allowed = "it must be bfloat16, float16, float32, float64 or auto"
        fields.warnings.append(f"dtype {shown(dtype)} is passed over: {allowed}")
    return dtype


def _check_unread(fields: Fields, architecture: str, family: Family) -> None:
    """Warn of the fields that are not read. Raises ModelError for fields that are known to change what is computed."""
    for name, neutral in NEUTRAL.items():
        if name in family.fields:
            continue
        value = fields.values.get(name)
        if value is not None and value not in neutral:
            raise ModelError(f"{name} is {shown(value)}, which is not supported: it must be absent")
    harmless = {name for name, values in HARMLESS_VALUES.items() if fields.values.get(name) in values}
    harmless |= {name for name, values in family.harmless.items() if not values or fields.values.get(name) in values}
    unread = fields.unread(family.fields | HARMLESS | NEUTRAL.keys() | harmless)
    if unread:
        fields.warnings.append(
            f"fields that Ember does not read for {architecture}: {listed(unread)}. Where one of them changes what the "
            "model computes, its answers are not those that it was trained for"
        )


def _token_ids(fields: Fields, vocab_size: int) -> list[int]:
    """The end tokens. Ids beyond the model's vocabulary are left out with a warning. Raises ModelError."""
    value = fields.values.get("eos_token_id")
    items = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(item) is int for item in items):
        raise fields.error("eos_token_id", "a token id or a list of them")
    if wrong := [item for item in items if not 0 <= item < vocab_size]:
        fields.warnings.append(
            f"eos_token_id {shown(wrong)} is out of the vocabulary of {vocab_size} and ends no answer"
        )
    return [item for item in items if 0 <= item < vocab_size]
