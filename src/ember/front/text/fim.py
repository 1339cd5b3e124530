"""Filling in the middle: how models that were trained on it take the text before and after the gap.

Each family has three special tokens and an order of the parts, as its model card says; the answer follows the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

from ember.front.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class MiddleFormat:
    """The prompt is `template` with {prefix} and {suffix} put in; `tokens` are what the vocabulary must have."""

    name: str
    tokens: tuple[str, ...]
    template: str

    def prompt(self, prefix: str, suffix: str) -> str:
        before, _, rest = self.template.partition("{prefix}")
        if "{suffix}" in before:  # some models read what follows the gap first
            head, _, between = before.partition("{suffix}")
            return head + suffix + between + prefix + rest
        between, _, tail = rest.partition("{suffix}")
        return before + prefix + between + suffix + tail


def _three(name: str, prefix: str, suffix: str, middle: str) -> MiddleFormat:
    return MiddleFormat(name, (prefix, suffix, middle), f"{prefix}{{prefix}}{suffix}{{suffix}}{middle}")


_FORMATS = (
    # Qwen2.5-Coder, Qwen3-Coder, CodeGemma, Granite
    _three("qwen", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    # StarCoder, StarCoder2, StableCode, SantaCoder's successors, Granite Code
    _three("starcoder", "<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    _three("santacoder", "<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    # DeepSeek Coder and DeepSeek V2, V3: the middle is a hole between the two
    _three("deepseek", "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    _three("glm", "<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    MiddleFormat(
        "seed",
        ("<[fim-suffix]>", "<[fim-prefix]>", "<[fim-middle]>"),
        "<[fim-suffix]>{suffix}<[fim-prefix]>{prefix}<[fim-middle]>",
    ),
    MiddleFormat("codestral", ("[SUFFIX]", "[PREFIX]"), "[SUFFIX]{suffix}[PREFIX]{prefix}"),
)


def middle_format(tokenizer: Tokenizer) -> MiddleFormat | None:
    """The first format whose tokens the tokenizer has as added ones; None for a model without any."""
    for candidate in _FORMATS:
        ids = [tokenizer.token_id(token) for token in candidate.tokens]
        if all(token_id is not None and token_id in tokenizer.added_token_ids for token_id in ids):
            return candidate
    return None
