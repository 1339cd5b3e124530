"""The quantization of a checkpoint as one mapping, wherever its files say it. This module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ember.engine.description.fields import Fields

MODELOPT_FILE = "hf_quant_config.json"  # of ModelOpt, beside a config.json that may say nothing


def quantization_of(fields: Fields, modelopt: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """`quantization_config` of config.json (`compression_config` of older compressed-tensors), or the content of
    ModelOpt's own file, with `quant_method`. None: there is none. Raises ModelError."""
    for name in ("quantization_config", "compression_config"):
        found = fields.mapping(name)
        if found:
            default = {"quant_method": "compressed-tensors"} if name == "compression_config" else {}
            return default | _flat(found)
    return {"quant_method": "modelopt"} | _flat(modelopt) if modelopt else None


def _flat(found: Mapping[str, Any]) -> dict[str, Any]:
    """ModelOpt's own file has the fields one level deeper, under `quantization`."""
    inner = found.get("quantization")
    return {**found, **inner} if isinstance(inner, dict) else dict(found)
