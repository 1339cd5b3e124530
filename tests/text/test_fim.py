"""Filling in the middle: the prompt of each family, and models without the tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from ember.front.text.fim import middle_format
from ember.front.text.tokenizer import Tokenizer


def tokenizer_with(directory: Path, added: list[str], words: list[str] | None = None) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) + (words or [])
    backend = tokenizers.Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(added)
    backend.save(str(directory / "tokenizer.json"))
    return Tokenizer.load(directory)


# As the model cards of Qwen2.5-Coder, StarCoder2, DeepSeek Coder and Seed-Coder write them, and as Mistral's own
# tokenizer orders Codestral's.
FAMILIES = {
    "qwen": (
        ["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"],
        "<|fim_prefix|>def f(<|fim_suffix|>): pass<|fim_middle|>",
    ),
    "starcoder": (
        ["<fim_prefix>", "<fim_middle>", "<fim_suffix>"],
        "<fim_prefix>def f(<fim_suffix>): pass<fim_middle>",
    ),
    "deepseek": (
        ["<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>"],
        "<｜fim▁begin｜>def f(<｜fim▁hole｜>): pass<｜fim▁end｜>",
    ),
    "glm": (
        ["<|code_prefix|>", "<|code_middle|>", "<|code_suffix|>"],
        "<|code_prefix|>def f(<|code_suffix|>): pass<|code_middle|>",
    ),
    "seed": (
        ["<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>"],
        "<[fim-suffix]>): pass<[fim-prefix]>def f(<[fim-middle]>",
    ),
    "codestral": (["[PREFIX]", "[SUFFIX]", "[MIDDLE]"], "[SUFFIX]): pass[PREFIX]def f("),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_of_a_family(family: str, tmp_path: Path) -> None:
    added, prompt = FAMILIES[family]
    tokenizer = tokenizer_with(tmp_path, added)
    found = middle_format(tokenizer)
    assert found is not None and found.name == family
    assert found.prompt("def f(", "): pass") == prompt
    special = [token for token in tokenizer.encode(prompt, False) if token in tokenizer.special_token_ids]
    assert len(special) == len(found.tokens), "each marker is one token"


def test_text_that_looks_like_a_place_is_left_alone(tmp_path: Path) -> None:
    found = middle_format(tokenizer_with(tmp_path, FAMILIES["seed"][0]))
    assert found is not None
    assert found.prompt("{suffix}", "{prefix}") == "<[fim-suffix]>{prefix}<[fim-prefix]>{suffix}<[fim-middle]>"


def test_models_without_the_tokens(tmp_path: Path) -> None:
    assert middle_format(tokenizer_with(tmp_path, ["<fim_prefix>", "<fim_middle>"])) is None
    words = ["<fim_prefix>", "<fim_middle>", "<fim_suffix>"]
    assert middle_format(tokenizer_with(tmp_path, ["<s>"], words)) is None, "they must be tokens of their own"
