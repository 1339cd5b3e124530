"""Checkpoints in float8 (`quant_method` fp8 and fbgemm_fp8).

DeepSeek and Qwen3 have scales of blocks (`weight_block_size`), others one scale for each matrix, FBGEMM one for each
row. No torch is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import shown
from ember.engine.description.weights import Stored
from ember.engine.errors import ModelError
from ember.engine.quantization.base import Files
from ember.engine.quantization.float8 import UNUSED, float8_of, is_float8
from ember.engine.quantization.ignored import Ignored
from ember.engine.quantization.mixed import Mixed

_LISTS = ("modules_to_not_convert", "ignored_layers")


def fp8(config: DecoderConfig, files: Files) -> Mixed:
    """`quant_method` fp8. Raises ModelError for fields that say something else than this module reads."""
    fields = config.quantization or {}
    scheme, form = fields.get("activation_scheme", "dynamic"), fields.get("fmt", "e4m3")
    if scheme not in ("dynamic", "static"):
        raise ModelError(f"quantization_config.activation_scheme is {shown(scheme)}: it must be dynamic or static")
    if form not in ("e4m3", "float8_e4m3fn"):
        raise ModelError(f"quantization_config.fmt is {shown(form)}: float8 weights must be e4m3")
    blocks = fields.get("weight_block_size")
    if blocks is not None and not _is_size(blocks):
        raise ModelError(f"quantization_config.weight_block_size is {shown(blocks)}: it must be two positive numbers")
    return _format("fp8", fields, files, None if blocks is None else (blocks[0], blocks[1]))


def fbgemm_fp8(config: DecoderConfig, files: Files) -> Mixed:
    """`quant_method` fbgemm_fp8: a scale for each row. Inputs are rounded by rows, up to `activation_scale_ub`."""
    return _format("fbgemm_fp8", config.quantization or {}, files, None, by_row=True)


def _format(
    name: str, fields: Mapping[str, Any], files: Files, blocks: tuple[int, int] | None, by_row: bool = False
) -> Mixed:
    ignored = [Ignored(fields.get(field), f"quantization_config.{field}") for field in _LISTS]

    def scheme_of(stored: Stored) -> Any:
        is_quantised = is_float8(stored, files) if files else not any(stored.name in each for each in ignored)
        return float8_of(stored, files, blocks, by_row) if is_quantised else None

    return Mixed(name, scheme_of, UNUSED)


def _is_size(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(type(item) is int and item > 0 for item in value)
