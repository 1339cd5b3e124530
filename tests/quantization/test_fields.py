"""Fields of `quantization_config` with values of any type: the format is made, or a ModelError says why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from ember.engine.description.cache_format import is_float8
from ember.engine.description.config import DecoderConfig
from ember.engine.description.weight_specs import weight_specs
from ember.engine.errors import ModelError
from ember.engine.loading.load import read_model_config
from ember.engine.loading.resolve import resolve_model
from ember.engine.quantization.formats import FORMATS, format_of

LISTS = {name: ["lm_head"] for name in ("modules_to_not_convert", "ignored_layers", "exclude_modules", "ignore")}
INTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32, "actorder": None}
GROUP = {"targets": ["Linear"], "format": None, "input_activations": None, "weights": INTS}
GPTQ = {"bits": 4, "group_size": 32, "desc_act": True, "lm_head": False, "dynamic": {"-:a": {}, "b": {"bits": 8}}}
GPTQ |= {"checkpoint_format": "gptq", "is_marlin_format": False, "modules_in_block_to_quantize": [["a"]]}
ROUND = {"bits": 4, "group_size": 32, "data_type": "int", "packing_format": None, "extra_config": {"a": {"bits": 8}}}
MODELOPT = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "kv_cache_scheme": {}, **LISTS}
FIELDS: dict[str, dict[str, Any]] = {
    "fp8": {"activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128], **LISTS},
    "fbgemm_fp8": LISTS,
    "gptq": GPTQ,
    "awq": {"bits": 4, "group_size": 32, "zero_point": True, "version": "gemm", "backend": "autoawq", **LISTS},
    "auto-round": ROUND,
    "squeezellm": {"wbits": 4},
    "gguf": {"types": {"model.layers.0.mlp.down_proj.weight": "Q4_K"}},
    "compressed-tensors": {
        "format": "pack-quantized",
        "sparsity_config": {},
        "transform_config": {},
        "kv_cache_scheme": None,
        "config_groups": {"group_0": GROUP},
        "ignore": ["lm_head"],
    },
    "modelopt": MODELOPT,
    "modelopt_fp4": {**MODELOPT, "quant_algo": "NVFP4"},
    "modelopt_mixed": {**MODELOPT, "quant_algo": "MIXED_PRECISION"},
    "mxfp4": LISTS,
    "bitsandbytes": {"bnb_4bit_quant_type": "nf4", "load_in_8bit": False, "llm_int8_skip_modules": ["lm_head"]},
}
VALUES: list[Any] = [None, True, 0, -1, 2**70, 1.5, float("nan"), "", "x", "re:(", [], [1], [[]], {}, {"a": {"b": []}}]


@pytest.fixture(scope="module")
def demo() -> DecoderConfig:
    return read_model_config(resolve_model("demo"))


def changed(fields: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The fields with each of the values in each place."""
    for name, value in fields.items():
        yield from ({**fields, name: other} for other in VALUES)
        if isinstance(value, Mapping):
            yield from ({**fields, name: other} for other in changed(value))


def read(config: DecoderConfig, method: str, fields: Mapping[str, Any]) -> None:
    made = replace(config, quantization={"quant_method": method, **fields})
    weight_format = format_of(made)
    for spec in weight_specs(made)[:6]:
        weight_format.sources(spec)
        weight_format.held(spec, 2)
    is_float8("auto", made, "cuda", [])


def test_every_format_has_fields() -> None:
    assert FIELDS.keys() == FORMATS.keys()


@pytest.mark.parametrize("method", FIELDS)
def test_values_of_any_type(method: str, demo: DecoderConfig) -> None:
    read(demo, method, FIELDS[method])
    for fields in changed(FIELDS[method]):
        try:
            read(demo, method, fields)
        except ModelError as error:
            assert "\n" not in str(error)
