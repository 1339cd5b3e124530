"""Sizes of the demo model and the places of its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "src" / "ember" / "demo"
DOCUMENT = ROOT / "docs" / "demo-model.md"


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the network, in the terms of a Qwen3 configuration."""

    vocab_size: int = 4096
    hidden_size: int = 256
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 640
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
