"""Whether the KV cache is in float8, by KV_CACHE_DTYPE and by the checkpoint. torch is not imported."""

from __future__ import annotations

from typing import Any

from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import shown
from ember.engine.errors import ModelError


def is_float8(asked: str, config: DecoderConfig, device_type: str, warnings: list[str]) -> bool:
    """Whether the cache is in float8_e4m3fn. `asked`: KV_CACHE_DTYPE.

    auto follows the checkpoint on a GPU. On a CPU, where float8 is no faster, it means the model's dtype.
    """
    if asked != "auto" and config.through_transformers:
        named = f"KV_CACHE_DTYPE={asked} does not fit {config.architecture}"
        raise ModelError(f"{named}, which runs through transformers: leave it at auto")
    if asked != "auto":
        return True
    scheme = _scheme(config.quantization or {})
    if scheme is None or device_type == "cpu":
        return False
    if scheme == "fp8":
        return True
    warnings.append(f"the checkpoint's format of the KV cache, {scheme}, is not supported: the cache is in DTYPE")
    return False


def _scheme(quantization: Any) -> str | None:
    """The format of the KV cache that a checkpoint names: fp8, or a description of another; None if there is none."""
    algorithm = quantization.get("kv_cache_quant_algo")  # of ModelOpt
    if isinstance(algorithm, str):
        return "fp8" if algorithm.upper() == "FP8" else shown(algorithm)
    scheme = quantization.get("kv_cache_scheme")  # of compressed-tensors, and of newer ModelOpt
    if not isinstance(scheme, dict):
        return None
    return "fp8" if (scheme.get("num_bits"), scheme.get("type")) == (8, "float") else shown(scheme)
