"""Published models with few layers, plain and in the layouts of quantised checkpoints, without the weights' memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ember.engine.description.config import DecoderConfig
from ember.engine.description.operator_sets import TRITON
from ember.engine.description.read_config import load_config
from ember.engine.layers.float8_linear import Float8Linear
from ember.engine.layers.int_linear import IntLinear
from ember.engine.layers.linear import Linear
from ember.engine.layers.table_linear import TableLinear
from tests.support.empty_models import Layout


def _fields(architecture: str, hidden: int, intermediate: int, heads: int, kv_heads: int, **others: Any) -> Any:
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "num_hidden_layers": 2}
    return {"architectures": [f"{architecture}ForCausalLM"], **sizes, "max_position_embeddings": 8192, **others}


_QWEN3: dict[str, Any] = {"head_dim": 128, "vocab_size": 151936}
PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama 3.1 8B": _fields("Llama", 4096, 14336, 32, 8, vocab_size=128256),
    "Qwen3 0.6B": _fields("Qwen3", 1024, 3072, 16, 8, **_QWEN3, tie_word_embeddings=True),
    "Qwen3 30B-A3B": _fields(
        *("Qwen3Moe", 2048, 6144, 32, 4),
        **_QWEN3,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        norm_topk_prob=True,
    ),
    "gpt-oss 20B": _fields(
        *("GptOss", 2880, 2880, 64, 8),
        head_dim=64,
        vocab_size=201088,
        num_local_experts=32,
        num_experts_per_tok=4,
    ),
    "Gemma 3 27B": _fields(
        *("Gemma3", 5376, 21504, 32, 16),
        head_dim=128,
        vocab_size=262208,
        query_pre_attn_scalar=168,
        sliding_window=1024,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "Llama 4 Scout": _fields(
        *("Llama4", 5120, 8192, 40, 8),
        head_dim=128,
        vocab_size=202048,
        intermediate_size_mlp=16384,
        num_local_experts=16,
        no_rope_layers=[1, 0],
        attention_chunk_size=1024,
    ),
    "GLM 4.5 Air": _fields(
        *("Glm4Moe", 4096, 10944, 96, 8),
        head_dim=128,
        vocab_size=151552,
        n_routed_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=1408,
        n_shared_experts=1,
        first_k_dense_replace=1,
        attention_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
    ),
    "Mixtral 8x7B": _fields(
        *("Mixtral", 4096, 14336, 32, 8), vocab_size=32000, num_local_experts=8, num_experts_per_tok=2
    ),
    "Qwen3.5 0.8B": _fields(
        *("Qwen3_5", 1024, 3584, 8, 2),
        head_dim=256,
        vocab_size=248320,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=16,
        linear_num_value_heads=16,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        linear_conv_kernel_dim=4,
        tie_word_embeddings=True,
    ),
    "Qwen3-Next 80B-A3B": _fields(
        *("Qwen3Next", 2048, 5120, 16, 2),
        head_dim=256,
        vocab_size=151936,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=16,
        linear_num_value_heads=32,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        linear_conv_kernel_dim=4,
        num_experts=512,
        num_experts_per_tok=10,
        moe_intermediate_size=512,
        shared_expert_intermediate_size=512,
    ),
    "Mamba 2 2.7B": {
        "architectures": ["Mamba2ForCausalLM"],
        "hidden_size": 2560,
        "num_hidden_layers": 2,
        "vocab_size": 50288,
        "state_size": 128,
        "num_heads": 80,
        "head_dim": 64,
        "expand": 2,
        "n_groups": 1,
        "conv_kernel": 4,
        "tie_word_embeddings": True,
    },
    "Baichuan 2 13B": _fields("Baichuan", 5120, 13696, 40, 40, vocab_size=125696, model_max_length=4096),
}


def _encoder(architecture: str, hidden: int, intermediate: int, heads: int, **others: Any) -> Any:
    sizes = _fields(architecture, hidden, intermediate, heads, heads, vocab_size=30528)
    return {**sizes, "architectures": [architecture], "max_position_embeddings": 512, **others}


_GEMMA: dict[str, Any] = {"head_dim": 256, "vocab_size": 262144, "query_pre_attn_scalar": 256, "sliding_window": 512}
ENCODERS: dict[str, dict[str, Any]] = {
    "all-MiniLM-L6-v2, e5-small, bge-small": _encoder("BertModel", 384, 1536, 12),
    "BERT, bge-base": _encoder("BertModel", 768, 3072, 12),
    "bge-m3, XLM-R large": _encoder("XLMRobertaModel", 1024, 4096, 16, max_position_embeddings=8194),
    "all-mpnet-base-v2": _encoder("MPNetModel", 768, 3072, 12),
    "all-distilroberta-v1": _encoder("RobertaModel", 768, 3072, 12),
    "ELECTRA small": _encoder("ElectraModel", 256, 1024, 4, embedding_size=128),
    "ModernBERT base": _encoder("ModernBertModel", 768, 1152, 12, local_attention=128, global_attn_every_n_layers=2),
    "nomic-embed-text-v1.5": _encoder("NomicBertModel", 768, 3072, 12),
    "gte-multilingual-base": _encoder("NewModel", 768, 3072, 12),
    "EuroBERT 610M": _encoder("EuroBertModel", 1152, 4096, 18, num_key_value_heads=6),
    "EmbeddingGemma 300M": _encoder(
        *("Gemma3TextModel", 768, 1152, 3),
        **_GEMMA,
        num_key_value_heads=1,
        use_bidirectional_attention=True,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "llama-nv-embed 8B": _encoder("LlamaBidirectionalModel", 4096, 14336, 32, num_key_value_heads=8),
}

_codes = partial(torch.empty, dtype=torch.uint8, device="meta")
_floats = partial(torch.empty, device="meta")


def _ints(bits: int, scale: torch.dtype, has_zeros: bool, name: str, rows: int, columns: int) -> Linear:
    scales = _floats(rows, columns // 128, dtype=scale)
    zeros = _codes(scales.shape) if has_zeros else None
    return IntLinear(_codes(rows, columns * bits // 8), scales, bits, torch.bfloat16, zeros)


def _float8(block: tuple[int, int], name: str, rows: int, columns: int) -> Linear:
    height, width = block[0], min(block[1], columns)
    codes = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device="meta")
    scales = _floats(-(-rows // height), -(-columns // width))
    return Float8Linear(codes, scales, (height, width), torch.bfloat16, quantises_inputs=True)


def _table(block: int, scale: torch.dtype, is_e2m1: bool, has_factors: bool, name: str, rows: int, columns: int) -> Any:
    scales, factors = _floats(rows, columns // block, dtype=scale), _floats(rows) if has_factors else None
    return TableLinear(_codes(rows, columns // 2), _floats(16), scales, torch.bfloat16, factors, is_e2m1=is_e2m1)


_MXFP4 = partial(_table, 32, torch.float8_e8m0fnu, True, False)
_GPTQ = partial(_ints, 4, torch.float16, False)
LAYOUTS: dict[str, tuple[str, Callable[..., Linear | None]]] = {
    "GPTQ": ("Llama 3.1 8B", _GPTQ),
    "AWQ": ("Llama 3.1 8B", partial(_ints, 4, torch.float16, True)),
    "compressed int4": ("Llama 3.1 8B", partial(_ints, 4, torch.bfloat16, False)),
    "GPTQ of 8 bits": ("Qwen3 0.6B", partial(_ints, 8, torch.float16, False)),
    "float8 of blocks": ("Qwen3 0.6B", partial(_float8, (128, 128))),
    "float8 of rows": ("Llama 3.1 8B", partial(_float8, (1, 1 << 20))),
    "nf4": ("Llama 3.1 8B", partial(_table, 64, torch.float32, False, False)),
    "nvfp4": ("Llama 3.1 8B", partial(_table, 16, torch.float8_e4m3fn, True, True)),
    "GPTQ of experts": ("Qwen3 30B-A3B", _GPTQ),
    "float8 of experts": ("Qwen3 30B-A3B", partial(_float8, (128, 128))),
    "mxfp4 of experts": ("gpt-oss 20B", lambda name, *sizes: _MXFP4(name, *sizes) if "experts" in name else None),
}


def _in_layers(layout: Callable[..., Linear | None], name: str, rows: int, columns: int) -> Linear | None:
    """The layout of a layer's matrices, without those of routers."""
    return layout(name, rows, columns) if name.startswith("layers.") and "router" not in name else None


def float8_rows() -> Layout:
    """Matrices in float8 with scales of rows, of a checkpoint that is made for inputs in float8."""
    return partial(_in_layers, LAYOUTS["float8 of rows"][1])


def _read(fields: dict[str, Any]) -> DecoderConfig:
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(fields))
        return load_config(Path(directory))


def published_models() -> Iterator[tuple[str, DecoderConfig, torch.dtype, Layout | None]]:
    """Each model, and each layout in one of them, as this project's own operators compute them."""
    read = {}
    for name, fields in PUBLISHED.items():
        read[name] = _read(fields)
        lacking = TRITON.lacking(read[name])
        assert not {"attend", "experts", "gate"} & set(lacking), f"{name}: torch computes {lacking}"
        yield name, read[name], torch.bfloat16, None
    for form, (name, layout) in LAYOUTS.items():
        yield f"{name}, {form}", read[name], torch.bfloat16, partial(_in_layers, layout)


def published_encoders() -> Iterator[tuple[str, DecoderConfig]]:
    """Encoders of which torch computes nothing but matrix products and the embedding."""
    for name, fields in ENCODERS.items():
        config = _read(fields)
        assert not TRITON.lacking(config), f"{name}: torch computes {TRITON.lacking(config)}"
        yield name, config
