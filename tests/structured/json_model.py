"""A tiny random model whose tokens are bytes, pieces of JSON and a few markers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from ember.front.text.tokenizer import Tokenizer
from tests.engine_models.tiny import make_tiny

EOS = "<eos>"
THINK, END_THINK = "<think>", "</think>"
CALL = "<call>"  # known to tokenizer_config.json alone
MERGES = [("a", "b"), ('"', ":"), ("{", '"'), ('"', "}"), ("Ġ", '"'), ("t", "r"), ("u", "e"), ("tr", "ue"), (",", '"')]
NUM_ROWS = 300  # of the logits; there are fewer tokens


def make_json_model(directory: Path, **sizes: Any) -> Path:
    """Returns the directory."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: token_id for token_id, word in enumerate([*alphabet, *(a + b for a, b in MERGES)])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([EOS])
    backend.add_tokens([THINK, END_THINK])
    call_id = len(vocabulary) + 3
    eos = len(vocabulary)
    make_tiny("qwen3", directory, vocab_size=NUM_ROWS, eos_token_id=eos, bos_token_id=eos, **sizes)
    backend.save(str(directory / "tokenizer.json"))
    added = {str(call_id): {"content": CALL, "special": False}}
    config = {"eos_token": EOS, "added_tokens_decoder": added}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def load(directory: Path) -> Tokenizer:
    return Tokenizer.load(directory)
