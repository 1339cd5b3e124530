"""Baichuan 1 and 2 (arXiv 2309.10305). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.classic_decoder import alibi_slopes
from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family
from ember.engine.description.fields import Fields
from ember.engine.description.read_rope import warn_of_unused_rope
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder

NAMES = replace(LLAMA_NAMES, qkv="self_attn.W_pack", buffers=("rotary_emb.inv_freq",))
VOCAB_SIZE_2 = 125_696  # of Baichuan 2, which divides each row of the head by its length


def read(fields: Fields) -> DecoderConfig:
    """A Llama whose query, key and value are in one matrix. The larger models have ALiBi, and no field
    `max_position_embeddings`."""
    longest = fields.integer("model_max_length", 4096)
    is_rotary = fields.values.get("max_position_embeddings") is not None
    config = read_rotary_decoder(fields, max_position_embeddings=longest, reads_rope=is_rotary)
    config = replace(config, names=NAMES, normalised_head=config.vocab_size == VOCAB_SIZE_2)
    if is_rotary:
        return config
    warn_of_unused_rope(fields)
    return replace(config, alibi=alibi_slopes(config.num_heads))


BAICHUAN = Family(
    read, ROTARY_FIELDS | {"model_max_length"}, harmless={"z_loss_weight": (), "gradient_checkpointing": ()}
)
