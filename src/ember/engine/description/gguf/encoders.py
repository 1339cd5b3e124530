"""The fields of GGUF files' encoders, whose tokens see the whole text. No torch is imported."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.gguf.architecture import Values
from ember.engine.description.gguf.facts import Facts
from ember.engine.description.pooling import ClassifierHead, DenseConfig

BERT_NAMES = {
    "embed_token_types": "token_types",
    "attention_norm": "attn_output_norm",
    "mlp_norm": "layer_output_norm",
    "unused": ("cls.",),
}
DENSE_NAMES = {"unused": ("dense_2.", "dense_3.")}  # of sentence-transformers


def bert(facts: Facts) -> Values:
    """The files have the positions of RoBERTa without those that no text uses."""
    types, positions = (facts.tensors.get(f"{name}.weight") for name in ("token_types", "position_embd"))
    values: Values = {"type_vocab_size": 0 if types is None else types.shape[0]}
    if positions is not None:
        values["max_position_embeddings"] = positions.shape[0]
    return values


def nomic_bert(facts: Facts) -> Values:
    return bert(facts) | {"rotary_emb_base": facts.number("rope.freq_base", 10_000.0)}


def adapt_bert(facts: Facts, config: DecoderConfig) -> DecoderConfig:
    """The head of classes: a layer of its own, if the file has it, and the last one."""
    first = (DenseConfig(("cls",), activation="tanh"),) if "cls.weight" in facts.tensors else ()
    head = ClassifierHead((*first, DenseConfig(("cls.output",))))
    return replace(config, up_bias=facts.has("ffn_up.bias"), classifier_head=head)


def gemma_embedding(facts: Facts) -> Values:
    return {"query_pre_attn_scalar": facts.integer("attention.key_length"), "use_bidirectional_attention": True}
