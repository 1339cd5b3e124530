"""AWQ, and AutoRound's names for it and for GPTQ: the weights they stand for, and transformers' answers on those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ember.engine.errors import ModelError
from ember.engine.layers.int_linear import IntLinear
from ember.engine.loading.load import read_model_config
from tests.engine_models.tiny import make_tiny, rewrite_config
from tests.quantization.checkpoints import Store, check_answers, check_weights, is_matrix, twins
from tests.quantization.packing import Array, integers, restore, words
from tests.quantization.test_compressed_int import FORMS, compressed
from tests.quantization.test_compressed_tensors import config as compressed_config
from tests.quantization.test_gptq import SIZES, gptq
from tests.quantization.test_gptq import config as gptq_config

ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # AutoAWQ: nibble i of a word has the output ORDER[i]


def by_output(values: Array) -> Tensor:
    """[rows, outputs] in words of eight outputs in AWQ's order."""
    return words(values.reshape(len(values), -1, 8)[:, :, ORDER].reshape(len(values), -1), 4)


def awq(group: int = 32, symmetric: bool = False) -> Store:
    def store(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        module, inputs = name.removesuffix(".weight"), weight.shape[1]
        size = inputs if group == -1 else group
        whole, zeros, scales = integers(weight, 4, size, symmetric)
        stored = {
            f"{module}.qweight": by_output(whole.T),
            f"{module}.qzeros": by_output(zeros.T),
            f"{module}.scales": torch.from_numpy(scales.T.copy()),
        }
        return stored, restore(whole, zeros, scales, np.arange(inputs) // size)

    return store


def gemv(group: int) -> Store:
    def store(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        module, inputs = name.removesuffix(".weight"), weight.shape[1]
        whole, zeros, scales = integers(weight, 4, group, False)
        multiple = {128: 1, 64: 2, 32: 4}[group]
        width = -(-zeros.shape[1] // (8 * multiple)) * multiple  # words
        padding = ((0, 0), (0, 8 * width - zeros.shape[1]))
        stored = {
            f"{module}.qweight": words(whole, 4),
            f"{module}.qzeros": words(np.pad(zeros, padding), 4),
            f"{module}.scales": torch.from_numpy(np.pad(scales, padding)),
        }
        return stored, restore(whole, zeros, scales, np.arange(inputs) // group)

    return store


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": True, "data_type": "int"}
AWQ_PACKED = {"packing_format": "auto_round:auto_awq"}
CASES: dict[str, tuple[str, Store, dict[str, Any], dict[str, Any]]] = {
    "gemm": ("llama", awq(), AWQ, {}),
    "one group": ("llama", awq(-1), {**AWQ, "group_size": -1}, {}),
    "the middle": ("llama", awq(symmetric=True), AWQ, {}),
    "fused": ("phi3", awq(), {**AWQ, "modules_to_not_convert": ["lm_head"]}, {}),
    "experts": ("qwen3_moe", awq(), {**AWQ, "modules_to_not_convert": ["gate"]}, {"moe_intermediate_size": 64}),
    "tied": ("llama_tied", awq(), AWQ, {}),
    "old names": ("llama", awq(64), {"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, {}),
    "gemv 32": ("qwen2", gemv(32), {**AWQ, "version": "gemv"}, {}),
    "gemv 128": ("llama", gemv(128), {**AWQ, "version": "GEMV", "group_size": 128}, {"hidden_size": 128}),
    "auto-round": ("llama", gptq(), ROUND, {}),
    "auto-round of version 2": (
        "llama",
        gptq(version=2, symmetric=False),
        {**ROUND, "packing_format": "auto_round:gptqmodel", "sym": False},
        {},
    ),
    "auto-round as AWQ": ("qwen3_moe", awq(), {**ROUND, **AWQ_PACKED}, {"moe_intermediate_size": 64}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_is_the_weights_it_stands_for(case: str, tmp_path: Path) -> None:
    variant, store, config, sizes = CASES[case]
    quantized, plain = twins(variant, tmp_path, config, store, **SIZES | sizes)
    model = check_weights(quantized, plain)
    assert IntLinear in model.parts.layouts() and model.weight_bytes < 2 * model.num_parameters
    check_answers(quantized, plain)


def test_auto_round_gives_modules_bits_of_their_own(tmp_path: Path) -> None:
    four, eight = gptq(), gptq(bits=8, group=64)

    def store(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        tensors, restored = (eight if "down_proj" in name or "lm_head" in name else four)(name, weight)
        return dict(tensors), restored

    extra = {
        "model.layers.0.self_attn.o_proj": {"bits": 16, "data_type": "float"},
        ".*down_proj$": {"bits": 8, "group_size": 64},
        "lm_head": {"bits": 8, "group_size": 64},
    }
    quantized, plain = twins(
        "llama",
        tmp_path,
        {**ROUND, "extra_config": extra},
        store,
        lambda name: name == "lm_head.weight" or (is_matrix(name) and "layers.0.self_attn.o_proj" not in name),
        **SIZES,
        vocab_size=200,
    )
    model = check_weights(quantized, plain)
    down, head = next(model.parts.blocks[0].mlps()).down, model.parts.head
    assert isinstance(down, IntLinear) and down.bits == 8 and isinstance(head, IntLinear)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({**AWQ, "bits": 8}, "quantization_config.bits must be 4, which is all that AWQ"),
        (
            {**AWQ, "version": "gemv_fast"},
            "quantization_config.version must be one of gemm, gemv, exllama, ipex: no other",
        ),
        ({**AWQ, "backend": "llm-awq"}, "quantization_config.backend must be autoawq: weights of other programs are"),
        ({**AWQ, "version": "gemv", "group_size": 16}, "group_size must be 32, 64 or 128 for version gemv, not 16"),
        ({**ROUND, "bits": 5}, "quantization_config.bits must be 2, 3, 4 or 8, not 5"),
        ({**ROUND, "data_type": "nv_fp"}, "data_type must be int: other numbers are not supported in this format"),
        (
            {**ROUND, "extra_config": {"model.layers.0.mlp.up_proj": {"bits": 8, "data_type": "mx_fp"}}},
            "quantization_config.extra_config.data_type must be int: other numbers",
        ),
        (
            {**ROUND, "packing_format": "auto_round:fp8"},
            "packing_format must be one of auto_round:auto_gptq, auto_round:gptq",
        ),
        ({**ROUND, **AWQ_PACKED, "bits": 8}, "bits must be 4, which is all"),
        ({**ROUND, "extra_config": {"a": 1}}, "extra_config has 1 for 'a': it must be an object"),
        ({**ROUND, "extra_config": {"a(": {}}}, "extra_config has 'a.', which is no regular expression"),
    ],
)
def test_configurations_that_cannot_be_served(config: dict[str, Any], error: str, tmp_path: Path) -> None:
    directory = make_tiny("llama", tmp_path, num_hidden_layers=1)
    rewrite_config(directory, quantization_config=config)
    with pytest.raises(ModelError, match=error):
        read_model_config(directory)


ASYMMETRIC = FORMS["W4A16 with zero points"]
BY_WORDS: dict[str, tuple[Store, dict[str, Any]]] = {
    "gptq": (gptq(symmetric=False), gptq_config(sym=False)),
    "awq": (awq(), AWQ),
    "compressed-tensors": (compressed(*ASYMMETRIC), compressed_config(*ASYMMETRIC, False)),
}


@pytest.mark.parametrize("how", BY_WORDS)
def test_rows_of_a_fused_matrix_may_begin_within_words(how: str, tmp_path: Path) -> None:
    """Qwen3-Next has the rows of each key head together, of which beta and alpha have two."""
    store, quantization = BY_WORDS[how]

    def contiguous(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        stored, restored = store(name, weight)
        return {key: tensor.contiguous() for key, tensor in stored.items()}, restored

    fields = {"linear_num_value_heads": 8, "linear_key_head_dim": 12, "mlp_only_layers": [0, 1, 2, 3]}
    check_weights(*twins("qwen3_next", tmp_path, quantization, contiguous, lambda name: ".in_proj_" in name, **fields))
