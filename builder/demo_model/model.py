"""The Qwen3 architecture in plain torch, with the weight names of its Hugging Face form.

RMS norms before attention and MLP, a norm of its own over every query and key head, rotary positions on halves,
grouped key-value heads, SwiGLU, no biases, and an output layer tied to the embeddings.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from builder.demo_model.config import ModelConfig

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, of shape (batch, key-value heads, capacity, head size)."""


class RMSNorm(nn.Module):
    """Scale to unit root mean square."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension, in float32."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        scaled: Tensor = (wide * self.weight).to(x.dtype)
        return scaled


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to (batch, heads, time, head size)."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.size = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.size, bias=False)
        self.o_proj = nn.Linear(self.heads * self.size, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(self.size, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past: tuple[Tensor, Tensor] | None, at: int
    ) -> Tensor:
        """Attend; with a cache, keys and values are stored from column `at` on and read up to there."""
        batch, time, _ = x.shape
        query = self.q_norm(self.q_proj(x).view(batch, time, self.heads, self.size)).transpose(1, 2)
        key = self.k_norm(self.k_proj(x).view(batch, time, self.kv_heads, self.size)).transpose(1, 2)
        value = self.v_proj(x).view(batch, time, self.kv_heads, self.size).transpose(1, 2)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if past is not None:
            past[0][:, :, at : at + time] = key
            past[1][:, :, at : at + time] = value
            key, value = past[0][:, :, : at + time], past[1][:, :, : at + time]
        groups = self.heads // self.kv_heads
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, time, -1))
        return out


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The gated product, projected back."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """One block: attention and MLP, each on a normalised input and added to the stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past: tuple[Tensor, Tensor] | None, at: int
    ) -> Tensor:
        """The stream after this block."""
        mixed: Tensor = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, past, at)
        out: Tensor = mixed + self.mlp(self.post_attention_layernorm(mixed))
        return out


class Backbone(nn.Module):
    """Embeddings, blocks and the last norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Qwen3(nn.Module):
    """The language model; its state dict has the names of a Qwen3ForCausalLM checkpoint."""

    inverse: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        self.register_buffer("inverse", config.rope_theta**-half, persistent=False)

    def initialise(self) -> None:
        """Small random weights; projections into the stream are smaller the deeper the network is."""
        scale = (2 * self.config.num_hidden_layers) ** -0.5
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.02 * (scale if into_stream else 1.0))

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: Cache | None = None, at: int = 0) -> Tensor:
        """Hidden states of (batch, time) ids; `mask` is true where a query may see a key."""
        angles = positions[:, None, :, None].float() * self.inverse
        cos, sin = torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()
        x = self.model.embed_tokens(ids)
        for index, layer in enumerate(self.model.layers):
            x = layer(x, cos, sin, mask, cache[index] if cache is not None else None, at)
        hidden: Tensor = self.model.norm(x)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary, with the embeddings as the output layer."""
        return F.linear(hidden, self.model.embed_tokens.weight)
