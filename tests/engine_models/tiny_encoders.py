"""Tiny random encoders of every family, made on the spot with transformers in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ember.engine.layers.batch import Batch
from ember.engine.layers.cache import KVCache

VOCAB_SIZE = 97
NO_CACHE = KVCache.allocate((), 0, 16, torch.float32, torch.device("cpu"))

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_PADDED = {**_COMMON, "pad_token_id": 0}
_DEBERTA = {
    **_COMMON,
    "relative_attention": True,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "max_position_embeddings": 128,
}
_CLAMPED = {"position_buckets": -1, "max_relative_positions": 6, "pos_att_type": ["c2p"], "norm_rel_ebd": "none"}
_MODERN = {**_PADDED, "local_attention": 10, "cls_token_id": 1, "sep_token_id": 2, "max_position_embeddings": 1024}

# Names of tests -> transformers' class, and the fields of its configuration.
ENCODER_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", {**_COMMON, "type_vocab_size": 3}),
    "roberta": ("RobertaModel", {**_COMMON, "max_position_embeddings": 130}),
    "xlm_roberta": ("XLMRobertaModel", {**_COMMON, "pad_token_id": 3, "type_vocab_size": 1}),
    "camembert": ("CamembertModel", _COMMON),
    "distilbert": (
        "DistilBertModel",
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "vocab_size": VOCAB_SIZE, "activation": "relu"},
    ),
    "mpnet": ("MPNetModel", _COMMON),
    "electra": ("ElectraModel", {**_COMMON, "embedding_size": 32}),
    "electra_wide": ("ElectraModel", {**_COMMON, "embedding_size": 64}),
    "modernbert": ("ModernBertModel", _MODERN),
    "modernbert_biases": (
        "ModernBertModel",
        {**_MODERN, "attention_bias": True, "mlp_bias": True, "norm_bias": True, "layer_types": ["full_attention"] * 3},
    ),
    "nomic": ("NomicBertModel", _COMMON),
    "gte": ("GteModel", _PADDED),
    "eurobert": ("EuroBertModel", {**_PADDED, "num_key_value_heads": 2, "mask_token_id": 3}),
    "deberta": ("DebertaV2Model", _DEBERTA),
    "deberta_clamped": (
        "DebertaV2Model",
        {**_DEBERTA, **_CLAMPED, "position_biased_input": True, "type_vocab_size": 2},
    ),
    "deberta_convolution": (
        "DebertaV2Model",
        {**_DEBERTA, "conv_kernel_size": 3, "conv_act": "gelu", "conv_groups": 2},
    ),
    "albert": ("AlbertModel", {**_COMMON, "embedding_size": 32, "num_hidden_layers": 5, "num_hidden_groups": 2}),
}


def encoder_classes(variant: str) -> tuple[Any, Any]:
    """transformers' class of a variant, and its configuration."""
    import transformers

    name, fields = ENCODER_VARIANTS[variant]
    cls = getattr(transformers, name)
    return cls, cls.config_class(**fields)


def make_encoder(variant: str, directory: Path) -> Any:
    """Save a tiny random encoder. Returns transformers' model of it."""
    cls, config = encoder_classes(variant)
    model = randomised(cls(config))
    model.save_pretrained(directory)
    return model


def randomised(model: Any, seed: int = 0) -> Any:
    """The model with weights that all matter: biases are zero and norms one where a model is new."""
    torch.manual_seed(seed)
    model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(mean + torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.2))
    return model


def batch_of(texts: list[list[int]], token_types: list[list[int]] | None = None) -> Batch:
    """A step of whole texts, for a model without a cache."""
    starts = [0]
    for text in texts:
        starts.append(starts[-1] + len(text))
    return Batch(
        token_ids=torch.tensor([token for text in texts for token in text]),
        positions=torch.tensor([position for text in texts for position in range(len(text))]),
        slot_mapping=torch.zeros(1, starts[-1], dtype=torch.int64),
        block_tables=torch.zeros(1, len(texts), 1, dtype=torch.int64),
        query_starts=starts,
        context_lens=[len(text) for text in texts],
        logits_indices=torch.tensor([start - 1 for start in starts[1:]]),
        token_types=None if token_types is None else torch.tensor([kind for types in token_types for kind in types]),
    )
