"""How byte-level tokenizers of GGUF files split a text before its merges, by the name in tokenizer.ggml.pre.

The expressions are those of the models' published tokenizer.json files. Several are applied one after the other, each
to the pieces of the one before: what it matches is a piece of its own.
"""

from __future__ import annotations

from typing import NamedTuple


class PreTokenizer(NamedTuple):
    """The expressions of a kind of models, and what else its tokenizers have."""

    patterns: tuple[str, ...]
    ignores_merges: bool = False  # a piece that is a token needs no merges
    adds_bos: bool = False  # in a file that does not say it
    is_nfc: bool = False  # text is normalised to Unicode's form NFC first
    is_bytes: bool = True  # tokens are of bytes; otherwise of characters, with a mark in place of a blank


_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_LLAMA3 = rf"{_ENDING}|" + _WORDS.replace("{}", "{1,3}", 1)
_QWEN2 = rf"{_ENDING}|" + _WORDS.replace("{}", "", 1)
_MINICPM5 = rf"{_ENDING}|" + _WORDS.replace("{}", "+", 1)
_QWEN35 = rf"{_ENDING}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASES = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_MARKS = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_GPT4O = rf"{_CASES[0]}{_ENDING}?|{_CASES[1]}{_ENDING}?|\p{{N}}{{1,3}}|{_MARKS}"
_TEKKEN = rf"{_CASES[0]}|{_CASES[1]}|\p{{N}}|{_MARKS}"
_ASCII_MARKS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    rf"{_ASCII_MARKS}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)
_DEEPSEEK_LLM = (
    r"[\r\n]",
    r"\s?[\p{Lu}\p{Ll}\p{Lt}]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    r"[一-龥ࠀ-一가-퟿]+",
    r"\p{N}+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_JAIS2 = (
    rf"{_ENDING}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|"
    + "".join(rf"\s{{{count}}}(?!\S)|" for count in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))
    + r"\s{1}"
)
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_SEED = rf"{_ENDING}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_EXAONE_MOE = (
    rf"{_ENDING}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_NO_HAN = tuple(f"[{kind[1:-1]}&&[^\\p{{Han}}]]" for kind in (_UPPER, _LOWER))
_KIMI = (
    rf"\p{{Han}}+|[^\r\n\p{{L}}\p{{N}}]?{_NO_HAN[0]}*{_NO_HAN[1]}+{_ENDING}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?{_NO_HAN[0]}+{_NO_HAN[1]}*{_ENDING}?|"
    rf"\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_YOUTU = (
    r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u3040-ゟ゠-ヿ]+",
    rf"{_CASES[0]}{_ENDING}?|{_CASES[1]}{_ENDING}?|\p{{N}}|{_MARKS}",
)
_DIGITS = r"\p{N}"

_KINDS: dict[PreTokenizer, str] = {
    PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")): "default",
    PreTokenizer((_LLAMA3,), ignores_merges=True, adds_bos=True): (
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2"
    ),
    PreTokenizer((_LLAMA3,)): "dbrx smaug-bpe chatglm-bpe",
    PreTokenizer((_LLAMA3,), ignores_merges=True): "glm4 glm5",
    PreTokenizer((_QWEN2,), is_nfc=True): "qwen2 deepseek-r1-qwen kormo megrez f2llmv2",
    PreTokenizer((_QWEN2,)): "stablelm2 hunyuan solar-open grok-2",
    PreTokenizer((_QWEN35,), is_nfc=True): "qwen35",
    PreTokenizer((_GPT4O,)): "gpt-4o llama4 kanana2 minimax-m2",
    PreTokenizer((_TEKKEN,), ignores_merges=True, adds_bos=True): "tekken",
    PreTokenizer((_GPT2,)): (
        "gpt-2 phi-2 mpt olmo jais exaone4 trillion granite-docling gigachat mellum a.x-4.0 roberta-bpe jina-v1-en"
    ),
    PreTokenizer((_DIGITS, _GPT2)): "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2",
    PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")): "falcon",
    PreTokenizer(_DEEPSEEK3): "deepseek-v3 hunyuan-dense joyai-llm",
    PreTokenizer(_DEEPSEEK_LLM): "deepseek-llm",
    PreTokenizer(_DEEPSEEK_CODER): "deepseek-coder",
    PreTokenizer((_BLOOM,)): "bloom poro-chat gpt3-finnish",
    PreTokenizer((_BLOOM, _DIGITS)): "viking",
    PreTokenizer((_JAIS2,)): "jais-2",
    PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O)): "tiny_aya",
    PreTokenizer((r"\p{N}{1,3}", _MINICPM5), ignores_merges=True): "minicpm5",
    PreTokenizer((_BAILING,)): "bailingmoe bailingmoe2 llada-moe",
    PreTokenizer((_SEED,)): "seed-coder",
    PreTokenizer((_EXAONE_MOE,)): "exaone-moe",
    PreTokenizer((_KIMI,)): "kimi-k2",
    PreTokenizer(_YOUTU, ignores_merges=True): "youtu",
    PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))")): "superbpe",
    PreTokenizer((r"[^\n]+|[\n]+",), is_bytes=False): "gemma4",
}
PRE_TOKENIZERS = {name: kind for kind, names in _KINDS.items() for name in names.split()}
