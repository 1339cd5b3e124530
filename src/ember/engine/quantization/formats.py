"""The weight format of a checkpoint, by its config.json and QUANTIZATION. This module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import shown
from ember.engine.errors import ModelError
from ember.engine.quantization.base import Files, WeightFormat
from ember.engine.quantization.plain import Plain

# `quant_method` of config.json -> the format's class: the module in this room, and the name. Only the module of the
# current format is imported. The class is called with the `DecoderConfig`, whose `quantization` has all the fields, and
# with the tensors of the files (`base.Files`).
FORMATS: dict[str, str] = {
    "fp8": "fp8.fp8",
    "fbgemm_fp8": "fp8.fbgemm_fp8",
    "gptq": "gptq.GPTQ",
    "awq": "awq.AWQ",
    "auto-round": "auto_round.AutoRound",
    "squeezellm": "squeezellm.SqueezeLLM",
    "gguf": "gguf.Gguf",
    "compressed-tensors": "compressed_tensors.compressed_tensors",
    "modelopt": "modelopt.modelopt",
    "modelopt_fp4": "modelopt.modelopt",
    "modelopt_mixed": "modelopt.modelopt",
    "mxfp4": "mxfp4.mxfp4",
    "bitsandbytes": "bitsandbytes.bitsandbytes",
}
# Values of QUANTIZATION that quantise a plain checkpoint while it is loaded -> the format's class, as above.
ONLINE: dict[str, str] = {
    "fp8": "online.fp8",
    "bitsandbytes": "online.nf4",
}
# Values of QUANTIZATION that are not themselves a `quant_method` -> those that they allow.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "awq_marlin": ("awq",),
    "gptq_marlin": ("gptq",),
    "gptq_marlin_24": ("gptq",),
    "marlin": ("gptq",),
    "auto_round": ("auto-round",),
    "auto-round": ("auto-round", "gptq", "awq"),
    "inc": ("auto-round",),
    "gptq": ("gptq", "auto-round"),
    "awq": ("awq", "auto-round"),
    "modelopt": ("modelopt", "modelopt_fp4", "modelopt_mixed"),
    "modelopt_fp4": ("modelopt", "modelopt_fp4"),
}


def format_of(config: DecoderConfig, files: Files | None = None) -> WeightFormat:
    """The format of the model's weights, by default plain. Raises ModelError for an unknown one."""
    if not config.quantization:
        return Plain()
    if config.quantization.get("quant_method") is None:
        raise ModelError(f"quantization_config has no quant_method, which must be one of {', '.join(FORMATS)}")
    method = str(config.quantization["quant_method"])
    known = ONLINE if config.quantization.get("is_online") else FORMATS
    if method not in known:
        supported = f"; supported are {', '.join(FORMATS)}" if FORMATS else ""
        raise ModelError(
            f"{shown(method)[1:-1]} quantized weights are not supported{supported}; use the unquantized model"
        )
    module, name = known[method].split(".")
    made: WeightFormat = getattr(import_module(f"ember.engine.quantization.{module}"), name)(config, files or {})
    return made


def with_quantization(config: DecoderConfig, asked: str | None) -> DecoderConfig:
    """The configuration with the quantization that QUANTIZATION (`asked`) says, which config.json must not contradict.

    A plain checkpoint is quantised while it is loaded, if a format can. Raises ModelError.
    """
    if asked is None:
        return config
    if config.quantization:
        method = str(config.quantization.get("quant_method", "not named"))
        if method not in SYNONYMS.get(asked, (asked,)) and method == "gguf":
            raise ModelError(
                f"the model's weights are in a GGUF file, which does not match QUANTIZATION={asked}: leave "
                "QUANTIZATION unset, or choose another model"
            )
        if method not in SYNONYMS.get(asked, (asked,)):
            raise ModelError(
                f"the quantization method of the model's config.json is {shown(method)[1:-1]}, which does not match "
                f"QUANTIZATION={asked}: leave QUANTIZATION unset, or choose another model"
            )
        return config
    if asked not in ONLINE:
        able = f", and QUANTIZATION={' or '.join(ONLINE)} quantises while it loads" if ONLINE else ""
        raise ModelError(
            f"QUANTIZATION={asked}, but the model's config.json has no quantization_config: its weights are not "
            f"quantized. Leave QUANTIZATION unset{able}, or choose a checkpoint in this format"
        )
    quantization: Mapping[str, Any] = {"quant_method": asked, "is_online": True}
    return replace(config, quantization=quantization)
