"""The tokens of a GGUF file's metadata: their kinds, and those with a role. For both processes.

Facts from llama.cpp's llama-vocab.cpp, which is what writes and reads these entries.
"""

from __future__ import annotations

from ember.gguf.header import Array, Metadata

MODEL, PRE, TOKENS = "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens"
SCORES, TYPES, MERGES = "tokenizer.ggml.scores", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"
MAX_TOKENS = 1 << 20  # four times those of the largest known vocabularies
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""The kinds of tokens in `TYPES`, which are SentencePiece's."""

# The roles of tokens by their names elsewhere. Files of SentencePiece leave out those that have the usual ids.
_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # the spelling of the format
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}
_USUAL = {
    "llama": {"bos_token": 1, "eos_token": 2, "unk_token": 0},
    "bert": {"bos_token": 101, "sep_token": 102, "unk_token": 100, "pad_token": 0, "mask_token": 103},
    "t5": {"eos_token": 1, "unk_token": 2, "pad_token": 0},
}
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
# Tokens that end an answer also in files that give them no role, or that call them no control tokens.
END_TEXTS = frozenset(
    [
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<｜end▁of▁sentence｜>",
        "[e~[",
        "</s>",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
    ]
)


def role_ids(metadata: Metadata) -> dict[str, int]:
    """The ids of the tokens with a role ("bos_token", ...) that are in the vocabulary. Raises GgufError."""
    tokens = metadata.values.get(TOKENS)
    count = tokens.count if isinstance(tokens, Array) else 0
    found = dict(_USUAL.get(metadata.text(MODEL) or "", {}))
    for name, key in (("bos_token", "cls_token_id"), *_ROLES.items()):
        token_id = metadata.integer(f"tokenizer.ggml.{key}")
        if token_id is not None:
            found[name] = token_id
    return {name: token_id for name, token_id in found.items() if 0 <= token_id < count}


def end_token_ids(metadata: Metadata) -> list[int]:
    """The tokens that end an answer, that of a text's end first. Raises GgufError."""
    given = [metadata.integer(f"tokenizer.ggml.{key}") for key in _ENDS]
    found = [token_id for token_id in given if token_id is not None and token_id >= 0]
    if metadata.text(MODEL) is not None and not found and "eos_token" in (roles := role_ids(metadata)):
        found.append(roles["eos_token"])
    by_text = {text: token_id for token_id, text in _found_texts(metadata).items() if text in END_TEXTS}
    if ("<|call|>" in by_text and "<|return|>" in by_text) or ("<|calls|>" in by_text and "<|flush|>" in by_text):
        by_text.pop("<|end|>", None)  # it ends a message of several in an answer
    return list(dict.fromkeys([*found, *sorted(by_text.values())]))


def _found_texts(metadata: Metadata) -> dict[int, str]:
    """The tokens that are found in a text before it is split; all of them in a file without kinds. None of a vocabulary
    that no tokenizer is made of."""
    tokens, kinds = metadata.values.get(TOKENS), metadata.values.get(TYPES)
    if not isinstance(tokens, Array) or not tokens.is_texts or tokens.count > MAX_TOKENS:
        return {}
    if kinds is None or (isinstance(kinds, Array) and not kinds.count):
        return dict(enumerate(tokens.texts()))
    if not isinstance(kinds, Array) or kinds.is_texts or kinds.count != tokens.count:
        return {}
    return tokens.texts_at([index for index, kind in enumerate(kinds.numbers()) if kind in (CONTROL, USER_DEFINED)])
