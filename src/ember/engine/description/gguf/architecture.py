"""One value of general.architecture as data. This module does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ember.engine.description.config import DecoderConfig
from ember.engine.description.gguf.facts import Facts

Values = dict[str, Any]  # fields of a config.json


def _nothing(facts: Facts) -> Values:
    return {}


def _unchanged(facts: Facts, config: DecoderConfig) -> DecoderConfig:
    return config


class Architecture(NamedTuple):
    """One value of general.architecture."""

    model: str | Callable[[Facts], str]  # the class of Hugging Face's checkpoint
    interleaved: bool = False  # the pairs of rotary positions are neighbours; if not, the halves of a head
    fields: Callable[[Facts], Values] = _nothing  # the fields beyond the common ones
    names: Mapping[str, Any] = MappingProxyType({})  # names of tensors that differ from the usual
    adapt: Callable[[Facts, DecoderConfig], DecoderConfig] = _unchanged  # what no config.json says
    is_latent: bool = False  # attention is latent: heads are described by their parts
    has_attention: bool = True
    differs: bool = False  # key-value heads and MLPs may have another size in each layer, which `fields` reads
