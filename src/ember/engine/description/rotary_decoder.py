"""The common part of Llama-like models: RMSNorm before each part, rotary positions, a gated MLP. No torch is
imported."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import ACTIVATIONS, COMMON_FIELDS, divide_into_heads, field_names
from ember.engine.description.fields import MAX_INTEGER, MAX_LAYERS, Fields
from ember.engine.description.read_rope import ROPE_FIELDS, RopeForm, read_rope
from ember.engine.description.weight_names import WeightNames
from ember.engine.errors import ModelError

LLAMA_NAMES = WeightNames(
    layer="model.layers.{}.",
    embed_tokens="model.embed_tokens",
    final_norm="model.norm",
    lm_head="lm_head",
    attention_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.o_proj",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
)
ROTARY_FIELDS = (
    COMMON_FIELDS | ROPE_FIELDS | field_names("intermediate_size num_key_value_heads head_dim rms_norm_eps hidden_act")
)


def read_rotary_decoder(
    fields: Fields,
    *,
    max_position_embeddings: int,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    norm_eps: float = 1e-6,
    norm_eps_field: str | None = "rms_norm_eps",
    activation_field: str = "hidden_act",
    activation: str = "silu",
    rope: RopeForm | None = None,
    reads_rope: bool = True,
    tie_word_embeddings: bool = False,
    intermediate: tuple[str, int | None] = ("intermediate_size", None),
) -> DecoderConfig:
    """Read the fields in `ROTARY_FIELDS`. The arguments are the family's defaults; `norm_eps_field` is its name for
    rms_norm_eps; None: it has none. `activation_field` is its name for hidden_act, `intermediate` its name for
    intermediate_size and the default. `reads_rope`: False where the caller reads rotary positions. Raises
    ModelError."""
    hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    num_kv_heads = fields.optional_integer("num_key_value_heads", num_kv_heads) or num_heads
    head_dim = fields.optional_integer("head_dim", head_dim) or divide_into_heads(
        "hidden_size", hidden_size, num_heads, advice=", and there is no head_dim"
    )
    if num_heads % num_kv_heads:
        raise ModelError(f"num_attention_heads={num_heads} must be a multiple of num_key_value_heads={num_kv_heads}")
    config = DecoderConfig(
        architecture="",
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer(*intermediate),
        intermediate_field=intermediate[0],
        num_layers=fields.integer("num_hidden_layers", at_most=MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=fields.integer("max_position_embeddings", max_position_embeddings),
        names=LLAMA_NAMES,
        norm_eps=norm_eps if norm_eps_field is None else fields.number(norm_eps_field, norm_eps, at_least=0.0),
        activation=ACTIVATIONS[fields.one_of(activation_field, activation, ACTIVATIONS)],
        tie_word_embeddings=fields.flag("tie_word_embeddings", tie_word_embeddings),
    )
    return with_rope(config, fields, rope) if reads_rope else config


def with_rope(
    config: DecoderConfig, fields: Fields, form: RopeForm | None = None, head_dim: int | None = None
) -> DecoderConfig:
    """The configuration with rotary positions, and with the longest context that they allow. `head_dim`: the size of
    which `partial_rotary_factor` is a share, if it is not that of the configuration. Raises ModelError."""
    longest = config.max_position_embeddings
    rope = read_rope(fields, head_dim or config.head_dim, longest, form)
    if rope.kind == "linear":
        longest = max(int(longest * rope.factor), 1)
    if rope.kind == "yarn":
        longest = max(longest, int(rope.original_max_position_embeddings * rope.factor))
    return replace(config, rope=rope, max_position_embeddings=min(longest, MAX_INTEGER))
