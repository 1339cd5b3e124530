"""The weight format of a checkpoint, by its config.json. This module does not import torch."""

from __future__ import annotations

from importlib import import_module

from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import shown
from ember.engine.errors import ModelError
from ember.engine.quantization.base import WeightFormat
from ember.engine.quantization.plain import Plain

# `quant_method` of config.json -> the format's class: the module in this room, and the name. Only the module of the
# current format is imported. The class is called with the `DecoderConfig`, whose `quantization` has all the fields.
FORMATS: dict[str, str] = {}


def format_of(config: DecoderConfig) -> WeightFormat:
    """The format that `quantization_config` names, by default plain. Raises ModelError for an unknown one."""
    if not config.quantization:
        return Plain()
    method = str(config.quantization.get("quant_method", "unknown"))
    if method not in FORMATS:
        supported = f"; supported are {', '.join(FORMATS)}" if FORMATS else ""
        raise ModelError(
            f"{shown(method)[1:-1]} quantized weights are not supported{supported}; use the unquantized model"
        )
    module, name = FORMATS[method].split(".")
    made: WeightFormat = getattr(import_module(f"ember.engine.quantization.{module}"), name)(config)
    return made
