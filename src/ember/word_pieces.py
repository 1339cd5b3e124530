"""A tokenizer from vocab.txt: the word pieces of BERT and its kin, in repositories without a tokenizer.json.

Which tokens enclose a text depends on the class of the tokenizer: those of BERT, or those of MPNet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ember.byte_level_bpe import VocabularyError, conversion, known_id, object_in
from ember.regular_file import MAX_JSON_BYTES, read_regular

if TYPE_CHECKING:
    import tokenizers

FILE = "vocab.txt"
_BERT = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_MPNET = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "[UNK]",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_MPNET_TYPES = ("mpnet",)
_BERT_TYPES = ("bert", "distilbert", "electra", "mobilebert", "nomic_bert", "new", "gte", "squeezebert", "retribert")


@dataclass(frozen=True, slots=True)
class WordPieces:
    """The tokenizer of the file, before the added tokens of other files."""

    backend: tokenizers.Tokenizer
    special_tokens: dict[str, str]  # used where tokenizer_config.json names none
    is_mpnet: bool
    file: str = FILE

    def finish(self, named: dict[str, str]) -> None:
        """Set the tokens around a text, after all tokens were added. `named`: "cls_token" -> "[CLS]". Raises
        VocabularyError for a token that is not in the vocabulary."""
        from tokenizers import processors

        cls, sep = (named.get(name, self.special_tokens.get(name)) for name in ("cls_token", "sep_token"))
        if cls is None or sep is None:
            return
        ids = {cls: known_id(self.backend, "cls_token", cls), sep: known_id(self.backend, "sep_token", sep)}
        between = f"{sep} {sep} $B {sep}" if self.is_mpnet else f"{sep} $B:1 {sep}:1"
        self.backend.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {between}",
            special_tokens=list(ids.items()),
        )


def load_word_pieces(directory: Path) -> WordPieces:
    """Read the file, and tokenizer_config.json for how text is normalised. Raises VocabularyError."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    path = directory / FILE
    config = object_in(directory / "tokenizer_config.json")
    is_mpnet = _is_mpnet(directory, config)
    try:
        lines = read_regular(path, MAX_JSON_BYTES).decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise VocabularyError(f"{path} is not text in UTF-8: download the file again") from None
    except OSError as error:
        raise VocabularyError(f"{path} cannot be read: {error.strerror}") from None
    if lines and not lines[-1]:
        lines.pop()
    vocabulary = {line.rstrip("\r"): token_id for token_id, line in enumerate(lines)}
    special = {name: token for name, token in (_MPNET if is_mpnet else _BERT).items() if token in vocabulary}
    unknown = _text(config.get("unk_token")) or special.get("unk_token", "[UNK]")
    if unknown not in vocabulary:
        raise VocabularyError(f"{path} has no token {ascii(unknown)[:40]} for unknown words: download the file again")
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=100))
    lower_case = config.get("do_lower_case")
    accents = config.get("strip_accents")
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars") is not False,
        strip_accents=accents if isinstance(accents, bool) else None,
        lowercase=lower_case is not False,
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return WordPieces(backend, special, is_mpnet)


def _is_mpnet(directory: Path, config: dict[str, Any]) -> bool:
    """Which of the two kinds it is. Raises VocabularyError for a vocab.txt of any other."""
    name = config.get("tokenizer_class")
    model_type = object_in(directory / "config.json").get("model_type")
    kind = name.removesuffix("Fast").removesuffix("Tokenizer").lower() if isinstance(name, str) else model_type
    if kind in _MPNET_TYPES:
        return True
    if kind in _BERT_TYPES or (kind == "pretrained" and model_type in _BERT_TYPES):
        return False
    raise VocabularyError(
        f"{directory} has {FILE} of {ascii(str(kind))[1:-1][:100]}, which only loads for tokenizers of BERT's and "
        f"MPNet's kinds without a tokenizer.json: {conversion(directory)}"
    )


def _text(token: object) -> str | None:
    """The text of a token of tokenizer_config.json, which may be an object."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
