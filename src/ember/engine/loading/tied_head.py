"""Whether the token embedding is the head of a checkpoint. This module does not import torch."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ember.engine.description.config import DecoderConfig
from ember.engine.loading.safetensors_header import TensorEntry
from ember.regular_file import open_regular

_FLOATS = ("F16", "BF16", "F32")
_CODES = (".qweight", ".weight_packed")  # of quantised matrices that are not stored as `weight`
_SPANS, _SPAN_BYTES = 16, 4096  # of each tensor that are compared; small tensors are compared whole


def is_tied(config: DecoderConfig, entries: Mapping[str, TensorEntry]) -> bool:
    """Whether the embedding is the head. As in transformers, a head in the files that differs from the embedding holds
    against config.json, and a copy of the embedding is left alone. A quantised head is no copy. Multimodal models need
    no word of config.json."""
    if config.pooling is not None:  # no head for tokens is read
        return True
    head = entries.get(f"{config.names.lm_head}.weight")
    if config.is_shell:
        # The classes of shells disagree on the default of tie_word_embeddings, and config.json may lack it.
        return not any(name.startswith(f"{config.names.lm_head}.") for name in entries)
    name = f"{config.names.embed_tokens}.weight"
    embedding = entries.get(name) or entries.get(name.removeprefix(config.names.base))
    if not config.tie_word_embeddings or embedding is None:
        return config.tie_word_embeddings
    if head is None:
        return not any(f"{config.names.lm_head}{suffix}" in entries for suffix in _CODES)
    if config.quantization and head.dtype not in _FLOATS:
        return False
    return embedding.dtype not in _FLOATS or head.dtype not in _FLOATS or _is_copy(head, embedding)


def _is_copy(one: TensorEntry, other: TensorEntry) -> bool:
    """Whether two tensors are equal, by some spans of their bytes: training changes all rows of a head, and reading two
    large matrices would make the boot slow."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if (one.file, one.offset) == (other.file, other.offset):
        return True
    size = one.nbytes
    if size <= _SPANS * _SPAN_BYTES:
        spans = [(0, size)]
    else:
        step = (size - _SPAN_BYTES) / (_SPANS - 1)
        spans = [(round(number * step), _SPAN_BYTES) for number in range(_SPANS)]
    try:
        first, second = open_regular(one.file), None
        try:
            second = open_regular(other.file)
            return all(
                os.pread(first, length, one.offset + start) == os.pread(second, length, other.offset + start)
                for start, length in spans
            )
        finally:
            os.close(first)
            if second is not None:
                os.close(second)
    except OSError:  # the files are described without being here
        return True
