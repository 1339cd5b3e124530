"""A tokenizer from vocab.json and merges.txt, for repositories of byte-level BPE without a tokenizer.json.

The two files do not determine how text is split before the merges and which tokens are special by default. These come
from the tokenizer class that tokenizer_config.json names, or else from the model's type, as in transformers 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ember import untrusted_json
from ember.regular_file import MAX_JSON_BYTES, read_regular
from ember.untrusted_json import UntrustedJsonError

if TYPE_CHECKING:
    import tokenizers

VOCABULARY, MERGES = "vocab.json", "merges.txt"

_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ROBERTA = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>", "unk_token": "<unk>"}


@dataclass(frozen=True, slots=True)
class Kind:
    """What a tokenizer class adds to its two files."""

    name: str
    special_tokens: dict[str, str]  # used where tokenizer_config.json names none
    pattern: str | None = None  # regular expression that splits text; None: that of GPT-2
    is_nfc: bool = False  # whether text is normalised to Unicode's form NFC first
    has_class_token: bool = False  # whether a sequence is enclosed in the class token and the separator


_GPT2 = Kind("GPT-2", dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>"))
_QWEN2 = Kind(
    "Qwen2", dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"), _QWEN2_PATTERN, is_nfc=True
)
_ROBERTA_KIND = Kind("RoBERTa", {**_ROBERTA, "pad_token": "<pad>", "mask_token": "<mask>"}, has_class_token=True)
_KINDS = {"GPT2Tokenizer": _GPT2, "Qwen2Tokenizer": _QWEN2, "RobertaTokenizer": _ROBERTA_KIND}
_KINDS_BY_TYPE = {"gpt2": _GPT2, "opt": _GPT2, "qwen2": _QWEN2, "qwen3": _QWEN2, "roberta": _ROBERTA_KIND}


class VocabularyError(ValueError):
    """The two files cannot be used. The message is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokenizer of the two files, before the added tokens of other files, and what its class adds."""

    backend: tokenizers.Tokenizer
    kind: Kind
    config: dict[str, Any]  # tokenizer_config.json
    file: str = VOCABULARY

    @property
    def special_tokens(self) -> dict[str, str]:
        """The special tokens of the class that are in the vocabulary."""
        known = self.backend.get_vocab()
        return {name: token for name, token in self.kind.special_tokens.items() if token in known}

    def finish(self, named: dict[str, str]) -> None:
        """Set the tokens around a text, after all tokens were added. `named`: "bos_token" -> "<s>". Raises
        VocabularyError for a token that is not in the vocabulary."""
        from tokenizers import processors

        def single(name: str) -> list[str]:
            return [named[name]] if self.config.get(f"add_{name}") is True and name in named else []

        def pair(name: str) -> tuple[str, int]:
            return named[name], known_id(self.backend, name, named[name])

        adds = {"add_bos_token", "add_eos_token"} & self.config.keys()
        if self.kind.has_class_token and not adds and {"sep_token", "cls_token"} <= named.keys():
            prefix = self.config.get("add_prefix_space") is True
            self.backend.post_processor = processors.RobertaProcessing(
                pair("sep_token"), pair("cls_token"), trim_offsets=True, add_prefix_space=prefix
            )
            return
        before, behind = single("bos_token"), single("eos_token")
        self.backend.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *behind],
            special_tokens=[pair(name) for name in ("bos_token", "eos_token") if single(name)],
        )


def known_id(backend: tokenizers.Tokenizer, name: str, token: str) -> int:
    """The id of a special token, which has this name in tokenizer_config.json. Raises VocabularyError for a token that
    is not in the vocabulary."""
    token_id: int | None = backend.token_to_id(token)
    if token_id is None:
        raise VocabularyError(f"{name} is {ascii(token)[:40]}, which is not in the vocabulary")
    return token_id


def load_vocabulary(directory: Path) -> Vocabulary:
    """Read the two files. Raises VocabularyError."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    config = object_in(directory / "tokenizer_config.json")
    kind = _kind(directory, config)
    vocab = object_in(directory / VOCABULARY)
    if not vocab or not all(type(token_id) is int and 0 <= token_id < 2**31 for token_id in vocab.values()):
        raise VocabularyError(f"{directory / VOCABULARY} must map each token to its id: download the file again")
    try:
        model = models.BPE(vocab, _merges(directory / MERGES), continuing_subword_prefix="", end_of_word_suffix="")
    except Exception as error:  # the library raises bare Exception
        reason = " ".join(str(error).split())[:200]
        raise VocabularyError(
            f"{directory}: {VOCABULARY} and {MERGES} do not fit each other ({reason}): download both again"
        ) from None
    backend = tokenizers.Tokenizer(model)
    prefix = config.get("add_prefix_space") is True
    cut: Any = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=kind.pattern is None)
    if kind.pattern is not None:
        split = pre_tokenizers.Split(tokenizers.Regex(kind.pattern), behavior="isolated", invert=False)
        cut = pre_tokenizers.Sequence([split, cut])
    backend.pre_tokenizer = cut
    backend.decoder = decoders.ByteLevel()
    if kind.is_nfc:
        backend.normalizer = normalizers.NFC()
    return Vocabulary(backend, kind, config)


def _kind(directory: Path, config: dict[str, Any]) -> Kind:
    name = config.get("tokenizer_class")
    kind = _KINDS.get(name.removesuffix("Fast")) if isinstance(name, str) else None
    if name is None:
        model_type = object_in(directory / "config.json").get("model_type")
        kind = _KINDS_BY_TYPE.get(model_type) if isinstance(model_type, str) else None
        name = f"a model of the type {model_type}"
    if kind is None:
        raise VocabularyError(
            f"{directory} has {VOCABULARY} and {MERGES} of {ascii(str(name))[1:-1][:100]}, of which only "
            f"{', '.join(_KINDS)} load without a tokenizer.json: {conversion(directory)}"
        )
    return kind


def conversion(directory: Path) -> str:
    """The command that makes a tokenizer.json."""
    return (
        'convert it once with `python -c "from transformers import AutoTokenizer as A; '
        f"A.from_pretrained('{directory}').save_pretrained('{directory}')\"`, where transformers, sentencepiece and "
        "tiktoken are installed"
    )


def _merges(path: Path) -> list[tuple[str, str]]:
    """The merges of a file with one per line: two tokens separated by a blank. Raises VocabularyError."""
    try:
        lines = read_regular(path, MAX_JSON_BYTES).decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise VocabularyError(f"{path} is not UTF-8 text: download the file again") from None
    except OSError as error:
        raise VocabularyError(f"{path} cannot be read: {error.strerror}") from None
    merges = []
    for number, line in enumerate(lines, start=1):
        line = line.removesuffix("\r")
        if not line or line.startswith("#version"):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise VocabularyError(f"{path}, line {number}, is not two tokens with a blank between: download it again")
        merges.append((left, right))
    return merges


def object_in(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty if the file does not exist. Raises VocabularyError."""
    try:
        return untrusted_json.read_object(path, MAX_JSON_BYTES) or {}
    except UntrustedJsonError as error:
        raise VocabularyError(f"{path} cannot be read ({error}): download the file again") from None
