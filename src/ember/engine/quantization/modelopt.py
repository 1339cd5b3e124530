"""Checkpoints of NVIDIA's ModelOpt: float8 and nvfp4 (`quant_method` modelopt, modelopt_fp4, modelopt_mixed).

Their description is in config.json or in hf_quant_config.json beside it. The files decide how each module is stored.
No torch is imported.
"""

from __future__ import annotations

from typing import Any

from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import shown
from ember.engine.description.weights import Stored
from ember.engine.errors import ModelError
from ember.engine.quantization.base import Files
from ember.engine.quantization.float8 import UNUSED, float8_of, is_float8
from ember.engine.quantization.fp4 import Fp4
from ember.engine.quantization.ignored import Ignored
from ember.engine.quantization.mixed import Mixed, Scheme

_FLOAT8 = ("FP8", "FP8_PB_WO", "FP8_PB_REAL", "FP8_PER_CHANNEL_PER_TOKEN")
_BLOCKS = (128, 128)  # of FP8_PB
ALGORITHMS = (*_FLOAT8, "NVFP4", "W4A16_NVFP4", "MIXED_PRECISION")


def modelopt(config: DecoderConfig, files: Files) -> Mixed:
    """Raises ModelError for an algorithm that is not supported."""
    fields = config.quantization or {}
    algorithm = fields.get("quant_algo")
    if algorithm is None and fields.get("kv_cache_quant_algo") is not None:
        return Mixed("modelopt", lambda stored: None, UNUSED)  # the KV cache alone is quantised
    if not isinstance(algorithm, str) or algorithm.upper() not in ALGORITHMS:
        allowed = ", ".join(ALGORITHMS)
        raise ModelError(
            f"quantization_config.quant_algo is {shown(algorithm)}: of ModelOpt's, {allowed} are supported"
        )
    algorithm = algorithm.upper()
    ignored = [Ignored(fields.get(field), f"quantization_config.{field}") for field in ("exclude_modules", "ignore")]
    nvfp4 = Fp4("nvfp4", ".weight", ".weight_scale", ".weight_scale_2", files=files)
    has_blocks = algorithm.startswith("FP8_PB")
    # Weights of ..._WO are not made for rounded inputs.
    options: dict[str, Any] = {"by_row": algorithm == "FP8_PER_CHANNEL_PER_TOKEN"}
    options |= {"quantises_inputs": algorithm != "FP8_PB_WO"}

    def scheme_of(stored: Stored) -> Scheme | None:
        if files:
            entry = files.get(stored.name + stored.suffix)
            is_quantised = is_float8(stored, files) or (entry is not None and entry.dtype == "U8")
            is_fp4 = entry is not None and entry.dtype == "U8"
        else:
            is_quantised = not any(stored.name in each for each in ignored)
            is_fp4 = algorithm not in _FLOAT8
        if not is_quantised:
            return None
        return nvfp4 if is_fp4 else float8_of(stored, files, _BLOCKS if has_blocks else None, **options)

    return Mixed("modelopt", scheme_of, UNUSED)
