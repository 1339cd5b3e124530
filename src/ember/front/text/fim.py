"""Fill-in-the-middle: the prompt formats of models that were trained on it.

Each family has three special tokens and an order of the parts, documented in its model card. The answer follows the
prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

from ember.front.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class MiddleFormat:
    """A prompt format: `template` has {prefix} and {suffix}; the vocabulary must have all of `tokens`."""

    name: str
    tokens: tuple[str, ...]
    template: str

    def prompt(self, prefix: str, suffix: str) -> str:
        before, _, rest = self.template.partition("{prefix}")
        if "{suffix}" in before:  # some models read the suffix first
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
    # DeepSeek Coder and DeepSeek V2, V3: a token for the middle is between prefix and suffix
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
    """The first format whose tokens are added tokens of the tokenizer; None for a model without such a format."""
    for candidate in _FORMATS:
        ids = [tokenizer.token_id(token) for token in candidate.tokens]
        if all(token_id is not None and token_id in tokenizer.added_token_ids for token_id in ids):
            return candidate
    return None
