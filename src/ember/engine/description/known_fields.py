"""The fields of a config.json that change nothing in any family. This module does not import torch.

A field that is neither in this list nor in its family's may change what the model computes, so the boot names it once.
A field that transformers' configuration classes give a meaning for every family, and that is not read, must have its
neutral value. A test enumerates these classes, so that their new fields are noticed.
"""

from __future__ import annotations

from typing import Any

from ember.engine.description.family import field_names

# Fields of training; of the program that wrote the file; of generation, which come from generation_config.json and
# requests; of tasks other than generation; and of how transformers computes the same result.
HARMLESS = field_names(
    """
    attention_dropout dropout hidden_dropout activation_dropout resid_pdrop embd_pdrop layerdrop classifier_dropout
    residual_dropout embedding_dropout embed_dropout attn_dropout attn_pdrop ffn_dropout hidden_dropout_prob
    attention_probs_dropout_prob resid_dropout emb_pdrop
    initializer_range init_std pretraining_tp gradient_checkpointing neftune_noise_alpha

    transformers_version _name_or_path name_or_path _commit_hash unsloth_version unsloth_fixed transformers.js_config
    auto_map cache_implementation attention_softmax_in_fp32 scale_attention_softmax_in_fp32
    tokenizer_class model_max_length _flash_attn_2_enabled attn_implementation _attn_implementation
    output_router_logits router_aux_loss_coef router_jitter_noise input_jitter_noise
    _attn_implementation_autoset _attn_implementation_internal _experts_implementation experts_implementation

    max_sequence_length is_llama_config use_mrope

    bos_token_id eod_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id decoder_start_token_id
    forced_bos_token_id forced_eos_token_id use_cache
    max_length max_new_tokens min_length min_new_tokens do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff repetition_penalty
    encoder_repetition_penalty encoder_no_repeat_ngram_size length_penalty no_repeat_ngram_size bad_words_ids
    suppress_tokens begin_suppress_tokens exponential_decay_length_penalty remove_invalid_values num_return_sequences
    num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold assistant_lookbehind
    target_lookbehind output_scores return_dict_in_generate generation_config

    output_hidden_states output_attentions return_dict use_return_dict torchscript chunk_size_feed_forward
    id2label label2id num_labels _num_labels output_past problem_type finetuning_task task_specific_params prefix
    tie_encoder_decoder is_decoder use_bfloat16 tf_legacy_loss base_model_tp_plan base_model_pp_plan base_model_ep_plan
    keys_to_ignore_at_inference tie_last_hidden_states
    pooling is_matryoshka matryoshka_dimensions classifier_from_token method is_original_qwen3_reranker use_sep_token
    sentence_transformers sbert_ce_default_activation_function
    """
)

# These change nothing with one of these values; other values are for other kinds of models. (The positions of text are
# the same with `use_mrope`, which is for images.)
HARMLESS_VALUES: dict[str, tuple[Any, ...]] = {
    "rope_interleaved": (False,),
    "scale_embeddings": (False,),
    "is_causal": (True, False),  # which `read_config` reads for every family
    "hidden_activation": ("gelu_pytorch_tanh",),  # of Gemma 1, beside `hidden_act`
}

# Fields of transformers' base configuration, which have a meaning for every family: the values that change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (),
    "pruned_heads": ({},),
    "per_layer_config": ({},),
}
