"""A tokenizer.json's tokens as a GGUF file's metadata, as llama.cpp's conversion writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def of_tokenizer(directory: Path, pre: str, **more: Any) -> dict[str, Any]:
    """The metadata of a byte-level tokenizer in a directory. `more`: entries after "tokenizer."."""
    content = json.loads((directory / "tokenizer.json").read_text())
    ids = dict(content["model"]["vocab"]) | {token["content"]: token["id"] for token in content["added_tokens"]}
    tokens = [f"[PAD{number}]" for number in range(max(ids.values()) + 1)]
    kinds = [5] * len(tokens)
    for token, number in ids.items():
        tokens[number], kinds[number] = token, 1
    for token in content["added_tokens"]:
        kinds[token["id"]] = 3 if token["special"] else 4
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in content["model"]["merges"]]
    found = {
        "ggml.model": "gpt2",
        "ggml.pre": pre,
        "ggml.tokens": tokens,
        "ggml.token_type": kinds,
        "ggml.merges": merges,
    } | more
    return {f"tokenizer.{key}": value for key, value in found.items()}
