"""How a model of pooling tasks makes vectors and classes of hidden states, as data. This module does not import torch.

`PoolingConfig` describes it for encoders and decoders alike. It comes from the files of sentence-transformers, from the
architecture (`...ForSequenceClassification`), and from the settings RUNNER, CONVERT and POOLER_CONFIG, in which the
names and their meaning are vLLM's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from ember.engine.description.fields import Fields, shown
from ember.engine.errors import ModelError
from ember.wire import PoolingTask

PoolingType = Literal["cls", "max", "mean", "mean_sqrt_len", "weighted_mean", "last"]
PoolingActivation = Literal["none", "normalize", "softmax", "sigmoid"]
# What a class of models ends in: tokens; nothing (`...Model`); classes of a text or of each token; a reward; vectors of
# tokens whose late interaction is a score (ColBERT); a weight of each token of the vocabulary (SPLADE).
Kind = Literal[
    "generate",
    "model",
    "sequence_classification",
    "token_classification",
    "reward",
    "process_reward",
    "late_interaction",
    "sparse",
]
Convert = Literal["none", "embed", "classify", "reward"]

DENSE_ACTIVATIONS = {
    "identity": "identity",
    "linear": "identity",
    "tanh": "tanh",
    "relu": "relu",
    "gelu": "gelu",
    "geluactivation": "gelu",
    "sigmoid": "sigmoid",
    "silu": "silu",
}
"""Activations of dense layers by the names of their classes in lower case."""
# The kinds of pooling in the order in which the results of several are joined. Their names are those of POOLER_CONFIG,
# of the files of sentence-transformers and of the field `pooling` of config.json, in lower case without - and _.
_TYPE_NAMES: dict[PoolingType, tuple[str, ...]] = {
    "cls": ("cls", "clstoken"),
    "max": ("max", "maxtokens"),
    "mean": ("mean", "avg", "meantokens"),
    "mean_sqrt_len": ("meansqrtlen", "meansqrtlentokens"),
    "weighted_mean": ("weightedmean", "weightedmeantokens"),
    "last": ("last", "lasttoken"),
}
POOLING_TYPES = tuple(_TYPE_NAMES)
SCORE_NAMES = ("score", "classifier")  # modules of the head of a class that classifies
LATE_NAMES = ("linear", "colbert_linear")  # of the projection of tokens
POOLER_NAMES = ("score.", "classifier.", "cls.output.", "v_head.", "linear.", "colbert_linear.")
"""Beginnings of the names of tensors of such heads."""


def pooling_type(name: str) -> PoolingType | None:
    """The kind of pooling with this name, however it is spelled; None: there is none."""
    plain = name.lower().replace("_", "").replace("-", "")
    return next((kind for kind, names in _TYPE_NAMES.items() if plain in names), None)


@dataclass(frozen=True, slots=True)
class DenseConfig:
    """A linear layer after pooling, and its activation. Its tensors are float32 when it computes."""

    names: tuple[str, ...]  # of the module; the first one that the files have. Its tensors are `weight` and `bias`
    outputs: int | None = None  # None: as many as the stored matrix has rows
    bias: str | None = None  # the tensor of the bias, where it has another name than the module's
    activation: str = "identity"  # of `DENSE_ACTIVATIONS`
    norm: str | None = None  # of a LayerNorm after the activation: the module's name
    norm_eps: float = 1e-5
    directory: str = ""  # of a module of sentence-transformers, in the model's; "": the model's own files
    normalizes_inputs: bool = False  # whether each row is divided by its length before the layer
    is_required: bool = True  # otherwise a checkpoint without it pools hidden states
    is_difference: bool = False  # of the two stored rows, the first less the second: the logit of yes against no


@dataclass(frozen=True, slots=True)
class TokenHead:
    """A head whose rows are those of a language model's head: the scores of tokens such as yes and no."""

    tokens: tuple[str, ...]  # by their text
    is_difference: bool  # one row: that of the second token less that of the first
    ids: tuple[int, ...] = ()  # of the tokens, where files give these instead of the texts

    @property
    def outputs(self) -> int:
        return 1 if self.is_difference else len(self.tokens or self.ids)


@dataclass(frozen=True, slots=True)
class ClassifierHead:
    """How an encoder's class for classification makes classes of hidden states."""

    dense: tuple[DenseConfig, ...]  # the last one has a row for each class
    type: PoolingType = "cls"
    is_for_tokens: bool = False  # whether the class for tokens has these layers too; otherwise it has one


@dataclass(frozen=True, slots=True)
class PoolingConfig:
    """From hidden states to the output: pooling, `dense`, the cut to `dimensions`, the activation."""

    convert: Convert  # what the output is
    types: tuple[PoolingType, ...]  # results of several kinds of pooling are joined
    dense: tuple[DenseConfig, ...] = ()
    token_head: TokenHead | None = None
    activation: PoolingActivation = "none"  # where a request does not say
    labels: tuple[str, ...] = ()
    is_per_token: bool = False  # whether the head is meant for tokens alone
    dimensions: int | None = None  # of embeddings, where a request does not say
    is_matryoshka: bool = False
    matryoshka_dimensions: tuple[int, ...] = ()
    max_length: int | None = None  # longest text in tokens, if not the model's longest context
    includes_prompt: bool = True  # whether the tokens of an instruction before the text are pooled too
    has_token_types: bool = False
    logit_mean: float = 0.0  # subtracted from logits before their activation
    logit_sigma: float = 1.0  # by which they are divided then
    step_tag_id: int | None = None  # only these tokens have an output, of a task of every token
    returned_token_ids: tuple[int, ...] = ()  # only these columns, of a task of every token
    # Whether `dense` is of each token, and the vector has the largest log(1 + relu(x)) (SPLADE, arXiv 2109.10086).
    is_sparse: bool = False
    only_task: PoolingTask | None = None  # of those that the model does; `score` is one of `classify`

    @property
    def tasks(self) -> tuple[PoolingTask, ...]:
        """The tasks that the model does."""
        only = self.only_task
        own = self._own_tasks()
        return (
            own
            if only is None
            else tuple(task for task in own if task == only or (task, only) == ("score", "classify"))
        )

    def _own_tasks(self) -> tuple[PoolingTask, ...]:
        if self.is_sparse:
            return ("embed",)
        if self.convert == "embed":
            return ("token_embed",) if self.is_per_token else ("embed", "token_embed")
        if self.convert == "reward" or self.is_per_token:
            return ("token_classify",)
        return ("classify", "score", "token_classify") if len(self.labels) == 1 else ("classify", "token_classify")

    @property
    def reads_last_token_alone(self) -> bool:
        """Whether the pooled tasks need the last token's hidden states alone, so that a cached prefix serves them."""
        return self.types == ("last",)


class TaskSettings(NamedTuple):
    """The settings of tasks: RUNNER, CONVERT and POOLER_CONFIG."""

    runner: str = "auto"
    convert: str = "auto"
    pooler: Mapping[str, Any] = MappingProxyType({})


@dataclass(slots=True)
class Modules:
    """What the files of sentence-transformers say (`description.sentence_transformers`)."""

    types: tuple[PoolingType, ...] = ()
    dense: tuple[DenseConfig, ...] = ()
    normalizes: bool = False
    includes_prompt: bool = True
    max_length: int | None = None
    is_there: bool = False  # whether modules.json describes an embedding model
    is_sparse: bool = False  # whether they describe a vector of weights of the vocabulary
    token_head: TokenHead | None = None  # of a reranker that compares the scores of tokens
    activation_name: str | None = None  # the class of a reranker's activation
    dimensions: int | None = None  # that embeddings are cut to
    warnings: list[str] = field(default_factory=list)


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
    asked = _Asked(settings.pooler)
    fields = Fields(values)
    if convert == "embed":
        matryoshka = _matryoshka(fields)
        # A model of sentence-transformers that projects tokens and does not pool them is one of PyLate.
        is_sparse = kind == "sparse" or modules.is_sparse
        if is_sparse and not mask_head:
            raise ModelError("sparse vectors are served of BERT, RoBERTa and DistilBERT, and this is another family")
        is_late = kind == "late_interaction" or bool(modules.is_there and modules.dense and not modules.types)
        config = PoolingConfig(
            convert,
            ("max",) if is_sparse else asked.types or modules.types or (default,),
            dense=mask_head if is_sparse else modules.dense or ((DenseConfig(LATE_NAMES),) if is_late else ()),
            activation="none"
            if is_sparse or (modules.is_there and not modules.normalizes and not is_late)
            else "normalize",
            is_per_token=is_late,
            is_sparse=is_sparse,
            dimensions=asked.dimensions or modules.dimensions,
            is_matryoshka=bool(matryoshka or modules.dimensions) or fields.flag("is_matryoshka", False),
            matryoshka_dimensions=matryoshka,
            includes_prompt=modules.includes_prompt,
            max_length=modules.max_length,
            has_token_types=has_token_types,
        )
        if config.dimensions is not None and not config.is_matryoshka:
            raise ModelError(
                f"POOLER_CONFIG: dimensions is {config.dimensions}, but the model has no matryoshka_dimensions: leave "
                'it out, or set HF_OVERRIDES={"is_matryoshka": true}'
            )
        return _as_asked(config, asked)
    if asked.dimensions is not None:
        raise ModelError(f"POOLER_CONFIG: dimensions is of embeddings, and the model serves {convert}: leave it out")
    labels = _labels(fields)
    token_head = _token_head(fields) or (modules.token_head if convert == "classify" else None)
    if token_head is not None:
        labels = labels[:1] if token_head.is_difference else _fitting(labels, token_head.outputs)
    dense: tuple[DenseConfig, ...] = (DenseConfig(SCORE_NAMES, len(labels)),)
    activation = _activation(fields, len(labels), modules.activation_name)
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
    config = PoolingConfig(
        convert,
        asked.types or modules.types or (default,),
        dense=() if token_head is not None else dense,
        token_head=token_head,
        activation=activation,
        labels=labels,
        is_per_token=kind == "token_classification",
        max_length=modules.max_length,
        has_token_types=has_token_types,
        logit_mean=asked.logit_mean,
        logit_sigma=asked.logit_sigma,
        step_tag_id=asked.step_tag_id,
        returned_token_ids=asked.returned_token_ids,
    )
    return _as_asked(config, asked)


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


_METHODS = ("from_2_way_softmax", "no_post_processing")


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


def _as_asked(config: PoolingConfig, asked: _Asked) -> PoolingConfig:
    """The configuration with the one task that POOLER_CONFIG names, and the activation that it turns on or off. Raises
    ModelError."""
    if asked.task is not None:
        own: PoolingTask | None = next((task for task in config.tasks if task == asked.task), None)
        if own is None:
            raise ModelError(
                f"POOLER_CONFIG: task {shown(asked.task)} is not one of the model's: {', '.join(config.tasks)}"
            )
        config = replace(config, only_task=own)
    if asked.use_activation is None:
        return config
    on: PoolingActivation = config.activation
    if on == "none":
        on = "normalize" if config.convert == "embed" else "sigmoid" if len(config.labels) < 2 else "softmax"
    return replace(config, activation=on if asked.use_activation else "none")


_TOKEN_TYPES = ("all", "step")
_TASK_NAMES = ("task", "pooling_task", "pooling_target")  # its names in several versions of vLLM
_FIELDS = (
    *_TASK_NAMES,
    *("pooling_type", "seq_pooling_type", "tok_pooling_type", "normalize", "softmax", "activation", "use_activation"),
    *("dimensions", "logit_bias", "logit_mean", "logit_scale", "logit_sigma", "step_tag_id", "returned_token_ids"),
    *("enable_chunked_processing", "max_embed_len"),
)


class _Asked:
    """The fields of POOLER_CONFIG. Raises ModelError that names a field."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        fields = Fields(values, "POOLER_CONFIG: ")
        if unknown := [name for name in values if name not in _FIELDS]:
            raise ModelError(f"POOLER_CONFIG: {shown(unknown[0])} is not a field of it: it has {', '.join(_FIELDS)}")
        found = [self._type(fields, name) for name in ("pooling_type", "seq_pooling_type")]
        self.types = tuple(dict.fromkeys(each for each in found if each is not None))[:1]
        token_type = (fields.text("tok_pooling_type") or "all").lower()
        if token_type not in _TOKEN_TYPES:
            raise fields.error("tok_pooling_type", "ALL or STEP")
        switches = [values[name] for name in ("use_activation", "normalize", "softmax", "activation") if name in values]
        for name in ("use_activation", "normalize", "softmax", "activation"):
            fields.flag(name, False)
        switches = [switch for switch in switches if switch is not None]
        if len(set(switches)) > 1:
            raise ModelError("POOLER_CONFIG: use_activation and its older names contradict each other: set one of them")
        self.use_activation: bool | None = switches[0] if switches else None
        self.dimensions = fields.optional_integer("dimensions", None)
        tasks = {text for name in _TASK_NAMES if (text := fields.text(name)) is not None}
        if len(tasks) > 1:
            raise ModelError(f"POOLER_CONFIG: {', '.join(_TASK_NAMES)} are names of one field: set one of them")
        self.task = next(iter(tasks), None)
        older, mean = (fields.optional_number(name, None) for name in ("logit_bias", "logit_mean"))
        if older is not None and mean is not None:
            raise ModelError("POOLER_CONFIG: logit_bias is the older name of logit_mean: set one of them")
        self.logit_mean = mean if mean is not None else older or 0.0
        scale, sigma = (fields.optional_number(name, None, above=0.0) for name in ("logit_scale", "logit_sigma"))
        if scale is not None and sigma is not None:
            raise ModelError("POOLER_CONFIG: logit_scale is the older name of 1 / logit_sigma: set one of them")
        self.logit_sigma = 1.0 / scale if scale is not None else sigma or 1.0
        if fields.flag("enable_chunked_processing", False):
            raise fields.error(
                "enable_chunked_processing", "false: a text longer than the context is not served in pieces"
            )
        if values.get("max_embed_len") is not None:
            raise fields.error("max_embed_len", "absent: it is the longest text of enable_chunked_processing")
        self.step_tag_id = None if values.get("step_tag_id") is None else fields.integer("step_tag_id", at_least=0)
        ids = values.get("returned_token_ids") or []
        if not isinstance(ids, list) or not all(type(item) is int and item >= 0 for item in ids):
            raise fields.error("returned_token_ids", "a list of numbers of columns, from 0 on")
        self.returned_token_ids = tuple(ids)

    @staticmethod
    def _type(fields: Fields, name: str) -> PoolingType | None:
        value = fields.text(name)
        if value is None or (value.lower() in _TOKEN_TYPES and name == "pooling_type"):
            return None
        kind = pooling_type(value)
        if kind is None:
            raise fields.error(name, f"one of {', '.join(POOLING_TYPES).upper()}")
        return kind
