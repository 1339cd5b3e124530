"""How a model of pooling tasks makes vectors and classes of hidden states, as data. This module does not import torch.

`PoolingConfig` describes it for encoders and decoders alike. `read_pooling` makes it, from the files of
sentence-transformers, from the architecture (`...ForSequenceClassification`), and from the settings RUNNER, CONVERT and
POOLER_CONFIG, in which the names and their meaning are vLLM's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

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
    bias: str | None = None  # the tensor of the bias where the module has none
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
