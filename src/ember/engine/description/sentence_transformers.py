"""The files of sentence-transformers: modules.json and the configuration of each module. This module does not import
torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from ember import untrusted_json
from ember.engine.description.config import MAX_POSITIONS
from ember.engine.description.fields import Fields, shown
from ember.engine.description.pooling import (
    DENSE_ACTIVATIONS,
    POOLING_TYPES,
    DenseConfig,
    Modules,
    PoolingType,
    TokenHead,
    pooling_type,
)
from ember.engine.errors import ModelError
from ember.regular_file import MAX_JSON_BYTES
from ember.sentence_layout import module_root
from ember.untrusted_json import UntrustedJsonError

Read = Callable[[str], Any]
"""Reads a JSON file of the model by its path; None if it does not exist."""

_MODE = "pooling_mode_"  # the beginning of the flags of older files
_WITH_CONFIG = ("Pooling", "Dense", "LogitScore", "SpladePooling", "MultiVectorMask")
_LENGTH_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)


def reader(model_dir: Path) -> Read:
    """The reader of a directory's files. It raises ModelError."""

    def read(name: str) -> Any:
        path = model_dir / name
        if not path.exists():
            return None
        try:
            return untrusted_json.read_file(path, MAX_JSON_BYTES)
        except (UntrustedJsonError, OSError) as error:
            raise ModelError(f"{path} cannot be read as JSON ({error}): download the file again") from None

    return read


def read_model_modules(model_dir: Path) -> Modules:
    """What the files beside a model, or above it, say of pooling. Raises ModelError."""
    root = module_root(model_dir)
    return read_modules(reader(root), "" if root == model_dir else model_dir.name)


def read_modules(read: Read, own: str = "") -> Modules:
    """What the files say of pooling; of a model without modules.json only the longest text and what
    config_sentence_transformers.json says. `own`: the model's directory, if it is not that of modules.json. Raises
    ModelError."""
    whole = Fields(_whole(read), "config_sentence_transformers.json: ")
    found = Modules(
        max_length=_max_length(read, own),
        activation_name=whole.text("activation_fn"),
        dimensions=whole.optional_integer("truncate_dim", None),
    )
    entries = read("modules.json")
    if entries is None:
        return found
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ModelError("modules.json must be a list of modules")
    found.is_there = True
    if found.max_length is None:
        found.max_length = _tokenizer_length(read, own)
    earlier: list[str] = []
    has_pooling = any(_kind(entry) == "Pooling" for entry in entries)
    for entry in entries:
        kind, path = _kind(entry), _inside(entry.get("path", ""))
        config = read(f"{path}/config.json" if path else "config.json") if kind in _WITH_CONFIG else None
        if kind in _WITH_CONFIG and not isinstance(config, dict):
            raise ModelError(f"{path}/config.json of the module {kind} is missing or is no object")
        fields = Fields(config or {}, f"{path}/config.json: ")
        _check_order(kind, fields, earlier, has_pooling)
        earlier.append(kind)
        if kind == "Pooling":
            found.types = _types(fields)
            found.includes_prompt = fields.flag("include_prompt", True)
        elif kind == "Dense":
            dense = replace(_dense(fields, f"../{path}" if own else path), normalizes_inputs=found.normalizes)
            found.dense, found.normalizes = (*found.dense, dense), False
        elif kind == "Normalize":
            found.normalizes = True
        elif kind == "LogitScore":
            found.token_head, found.is_there = _logit_score(fields), False
        elif kind == "SpladePooling":
            fields.one_of("pooling_strategy", "max", ("max",))
            fields.one_of("activation_function", "relu", ("relu",))
            found.is_sparse = True
        elif kind == "MultiVectorMask":
            for field in ("skiplist_words", "keep_only_token_ids"):
                if fields.values.get(field):
                    raise fields.error(field, "empty: all tokens of a text take part in late interaction")
        elif kind == "Dropout":
            continue
        elif kind not in ("Transformer", "MLMTransformer"):
            known = ", ".join(("Transformer", "MLMTransformer", "Normalize", "Dropout", *_WITH_CONFIG))
            raise ModelError(
                f"modules.json has the module {shown(entry.get('type'))}, which is not supported, as these are: {known}"
            )
        elif path != own:
            raise ModelError(f"modules.json has the model in {shown(path)}, but its files are not there")
    return found


def _kind(entry: Mapping[str, Any]) -> str:
    """The name of a module's class."""
    return str(entry.get("type", "")).rpartition(".")[2]


def _check_order(kind: str, fields: Fields, earlier: Sequence[str], has_pooling: bool) -> None:
    """Raises ModelError for a module whose place among the `earlier` ones is not supported: tokens have no other steps
    before they are pooled, and their vectors are not changed afterwards."""
    if kind in ("Dense", "Normalize") and has_pooling and "Pooling" not in earlier:
        raise ModelError(f"modules.json has the module {kind} before Pooling, which is not supported")
    if kind in ("Pooling", "Transformer") and {kind, "Dense", "Normalize"} & set(earlier):
        raise ModelError(f"modules.json has the module {kind} behind {', '.join(earlier)}, which is not supported")
    if kind == "Dense" and has_pooling:
        for field in ("module_input_name", "module_output_name"):
            fields.one_of(field, "sentence_embedding", ("sentence_embedding",))


def module_directories(read: Read) -> list[str]:
    """The directories of the modules beside the model itself. Raises ModelError."""
    entries = read("modules.json")
    paths = [_inside(entry.get("path", "")) for entry in entries if isinstance(entry, dict)] if entries else []
    return [path for path in paths if path]


def _inside(path: object) -> str:
    """A path of modules.json, which must stay in the model's directory. Raises ModelError."""
    if not isinstance(path, str) or path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise ModelError(f"modules.json has the path {shown(path)}, which is not one in the model's directory")
    return path.strip("/")


def _types(fields: Fields) -> tuple[PoolingType, ...]:
    """The kinds of pooling, in the order in which their results are joined: the file's own, or that of `POOLING_TYPES`
    in older files, which have a flag for each kind. Without any it is the mean."""
    mode = fields.values.get("pooling_mode")
    is_older = mode is None
    if is_older:
        names = [name for name in fields.values if name.startswith(_MODE) and fields.flag(name, False)]
        mode = [name.removeprefix(_MODE) for name in names] or ["mean"]
    modes = mode if isinstance(mode, list) else [mode]
    found = [kind for name in modes if isinstance(name, str) and (kind := pooling_type(name)) is not None]
    if not found or len(found) < len(modes):
        raise fields.error(
            "pooling_mode", f"one or several of {', '.join(POOLING_TYPES)}, or a flag such as {_MODE}cls_token"
        )
    return tuple(kind for kind in POOLING_TYPES if kind in found) if is_older else tuple(found)


def _dense(fields: Fields, path: str) -> DenseConfig:
    name = (fields.text("activation_function") or "torch.nn.modules.activation.Tanh").rpartition(".")[2].lower()
    if name not in DENSE_ACTIVATIONS:
        raise fields.error("activation_function", f"a class named {', '.join(DENSE_ACTIVATIONS)}")
    for field in ("module_input_name", "module_output_name"):
        fields.one_of(field, "sentence_embedding", ("sentence_embedding", "token_embeddings"))
    if fields.flag("use_residual", False):
        raise fields.error("use_residual", "false: a residual is not supported")
    outputs = fields.integer("out_features")
    return DenseConfig(("linear",), outputs, activation=DENSE_ACTIVATIONS[name], directory=path)


def _logit_score(fields: Fields) -> TokenHead:
    """The head of a reranker: the score of one token, from which that of another is subtracted if there is one."""
    fields.one_of("module_input_name", "causal_logits", ("causal_logits",))
    yes = fields.integer("true_token_id", at_least=0)
    if fields.values.get("false_token_id") is None:
        return TokenHead((), is_difference=False, ids=(yes,))
    return TokenHead((), is_difference=True, ids=(fields.integer("false_token_id", at_least=0), yes))


def _whole(read: Read) -> Mapping[str, Any]:
    values = read("config_sentence_transformers.json")
    return values if isinstance(values, dict) else {}


def _max_length(read: Read, own: str) -> int | None:
    """The longest text that the files of the module Transformer allow."""
    for name in _LENGTH_FILES:
        values = read(str(PurePosixPath(own, name)))
        if isinstance(values, Mapping):
            return Fields(values, f"{name}: ").optional_integer("max_seq_length", None)
    return None


def _tokenizer_length(read: Read, own: str) -> int | None:
    """The longest text that the tokenizer's files name, where newer files of sentence-transformers have it. A model
    without such a limit names a number beyond any context."""
    values = read(str(PurePosixPath(own, "tokenizer_config.json")))
    length = values.get("model_max_length") if isinstance(values, dict) else None
    return length if type(length) is int and 0 < length < MAX_POSITIONS else None
