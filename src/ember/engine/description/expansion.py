"""Latent attention's choice between absorbed matrices and expanded keys and values, and the memory that these take.

Both give the same. Absorbed, a query head is compared with latents, which are larger than keys; expanded, a matrix
product makes keys and values of every latent first. This module does not import torch.
"""

from __future__ import annotations

from ember.engine.description.config import LatentConfig

EXPANDED_BYTES = 256 << 20  # on a GPU, of keys and values in memory at a time
LEAST_KEYS = 1024  # that are expanded at once nevertheless


def expands(sizes: LatentConfig, queries: int) -> bool:
    """Whether that many queries after a prefix cost less with expanded keys and values than with absorbed matrices:
    the products of a key and head, without the factor that is common."""
    expanded = sizes.kv_rank * (sizes.plain_dim + sizes.value_dim) + queries * (sizes.head_dim + sizes.value_dim)
    return expanded < queries * (sizes.size + sizes.kv_rank)


def keys_at_once(sizes: LatentConfig, heads: int, element_size: int) -> int:
    """How many keys and values of all heads a GPU has in memory at a time, with their latents."""
    return max(EXPANDED_BYTES // (_key_elements(sizes, heads) * element_size), LEAST_KEYS)


def expanded_bytes(sizes: LatentConfig, heads: int, element_size: int, num_tokens: int) -> int:
    """An upper bound of a GPU's memory for a step whose prompts expand keys and values: these, the queries and outputs
    of the tokens, and in float32 what the queries of a divided context carry from part to part."""
    keys = keys_at_once(sizes, heads, element_size) * _key_elements(sizes, heads) * element_size
    each = (sizes.head_dim + 2 * sizes.value_dim) * element_size + (sizes.value_dim + 2) * 4
    return keys + num_tokens * heads * each


def _key_elements(sizes: LatentConfig, heads: int) -> int:
    return sizes.size + heads * (sizes.plain_dim + sizes.value_dim)
