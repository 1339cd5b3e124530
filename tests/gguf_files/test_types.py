"""Models with weights of each type of GGUF: what they compute and answer is what transformers does with the restored
weights in float32."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf import MODEL_ARCH, GGMLQuantizationType, dequantize, quantize
from safetensors.torch import load_file, save_file

from ember.engine.layers.block_linear import BlockLinear
from ember.engine.layers.experts import Experts
from ember.engine.layers.joined import JoinedLinear
from ember.engine.layers.linear import Linear
from ember.engine.layers.mlp import MLP
from ember.engine.loading.load import load_decoder, read_model_config
from ember.engine.models.decoder import Decoder
from ember.gguf.files import read_model
from tests.engine_models.paged import Paged
from tests.engine_models.tiny import VOCAB_SIZE, make_tiny
from tests.gguf_files.convert import Arrays, Case, convert, unpermuted
from tests.gguf_files.files import BLOCK_TYPES, QUANTIZED_BY_PACKAGE
from tests.gguf_files.state_cases import STATE_CASES
from tests.support.gguf_blocks import random_blocks

SIZES: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 64}
LLAMA = Case(MODEL_ARCH.LLAMA, "llama", SIZES, permutes=True)
CPU = torch.device("cpu")
Tensors = Mapping[str, tuple[np.ndarray, str]]


def in_type(array: np.ndarray, type_name: str, seed: int) -> np.ndarray:
    """A matrix quantised by the package; of the types that it only restores, random blocks."""
    if type_name in ("F32", "F16", "BF16", *QUANTIZED_BY_PACKAGE):
        return quantize(array, GGMLQuantizationType[type_name])
    rows = random_blocks(type_name, array.size // array.shape[-1], array.shape[-1], seed).numpy()
    return rows.reshape(*array.shape[:-1], -1)


def restored(tensors: Tensors) -> Arrays:
    return {name: dequantize(array, GGMLQuantizationType[kind]) for name, (array, kind) in tensors.items()}


# The names of a Llama's tensors in GGUF files, and in checkpoints.
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    "attn_output": "self_attn.o_proj",
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}


def checkpoint_of(arrays: Arrays, directory: Path, heads: tuple[int, int]) -> None:
    """Replace the weights of a Llama's checkpoint by those of a GGUF file."""
    found = {}
    for name, array in arrays.items():
        parts = name.split(".")
        prefix = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
        tensor = torch.from_numpy(np.array(array))
        if parts[-2] in ("attn_q", "attn_k"):
            tensor = unpermuted(tensor, heads[parts[-2] == "attn_k"])
        found[f"{prefix}{NAMES[parts[-2]]}.{parts[-1]}"] = tensor.contiguous()
    assert found.keys() == load_file(directory / "model.safetensors").keys()
    save_file(found, directory / "model.safetensors", metadata={"format": "pt"})


def twins(directory: Path, kind_of: Mapping[str, str]) -> tuple[Decoder, torch.nn.Module]:
    """A GGUF file's model, and transformers' with the restored weights. `kind_of`: the types by the middle of the
    tensors' names; "" for all others."""
    checkpoint = make_tiny("llama", directory / "checkpoint", **SIZES)
    written: dict[str, tuple[np.ndarray, str]] = {}

    def change(arrays: Arrays) -> Tensors:
        for seed, (name, array) in enumerate(arrays.items()):
            kind = kind_of.get(name.split(".")[-2], kind_of[""]) if array.ndim > 1 else "F32"
            written[name] = in_type(array, kind, seed), kind
        return written

    file = convert(checkpoint, directory / "model.gguf", LLAMA, change=change)
    checkpoint_of(restored(written), checkpoint, (4, 2))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    return load(file), theirs


def load(file: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    return load_decoder(file, read_model_config(file), dtype=dtype, device=CPU).decoder


@torch.inference_mode()
def assert_same(ours: Decoder, theirs: torch.nn.Module) -> None:
    """The logits of a prompt in pieces, and a greedy answer."""
    torch.manual_seed(5)
    prompt = torch.randint(3, VOCAB_SIZE, (21,))
    answer = theirs.generate(prompt[None], max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0)[0]  # type: ignore[operator]
    wanted = theirs(answer[None]).logits[0]
    paged = Paged(ours, [answer])
    paged.step([(0, 15)])
    paged.step([(0, 6)])
    for _ in range(len(answer) - 21):
        paged.step([(0, 1)])
    (found,) = paged.finish()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())
    assert found[20:-1].argmax(-1).tolist() == answer[21:].tolist()


@pytest.mark.parametrize("type_name", ["F16", "BF16", *BLOCK_TYPES])
def test_a_model_of_each_type(type_name, tmp_path):
    """All matrices, the table of embeddings and the head are of it."""
    ours, theirs = twins(tmp_path, {"": type_name})
    assert ours.parts.layouts() == {BlockLinear if type_name in BLOCK_TYPES else Linear}
    if type_name in BLOCK_TYPES:
        assert isinstance(ours.parts.embedding.tokens, BlockLinear)
        assert all(isinstance(block.attention.qkv, BlockLinear) for block in ours.parts.blocks)
    assert_same(ours, theirs)


def test_query_key_and_value_of_different_types(tmp_path):
    """As in files of the kind Q4_K_M, where values often have more bits."""
    ours, theirs = twins(
        tmp_path, {"": "Q4_0", "attn_v": "Q8_0", "ffn_down": "Q5_1", "ffn_up": "F16", "output": "Q8_0"}
    )
    qkv, up = ours.parts.blocks[0].attention.qkv, ours.parts.blocks[0].mlp.up  # type: ignore[union-attr]
    assert isinstance(qkv, JoinedLinear) and [part.out_features for part in qkv.parts] == [256 + 128, 128]
    assert isinstance(up, JoinedLinear) and [type(part) for part in up.parts] == [BlockLinear, Linear]
    assert_same(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits(dtype, tmp_path):
    """On the operators that torch has for it, the weights are restored in that dtype."""
    twins(tmp_path, {"": "Q4_0"})
    ours, wide = load(tmp_path / "model.gguf", dtype), load(tmp_path / "model.gguf")
    assert ours.dtype == dtype and ours.weight_bytes < wide.num_parameters
    torch.testing.assert_close(ours.parts.head.weight.float(), wide.parts.head.weight, rtol=0.01, atol=1e-4)
    ids = torch.arange(9)
    assert torch.equal(ours.parts.embedding(ids, ids), wide.parts.embedding(ids, ids).to(dtype))


def test_the_matrices_of_latent_attention_in_blocks(tmp_path):
    """The keys' are stored transposed, which the decoder undoes; each kind of matrix has its own type."""
    sizes = {"kv_lora_rank": 64, "qk_nope_head_dim": 32, "attention_bias": False, "rope_parameters": None}
    case = replace(STATE_CASES["deepseek_v3"], fields=sizes)
    checkpoint = make_tiny(case.variant, tmp_path / "checkpoint", **sizes)
    whole = load(convert(checkpoint, tmp_path / "whole.gguf", case))
    types = {"attn_k_b": "Q8_0", "attn_v_b": "Q5_1"}
    kept: dict[str, tuple[np.ndarray, str]] = {}

    def change(arrays: Arrays, restores: bool = False) -> Tensors:
        for name, array in arrays.items():
            kind = types.get(name.split(".")[-2], "F32")
            packed = quantize(array, GGMLQuantizationType[kind])
            kept[name] = (dequantize(packed, GGMLQuantizationType[kind]), "F32") if restores else (packed, kind)
        return kept

    ours = load(convert(checkpoint, tmp_path / "model.gguf", case, change=change))
    wanted = load(convert(checkpoint, tmp_path / "wanted.gguf", case, change=lambda arrays: change(arrays, True)))
    for one, other, exact in zip(ours.parts.blocks, wanted.parts.blocks, whole.parts.blocks, strict=True):
        found, restored_weight = (each.mixer.kv_up.weight for each in (one, other))  # type: ignore[union-attr]
        assert torch.equal(found, restored_weight)
        assert not torch.equal(found, exact.mixer.kv_up.weight)  # type: ignore[union-attr]


def test_experts_stay_in_one_tensor(tmp_path):
    """Each expert is a view of it, also where gate, up and down have different types."""
    case = Case(
        MODEL_ARCH.QWEN3MOE,
        "qwen3_moe",
        {"decoder_sparse_step": 1, "use_sliding_window": False, "hidden_size": 64, "moe_intermediate_size": 64},
        metadata=lambda config: {"expert_feed_forward_length": config["moe_intermediate_size"]},
    )
    checkpoint = make_tiny(case.variant, tmp_path / "checkpoint", **case.fields)
    types = {"ffn_gate_exps": "Q4_0", "ffn_up_exps": "Q4_1", "ffn_down_exps": "Q8_0"}
    written: dict[str, tuple[np.ndarray, str]] = {}

    def change(arrays: Arrays) -> Tensors:
        for seed, (name, array) in enumerate(arrays.items()):
            kind = types.get(name.split(".")[-2], "F32")
            written[name] = in_type(array, kind, seed), kind
        return written

    file = convert(checkpoint, tmp_path / "model.gguf", case, change=change)
    values = restored(written)
    ours = load(file)
    experts = ours.parts.blocks[1].mlp
    assert isinstance(experts, Experts) and len(experts.each) == 6
    for expert, mlp in enumerate(experts.each):
        gate, up = values["blk.1.ffn_gate_exps.weight"][expert], values["blk.1.ffn_up_exps.weight"][expert]
        assert torch.equal(mlp.up.weight, torch.from_numpy(np.concatenate([gate, up])))
        assert torch.equal(mlp.down.weight, torch.from_numpy(values["blk.1.ffn_down_exps.weight"][expert]))
    assert len({mlp.down.rows[0].untyped_storage().data_ptr() for mlp in experts.each}) == 1
    state = {name: torch.from_numpy(np.array(each)) for name, each in values.items()}
    for layer in range(3):
        for part in ("gate", "up", "down"):
            for expert in range(6):
                state[f"blk.{layer}.{part}.{expert}"] = state[f"blk.{layer}.ffn_{part}_exps.weight"][expert]
    stored = load_file(checkpoint / "model.safetensors")
    for name in stored:
        if ".experts." in name:
            _, _, layer, _, _, expert, part, _ = name.split(".")
            stored[name] = state[f"blk.{layer}.{part.removesuffix('_proj')}.{expert}"].contiguous()
    save_file(stored, checkpoint / "model.safetensors", metadata={"format": "pt"})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    assert_same(ours, theirs)


def test_weights_are_used_from_the_mapped_file(tmp_path):
    """Nothing of the blocks is copied: the mapping has all matrices but those that are small."""
    checkpoint = make_tiny("llama", tmp_path / "checkpoint", **SIZES | {"intermediate_size": 8192})
    file = convert(checkpoint, tmp_path / "model.gguf", LLAMA, lambda name, array: "Q8_0")
    loaded = load_decoder(file, read_model_config(file), dtype=torch.float32, device=CPU)
    assert loaded.pages is not None
    for block in loaded.decoder.parts.blocks:
        assert isinstance(block.mlp, MLP)
        assert all(loaded.pages.hold(rows.data_ptr()) for each in (block.mlp.up, block.mlp.down) for rows in each.rows)


def test_the_header_is_freed_when_the_model_is_loaded(tmp_path):
    """A tokenizer's arrays have many megabytes, and the engine needs none of them."""
    checkpoint = make_tiny("llama", tmp_path / "checkpoint", **SIZES)
    file = convert(checkpoint, tmp_path / "model.gguf", LLAMA)
    config = read_model_config(file)
    kept = weakref.ref(read_model(file).metadata)
    assert kept() is not None
    load_decoder(file, config, dtype=torch.float32, device=CPU)
    gc.collect()
    assert kept() is None
