"""Checkpoints of Hugging Face as GGUF files, as llama.cpp's conversion makes them, with names of the `gguf` package.

What is changed on the way is in `Case`: rows of queries and keys in the order of neighbouring pairs, norms with their
offset, experts in one tensor, fused matrices in the order query, key, value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map
from safetensors.torch import load_file

from tests.gguf_files.files import write_gguf

Config = dict[str, Any]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """How checkpoints of one architecture become GGUF files. `metadata`: entries beyond the common ones."""

    arch: MODEL_ARCH
    variant: str  # of tests/engine_models/tiny.py
    fields: Config = field(default_factory=dict)  # of its configuration
    permutes: bool = False
    norm_offset: float = 0.0
    fused: tuple[str, int] | None = None  # the end of a fused matrix's name, and how many key-value heads it has
    transposed: tuple[str, ...] = ()
    metadata: Callable[[Config], Mapping[str, Any]] = lambda config: {}
    # What is changed beyond that, by the checkpoint's names, to names that the package knows.
    tensors: Callable[[dict[str, torch.Tensor], Config], dict[str, torch.Tensor]] = lambda tensors, config: tensors


def permuted(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of each head with the two halves alternating."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def unpermuted(rows: torch.Tensor, heads: int) -> torch.Tensor:
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def gguf_arrays(directory: Path, case: Case) -> Arrays:
    """The tensors of a checkpoint by their names in GGUF files, in float32."""
    config = json.loads((directory / "config.json").read_text())
    layers = num_layers(config)
    names = get_tensor_name_map(case.arch, layers)
    found: Arrays = {}
    for name, tensor in case.tensors(_stacked(load_file(directory / "model.safetensors")), config).items():
        made = _changed(name, tensor.float(), case, config)
        for source, value in _split_experts(name, made, case).items():
            source = source.replace("e_score_correction_bias", "e_score_correction.bias")
            if case.arch == MODEL_ARCH.BLOOM:
                source = source.removeprefix("transformer.")
            known = names.get_name(source, try_suffixes=(".weight", ".bias", ".scale"))
            assert known is not None, source
            found[known] = np.ascontiguousarray(value.numpy())
    return found


def _stacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The matrices of all experts as one tensor each, where they are apart."""
    found: dict[str, dict[int, torch.Tensor]] = {}
    kept = {}
    for name, tensor in tensors.items():
        if (expert := re.search(r"\.experts\.(\d+)\.", name)) is not None:
            found.setdefault(name.replace(expert[0], ".experts."), {})[int(expert[1])] = tensor
        else:
            kept[name] = tensor
    return kept | {name: torch.stack([each for _, each in sorted(parts.items())]) for name, parts in found.items()}


def _changed(name: str, tensor: torch.Tensor, case: Case, config: Config) -> torch.Tensor:
    if name.endswith("norm.weight"):
        tensor = tensor + case.norm_offset
    if case.permutes and re.search(r"\.[qk]_proj\.", name):
        kv = config.get("num_key_value_heads") or config["num_attention_heads"]
        tensor = permuted(tensor, config["num_attention_heads"] if ".q_proj." in name else kv)
    if case.fused is not None and re.search(rf"{case.fused[0]}\.(weight|bias)$", name):
        groups = case.fused[1]
        head = config["hidden_size"] // config.get("num_attention_heads", config.get("n_head", 0))
        parts = tensor.unflatten(0, (groups, -1, head))
        tensor = torch.cat([each.flatten(0, 2) for each in (parts[:, :-2], parts[:, -2:-1], parts[:, -1:])])
    if name.endswith(case.transposed) and case.transposed:
        tensor = tensor.T
    return tensor


def _split_experts(name: str, tensor: torch.Tensor, case: Case) -> dict[str, torch.Tensor]:
    """gpt-oss's gate and up as two tensors, and Granite's, with the names that the package knows."""
    if case.arch == MODEL_ARCH.GPT_OSS:
        if name.endswith("sinks"):
            return {f"{name}.weight": tensor}
        if "experts.gate_up_proj" in name:
            base, end = name.split(".gate_up_proj")
            tensor = tensor.transpose(-1, -2) if not end else tensor
            both = (tensor[:, ::2], tensor[:, 1::2])
            return {
                f"{base}.{part}_proj.{'bias' if end else 'weight'}": each
                for part, each in zip(("gate", "up"), both, strict=True)
            }
        if "experts.down_proj" in name:
            base, end = name.split(".down_proj")
            return {f"{base}.down_proj.{'bias' if end else 'weight'}": tensor if end else tensor.transpose(-1, -2)}
    return {name: tensor}


def num_layers(config: Config) -> int:
    kinds = config.get("layers_block_type")
    return len(kinds) if kinds else config.get("num_hidden_layers") or config.get("n_layer") or config["n_layers"]


def common_metadata(config: Config, arch: str) -> dict[str, Any]:
    """The entries that every architecture has."""
    heads = config.get("num_attention_heads") or config.get("n_head") or config.get("n_heads") or 0
    hidden = config.get("hidden_size") or config.get("n_embd") or config["d_model"]
    rope: dict[str, Any] = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    found = {
        "block_count": num_layers(config),
        "context_length": config.get("max_position_embeddings") or config.get("n_positions") or 256,
        "embedding_length": hidden,
        "feed_forward_length": config.get("intermediate_size") or config.get("ffn_hidden_size") or 4 * hidden,
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads"),
        "attention.key_length": config.get("head_dim"),
        "attention.value_length": config.get("head_dim"),
        "attention.layer_norm_rms_epsilon": config.get("rms_norm_eps"),
        "attention.layer_norm_epsilon": config.get("layer_norm_eps") or config.get("layer_norm_epsilon"),
        "rope.freq_base": rope.get("rope_theta"),
        "expert_count": config.get("num_local_experts") or config.get("num_experts"),
        "expert_used_count": config.get("num_experts_per_tok"),
    }
    return {f"{arch}.{key}": value for key, value in found.items() if value is not None}


def _activation(directory: Path) -> dict[str, list[float]]:
    """The weights of the activation xielu, one of each kind for every layer."""
    tensors = load_file(directory / "model.safetensors")
    found: dict[str, list[float]] = {f"xielu.{kind}": [] for kind in ("alpha_p", "alpha_n", "beta", "eps")}
    for name in sorted(tensors):
        if ".act_fn." in name:
            found[f"xielu.{name.rpartition('.')[2]}"].append(tensors[name].float().item())
    return found


def convert(
    directory: Path,
    path: Path,
    case: Case,
    kinds: Callable[[str, np.ndarray], str] = lambda name, array: "F32",
    change: Callable[[Arrays], Mapping[str, tuple[np.ndarray, str]]] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write a GGUF file of a checkpoint. `kinds`: the type of each tensor; vectors stay in float32."""
    config = json.loads((directory / "config.json").read_text())
    arch, arrays = MODEL_ARCH_NAMES[case.arch], gguf_arrays(directory, case)
    tensors = {name: (each, kinds(name, each) if each.ndim > 1 else "F32") for name, each in arrays.items()}
    metadata = common_metadata(config, arch) | {f"{arch}.{key}": value for key, value in case.metadata(config).items()}
    metadata |= {key: values for key, values in _activation(directory).items() if values}
    metadata["tokenizer.ggml.eos_token_id"] = 2
    if change is not None:
        tensors = dict(change(arrays))
    return write_gguf(path, metadata | dict(extra or {}), tensors, arch)
