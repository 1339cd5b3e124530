"""A tokenizer in which every byte is a token, beside the added tokens that a test asks for."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from ember.front.text.tokenizer import Tokenizer

EOS = "</s>"


@lru_cache(maxsize=64)
def byte_tokenizer(special: Sequence[str] = (), added: Sequence[str] = ()) -> Tokenizer:
    """`special` tokens give no text where special tokens are skipped; `added` ones do. Both as tuples."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: token_id for token_id, word in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([EOS, *special])
    backend.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in added])
    with tempfile.TemporaryDirectory() as directory:
        backend.save(str(Path(directory) / "tokenizer.json"))
        (Path(directory) / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}))
        return Tokenizer.load(directory)
