"""Random-weight checkpoints of real shapes, for figures that do not depend on the values of weights.

The tokenizer is synthetic and has the real size, since loading it is part of a boot.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

QWEN3_0_6B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "eos_token_id": 151645,
    "bos_token_id": 151643,
}
LLAMA_3_1_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 128009,
    "bos_token_id": 128000,
}
QWEN3_32B: dict[str, Any] = QWEN3_0_6B | {
    "hidden_size": 5120,
    "intermediate_size": 25600,
    "num_hidden_layers": 64,
    "num_attention_heads": 64,
    "tie_word_embeddings": False,
}
# GLM-4.7-Flash's heads, latents and choice of experts in fewer and narrower layers.
GLM_FLASH_SMALL: dict[str, Any] = {
    "architectures": ["Glm4MoeLiteForCausalLM"],
    "model_type": "glm4_moe_lite",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "moe_intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 10,
    "num_key_value_heads": 10,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "q_lora_rank": 384,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "v_head_dim": 256,
    "routed_scaling_factor": 1.8,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 202752,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "eos_token_id": 151645,
    "bos_token_id": 151643,
}
# Qwen3.5-0.8B, whose layers but every fourth have the gated delta rule.
QWEN3_5_0_8B: dict[str, Any] = {
    "architectures": ["Qwen3_5ForCausalLM"],
    "model_type": "qwen3_5_text",
    "vocab_size": 248320,
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_hidden_layers": 24,
    "full_attention_interval": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25},
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 262144,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "eos_token_id": 151645,
    "bos_token_id": 151643,
}
SHAPES = {
    "qwen3-0.6b": QWEN3_0_6B,
    "llama-3.1-8b": LLAMA_3_1_8B,
    "qwen3-32b": QWEN3_32B,
    "glm-flash-small": GLM_FLASH_SMALL,
    "qwen3.5-0.8b": QWEN3_5_0_8B,
}
RANDOM_NUMBERS = 1 << 26  # made once and repeated: a large model's worth of them would take minutes
NUM_BYTE_LEVEL_TOKENS = 151643
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_checkpoint(shape: str, directory: Path) -> Path:
    """Write the checkpoint of a shape unless it is there already. Returns its directory."""
    path = directory / shape
    if (path / "model.safetensors").exists():
        return path
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(SHAPES[shape], indent=1))
    config = AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    numbers = torch.empty(RANDOM_NUMBERS, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
    weights = {}
    for i, (name, parameter) in enumerate(model.named_parameters()):
        if parameter.dim() == 1:
            weights[name] = torch.ones(parameter.shape, dtype=torch.bfloat16)
        else:
            weights[name] = _stretch(numbers, 7919 * i % RANDOM_NUMBERS, parameter.numel()).view(parameter.shape)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            weights[name] = torch.zeros(buffer.shape)
    weights = {stored: tensor for name, stack in weights.items() for stored, tensor in _by_expert(name, stack)}
    write_tokenizer(path)
    partial = path / "model.safetensors.partial"
    save_file(weights, partial, metadata={"format": "pt"})
    partial.rename(path / "model.safetensors")
    return path


def _by_expert(name: str, stack: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A weight by the name in checkpoints, which have each expert's matrices apart."""
    prefix, found, last = name.partition(".mlp.experts.")
    if not found:
        yield name, stack
        return
    for expert, matrix in enumerate(stack):
        own = f"{prefix}{found}{expert}"
        if last == "gate_up_proj":
            for part, rows in zip(("gate_proj", "up_proj"), matrix.chunk(2), strict=True):
                yield f"{own}.{part}.weight", rows.clone()
        else:
            yield f"{own}.{last}.weight", matrix.clone()


def _stretch(numbers: Tensor, start: int, count: int) -> Tensor:
    """A copy of `count` numbers of the endless repetition of `numbers`, from `start` on."""
    made = numbers.new_empty(count)
    done = 0
    while done < count:
        piece = numbers[start : start + count - done]
        made[done : done + len(piece)] = piece
        done, start = done + len(piece), 0
    return made


def write_tokenizer(path: Path) -> None:
    """A byte-level BPE of 151,643 tokens whose merges are made up, with ChatML's special tokens after them."""
    from tokenizers.pre_tokenizers import ByteLevel

    rng = random.Random(0)
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(alphabet)}
    letters = [token for token in alphabet if token.isascii() and token.isalpha()] + ["Ġ"]
    tokens = list(letters)
    merges = []
    while len(vocabulary) < NUM_BYTE_LEVEL_TOKENS:
        left, right = rng.choice(tokens), rng.choice(letters)
        if left + right not in vocabulary and len(left) < 12:
            vocabulary[left + right] = len(vocabulary)
            merges.append([left, right])
            tokens.append(left + right)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    added = [
        {"id": len(vocabulary) + i, "content": token, "special": True, "single_word": False, "lstrip": False}
        | {"rstrip": False, "normalized": False}
        for i, token in enumerate(special)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }
    (path / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHAT_TEMPLATE}
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}, indent=1)
    )
