"""GPTQ: checkpoints that numpy packed are the weights they stand for, and answer as transformers on those."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ember.engine.core.chores import settle_weights
from ember.engine.errors import ModelError
from ember.engine.layers.int_linear import IntLinear, pack, unpack
from ember.engine.layers.joined import JoinedLinear
from ember.engine.layers.linear import Linear
from tests.engine_models.tiny import rewrite_config
from tests.quantization.checkpoints import Store, check_answers, check_weights, is_matrix, load, twins
from tests.quantization.packing import integers, restore, words
from tests.quantization.test_fp8 import by_matrix, fp8

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}


def gptq(
    bits: int = 4, group: int = 32, symmetric: bool = True, order: str = "", version: int = 1, transposed: bool = False
) -> Store:
    """`order`: act-order that the modules of one input "share", or that "each" has for itself. `transposed`: plain
    matrices are [in, out]."""

    def store(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        weight = weight.T if transposed else weight
        inputs, module = weight.shape[1], name.removesuffix(".weight")
        size = inputs if group == -1 else group
        groups = np.arange(inputs) // size
        if order:
            seed = crc32(name.encode()) if order == "each" else inputs
            groups = np.random.default_rng(seed).permutation(groups)
        whole, zeros, scales = integers(weight, bits, size, symmetric, groups)
        stored = {
            f"{module}.qweight": words(whole, bits).T,
            f"{module}.qzeros": words((zeros.T - (version == 1)) & (2**bits - 1), bits),
            f"{module}.scales": torch.from_numpy(scales.T.copy()),
            f"{module}.g_idx": torch.from_numpy(groups.astype(np.int32)),
        }
        restored = restore(whole, zeros, scales, groups)
        return stored, restored.T if transposed else restored

    return store


def config(**fields: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True, **fields}


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # the model, how it is quantised, the fields of quantization_config, and those of the model
    "4 bits": ("llama", {}, {}, {}),
    "8 bits": ("llama", {"bits": 8}, {"bits": 8}, {}),
    "2 bits": ("llama", {"bits": 2, "symmetric": False}, {"bits": 2, "sym": False}, {}),
    "2 bits, the middle": ("llama", {"bits": 2}, {"bits": 2}, {}),
    "3 bits": ("llama", {"bits": 3, "symmetric": False}, {"bits": 3, "sym": False}, {}),
    "3 bits, the middle": ("llama", {"bits": 3}, {"bits": 3}, {}),
    "zero points": ("llama", {"symmetric": False}, {"sym": False}, {}),
    "version 2": ("llama", {"symmetric": False, "version": 2}, {"sym": False, "checkpoint_format": "gptq_v2"}, {}),
    "one group": ("llama", {"group": -1}, {"group_size": -1}, {}),
    "act-order": ("llama", {"order": "share", "symmetric": False}, {"desc_act": True, "sym": False}, {}),
    "act-order of each": ("qwen2", {"order": "each"}, {"desc_act": True}, {}),
    "fused": ("phi3", {"order": "share"}, {"desc_act": True}, {}),
    "experts": ("qwen3_moe", {"order": "each"}, {"desc_act": True}, {"moe_intermediate_size": 64}),
    "experts in groups of 16": ("mixtral", {"group": 16}, {"group_size": 16}, {}),
    "tied": ("llama_tied", {}, {}, {}),
    "head": ("llama", {}, {"lm_head": True}, {"vocab_size": 200}),
    "transposed": ("gpt2", {"transposed": True}, {}, {"n_inner": 128, "n_embd": 64, "n_head": 4}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_is_the_weights_it_stands_for(case: str, tmp_path: Path) -> None:
    variant, how, fields, sizes = CASES[case]

    def is_stored(name: str) -> bool:
        if variant == "gpt2":
            return name.endswith(".weight") and ".c_" in name
        return is_matrix(name) or (name == "lm_head.weight" and "lm_head" in fields)

    sizes = ({} if variant == "gpt2" else SIZES) | sizes
    quantized, plain = twins(variant, tmp_path, config(**fields), gptq(**how), is_stored, **sizes)
    model = check_weights(quantized, plain)
    assert IntLinear in model.parts.layouts() and model.weight_bytes < 2 * model.num_parameters
    check_answers(quantized, plain)
    is_joined = isinstance(model.parts.blocks[0].attention.qkv, JoinedLinear)
    assert is_joined == (how.get("order") == "each")


def test_modules_have_bits_of_their_own_or_none(tmp_path: Path) -> None:
    """The first that matches in `dynamic` counts; a plain module among quantised ones; a bias that is not used."""
    eight, four = gptq(bits=8, group=64), gptq()

    def store(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        tensors, restored = (eight if "k_proj" in name or "layers.1.mlp" in name else four)(name, weight)
        module = name.removesuffix(".weight")
        return {**tensors, f"{module}.bias": torch.zeros(len(weight), dtype=torch.float16)}, restored

    dynamic = {
        "-:.*\\.2\\.": {},
        "-:.*o_proj": {},
        "+:.*\\.k_proj": {"bits": 8, "group_size": 64},
        ".*\\.1\\.mlp": {"bits": 8, "group_size": 64},
        ".*mlp": {},
    }
    quantized, plain = twins(
        "llama",
        tmp_path,
        config(dynamic=dynamic),
        store,
        lambda name: is_matrix(name) and "layers.2" not in name and "o_proj" not in name,
        **SIZES,
    )
    model = check_weights(quantized, plain)
    check_answers(quantized, plain)
    first, _, last = model.parts.blocks
    qkv = first.attention.qkv
    assert isinstance(qkv, JoinedLinear) and [type(part) for part in qkv.parts] == [IntLinear] * 3
    assert [part.bits for part in qkv.parts if isinstance(part, IntLinear)] == [4, 8, 4]
    assert type(first.attention.output) is Linear and type(last.attention.qkv) is Linear
    for _ in settle_weights(model, None):
        pass


def test_the_files_decide_which_modules_are_plain(tmp_path: Path) -> None:
    quantized, plain = twins(
        "llama", tmp_path, config(lm_head=True), gptq(), lambda name: is_matrix(name) and "v_proj" not in name, **SIZES
    )
    check_weights(quantized, plain)


@pytest.mark.parametrize("how", ["gptq", "fp8"])
def test_a_quantized_head_is_the_head_whatever_config_json_says(how: str, tmp_path: Path) -> None:
    store = gptq() if how == "gptq" else by_matrix()
    quantization = config(lm_head=True) if how == "gptq" else fp8(scheme="static")
    quantized, plain = twins(
        "llama",
        tmp_path,
        quantization,
        store,
        lambda name: is_matrix(name) or "lm_head" in name,
        **SIZES,
        vocab_size=200,
    )
    rewrite_config(quantized, tie_word_embeddings=True)
    check_weights(quantized, plain)
    check_answers(quantized, plain)


@pytest.mark.parametrize("variant", ["gpt_oss", "granitemoe"])
def test_experts_in_one_tensor_may_be_plain(variant: str, tmp_path: Path) -> None:
    """Experts in stacks stay plain in files of programs that quantise linear layers alone."""
    quantized, plain = twins(
        variant, tmp_path, config(), gptq(), lambda name: ".self_attn." in name and is_matrix(name)
    )
    check_weights(quantized, plain)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"bits": 5}, "quantization_config.bits must be 2, 3, 4 or 8, not 5"),
        ({"bits": "4"}, "quantization_config.bits must be an integer"),
        ({"bits": None}, "the field quantization_config.bits is missing"),
        ({"group_size": 0}, "quantization_config.group_size must be -1 or a positive even number, not 0"),
        (
            {"group_size": 48},
            "bits=4 and group_size=48 does not divide the inputs of model.layers.0.self_attn.q_proj, hid",
        ),
        (
            {"group_size": 16},
            "bits=4 and group_size=16 of hidden_size=64: 4, but model.layers.0.self_attn.q_proj.scales",
        ),
        (
            {"bits": 8},
            "bits=8 and group_size=32 and hidden_size=64: 16, but model.layers.0.self_attn.q_proj.qweight has 8",
        ),
        (
            {"checkpoint_format": "marlin"},
            "checkpoint_format must be one of gptq, gptq_v2: no other is supported, not .mar",
        ),
        ({"is_marlin_format": True}, "is_marlin_format must be false: only checkpoint_format gptq"),
        ({"desc_act": 1}, "quantization_config.desc_act must be true or false"),
        ({"dynamic": {"(": {}}}, r"quantization_config.dynamic has .\(., which is no regular expression"),
        ({"dynamic": {"a": 3}}, "quantization_config.dynamic has 3 for 'a': it must be an object"),
        ({"dynamic": {"a": {"bits": 6}}}, "quantization_config.dynamic.bits must be 2, 3, 4 or 8, not 6"),
        ({}, "q_proj: its g_idx gives inputs to groups in another order .* quantization_config.desc_act says"),
        ({"desc_act": True}, "g_idx does not give each of the 2 groups 32 inputs"),
    ],
)
def test_configurations_that_cannot_be_served(fields: dict[str, Any], error: str, broken: Path, tmp_path: Path) -> None:
    for file in broken.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    rewrite_config(tmp_path, quantization_config=config(**fields))
    with pytest.raises(ModelError, match=error):
        load(tmp_path)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose g_idx is wrong."""
    quantized, _ = twins("llama", tmp_path_factory.mktemp("broken"), config(), gptq(), **SIZES)
    tensors = load_file(quantized / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("g_idx"):
            tensor[0] = 1
    save_file(tensors, quantized / "model.safetensors")
    return quantized


def test_missing_tensors_are_named(broken: Path, tmp_path: Path) -> None:
    for file in broken.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.qweight"], tensors["model.layers.1.self_attn.o_proj.scales"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        ModelError, match=r"lacks model.layers.1.self_attn.o_proj.scales \[4, 64\], .*up_proj.qweight \[8, 128"
    ):
        load(tmp_path)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_are_a_stream_of_bits(bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, (5, 96))
    stored = words(values, bits).view(torch.uint8)
    assert torch.equal(unpack(stored, bits), torch.from_numpy(values).byte())
    if bits >= 4:
        assert torch.equal(pack(unpack(stored, bits), bits), stored)
