"""A KV cache in float8: greedy answers equal those of transformers with keys and values rounded to float8."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ember.engine.core.engine import Engine
from ember.engine.core.runner import Runner
from ember.engine.description.cache_format import is_float8
from ember.engine.errors import ModelError
from ember.wire import Generate
from tests.engine_core.inline import greedy, make_engine, run, tokens
from tests.engine_models.paged import Paged
from tests.engine_models.test_features import neutral
from tests.engine_models.test_parity import load
from tests.engine_models.test_parity import tokens as sequences_of_tokens
from tests.engine_models.tiny import make_tiny
from tests.support.operators import choose_for

NUM_OUTPUT = 12
PROMPTS = [[7, 9, 11], list(range(20, 53)), [5] * 17]
SCALES = [(0.02, 0.5), (1.5, 0.25), (0.75, 1.0)]  # of keys and values of each layer


def rounded(x: Tensor, scale: float) -> Tensor:
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


def expected_answers(directory: Path, scales: list[tuple[float, float]]) -> list[list[int]]:
    """What transformers answers if each layer attends to rounded keys and values."""

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **options: Any) -> Any:
        k, v = scales[module.layer_idx]
        return sdpa_attention_forward(module, query, rounded(key, k), rounded(value, v), mask, **options)

    ALL_ATTENTION_FUNCTIONS["rounded"] = attention
    try:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="sdpa").eval()
        model.config._attn_implementation = "rounded"
        answers = []
        for prompt in PROMPTS:
            ids = torch.tensor([prompt])
            with torch.inference_mode():
                made = model.generate(
                    ids, max_new_tokens=NUM_OUTPUT, do_sample=False, eos_token_id=None, pad_token_id=0, use_cache=False
                )
            answers.append(made[0, len(prompt) :].tolist())
        return answers
    finally:
        del ALL_ATTENTION_FUNCTIONS["rounded"]


def add_scales(directory: Path, names: tuple[str, str], dtype: torch.dtype = torch.float32) -> None:
    """Store the scales in the checkpoint, under names with {} for the layer."""
    file = directory / "model.safetensors"
    weights = load_file(file)
    for layer, pair in enumerate(SCALES):
        for name, scale in zip(names, pair, strict=True):
            weights[name.format(layer)] = torch.tensor(scale, dtype=dtype)
    save_file(weights, file)


def keys_of(engine: Engine) -> Tensor:
    assert isinstance(engine.runner, Runner)
    return engine.runner.cache.keys


def answers(directory: Path, **configure: Any) -> list[list[int]]:
    engine = make_engine(directory, kv_cache_dtype="fp8", **configure)
    assert keys_of(engine).dtype == torch.float8_e4m3fn
    outputs = run(engine, [Generate(i, prompt, greedy(NUM_OUTPUT)) for i, prompt in enumerate(PROMPTS)])
    return [tokens(outputs[i, 0]) for i in range(len(PROMPTS))]


def test_without_scales(tmp_path: Path) -> None:
    directory = make_tiny("llama", tmp_path)
    expected = expected_answers(directory, [(1.0, 1.0)] * 3)
    assert answers(directory) == expected
    assert answers(directory, max_num_batched_tokens=8) == expected  # prompts in chunks, read from the cache


@pytest.mark.parametrize(
    ("names", "dtype"),
    [
        (("model.layers.{}.self_attn.k_scale", "model.layers.{}.self_attn.v_scale"), torch.float32),
        (("model.layers.{}.self_attn.k_proj.k_scale", "model.layers.{}.self_attn.v_proj.v_scale"), torch.bfloat16),
        (("model.layers.{}.self_attn.attn.k_scale", "model.layers.{}.self_attn.attn.v_scale"), torch.float16),
        (
            ("model.layers.{}.self_attn.k_proj.output_scale", "model.layers.{}.self_attn.v_proj.output_scale"),
            torch.float32,
        ),
    ],
)
def test_with_scales_of_the_checkpoint(names: tuple[str, str], dtype: torch.dtype, tmp_path: Path) -> None:
    directory = make_tiny("llama", tmp_path)
    stored = [tuple(float(torch.tensor(scale).to(dtype)) for scale in pair) for pair in SCALES]
    expected = expected_answers(directory, stored)  # type: ignore[arg-type]
    add_scales(directory, names, dtype)
    assert answers(directory) == expected


def test_layers_without_keys_and_values_read_those_of_others_with_their_scales(tmp_path: Path) -> None:
    directory = make_tiny("gemma4_small", tmp_path)
    expected = expected_answers(directory, [*SCALES, SCALES[1], SCALES[1], SCALES[2]])
    add_scales(directory, ("model.layers.{}.self_attn.k_scale", "model.layers.{}.self_attn.v_scale"))
    assert answers(directory) == expected
    assert answers(directory, max_num_batched_tokens=8) == expected


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "F32"), (torch.float16, "F16"), (torch.bfloat16, "BF16")])
def test_a_scale_for_each_head_is_refused_by_name(dtype: torch.dtype, name: str, tmp_path: Path) -> None:
    directory = make_tiny("llama", tmp_path)
    file = directory / "model.safetensors"
    save_file({**load_file(file), "model.layers.1.self_attn.k_scale": torch.ones(2, dtype=dtype)}, file)
    with pytest.raises(ModelError, match=rf"layers\.1\.self_attn\.k_scale in model.safetensors is \[2\] of {name}"):
        make_engine(directory, kv_cache_dtype="fp8_e4m3")
    make_engine(directory)  # a cache in the model's dtype needs no scales


def test_the_cache_holds_more_tokens_in_the_same_memory(tmp_path: Path) -> None:
    directory = make_tiny("llama", tmp_path)
    sizes = {"kv_cache_memory_bytes": 40 * 6144, "max_num_seqs": 64}
    plain, small = (make_engine(directory, kv_cache_dtype=dtype, **sizes) for dtype in ("auto", "fp8"))
    assert small.limits.num_blocks == 4 * plain.limits.num_blocks  # a byte in place of float32's four
    assert keys_of(small).nbytes == keys_of(plain).nbytes


@pytest.mark.parametrize(
    "quantization",
    [
        {"kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor"}},
        {"kv_cache_quant_algo": "FP8"},
    ],
)
def test_auto_follows_the_checkpoint_on_a_gpu_alone(quantization: dict[str, Any]) -> None:
    warnings: list[str] = []
    plain = neutral()
    config = replace(plain, quantization={"quant_method": "any", **quantization})
    assert is_float8("auto", config, "cuda", warnings)
    assert not is_float8("auto", config, "cpu", warnings) and not warnings
    assert not is_float8("auto", plain, "cuda", warnings) and is_float8("fp8", plain, "cpu", warnings)
    other = replace(plain, quantization={"kv_cache_quant_algo": "NVFP4"})
    assert not is_float8("auto", other, "cuda", warnings)
    assert "NVFP4" in warnings[0]


def test_the_c_library_leaves_a_float8_cache_to_torch(tmp_path: Path) -> None:
    model = load(make_tiny("llama", tmp_path), torch.bfloat16)
    Paged(model, sequences_of_tokens((3,)), cache_scales=(1.0, 1.0))
    choice = choose_for(model, "int8")
    assert choice.name == "torch" or "torch computes attend: a KV cache in float8" in choice.reason
