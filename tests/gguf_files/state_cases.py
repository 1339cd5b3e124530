"""Checkpoints whose layers mix tokens by states or latent attention, and those with more than names changed, as
llama.cpp's conversion makes GGUF files of them (`convert.Case`)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gguf import MODEL_ARCH
from torch import Tensor

from tests.gguf_files.convert import Case, Config, permuted

Tensors = dict[str, Tensor]
Part = Iterator[tuple[str, Tensor]]
A = MODEL_ARCH


def changing(change: Callable[[str, Tensor, Config], Part]) -> Callable[[Tensors, Config], Tensors]:
    """The change of all tensors by that of one, which may give several or none."""

    def whole(tensors: Tensors, config: Config) -> Tensors:
        return {new: made for name, tensor in tensors.items() for new, made in change(name, tensor, config)}

    return whole


def state_part(name: str, tensor: Tensor, config: Config) -> Part:
    """Rates of decay as they are used, the bias of dt and convolutions as the library has them."""
    if name.endswith("A_log"):
        tensor = -tensor.exp()
    if name.endswith("dt_bias"):
        name = name.replace("dt_bias", "dt_proj.bias")
    yield name, tensor.squeeze(1) if name.endswith(("conv1d.weight", "conv.conv.weight")) else tensor


def mamba_part(name: str, tensor: Tensor, config: Config) -> Part:
    groups = config.get("mamba_n_groups") or config.get("n_groups", 1)
    if name.endswith((".A_log", ".D")) and ("mamba" in name or "mixer" in name):
        tensor = tensor[:, None]
    if name.endswith((".mamba.norm.weight", ".mixer.norm.weight")):
        tensor = tensor.unflatten(0, (groups, -1))
    yield from state_part(name, tensor, config)


def granite_part(name: str, tensor: Tensor, config: Config) -> Part:
    base, _, rest = name.partition(".shared_mlp.")
    if name.endswith("block_sparse_moe.input_linear.weight"):
        gate, up = tensor.chunk(2, dim=1)
        block = name.removesuffix("block_sparse_moe.input_linear.weight")
        yield f"{block}mlp.experts.gate_proj.weight", gate
        yield f"{block}mlp.experts.up_proj.weight", up
    elif rest == "input_linear.weight":
        place = f"{base}.mlp.shared_expert" if config["num_local_experts"] else f"{base}.mlp"
        for part, rows in zip(("gate_proj", "up_proj"), tensor.chunk(2), strict=True):
            yield f"{place}.{part}.weight", rows
    elif rest == "output_linear.weight" and not config["num_local_experts"]:
        yield f"{base}.mlp.down_proj.weight", tensor
    else:
        yield from mamba_part(name, tensor, config)


def falcon_h1_part(name: str, tensor: Tensor, config: Config) -> Part:
    """The factors are in the matrices."""
    inner, group = config["mamba_d_ssm"], config["mamba_n_groups"] * config["mamba_d_state"]
    given = config["attention_in_multiplier"]
    factors = {
        "down_proj": config["mlp_multipliers"][1],
        "gate_proj": config["mlp_multipliers"][0],
        "k_proj": config["key_multiplier"] * given,
        "q_proj": given,
        "v_proj": given,
        "o_proj": config["attention_out_multiplier"],
        "out_proj": config["ssm_out_multiplier"],
        "in_proj": config["ssm_in_multiplier"],
        "lm_head": config["lm_head_multiplier"],
        "embed_tokens": config["embedding_multiplier"],
    }
    module = name.removesuffix(".weight").rpartition(".")[2]
    tensor = tensor * factors.get(module, 1.0)
    if module == "in_proj":
        sizes = [inner, inner, group, group, len(tensor) - 2 * inner - 2 * group]
        pieces = zip(tensor.split(sizes), config["ssm_multipliers"], strict=True)
        tensor = torch.cat([piece * factor for piece, factor in pieces])
    yield from mamba_part(name, tensor, config)


def falcon_h1(config: Config) -> dict[str, Any]:
    return state(config, _GRANITE)


def nemotron_part(name: str, tensor: Tensor, config: Config) -> Part:
    yield from mamba_part(re.sub(r"backbone(.*)mixer.experts", r"model\1mlp.experts", name), tensor, config)


def _tiled(tensor: Tensor, config: Config, size: int, axis: int = 0) -> Tensor:
    """The value heads of all key heads in turn, in place of those of each key head side by side."""
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    apart = tensor.unflatten(axis, (keys, values // keys, size))
    return apart.transpose(axis, axis + 1).flatten(axis, axis + 2)


def qwen3_5_part(name: str, tensor: Tensor, config: Config) -> Part:
    size, keys = config["linear_value_head_dim"], 2 * config["linear_num_key_heads"] * config["linear_key_head_dim"]
    if name.endswith(("in_proj_qkv.weight", "conv1d.weight")):
        tensor = torch.cat((tensor[:keys], _tiled(tensor[keys:], config, size)))
    elif name.endswith("in_proj_z.weight"):
        tensor = _tiled(tensor, config, size)
    elif name.endswith(("in_proj_a.weight", "in_proj_b.weight", "A_log", "dt_bias")):
        tensor = _tiled(tensor, config, 1)
    elif name.endswith("linear_attn.out_proj.weight"):
        tensor = _tiled(tensor, config, size, 1)
    yield from _with_offset(name, tensor, config)


def _with_offset(name: str, tensor: Tensor, config: Config) -> Part:
    if name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        tensor = tensor + 1
    yield from state_part(name, tensor, config)


def qwen3_next_part(name: str, tensor: Tensor, config: Config) -> Part:
    if not name.endswith("in_proj_qkvz.weight"):
        yield from _with_offset(name, tensor, config)
        return
    keys, size = config["linear_num_key_heads"], config["linear_key_head_dim"]
    values = config["linear_num_value_heads"] // keys * config["linear_value_head_dim"]
    parts = tensor.unflatten(0, (keys, -1)).split([size, size, values, values], dim=1)
    query, key, value, gate = (part.flatten(0, 1) for part in parts)
    yield name.replace("qkvz", "qkv"), torch.cat((query, key, value))
    yield name.replace("qkvz", "z"), gate


def latent_part(name: str, tensor: Tensor, config: Config) -> Part:
    """The matrix that makes keys and values of the latent, apart and by heads, the keys' transposed."""
    if name.endswith("kv_b_proj.weight"):
        sizes = [config["qk_nope_head_dim"], config["v_head_dim"]]
        keys, values = tensor.unflatten(0, (config["num_attention_heads"], -1)).split(sizes, dim=1)
        yield name.replace("kv_b", "k_b"), keys.transpose(1, 2)
        yield name.replace("kv_b", "v_b"), values
    elif name.endswith(("experts.gate_up_proj", "experts.down_proj")):
        yield f"{name}.weight", tensor
    else:
        yield name, tensor


def llama4_part(name: str, tensor: Tensor, config: Config) -> Part:
    base = name.rpartition(".")[0]
    if name.endswith("experts.gate_up_proj"):
        gate, up = tensor.transpose(1, 2).chunk(2, dim=1)
        yield f"{base}.gate_proj.weight", gate
        yield f"{base}.up_proj.weight", up
    elif name.endswith("experts.down_proj"):
        yield f"{name}.weight", tensor.transpose(1, 2)
    else:
        yield name, tensor


def gemma4_part(name: str, tensor: Tensor, config: Config) -> Part:
    block = name.replace("model.layers", "blk").removesuffix("router.scale").removesuffix("router.per_expert_scale")
    if name.endswith("router.scale"):
        yield f"{block}ffn_gate_inp.scale", tensor
        return
    if name.endswith("router.per_expert_scale"):
        yield f"{block}ffn_down_exps.scale", tensor
        return
    is_matrix = name.endswith((".layer_scalar", "experts.gate_up_proj", "experts.down_proj"))
    yield f"{name}.weight" if is_matrix else name, tensor


def _full_heads(config: Config) -> tuple[int, int]:
    """The size and the number of key-value heads of layers with full attention."""
    own = next(iter(config["per_layer_config"].values()))
    return own["head_dim"], own.get("num_key_value_heads", config["num_key_value_heads"])


def gemma4_tensors(tensors: Tensors, config: Config) -> Tensors:
    """With the divisors of frequencies that leave most pairs as they are."""
    pairs = _full_heads(config)[0] // 2
    share = config["rope_parameters"]["full_attention"]["partial_rotary_factor"]
    divisors = torch.full((pairs,), 1e30)
    divisors[: int(pairs * share)] = 1.0
    return changing(gemma4_part)(tensors, config) | {"rope_freqs.weight": divisors}


def llama3_divisors(config: Config) -> Tensor:
    """The divisors of frequencies that rescale them as Llama 3.1 does."""
    rope, size = config["rope_parameters"], config["head_dim"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    found = []
    for pair in range(0, size, 2):
        turns = rope["original_max_position_embeddings"] * rope["rope_theta"] ** -(pair / size) / (2 * math.pi)
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        found.append(1 / (kept + (1 - kept) / rope["factor"]))
    return torch.tensor(found)


def without_activation(tensors: Tensors, config: Config) -> Tensors:
    kept = {name: tensor for name, tensor in tensors.items() if ".act_fn." not in name}
    return kept | {"rope_freqs.weight": llama3_divisors(config)}


def llama4_tensors(tensors: Tensors, config: Config) -> Tensors:
    return changing(llama4_part)(tensors, config) | {"rope_freqs.weight": llama3_divisors(config)}


def bias_part(name: str, tensor: Tensor, config: Config) -> Part:
    yield f"{name}.bias" if name.endswith(".expert_bias") else name, tensor


def lfm2_part(name: str, tensor: Tensor, config: Config) -> Part:
    name = name.removeprefix("model.") if ".experts." in name else name
    for new, made in bias_part(name, tensor, config):
        yield from state_part(new, made, config)


def baichuan_part(name: str, tensor: Tensor, config: Config) -> Part:
    if not name.endswith("W_pack.weight"):
        yield name, tensor
        return
    for part, rows in zip("qkv", tensor.chunk(3), strict=True):
        heads = config["num_attention_heads"]
        yield name.replace("W_pack", f"{part}_proj"), rows if part == "v" else permuted(rows, heads)


def fused(tensors: Tensors, config: Config) -> Tensors:
    """Query, key and value in one matrix, with the names of Ling 2."""
    made = {}
    for name, tensor in tensors.items():
        if (found := re.fullmatch(r"(.*)self_attn\.q_proj\.(.*)", name)) is not None:
            parts = [tensors[f"{found[1]}self_attn.{part}_proj.{found[2]}"] for part in "qkv"]
            made[f"{found[1]}attention.query_key_value.{found[2]}"] = torch.cat(parts)
        elif re.search(r"\.[kv]_proj\.", name) is None:
            made[re.sub(r"self_attn\.([qk])_norm", lambda got: f"self_attn.{got[1]}_norm", name)] = tensor
    return made


def experts(config: Config) -> dict[str, Any]:
    """Of routers in the line of DeepSeek V3."""
    count = config.get("n_routed_experts") or config.get("num_experts")
    shared = config.get("n_shared_experts") or config.get("num_shared_experts", 1)
    return {
        "expert_count": count,
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_shared_count": shared,
        "leading_dense_block_count": config.get("first_k_dense_replace") or 0,
        "expert_weights_scale": config["routed_scaling_factor"],
        "expert_weights_norm": config["norm_topk_prob"],
        "expert_group_count": config.get("n_group") or 1,
        "expert_group_used_count": config.get("topk_group") or 1,
        "expert_gating_func": 2,
    }


def state(config: Config, names: dict[str, str]) -> dict[str, Any]:
    """Of Mamba 2. `names`: of the sizes in config.json."""
    heads, size = config[names["heads"]], config[names["size"]]
    return {
        "ssm.time_step_rank": heads,
        "ssm.inner_size": heads * size,
        "ssm.group_count": config[names["groups"]],
        "ssm.state_size": config[names["state"]],
        "ssm.conv_kernel": config[names["kernel"]],
    }


_GRANITE = {
    "heads": "mamba_n_heads",
    "size": "mamba_d_head",
    "groups": "mamba_n_groups",
    "state": "mamba_d_state",
    "kernel": "mamba_d_conv",
}
_NEMOTRON = {
    "heads": "mamba_num_heads",
    "size": "mamba_head_dim",
    "groups": "n_groups",
    "state": "ssm_state_size",
    "kernel": "conv_kernel",
}
_MAMBA = {
    "heads": "num_heads",
    "size": "head_dim",
    "groups": "n_groups",
    "state": "state_size",
    "kernel": "conv_kernel",
}


def granite_hybrid(config: Config) -> dict[str, Any]:
    kinds, heads = config["layer_types"], config["num_key_value_heads"]
    size = "intermediate_size" if config["num_local_experts"] else "shared_intermediate_size"
    return state(config, _GRANITE) | {
        "attention.head_count_kv": [0 if kind in ("mamba", "linear_attention") else heads for kind in kinds],
        "attention.scale": config["attention_multiplier"],
        "embedding_scale": float(config["embedding_multiplier"]),
        "residual_scale": float(config["residual_multiplier"]),
        "logit_scale": float(config["logits_scaling"]),
        "expert_used_count": config["num_experts_per_tok"] if config["num_local_experts"] else None,
        "rope.scaling.finetuned": config.get("position_embedding_type") == "rope",
        "expert_shared_feed_forward_length": config["shared_intermediate_size"],
        "feed_forward_length": config[size],
    }


def nemotron_h(config: Config) -> dict[str, Any]:
    kinds, heads = config["layers_block_type"], config["num_key_value_heads"]
    sizes = {"moe": config["moe_intermediate_size"], "mlp": config["intermediate_size"]}
    found = state(config, _NEMOTRON) | {
        "attention.layer_norm_rms_epsilon": config["layer_norm_epsilon"],
        "attention.head_count_kv": [heads if kind == "full_attention" else 0 for kind in kinds],
        "feed_forward_length": [sizes.get(kind, 0) for kind in kinds],
    }
    if "moe" not in kinds:
        return found | {"expert_count": None, "expert_used_count": None}
    return (
        found
        | experts(config)
        | {
            "expert_shared_feed_forward_length": config["moe_shared_expert_intermediate_size"],
        }
    )


def mamba2(config: Config) -> dict[str, Any]:
    return state(config, _MAMBA) | {
        "attention.head_count": 0,
        "attention.key_length": None,
        "attention.value_length": None,
        "feed_forward_length": 0,
        "attention.layer_norm_rms_epsilon": config["layer_norm_epsilon"],
    }


def delta(config: Config) -> dict[str, Any]:
    heads = config["linear_num_value_heads"]
    found = {
        "ssm.conv_kernel": config["linear_conv_kernel_dim"],
        "ssm.state_size": config["linear_key_head_dim"],
        "ssm.group_count": config["linear_num_key_heads"],
        "ssm.time_step_rank": heads,
        "ssm.inner_size": config["linear_value_head_dim"] * heads,
        "full_attention_interval": 4,
        "rope.dimension_count": int(config["rope_parameters"]["partial_rotary_factor"] * config["head_dim"]),
        "rope.dimension_sections": [1, 1, 0, 0],
    }
    if "moe_intermediate_size" in config:
        found["expert_feed_forward_length"] = config["moe_intermediate_size"]
        found["expert_shared_feed_forward_length"] = config["shared_expert_intermediate_size"]
    return found


def lfm2(config: Config) -> dict[str, Any]:
    heads = config["num_key_value_heads"]
    found = {
        "attention.head_count_kv": [0 if kind == "conv" else heads for kind in config["layer_types"]],
        "attention.layer_norm_rms_epsilon": config["norm_eps"],
        "shortconv.l_cache": config["conv_L_cache"],
    }
    if "moe_intermediate_size" in config:
        return found | {
            "expert_feed_forward_length": config["moe_intermediate_size"],
            "leading_dense_block_count": config["num_dense_layers"],
            "expert_gating_func": 2,
        }
    return found


def latent(config: Config) -> dict[str, Any]:
    rank, rotary = config["kv_lora_rank"], config["qk_rope_head_dim"]
    found: dict[str, Any] = {
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": config["q_lora_rank"],
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + rotary,
        "attention.value_length": rank,
        "attention.key_length_mla": config["qk_nope_head_dim"] + rotary,
        "attention.value_length_mla": config["v_head_dim"],
        "rope.dimension_count": rotary,
    }
    rope = config["rope_parameters"]
    if rope["rope_type"] == "yarn":
        found |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": rope["factor"],
            "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
            "rope.scaling.yarn_log_multiplier": 0.1 * rope["mscale_all_dim"],
        }
    return found


def latent_experts(config: Config) -> dict[str, Any]:
    return latent(config) | experts(config)


def softmax(config: Config) -> dict[str, Any]:
    return latent_experts(config) | {"expert_gating_func": 1}


def minicpm3(config: Config) -> dict[str, Any]:
    return {
        "attention.q_lora_rank": config["q_lora_rank"],
        "attention.kv_lora_rank": config["kv_lora_rank"],
        "attention.key_length": config["qk_nope_head_dim"] + config["qk_rope_head_dim"],
        "attention.value_length": None,
        "rope.dimension_count": config["qk_rope_head_dim"],
    }


def llama4(config: Config) -> dict[str, Any]:
    return {
        "feed_forward_length": config["intermediate_size_mlp"],
        "expert_feed_forward_length": config["intermediate_size"],
        "interleave_moe_layer_step": config["interleave_moe_layer_step"],
    }


def gemma4(config: Config) -> dict[str, Any]:
    windowed = [kind == "sliding_attention" for kind in config["layer_types"]]
    (head_dim, full), local = _full_heads(config), config["num_key_value_heads"]
    ropes, size = config["rope_parameters"], config["intermediate_size"]
    own = len(windowed) - config["num_kv_shared_layers"]
    return {
        "attention.sliding_window": config["sliding_window"],
        "attention.sliding_window_pattern": windowed,
        "attention.shared_kv_layers": config["num_kv_shared_layers"],
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.key_length_swa": config["head_dim"],
        "attention.value_length_swa": config["head_dim"],
        "attention.head_count_kv": [local if each else full for each in windowed],
        "feed_forward_length": [size if layer < own else 2 * size for layer in range(len(windowed))]
        if config["use_double_wide_mlp"]
        else size,
        "embedding_length_per_layer_input": config.get("hidden_size_per_layer_input") or 0,
        "rope.freq_base": ropes["full_attention"]["rope_theta"],
        "rope.freq_base_swa": ropes["sliding_attention"]["rope_theta"],
        "rope.dimension_count": head_dim,
        "rope.dimension_count_swa": config["head_dim"],
        "final_logit_softcapping": config["final_logit_softcapping"],
        "expert_feed_forward_length": config.get("moe_intermediate_size"),
        "expert_count": config.get("num_experts"),
        "expert_used_count": config.get("top_k_experts"),
    }


def window(config: Config) -> dict[str, Any]:
    flags = [kind == "sliding_attention" for kind in config["layer_types"]]
    return {"attention.sliding_window": config["sliding_window"], "attention.sliding_window_pattern": flags}


def hunyuan(config: Config) -> dict[str, Any]:
    return {
        "expert_feed_forward_length": config["moe_intermediate_size"][0]
        if isinstance(config.get("moe_intermediate_size"), list)
        else config["intermediate_size"],
        "expert_used_count": config["moe_topk"][0],
        "expert_shared_count": 1,
        "expert_shared_feed_forward_length": config["intermediate_size"],
    }


_MSCALE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "mscale": 0.7,
    "mscale_all_dim": 0.7,
}
_DELTA = {
    "linear_value_head_dim": 12,
    "layer_types": [*["linear_attention"] * 3, "full_attention"],
}  # as all files have
_LATENT = changing(latent_part)
STATE_CASES = {
    "qwen3_5": Case(A.QWEN35, "qwen3_5", {**_DELTA}, tensors=changing(qwen3_5_part), metadata=delta),
    "qwen3_5_moe": Case(A.QWEN35MOE, "qwen3_5_moe", {**_DELTA}, tensors=changing(qwen3_5_part), metadata=delta),
    "qwen3_next": Case(
        A.QWEN3NEXT,
        "qwen3_next",
        {"mlp_only_layers": [], **_DELTA, "attention_bias": False, "norm_topk_prob": True},
        tensors=changing(qwen3_next_part),
        metadata=delta,
    ),
    "lfm2": Case(
        A.LFM2,
        "lfm2",
        {"conv_bias": False, "block_auto_adjust_ff_dim": False},
        tensors=changing(lfm2_part),
        metadata=lfm2,
    ),
    "lfm2_moe": Case(A.LFM2MOE, "lfm2_moe", {"tie_word_embeddings": True}, tensors=changing(lfm2_part), metadata=lfm2),
    "granite_hybrid": Case(
        A.GRANITE_HYBRID, "granitemoehybrid", permutes=True, tensors=changing(granite_part), metadata=granite_hybrid
    ),
    "granite_hybrid_dense": Case(
        A.GRANITE_HYBRID,
        "granitemoehybrid_dense",
        {"mamba_proj_bias": False},
        permutes=True,
        tensors=changing(granite_part),
        metadata=granite_hybrid,
    ),
    "falcon_h1": Case(
        A.FALCON_H1,
        "falcon_h1",
        {"projectors_bias": False, "mlp_bias": False},
        tensors=changing(falcon_h1_part),
        metadata=falcon_h1,
    ),
    "nemotron_h": Case(
        A.NEMOTRON_H_MOE,
        "nemotron_h",
        {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
            "use_bias": False,
            "mlp_bias": False,
            "n_group": 1,
            "time_step_min": 1e-9,
        },
        tensors=changing(nemotron_part),
        metadata=nemotron_h,
    ),
    "mamba2": Case(A.MAMBA2, "mamba2", {"use_bias": False}, tensors=changing(mamba_part), metadata=mamba2),
    "deepseek_v2": Case(A.DEEPSEEK2, "deepseek_v2", {"rope_parameters": _MSCALE}, tensors=_LATENT, metadata=softmax),
    "deepseek_v3": Case(
        A.DEEPSEEK2,
        "deepseek_v3",
        {"rope_parameters": _MSCALE, "attention_bias": False},
        tensors=_LATENT,
        metadata=latent_experts,
    ),
    "mistral4": Case(
        A.MISTRAL4,
        "mistral4",
        {"rope_parameters": _MSCALE | {"mscale": 1.0, "mscale_all_dim": 1.0}, "n_group": 1, "topk_group": 1},
        tensors=_LATENT,
        metadata=softmax,
    ),
    "minicpm3": Case(
        A.MINICPM3,
        "minicpm3",
        {"v_head_dim": 16, "scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 256},
        metadata=minicpm3,
    ),
    "llama4": Case(
        A.LLAMA4,
        "llama4",
        {
            "no_rope_layer_interval": 4,
            "attention_chunk_size": 8192,
            "floor_scale": 8192,
            "attn_scale": 0.1,
            "num_hidden_layers": 4,
        },
        tensors=llama4_tensors,
        metadata=llama4,
    ),
    "gemma4": Case(A.GEMMA4, "gemma4", tensors=gemma4_tensors, metadata=gemma4),
    "gemma4_small": Case(A.GEMMA4, "gemma4_small", {"attention_bias": False}, tensors=gemma4_tensors, metadata=gemma4),
    "gemma4_moe": Case(A.GEMMA4, "gemma4_moe", tensors=gemma4_tensors, metadata=gemma4),
    "apertus": Case(A.APERTUS, "apertus", {"attention_bias": False}, tensors=without_activation),
    "dots1": Case(A.DOTS1, "dots1", {"sliding_window": None, "num_key_value_heads": 4}, metadata=experts),
    "exaone_moe": Case(
        A.EXAONE_MOE,
        "exaone_moe",
        {"first_k_dense_replace": 1},
        metadata=lambda config: experts(config) | window(config),
    ),
    "bailing": Case(
        A.BAILINGMOE2,
        "glm4_moe",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": False},
        tensors=fused,
        metadata=lambda config: experts(config) | {"rope.dimension_count": config["head_dim"] // 2},
    ),
    "orion": Case(A.ORION, "stablelm", {"partial_rotary_factor": 1.0, "use_qkv_bias": False}),
    "xverse": Case(A.XVERSE, "llama", permutes=True),
    "baichuan": Case(A.BAICHUAN, "llama", {"num_key_value_heads": 4}, permutes=True),
    "hunyuan_moe": Case(A.HUNYUAN_MOE, "hunyuan_moe", metadata=hunyuan),
}
