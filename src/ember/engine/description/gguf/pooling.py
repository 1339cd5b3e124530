"""What a GGUF file says of pooling: the entry `pooling_type`, and a head of classes. This module does not import torch.

The numbers are llama.cpp's (`llama_pooling_type`). A conversion writes them where the checkpoint has files of
sentence-transformers, so a file with one is of an embedding model, whose vectors llama.cpp divides by their length.
"""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.gguf.architecture import Values
from ember.engine.description.gguf.facts import Facts
from ember.engine.description.pooling import SCORE_NAMES, DenseConfig, Modules, PoolingType
from ember.gguf.header import Array

_NONE, _RANK = 0, 4
_TYPES: dict[int, PoolingType] = {1: "mean", 2: "cls", 3: "last"}
_HEAD = "cls.output"
_YES_NO = ("yes", "no")  # the labels of a model whose score is the probability of the first


def read_modules(facts: Facts) -> Modules:
    """The pooling of an embedding model. Raises ModelError for an unknown kind."""
    kind = facts.integer("pooling_type", _NONE)
    if kind in (_NONE, _RANK):
        return Modules()
    if kind not in _TYPES:
        raise facts.error("pooling_type", "0 (none), 1 (mean), 2 (cls), 3 (last) or 4 (rank)")
    dense = tuple(DenseConfig((name,)) for name in ("dense_2", "dense_3") if f"{name}.weight" in facts.tensors)
    return Modules(types=(_TYPES[kind],), dense=dense, normalizes=True, is_there=True)


def classifier_fields(facts: Facts) -> Values:
    """The classes of a model that ranks, as a config.json names them; empty for other models."""
    head = facts.tensors.get(f"{_HEAD}.weight")
    if facts.integer("pooling_type", _NONE) != _RANK or head is None:
        return {}
    named = facts.metadata.values.get(f"{facts.architecture}.classifier.output_labels")
    labels = named.texts() if isinstance(named, Array) and named.is_texts and named.count == head.shape[0] else []
    return {"num_labels": head.shape[0], "id2label": {str(number): label for number, label in enumerate(labels)}}


def with_head(facts: Facts, config: DecoderConfig) -> DecoderConfig:
    """The configuration with the file's name of the layer that classifies. One of yes and no has one class, yes."""
    pooling = config.pooling
    if (
        pooling is None
        or f"{_HEAD}.weight" not in facts.tensors
        or [each.names for each in pooling.dense] != [SCORE_NAMES]
    ):
        return config
    is_difference = pooling.labels == _YES_NO
    pooling = replace(pooling, dense=(replace(pooling.dense[0], names=(_HEAD,), is_difference=is_difference),))
    if is_difference:
        pooling = replace(pooling, labels=_YES_NO[:1], activation="sigmoid")
    return replace(config, pooling=pooling)
