"""The tokenizer of a GGUF file's metadata, made with the `tokenizers` library. For both processes.

`tokenizer.ggml.model` says how tokens are found: gpt2 is byte-level BPE with the expressions of `pretokenizers`, llama
is SentencePiece's BPE, in which the token with the highest score is merged first, gemma4 is BPE over characters, bert
is WordPiece, and t5 is SentencePiece's Unigram.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ember.gguf.header import Array, GgufError, Metadata, read_header
from ember.gguf.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from ember.gguf.vocabulary import (
    BYTE,
    CONTROL,
    END_TEXTS,
    MAX_TOKENS,
    MERGES,
    MODEL,
    NORMAL,
    PRE,
    SCORES,
    TOKENS,
    TYPES,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    role_ids,
)

if TYPE_CHECKING:
    import tokenizers

MAX_MERGES = 1 << 20  # twice those of the largest known vocabularies
MIN_PREPARED_BYTES = 1 << 18  # of the tokens; a tokenizer with fewer is made in some hundredths of a second
MAX_TEMPLATES = 100
_MAX_WORK = 500_000_000  # the squares of the tokens' lengths; those of 262,000 tokens have 15 million
_SPACE = "▁"  # SentencePiece's mark in place of a blank
_TEMPLATE = "tokenizer.chat_template"
_KINDS = ("gpt2", "llama", "gemma4", "bert", "t5")


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """A tokenizer, its named tokens ("bos_token" -> "<s>"), and its chat templates ("default" -> text)."""

    backend: tokenizers.Tokenizer
    special_tokens: dict[str, str]
    templates: dict[str, str]


def load_tokenizer(
    file: Path, find_prepared: Callable[[str], tokenizers.Tokenizer | None] = lambda digest: None
) -> GgufTokenizer:
    """The tokenizer of a file. Raises GgufError. `find_prepared`: is called with `digest(metadata)` and returns the
    library's tokenizer if it was made before from the same metadata."""
    metadata = read_header(file).metadata
    was_enabled = gc.isenabled()
    gc.disable()  # several hundred thousand objects are made, and none of them is garbage
    try:
        return _load(metadata, find_prepared)
    except GgufError:
        raise
    except Exception as error:  # the library raises bare Exception
        reason = " ".join(str(error).split())[:200]
        raise GgufError(f"{file}: its tokenizer cannot be used ({reason}): {_ADVICE}") from None
    finally:
        if was_enabled:
            gc.enable()


def check_kind(file: Path) -> None:
    """Raise GgufError if the metadata has no tokenizer of a kind that `load_tokenizer` makes."""
    metadata = read_header(file).metadata
    _tokens(metadata)
    if _kind(metadata) == "gpt2":
        _pre_tokenizer(metadata)


def load_templates(file: Path) -> dict[str, str]:
    """The chat templates of a file by name, without its tokenizer. Raises GgufError."""
    return _templates(read_header(file).metadata)


_ADVICE = "set TOKENIZER_NAME to the model that the file was made from"


def digest(metadata: Metadata) -> str:
    """The SHA-256 of all that a tokenizer is made from: the entries of the metadata, and this code."""
    found = hashlib.sha256()
    for module in ("tokenizer.py", "pretokenizers.py", "vocabulary.py"):
        found.update(Path(__file__).with_name(module).read_bytes())
    for key, value in metadata.values.items():
        if key.startswith("tokenizer.ggml."):
            found.update(repr((key, (value.kind, value.count) if isinstance(value, Array) else value)).encode())
            found.update(value.data if isinstance(value, Array) else b"")
    return found.hexdigest()


def _load(metadata: Metadata, find_prepared: Callable[[str], tokenizers.Tokenizer | None]) -> GgufTokenizer:
    tokens = metadata.values.get(TOKENS)
    is_large = isinstance(tokens, Array) and len(tokens.data) >= MIN_PREPARED_BYTES
    backend = find_prepared(digest(metadata)) if is_large else None
    if backend is None:
        backend = _make(metadata)
    names = {name: backend.id_to_token(token_id) for name, token_id in role_ids(metadata).items()}
    return GgufTokenizer(
        backend, {name: token for name, token in names.items() if token is not None}, _templates(metadata)
    )


def _make(metadata: Metadata) -> tokenizers.Tokenizer:
    vocabulary = _Vocabulary(metadata)
    kind = _kind(metadata)
    if kind == "gpt2":
        backend = vocabulary.byte_level(_pre_tokenizer(metadata))
    elif kind == "llama":
        backend = vocabulary.sentencepiece()
    elif kind == "bert":
        backend = vocabulary.word_pieces()
    elif kind == "t5":
        backend = vocabulary.unigram()
    else:
        backend = vocabulary.characters()
    backend.add_special_tokens(vocabulary.added(CONTROL))
    backend.add_tokens(vocabulary.added(USER_DEFINED))
    named = {name: vocabulary.tokens[token_id] for name, token_id in role_ids(metadata).items()}
    _add_ends(backend, metadata, named)
    return backend


def _kind(metadata: Metadata) -> str:
    kind = metadata.text(MODEL)
    if kind not in _KINDS:
        given = "no tokenizer" if kind is None else f"a tokenizer of the kind {ascii(kind)[1:-1][:100]}"
        raise GgufError(f"{metadata.file} has {given}; {', '.join(_KINDS)} are supported: {_ADVICE}")
    return kind


def _tokens(metadata: Metadata) -> list[str]:
    tokens = metadata.texts(TOKENS, MAX_TOKENS)
    if not tokens:
        raise GgufError(f"{metadata.file} has no {TOKENS}: {_ADVICE}")
    return tokens


def _pre_tokenizer(metadata: Metadata) -> PreTokenizer:
    name = metadata.text(PRE) or "default"
    if name not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise GgufError(f"{metadata.file}: {PRE} is {ascii(name)[:100]}, which is unknown ({known}): {_ADVICE}")
    return PRE_TOKENIZERS[name]


def _numbers(metadata: Metadata, key: str, num_tokens: int) -> list[Any]:
    """A number for each token; none if the array is absent or empty. It is counted before it is decoded."""
    value = metadata.values.get(key)
    if isinstance(value, Array) and value.count not in (0, num_tokens):
        raise metadata.error(key, f"as long as {TOKENS}, {num_tokens}")
    return metadata.numbers(key) or []


class _Vocabulary:
    """The tokens with their kinds."""

    def __init__(self, metadata: Metadata) -> None:
        tokens = _tokens(metadata)
        given = _numbers(metadata, TYPES, len(tokens))
        kinds = given or [NORMAL] * len(tokens)
        self.metadata, self.tokens, self.kinds = metadata, tokens, kinds
        self.ids = dict(zip(tokens, range(len(tokens)), strict=True))
        for token_id in (self.ids[text] for text in END_TEXTS if text in self.ids):
            if kinds[token_id] == USER_DEFINED or not given:
                kinds[token_id] = CONTROL
        if len(self.ids) == len(tokens):
            return
        for token_id in reversed(range(len(tokens))):
            self.ids[tokens[token_id]] = token_id
        for token_id, token in enumerate(tokens):  # of equal ones, all but the first get a name of their own
            if self.ids[token] != token_id:
                name = f"<duplicate {token_id} of {token}>"
                self.ids[name], tokens[token_id] = token_id, name

    def added(self, kind: int) -> list[Any]:
        """The tokens of a kind, as tokens that are found in a text before it is split."""
        from tokenizers import AddedToken

        special = kind == CONTROL
        return [
            AddedToken(token, normalized=False, special=special)
            for token, its in zip(self.tokens, self.kinds, strict=True)
            if its == kind and token
        ]

    def byte_level(self, kind: PreTokenizer) -> tokenizers.Tokenizer:
        """A tokenizer of bytes, which characters stand for."""
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

        if not kind.is_bytes:
            return self.characters()
        backend = Tokenizer(models.BPE(self.ids, self._merges(), ignore_merges=kind.ignores_merges))
        cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in kind.patterns]
        bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=self._adds_space(False), use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, bytes_of])
        backend.decoder = decoders.ByteLevel()
        if kind.is_nfc:
            backend.normalizer = normalizers.NFC()
        return backend

    def sentencepiece(self) -> tokenizers.Tokenizer:
        """A tokenizer of characters, and of bytes where a character is no token."""
        scores = _numbers(self.metadata, SCORES, len(self.tokens))
        if not scores:
            raise self.metadata.error(SCORES, f"as long as {TOKENS}, {len(self.tokens)}")
        return self._of_characters(self._merges_of_scores(scores), self._adds_space(True))

    def characters(self) -> tokenizers.Tokenizer:
        """The same with the merges as they are listed."""
        return self._of_characters(self._merges(), self._adds_space(False))

    def word_pieces(self) -> tokenizers.Tokenizer:
        """A tokenizer of words, which files mark at their beginning where tokenizer.json marks what continues one."""
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

        pieces: dict[str, int] = {}
        for token, token_id in self.ids.items():
            if self.kinds[token_id] in (NORMAL, UNUSED):
                token = token[1:] if token.startswith(_SPACE) else f"##{token}"
            pieces.setdefault(token, token_id)
        unknown = self.tokens[role_ids(self.metadata).get("unk_token", 0)]
        backend = Tokenizer(models.WordPiece(pieces, unk_token=unknown))
        is_cased = any(
            kind == NORMAL and token[:1] != "[" and token.removeprefix(_SPACE)[:1] != "[" and token != token.lower()
            for token, kind in zip(self.tokens, self.kinds, strict=True)
        )
        backend.normalizer = normalizers.BertNormalizer(lowercase=not is_cased)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        return backend

    def unigram(self) -> tokenizers.Tokenizer:
        """A tokenizer that finds the tokens with the largest sum of scores."""
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

        scores = _numbers(self.metadata, SCORES, len(self.tokens))
        if not scores:
            raise self.metadata.error(SCORES, f"as long as {TOKENS}, {len(self.tokens)}")
        unknown = role_ids(self.metadata).get("unk_token", 0)
        backend = Tokenizer(models.Unigram(list(zip(self.tokens, scores, strict=True)), unk_id=unknown))
        steps: list[Any] = []
        table = self.metadata.values.get("tokenizer.ggml.precompiled_charsmap")
        if isinstance(table, Array) and not table.is_texts and table.count:
            steps.append(normalizers.Precompiled(bytes(table.data)))
        if self.metadata.flag("tokenizer.ggml.remove_extra_whitespaces"):
            steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
        backend.normalizer = normalizers.Sequence(steps)
        scheme = "always" if self._adds_space(True) else "never"
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=scheme)
        backend.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme=scheme)
        return backend

    def _of_characters(self, merges: list[tuple[str, str]], adds_space: bool) -> tokenizers.Tokenizer:
        from tokenizers import Tokenizer, decoders, models, normalizers

        has_bytes = BYTE in self.kinds or "<0x00>" in self.ids
        unknown = next((token for token, kind in zip(self.tokens, self.kinds, strict=True) if kind == UNKNOWN), None)
        backend = Tokenizer(models.BPE(self.ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes))
        steps: list[Any] = [normalizers.Prepend(_SPACE)] if adds_space else []
        backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
        ending: list[Any] = [decoders.Strip(" ", 1, 0)] if adds_space else []
        backend.decoder = decoders.Sequence(
            [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *ending]
        )
        return backend

    def _merges(self) -> list[tuple[str, str]]:
        """The listed merges, each of two tokens with a blank between. A token itself may begin with a blank."""
        merges: list[tuple[str, str]] = []
        for merge in self.metadata.texts(MERGES, MAX_MERGES) or []:
            at = merge.find(" ", 1)
            if at < 0:
                raise GgufError(f"{self.metadata.file}: {MERGES} has {ascii(merge)[:100]}, which is not two tokens")
            merges.append((merge[:at], merge[at + 1 :]))
        if not merges:
            raise GgufError(f"{self.metadata.file} has no {MERGES}: {_ADVICE}")
        return merges

    def _merges_of_scores(self, scores: list[float]) -> list[tuple[str, str]]:
        """The merges that make the tokens, those of the highest score first. Without the library, which leaves out
        merges that are never applied, every pair of tokens that together are a token."""
        from ember_cpu.vocabulary import merges_of  # few tokenizers need it

        ids, tokens, kinds = self.ids, self.tokens, self.kinds
        if sum(len(token) ** 2 for token in tokens) > _MAX_WORK:
            raise GgufError(f"{self.metadata.file}: {TOKENS} are too long for a SentencePiece tokenizer: {_ADVICE}")
        by_score = sorted(range(len(tokens)), key=scores.__getitem__, reverse=True)
        normal = [token_id for token_id in by_score if kinds[token_id] == NORMAL]
        if (found := merges_of(tokens, normal)) is not None:
            return found
        every = (
            (left, right)
            for token in map(tokens.__getitem__, normal)
            for at in range(1, len(token))
            if (left := token[:at]) in ids and (right := token[at:]) in ids
        )
        merges = list(islice(every, MAX_MERGES + 1))
        if len(merges) > MAX_MERGES:
            raise GgufError(f"{self.metadata.file}: {TOKENS} have more than {MAX_MERGES} merges: {_ADVICE}")
        return merges

    def _adds_space(self, default: bool) -> bool:
        given = self.metadata.flag("tokenizer.ggml.add_space_prefix")
        return default if given is None else given


def _add_ends(backend: tokenizers.Tokenizer, metadata: Metadata, named: dict[str, str]) -> None:
    """Let the tokenizer put BOS before a text and EOS, or what separates texts, after it, as the file says."""
    from tokenizers import processors

    kind = _kind(metadata)
    adds_bos = PRE_TOKENIZERS[metadata.text(PRE) or "default"].adds_bos if kind == "gpt2" else kind != "t5"
    given = metadata.flag("tokenizer.ggml.add_bos_token")
    before = _named(named, "bos_token", adds_bos if given is None else given)
    given = metadata.flag("tokenizer.ggml.add_eos_token")
    behind = _named(named, "eos_token", kind == "t5" if given is None else given)
    given = metadata.flag("tokenizer.ggml.add_sep_token")
    if kind == "bert":
        behind = behind or _named(named, "sep_token", True if given is None else given)
    if not before and not behind:
        if kind == "gpt2":
            backend.post_processor = processors.ByteLevel(trim_offsets=False)
        return
    pair = None
    if kind == "bert":
        pair = [*before, "$A:0", *behind, "$B:1", *(f"{token}:1" for token in behind)]
    elif kind == "t5":  # RoBERTa's pairs are apart by two, and all of one type
        pair = [*before, "$A:0", *behind, *behind, "$B:0", *behind]
    backend.post_processor = processors.TemplateProcessing(
        single=[*before, "$A:0", *behind],
        pair=pair,
        special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys([*before, *behind])],
    )


def _named(named: dict[str, str], name: str, is_wanted: bool | None) -> list[str]:
    """The token with this role, if it is wanted and the file has one."""
    return [named[name]] if is_wanted and name in named else []


def _templates(metadata: Metadata) -> dict[str, str]:
    """The chat templates by name. Raises GgufError."""
    found: dict[str, str] = {}
    if (text := metadata.text(_TEMPLATE)) is not None:
        found["default"] = text
    for key in [key for key in metadata.values if key.startswith(f"{_TEMPLATE}.")][:MAX_TEMPLATES]:
        if (text := metadata.text(key)) is not None:
            found[key.removeprefix(f"{_TEMPLATE}.")] = text
    return found
