"""The architectures of GGUF files that our families compute. This module does not import torch.

An architecture gives a config.json as Hugging Face's would be, which the family reads; what a file has beyond that is
in `common.py`. Facts from llama.cpp: `llama_model_rope_type` (which files have interleaved rotary positions), its
`src/models/` (defaults that the metadata lacks), and its `conversion/` (what is changed when a file is made).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.gguf import encoders, expert_fields, gemma4, mixer_fields
from ember.engine.description.gguf.architecture import Architecture, Values
from ember.engine.description.gguf.facts import Facts
from ember.engine.description.mlp_weights import XIELU_WEIGHTS


def _llama(facts: Facts) -> str:
    return "MixtralForCausalLM" if facts.integer("expert_count", 0) else "LlamaForCausalLM"


def _olmo2(facts: Facts) -> str:
    return "Olmo3ForCausalLM" if facts.integer("attention.sliding_window", 0) else "Olmo2ForCausalLM"


def _gemma(largest: int) -> Callable[[Facts], Values]:
    """`largest`: the number of layers of the model whose attention is scaled by its width in place of a head's."""

    def read(facts: Facts) -> Values:
        heads, head_dim = facts.integer("attention.head_count"), facts.integer("attention.key_length")
        is_largest = facts.integer("block_count") == largest
        scalar = facts.integer("embedding_length") // max(heads, 1) if is_largest else head_dim
        values: Values = {"query_pre_attn_scalar": scalar}
        for field in ("attn_logit_softcapping", "final_logit_softcapping"):
            values[field] = facts.number(field, 0.0) or None
        if facts.architecture == "gemma2":
            values["sliding_window"] = facts.integer("attention.sliding_window", 4096)
        return values

    return read


def _granite(facts: Facts) -> Values:
    heads = facts.integer("attention.head_count")
    usual = (facts.integer("embedding_length") // max(heads, 1)) ** -0.5
    return {
        "embedding_multiplier": facts.number("embedding_scale", 1.0),
        "residual_multiplier": facts.number("residual_scale", 1.0),
        "attention_multiplier": facts.number("attention.scale", 0.0) or usual,
        "logits_scaling": facts.number("logit_scale", 1.0),
    }


def _granite_hybrid(facts: Facts) -> Values:
    return _granite(facts) | mixer_fields.granite_hybrid(facts)


def _minicpm(facts: Facts) -> Values:
    layers, hidden = facts.integer("block_count"), facts.integer("embedding_length")
    residual = facts.number("residual_scale", 1.4 / math.sqrt(max(layers, 1)))
    return {
        "scale_emb": facts.number("embedding_scale", 12.0),
        "scale_depth": residual * math.sqrt(layers),
        "dim_model_base": round(hidden / facts.number("logit_scale", hidden / 256)),
    }


def _cohere(facts: Facts) -> Values:
    has_norm = facts.has("attn_q_norm.weight")
    return {"logit_scale": facts.number("logit_scale", 1.0), "use_qk_norm": has_norm}


def _stablelm(facts: Facts) -> Values:
    return {
        "use_parallel_residual": not facts.has("ffn_norm.weight"),
        "qk_layernorm": facts.has("attn_q_norm.weight"),
        "use_qkv_bias": facts.has("attn_q.bias") or facts.has("attn_qkv.bias"),
    }


def _falcon(facts: Facts) -> Values:
    """All forms as the newer one, whose heads of keys and values and whose norms are counted."""
    return {
        "new_decoder_architecture": True,
        "num_kv_heads": facts.integer("attention.head_count_kv", facts.integer("attention.head_count")),
        "num_ln_in_parallel_attn": 2 if facts.has("attn_norm_2.weight") else 1,
        "ffn_hidden_size": facts.rows("ffn_up.weight") or facts.integer("feed_forward_length"),
        "bias": facts.has("attn_qkv.bias"),
    }


def _gpt2(facts: Facts) -> Values:
    return {"n_inner": facts.rows("ffn_up.weight") or facts.integer("feed_forward_length"), "multi_query": True}


def _mpt(facts: Facts) -> Values:
    attention: Values = {"alibi": facts.number("attention.max_alibi_bias", 8.0) > 0}
    if attention["alibi"]:
        attention["alibi_bias_max"] = round(facts.number("attention.max_alibi_bias", 8.0))
    if clip := facts.number("attention.clamp_kqv", 0.0):
        attention["clip_qkv"] = clip
    hidden = facts.integer("embedding_length")
    return {"attn_config": attention, "expansion_ratio": facts.integer("feed_forward_length") // max(hidden, 1)}


def _olmo(facts: Facts) -> Values:
    return {"clip_qkv": facts.number("attention.clamp_kqv", 0.0) or None}


def _gpt_oss(facts: Facts) -> Values:
    return {"intermediate_size": facts.integer("expert_feed_forward_length")}


def _phi2(facts: Facts) -> Values:
    return {"intermediate_size": facts.rows("ffn_up.weight") or facts.integer("feed_forward_length")}


def _phimoe(facts: Facts) -> Values:
    return {"lm_head_bias": True}


def _baichuan(facts: Facts) -> Values:
    """The larger models have ALiBi, which a config.json says by having no max_position_embeddings."""
    if facts.integer("block_count") != 40:
        return {}
    return {"model_max_length": facts.integer("context_length"), "max_position_embeddings": None}


def _orion(facts: Facts) -> Values:
    """A config.json has the epsilon of LayerNorm under RMSNorm's name."""
    keys = ("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon")
    key = next((each for each in keys if facts.optional(each) is not None), keys[0])
    return {"rms_norm_eps": facts.number(key)}


def _adapt_apertus(facts: Facts, config: DecoderConfig) -> DecoderConfig:
    """The metadata has the weights of the activation, one of each kind for every layer."""
    numbers: dict[str, float] = {}
    for name in XIELU_WEIGHTS:
        values = facts.metadata.numbers(f"xielu.{name}") or []
        if len(values) < config.num_layers:
            raise facts.metadata.error(f"xielu.{name}", f"a number for each of {config.num_layers} layers")
        numbers |= {f"blk.{layer}.xielu.{name}": value for layer, value in enumerate(values)}
    quantization = {**(config.quantization or {}), "numbers": numbers}
    return replace(config, names=replace(config.names, activation="xielu"), quantization=quantization)


def _gptneox(facts: Facts) -> Values:
    return {"use_parallel_residual": facts.flag("use_parallel_residual", False)}


_OUTPUT_NORMS = {"attention_norm": "post_attention_norm", "mlp_norm": "post_ffw_norm"}
_NORM_AFTER = {"mlp_norm": "post_attention_norm"}  # the norm after attention is that before the MLP

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(_llama, interleaved=True),
    "mistral3": Architecture("Ministral3ForCausalLM", interleaved=True),
    "exaone": Architecture("LlamaForCausalLM"),
    "apertus": Architecture("ApertusForCausalLM", adapt=_adapt_apertus),
    "baichuan": Architecture("BaichuanForCausalLM", interleaved=True, fields=_baichuan),
    "orion": Architecture("OrionForCausalLM", fields=_orion),
    "xverse": Architecture("XverseForCausalLM", interleaved=True),
    "llama4": Architecture("Llama4ForCausalLM", interleaved=True, fields=expert_fields.llama4),
    "arcee": Architecture("ArceeForCausalLM", interleaved=True),
    "smollm3": Architecture("SmolLM3ForCausalLM", interleaved=True),
    "seed_oss": Architecture("SeedOssForCausalLM", names=_NORM_AFTER),
    "qwen2": Architecture("Qwen2ForCausalLM"),
    "qwen2vl": Architecture("Qwen2ForCausalLM"),
    "qwen3": Architecture("Qwen3ForCausalLM"),
    "qwen3vl": Architecture("Qwen3ForCausalLM"),
    "qwen2moe": Architecture("Qwen2MoeForCausalLM", fields=expert_fields.qwen_moe),
    "qwen3moe": Architecture("Qwen3MoeForCausalLM", fields=expert_fields.qwen_moe),
    "qwen3vlmoe": Architecture("Qwen3MoeForCausalLM", fields=expert_fields.qwen_moe),
    "gemma": Architecture("GemmaForCausalLM"),
    "gemma2": Architecture("Gemma2ForCausalLM", fields=_gemma(46)),
    "gemma3": Architecture("Gemma3ForCausalLM", fields=_gemma(62)),
    "gemma4": Architecture("Gemma4ForCausalLM", fields=gemma4.gemma4, differs=True),
    "qwen3next": Architecture("Qwen3NextForCausalLM", fields=mixer_fields.qwen3_5_moe, names=_NORM_AFTER),
    "qwen35": Architecture(
        "Qwen3_5ForCausalLM", fields=mixer_fields.qwen3_5, names=_NORM_AFTER, adapt=mixer_fields.adapt_qwen3_5
    ),
    "qwen35moe": Architecture(
        "Qwen3_5MoeForCausalLM", fields=mixer_fields.qwen3_5_moe, names=_NORM_AFTER, adapt=mixer_fields.adapt_qwen3_5
    ),
    "phi2": Architecture("PhiForCausalLM", fields=_phi2),
    "phi3": Architecture("Phi3ForCausalLM"),
    "phimoe": Architecture("PhimoeForCausalLM", fields=_phimoe),
    "gpt-oss": Architecture("GptOssForCausalLM", fields=_gpt_oss, names=_NORM_AFTER),
    "gpt2": Architecture("GPT2LMHeadModel", fields=_gpt2),
    "starcoder": Architecture("GPTBigCodeForCausalLM", fields=_gpt2),
    "starcoder2": Architecture("Starcoder2ForCausalLM"),
    "gptneox": Architecture("GPTNeoXForCausalLM", fields=_gptneox),
    "falcon": Architecture("FalconForCausalLM", fields=_falcon),
    "bloom": Architecture("BloomForCausalLM"),
    "mpt": Architecture("MptForCausalLM", fields=_mpt),
    "stablelm": Architecture("StableLmForCausalLM", fields=_stablelm),
    "olmo": Architecture("OlmoForCausalLM", interleaved=True, fields=_olmo),
    "olmo2": Architecture(_olmo2, names=_OUTPUT_NORMS),
    "olmoe": Architecture("OlmoeForCausalLM"),
    "granite": Architecture("GraniteForCausalLM", interleaved=True, fields=_granite),
    "granitemoe": Architecture("GraniteMoeForCausalLM", interleaved=True, fields=_granite),
    "granitehybrid": Architecture(
        "GraniteMoeHybridForCausalLM", interleaved=True, fields=_granite_hybrid, differs=True
    ),
    "nemotron_h": Architecture("NemotronHForCausalLM", fields=mixer_fields.nemotron_h, differs=True),
    "nemotron_h_moe": Architecture("NemotronHForCausalLM", fields=mixer_fields.nemotron_h, differs=True),
    "falcon-h1": Architecture("FalconH1ForCausalLM", fields=mixer_fields.falcon_h1),
    "mamba2": Architecture("Mamba2ForCausalLM", fields=mixer_fields.mamba2, has_attention=False),
    "lfm2": Architecture("Lfm2ForCausalLM", fields=mixer_fields.lfm2, adapt=mixer_fields.adapt_lfm2, differs=True),
    "lfm2moe": Architecture(
        "Lfm2MoeForCausalLM", fields=mixer_fields.lfm2_moe, adapt=mixer_fields.adapt_lfm2, differs=True
    ),
    "deepseek2": Architecture(
        mixer_fields.deepseek_model, interleaved=True, fields=mixer_fields.deepseek2, is_latent=True
    ),
    "mistral4": Architecture("Mistral4ForCausalLM", interleaved=True, fields=mixer_fields.deepseek2, is_latent=True),
    "minicpm3": Architecture("MiniCPM3ForCausalLM", fields=mixer_fields.minicpm3, is_latent=True),
    "command-r": Architecture("CohereForCausalLM", interleaved=True, fields=_cohere),
    "cohere2": Architecture("Cohere2ForCausalLM", interleaved=True, fields=_cohere),
    "chatglm": Architecture("GlmForCausalLM", interleaved=True),
    "glm4": Architecture("Glm4ForCausalLM", interleaved=True),
    "glm4moe": Architecture("Glm4MoeForCausalLM", fields=expert_fields.glm_moe, names=_NORM_AFTER),
    "dots1": Architecture("Dots1ForCausalLM", fields=expert_fields.dots1),
    "bailingmoe2": Architecture("BailingMoeV2ForCausalLM", fields=expert_fields.bailing),
    "exaone-moe": Architecture("ExaoneMoeForCausalLM", fields=expert_fields.deepseek_experts),
    "exaone4": Architecture("Exaone4ForCausalLM", names=_OUTPUT_NORMS),
    "hunyuan-dense": Architecture("HunYuanDenseV1ForCausalLM"),
    "hunyuan-moe": Architecture("HunYuanMoEV1ForCausalLM", fields=expert_fields.hunyuan_moe),
    "nemotron": Architecture("NemotronForCausalLM"),
    "ernie4_5": Architecture("Ernie4_5ForCausalLM", interleaved=True),
    "ernie4_5-moe": Architecture("Ernie4_5_MoeForCausalLM", interleaved=True, fields=expert_fields.ernie_moe),
    "minicpm": Architecture("MiniCPMForCausalLM", interleaved=True, fields=_minicpm),
    "internlm2": Architecture("InternLM2ForCausalLM", interleaved=True),
    "jais2": Architecture("Jais2ForCausalLM"),
    "bert": Architecture("BertModel", fields=encoders.bert, names=encoders.BERT_NAMES, adapt=encoders.adapt_bert),
    "nomic-bert": Architecture(
        "NomicBertModel", fields=encoders.nomic_bert, names=encoders.BERT_NAMES, adapt=encoders.adapt_bert
    ),
    "gemma-embedding": Architecture("Gemma3ForCausalLM", fields=encoders.gemma_embedding, names=encoders.DENSE_NAMES),
    "minimax-m2": Architecture("MiniMaxM2ForCausalLM", fields=expert_fields.minimax),
}
