"""The files that are shipped: configuration, weights, tokenizer and chat template in their Hugging Face forms."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from builder.demo_model.bpe import END_OF_TEXT, MARKERS, SPECIAL
from builder.demo_model.chat import END, TEMPLATE_PATH
from builder.demo_model.config import ModelConfig
from builder.demo_model.model import Qwen3


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tokenizer(tokenizer: Tokenizer, config: ModelConfig, folder: Path) -> None:
    """Everything but the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    end, end_of_text = tokenizer.token_to_id(END), tokenizer.token_to_id(END_OF_TEXT)
    _write(
        folder / "config.json",
        {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            **asdict(config),
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "rope_scaling": None,
            "sliding_window": None,
            "use_sliding_window": False,
            "tie_word_embeddings": True,
            "use_cache": True,
            "bos_token_id": end_of_text,
            "eos_token_id": end,
            "pad_token_id": end_of_text,
            "dtype": "bfloat16",
            "torch_dtype": "bfloat16",
        },
    )
    _write(
        folder / "generation_config.json",
        {
            "bos_token_id": end_of_text,
            "eos_token_id": [end, end_of_text],
            "pad_token_id": end_of_text,
            "do_sample": False,
        },
    )
    added = {
        str(tokenizer.token_to_id(text)): {
            "content": text,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": text in SPECIAL,
        }
        for text in (*SPECIAL, *MARKERS)
    }
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "added_tokens_decoder": added,
            "additional_special_tokens": list(SPECIAL[1:]),
            "bos_token": None,
            "eos_token": END,
            "pad_token": END_OF_TEXT,
            "unk_token": None,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": config.max_position_embeddings,
            "chat_template": TEMPLATE_PATH.read_text(encoding="utf-8"),
        },
    )


def write_weights(model: Qwen3, folder: Path) -> None:
    """The weights in bfloat16; a half-written file never takes the place of a whole one."""
    weights = {name: weight.to("cpu", torch.bfloat16).contiguous() for name, weight in model.state_dict().items()}
    draft = folder / "model.safetensors.part"
    save_file(weights, draft, metadata={"format": "pt"})
    draft.chmod(0o644)
    draft.replace(folder / "model.safetensors")


def load(folder: Path) -> tuple[Qwen3, Tokenizer]:
    """The shipped model, with its weights widened to float32, and its tokenizer."""
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = ModelConfig(**{name: values[name] for name in asdict(ModelConfig())})
    model = Qwen3(config)
    model.load_state_dict({name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()})
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))
