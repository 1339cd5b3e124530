"""The quantization of a checkpoint as one mapping, wherever its files say it. This module does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ember.engine.description.fields import Fields

# Files beside a config.json that may say nothing, with the `quant_method` that they describe: ModelOpt's own, and those
# of AutoGPTQ, and of AutoAWQ and SqueezeLLM, from before transformers knew the formats.
_FILES = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq", "quant_config.json": "awq"}


def read_beside(read: Callable[[str], Mapping[str, Any]]) -> Mapping[str, Any]:
    """The quantization that a file beside config.json describes, with `quant_method`; empty if there is none. `read`
    returns the content of a file by its name, empty if it is absent."""
    for name, method in _FILES.items():
        found = _flat(read(name))
        if found:
            squeezed = name == "quant_config.json" and "wbits" in found
            return {"quant_method": "squeezellm" if squeezed else method, **found}
    return {}


def quantization_of(fields: Fields, beside: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """`quantization_config` of config.json (`compression_config` of older compressed-tensors), or what a file `beside`
    it says (`read_beside`). None: there is none. Raises ModelError."""
    for name in ("quantization_config", "compression_config"):
        found = fields.mapping(name)
        if found:
            default = {"quant_method": "compressed-tensors"} if name == "compression_config" else {}
            return _named(default | _flat(found), name)
    return beside or None


def _named(found: dict[str, Any], field: str) -> dict[str, Any]:
    """The same with `quant_method` in small letters, as QUANTIZATION has it. Raises ModelError unless it is text."""
    method = found.get("quant_method")
    if method is not None and not isinstance(method, str):
        raise Fields(found, f"{field}.").error("quant_method", "the name of a format, such as awq")
    return found if method is None else found | {"quant_method": method.lower()}


def _flat(found: Mapping[str, Any]) -> dict[str, Any]:
    """ModelOpt's own file has the fields one level deeper, under `quantization`."""
    inner = found.get("quantization")
    return {**found, **inner} if isinstance(inner, dict) else dict(found)
