"""Reading of how a model of pooling tasks makes its vectors and classes.

It is read from the fields of config.json, from what the files of sentence-transformers say, and from the settings
RUNNER, CONVERT and POOLER_CONFIG. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ember.engine.description.fields import Fields, shown
from ember.engine.description.pooler_setting import PoolerSetting
from ember.engine.description.pooling import (
    LATE_NAMES,
    SCORE_NAMES,
    ClassifierHead,
    Convert,
    DenseConfig,
    Kind,
    Modules,
    PoolingActivation,
    PoolingConfig,
    PoolingType,
    TaskSettings,
    TokenHead,
)
from ember.engine.errors import ModelError

_METHODS = ("from_2_way_softmax", "no_post_processing")


def read_pooling(
    kind: Kind,
    values: Mapping[str, Any],
    settings: TaskSettings,
    modules: Modules,
    *,
    default: PoolingType = "last",
    has_token_types: bool = False,
    head: ClassifierHead | None = None,
    mask_head: tuple[DenseConfig, ...] = (),
) -> PoolingConfig | None:
    """The pooling of a model with these fields of config.json; None: it generates. `kind`: of its class. `default`: the
    pooling of its family where nothing else says it. `head`: of an encoder that classifies. `mask_head`: of one that
    tells masked tokens. Raises ModelError."""
    convert = _convert(kind, settings, modules)
    if convert is None:
        if settings.pooler:
            raise ModelError("POOLER_CONFIG is set, but the model generates: set RUNNER=pooling, or leave it out")
        return None
    asked, fields = PoolerSetting(settings.pooler), Fields(values)
    if convert == "embed":
        config = _embeddings(kind, fields, asked, modules, default, mask_head)
    else:
        config = _classes(kind, convert, fields, asked, modules, default, head)
    return asked.applied_to(replace(config, max_length=modules.max_length, has_token_types=has_token_types))


def _embeddings(
    kind: Kind,
    fields: Fields,
    asked: PoolerSetting,
    modules: Modules,
    default: PoolingType,
    mask_head: tuple[DenseConfig, ...],
) -> PoolingConfig:
    """The pooling of a model that makes vectors of texts or of tokens. Raises ModelError."""
    matryoshka = _matryoshka(fields)
    is_sparse = kind == "sparse" or modules.is_sparse
    if is_sparse and not mask_head:
        raise ModelError("sparse vectors are served of BERT, RoBERTa and DistilBERT, and this is another family")
    # A model of sentence-transformers that projects tokens and does not pool them is one of PyLate.
    is_late = kind == "late_interaction" or bool(modules.is_there and modules.dense and not modules.types)
    is_plain = is_sparse or (modules.is_there and not modules.normalizes and not is_late)
    config = PoolingConfig(
        "embed",
        ("max",) if is_sparse else asked.types or modules.types or (default,),
        dense=mask_head if is_sparse else modules.dense or ((DenseConfig(LATE_NAMES),) if is_late else ()),
        activation="none" if is_plain else "normalize",
        is_per_token=is_late,
        is_sparse=is_sparse,
        dimensions=asked.dimensions or modules.dimensions,
        is_matryoshka=bool(matryoshka or modules.dimensions) or fields.flag("is_matryoshka", False),
        matryoshka_dimensions=matryoshka,
        includes_prompt=modules.includes_prompt,
    )
    if config.dimensions is not None and not config.is_matryoshka:
        raise ModelError(
            f"POOLER_CONFIG: dimensions is {config.dimensions}, but the model has no matryoshka_dimensions: leave "
            'it out, or set HF_OVERRIDES={"is_matryoshka": true}'
        )
    return config


def _classes(
    kind: Kind,
    convert: Convert,
    fields: Fields,
    asked: PoolerSetting,
    modules: Modules,
    default: PoolingType,
    head: ClassifierHead | None,
) -> PoolingConfig:
    """The pooling of a model that makes classes or rewards of texts or of tokens. Raises ModelError."""
    if asked.dimensions is not None:
        raise ModelError(f"POOLER_CONFIG: dimensions is of embeddings, and the model serves {convert}: leave it out")
    labels = _labels(fields)
    token_head = _token_head(fields) or (modules.token_head if convert == "classify" else None)
    if token_head is not None:
        labels = labels[:1] if token_head.is_difference else _fitting(labels, token_head.outputs)
    activation = _activation(fields, len(labels), modules.activation_name)
    dense: tuple[DenseConfig, ...] = (DenseConfig(SCORE_NAMES, len(labels)),)
    if head is not None and convert == "classify":
        default, layers = head.type, head.dense
        if kind == "token_classification" and not head.is_for_tokens:
            layers = (DenseConfig(("classifier",)),)
        dense = (*layers[:-1], replace(layers[-1], outputs=len(labels)))
    if kind == "reward":  # Qwen 2.5's has two layers, InternLM 2's one
        first = DenseConfig(("score.0",), activation="relu", is_required=False)
        dense, activation, labels = (first, DenseConfig(("score.2", "v_head"), 1)), "none", ("LABEL_0",)
    elif kind == "process_reward":
        labels = _fitting(labels, 2)
        dense = (DenseConfig(("score.0",), activation="relu"), DenseConfig(("score.2",), 2))
        activation = "softmax"
    elif convert == "reward":  # of a model without a head the hidden states
        dense, activation = (DenseConfig(("score.2", "v_head", *SCORE_NAMES), is_required=False),), "none"
        labels = ()
    return PoolingConfig(
        convert,
        asked.types or modules.types or (default,),
        dense=() if token_head is not None else dense,
        token_head=token_head,
        activation=activation,
        labels=labels,
        is_per_token=kind == "token_classification",
        logit_mean=asked.logit_mean,
        logit_sigma=asked.logit_sigma,
        step_tag_id=asked.step_tag_id,
        returned_token_ids=asked.returned_token_ids,
    )


def _convert(kind: Kind, settings: TaskSettings, modules: Modules) -> Convert | None:
    """What the model serves; None: it generates. Raises ModelError for settings that contradict each other or its
    class."""
    runner, convert = settings.runner, settings.convert
    of_class: dict[Kind, Convert] = {
        "model": "embed",
        "late_interaction": "embed",
        "sparse": "embed",
        "sequence_classification": "classify",
        "token_classification": "classify",
        "reward": "reward",
        "process_reward": "reward",
    }
    own = of_class.get(kind)
    if runner == "generate":
        if convert not in ("auto", "none"):
            raise ModelError(f"RUNNER=generate and CONVERT={convert} contradict each other: leave one of them at auto")
        if own is not None:
            raise ModelError("RUNNER=generate, but the model's class has no head for tokens: leave RUNNER at auto")
        return None
    if convert in ("embed", "classify", "reward"):
        return convert  # type: ignore[return-value]
    if convert == "none" or own is not None:
        if own is None and runner == "pooling":
            raise ModelError("RUNNER=pooling and CONVERT=none, but the model's class generates: set CONVERT=embed")
        return own
    if modules.token_head is not None:
        return "classify"
    return "embed" if runner == "pooling" or modules.is_there else None


def _matryoshka(fields: Fields) -> tuple[int, ...]:
    value = fields.values.get("matryoshka_dimensions")
    if value is None:
        return ()
    if not isinstance(value, list) or not all(type(item) is int and item > 0 for item in value):
        raise fields.error("matryoshka_dimensions", "a list of positive integers")
    return tuple(sorted(value))


def _labels(fields: Fields) -> tuple[str, ...]:
    """The names of the classes, from `id2label`, or from their number."""
    named = fields.mapping("id2label")
    count = fields.integer("num_labels", len(named) or 2, at_most=1_000_000)
    numbered = {}
    for key, label in named.items():
        if not str(key).isdecimal() or len(str(key)) > 9:  # counts have 7 digits
            raise fields.error("id2label", f"an object from the numbers 0 to {count - 1} to labels")
        numbered[int(key)] = str(label)  # one beyond the classes names none
    return tuple(numbered.get(number, f"LABEL_{number}") for number in range(count))


def _fitting(labels: tuple[str, ...], count: int) -> tuple[str, ...]:
    return labels if len(labels) == count else tuple(f"LABEL_{number}" for number in range(count))


def _token_head(fields: Fields) -> TokenHead | None:
    """The head that classifier_from_token and method describe, vLLM's fields in HF_OVERRIDES or config.json."""
    tokens, method = tuple(fields.names("classifier_from_token")), fields.text("method")
    if fields.flag("is_original_qwen3_reranker", False):
        method = "from_2_way_softmax"
    if not tokens:
        if method is not None and method in _METHODS:
            raise ModelError(f"classifier_from_token is missing, whose tokens {method} makes a head of")
        return None
    if method not in _METHODS:
        raise fields.error("method", f"one of {', '.join(_METHODS)}, as classifier_from_token is set")
    if method == "from_2_way_softmax" and len(tokens) != 2:
        raise fields.error("classifier_from_token", f"a list of two tokens for {method}")
    return TokenHead(tokens, method == "from_2_way_softmax")


def _activation(fields: Fields, num_labels: int, name: object) -> PoolingActivation:
    """The activation of classes, as transformers and sentence-transformers train them. `name`: the class that the newer
    files of sentence-transformers name."""
    problem = fields.text("problem_type")
    by_problem: dict[str, PoolingActivation] = {
        "regression": "none",
        "multi_label_classification": "sigmoid",
        "single_label_classification": "sigmoid" if num_labels < 2 else "softmax",
    }
    if problem:
        if problem not in by_problem:
            raise fields.error("problem_type", f"one of {', '.join(by_problem)}")
        return by_problem[problem]
    name = name or fields.mapping("sentence_transformers").get("activation_fn")
    name = name or fields.text("sbert_ce_default_activation_function")
    if name is None:
        return "sigmoid" if num_labels < 2 else "softmax"
    found = str(name).rpartition(".")[2].lower()
    activations: dict[str, PoolingActivation] = {"identity": "none", "sigmoid": "sigmoid", "softmax": "softmax"}
    if found not in activations:
        raise ModelError(f"the activation {shown(name)} of classes is not supported: Identity, Sigmoid or Softmax are")
    return activations[found]
