"""Text to token ids and back: the model's tokenizer.json, or vocab.json and merges.txt, and the files beside them.

It uses only the `tokenizers` library, which loads in half the time of the transformers class and imports neither torch
nor transformers. The ids are those of transformers' TokenizersBackend on the same files: tokenizer.json is used
unchanged. (transformers 5 rebuilds the pipeline of some classes, for example LlamaTokenizer, from the vocabulary alone.
If such a tokenizer.json adds a space after each special token, Ember adds it and transformers does not.)
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from ember.front.text import prepared_tokenizer
from ember.front.text.layout import Layout, layout_of
from ember.front.text.panics import TokenizerPanic, is_panic, unless_panic, without_panic_lines
from ember.front.text.token_pieces import ByteTable, TokenPieces, decoder_state, pieces_of, utf8
from ember.front.text.tokenizer_files import (
    TokenizerError,
    TokenizerFiles,
    one_or_named,
    read_tokenizer_files,
    refuse_long,
)
from ember.regular_file import MAX_TOKENIZER_BYTES, open_regular

if TYPE_CHECKING:
    from ember.byte_level_bpe import Vocabulary
    from ember.word_pieces import WordPieces

__all__ = ["Tokenizer", "TokenizerError", "TokenizerPanic"]

PROBE_SECONDS = 20.0
_SIMPLE = "A word, or 2."
_PROBE = (
    "The quick brown fox doesn't jump over 12,345 lazy dogs;   it's\n\n\tan ordinary sentence.\r\n"
    'def f(items: list[str]) -> None:\n    return [item.strip() for item in items if item != ""]\n'
    "Füchse, größer als Mäuse; Привет, мир! 你好，世界。 🦊 https://example.com/a?b=c&d=e#f ==== ---- ........\n"
    "one plain sentence without any mark in it goes on and on over the hills and far away until the evening comes\n"
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa                                        1111111111111111111111111111!\n"
)
# In the JSON of a normalizer or pre-tokenizer: what may leave characters out.
_DROPS = re.compile(
    r'"type":"(?:Whitespace|WhitespaceSplit|Bert\w+|Strip\w*|Precompiled|CharDelimiterSplit)"|"behavior":"Removed"'
    r'|"type":"Replace","pattern":\{"Regex"'
)
_VOCABULARY = ("vocab.json", "merges.txt")
_WORD_PIECES = "vocab.txt"
_OTHER_FORMATS = (
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "tekken.json",
    "tiktoken.model",
    *_VOCABULARY,
)


class Tokenizer:
    """One model's tokenizer. Thread-safe: after `load` only caches change, which any thread may fill.

    Encoding and decoding raise TokenizerPanic if the library panics.
    """

    def __init__(self, backend: tokenizers.Tokenizer, files: TokenizerFiles) -> None:
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self.special_tokens: dict[str, str] = files.special_tokens
        self.chat_template: str | dict[str, str] | None = files.chat_template
        self.special_token_ids: frozenset[int] = frozenset(i for i, token in added.items() if token.special)
        self.added_token_ids: frozenset[int] = frozenset(added)
        # One more than the largest id: there may be a gap between the vocabulary and the added tokens.
        sizes = (backend.get_vocab_size(False), backend.get_vocab_size(True))
        self.vocab_size: int = max(*sizes, *(index + 1 for index in added))
        self.bos_token_id = self._named_id("bos_token")
        self.eos_token_id = None if files.eos_token is None else backend.token_to_id(files.eos_token)
        self.pad_token_id = self._named_id("pad_token")
        self.truncation_side = files.truncation_side
        self.is_prepared: bool | None = None  # whether it was read in its prepared form; None if it needs none

    @classmethod
    def load(cls, directory: str | Path, caches: Sequence[Path] = ()) -> Tokenizer:
        """Load from a model directory, or from a GGUF file. Raises TokenizerError, whose message is one line.

        `caches` are directories that may hold the tokenizer in its prepared form (`prepared_tokenizer`).
        """
        directory = Path(directory)
        with without_panic_lines():
            if directory.is_file():
                backend, files, is_prepared = _of_gguf(directory, caches)
                tokenizer = cls(backend, files)
                tokenizer.is_prepared = is_prepared
                tokenizer.check(directory)
                return tokenizer
            backend, vocabulary, is_prepared = _backend(directory, caches)
            path = directory / ("tokenizer.json" if vocabulary is None else vocabulary.file)
            backend.no_truncation()
            padding = backend.padding
            backend.no_padding()
            known = backend.get_added_tokens_decoder()
            files = read_tokenizer_files(directory, known, padding, vocabulary.special_tokens if vocabulary else {})
            backend.add_tokens(files.added_tokens)
            backend.encode_special_tokens = files.split_special_tokens
            if vocabulary is not None:
                _finish(vocabulary, files.special_tokens, directory)
            tokenizer = cls(backend, files)
            tokenizer.is_prepared = is_prepared
            tokenizer.check(path)
        return tokenizer

    def check(self, path: Path) -> None:
        """Encode and decode ordinary texts. Raises TokenizerError if that does not end, if a simple text fails, or if
        another one makes the library panic. (The vocabulary may lack a token for a character.)"""
        failures: list[BaseException] = []

        def attempt() -> None:
            for text in (_SIMPLE, _PROBE):
                try:
                    self.decode(self.encode(text))
                except Exception as error:
                    cause = error.__context__ if isinstance(error, TokenizerPanic) else error
                    if cause is not None and (text is _SIMPLE or is_panic(cause)):
                        failures.append(cause)
                        return

        thread = threading.Thread(target=attempt, name="probe", daemon=True)
        thread.start()
        thread.join(PROBE_SECONDS)
        if thread.is_alive():
            raise TokenizerError(
                f"{path} cannot be used: {len(_PROBE)} characters are not encoded within {PROBE_SECONDS:g} seconds; "
                "its regular expressions backtrack without end"
            )
        if failures:
            reason = " ".join(str(failures[0]).split())[:200]  # the text is our own, so it may be shown
            raise TokenizerError(f"{path} cannot be used ({reason}): download the tokenizer files again") from None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Encode a text of any length to token ids. The GIL is released, so a long text may be encoded in a thread.

        Unpaired surrogates, which JSON may contain and UTF-8 cannot represent, become U+FFFD.
        """
        return self._encoded(text, add_special_tokens, self._backend.encode_batch_fast).ids

    def encode_with_offsets(
        self, text: str, add_special_tokens: bool = True
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """The tokens of `encode`, and where each begins and ends in the text, in characters. A special token that was
        added has no width."""
        found = self._encoded(text, add_special_tokens, self._backend.encode_batch)
        return found.ids, found.offsets

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts without the special tokens around them, on several cores. The GIL is released."""
        try:
            found = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:  # an unpaired surrogate
            return [self.encode(text, add_special_tokens=False) for text in texts]
        except BaseException as error:
            raise unless_panic(error) from None
        return [encoding.ids for encoding in found]

    @cached_property
    def single_layout(self) -> Layout:
        """The special tokens around a text."""
        return layout_of(self._backend, _SIMPLE)

    @cached_property
    def pair_layout(self) -> Layout:
        """The special tokens around and between the texts of a pair."""
        return layout_of(self._backend, _SIMPLE, _SIMPLE)

    @cached_property
    def keeps_characters(self) -> bool:
        """Whether every character of a text is in a token, so that the longest token bounds the text. Word pieces and
        normalizers may drop runs of spaces, and make one token of a word of any length."""
        if self.pieces is None or not isinstance(self._backend.model, tokenizers.models.BPE):
            return False
        steps = (self._backend.normalizer, self._backend.pre_tokenizer)
        return not any(_DROPS.search(step.__getstate__().decode()) for step in steps if step is not None)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Decode a whole sequence. Invalid UTF-8 becomes U+FFFD. Ids outside the vocabulary have no text; outside
        0 .. 2**32-1 they raise OverflowError.

        In a run of byte-fallback tokens only invalid bytes are replaced. The library would replace every byte of the
        run, valid characters included, which a stream cannot do after it has sent them.
        """
        text = self._decode(list(token_ids), skip_special_tokens)
        if "\ufffd" not in text or self.pieces is None:
            return text
        table = self.byte_table(skip_special_tokens)
        text = b"".join([table[token_id] for token_id in token_ids]).decode("utf-8", "replace")
        kept = text.lstrip(" ")
        return text[min(self.pieces.leading_spaces, len(text) - len(kept)) :]

    def decode_exact(self, token_ids: Sequence[int]) -> str:
        """The library's own decoding, special tokens included."""
        return self._decode(list(token_ids), False)

    def token_text(self, token_id: int) -> str:
        """The text of a token alone, as in logprobs: with its leading space, and part of a character as U+FFFD."""
        if self.pieces is not None:
            return self.token_bytes(token_id).decode("utf-8", "replace")
        return self.decode_exact([token_id])

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token; empty for an id outside the vocabulary."""
        if self.pieces is not None:
            return self.byte_table(skip_special_tokens=False)[token_id]
        return utf8(self.decode_exact([token_id]))

    def token_id(self, token: str) -> int | None:
        """The id of a vocabulary entry in the vocabulary's own spelling; None if there is none."""
        return self._backend.token_to_id(token)

    def vocab_entry(self, token_id: int) -> str | None:
        """The entry of an id in the vocabulary's own spelling ("Ġthe", "▁the", "<0x0A>"); None outside the
        vocabulary."""
        return self._backend.id_to_token(token_id) if 0 <= token_id < 2**32 else None

    def added_tokens(self) -> dict[str, dict[str, bool | str]]:
        """The added tokens by id, with their flags, in the form of tokenizer_config.json."""
        flags = ("lstrip", "normalized", "rstrip", "single_word", "special")
        decoder = sorted(self._backend.get_added_tokens_decoder().items())
        return {
            str(i): {"content": token.content, **{flag: getattr(token, flag) for flag in flags}} for i, token in decoder
        }

    @cached_property
    def pieces(self) -> TokenPieces | None:
        """How a token is converted to bytes; None if that depends on its neighbours."""
        return pieces_of(decoder_state(self._backend.decoder))

    def byte_table(self, skip_special_tokens: bool) -> ByteTable:
        """token id -> bytes, filled on demand. It exists only if `pieces` is not None."""
        return self._visible_bytes if skip_special_tokens else self._all_bytes

    @cached_property
    def _all_bytes(self) -> ByteTable:
        assert self.pieces is not None
        return ByteTable(self.vocab_entry, self.pieces.to_bytes)

    @cached_property
    def _visible_bytes(self) -> ByteTable:
        assert self.pieces is not None
        return ByteTable(self.vocab_entry, self.pieces.to_bytes, skip=self.special_token_ids)

    @staticmethod
    def _encoded(text: str, add_special_tokens: bool, encode: Callable[..., list[Any]]) -> Any:
        """The library's encoding of a text. `encode`: one of its methods, which find the same tokens."""
        try:
            try:
                return encode([text], add_special_tokens=add_special_tokens)[0]
            except TypeError:  # an unpaired surrogate
                whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
                return encode([whole], add_special_tokens=add_special_tokens)[0]
        except BaseException as error:
            raise unless_panic(error) from None

    def _decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        try:
            return self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)
        except BaseException as error:
            raise unless_panic(error) from None

    def _named_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self._backend.token_to_id(token)


def _backend(
    directory: Path, caches: Sequence[Path]
) -> tuple[tokenizers.Tokenizer, Vocabulary | WordPieces | None, bool | None]:
    """The library's tokenizer, the vocabulary that it was made from if there is no tokenizer.json, and `is_prepared`.
    Raises TokenizerError."""
    path = directory / "tokenizer.json"
    if not path.exists():
        check_files(directory)
        from ember.byte_level_bpe import VocabularyError, load_vocabulary
        from ember.word_pieces import load_word_pieces

        has_pairs = all((directory / name).exists() for name in _VOCABULARY)
        try:
            vocabulary = load_vocabulary(directory) if has_pairs else load_word_pieces(directory)
        except VocabularyError as error:
            raise TokenizerError(str(error)) from None
        return vocabulary.backend, vocabulary, None
    try:
        if (size := _regular_size(path)) > MAX_TOKENIZER_BYTES:
            raise ValueError(f"it has {size:,} bytes; {MAX_TOKENIZER_BYTES:,} are allowed")
        if size < prepared_tokenizer.MIN_BYTES:
            return tokenizers.Tokenizer.from_file(str(path)), None, None
        prepared = prepared_tokenizer.load(path, caches)
        if prepared is not None:
            return prepared, None, True
        plain = tokenizers.Tokenizer.from_file(str(path))
        return plain, None, False if isinstance(plain.model, tokenizers.models.BPE) else None
    except OSError as error:
        reason = error.strerror or str(error)
    except BaseException as error:  # the library raises bare Exception, and panics
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        reason = " ".join(str(error).split())[:300]
    raise TokenizerError(f"{path} cannot be read ({reason}): download the tokenizer files again")


def _finish(vocabulary: Vocabulary | WordPieces, special_tokens: dict[str, str], directory: Path) -> None:
    """Set the tokens around a text. Raises TokenizerError."""
    from ember.byte_level_bpe import VocabularyError

    try:
        vocabulary.finish(special_tokens)
    except VocabularyError as error:
        raise TokenizerError(f"{directory / 'tokenizer_config.json'}: {error}") from None


def check_files(directory: Path) -> None:
    """Raise TokenizerError if a model directory lacks the files of a tokenizer, or if the metadata of a GGUF file names
    one that is not supported. No tokenizer is made."""
    if directory.is_file():
        from ember.gguf.header import GgufError
        from ember.gguf.tokenizer import check_kind

        try:
            check_kind(directory)
        except GgufError as error:
            raise TokenizerError(str(error)) from None
        return
    for names in (("tokenizer.json",), _VOCABULARY, (_WORD_PIECES,)):
        if all((directory / name).exists() for name in names):
            return
    raise TokenizerError(_missing(directory))


def _of_gguf(file: Path, caches: Sequence[Path]) -> tuple[tokenizers.Tokenizer, TokenizerFiles, bool | None]:
    """The tokenizer of a GGUF file's metadata, and `is_prepared`. Raises TokenizerError."""
    from ember.gguf.header import GgufError
    from ember.gguf.tokenizer import load_tokenizer

    is_prepared: bool | None = None

    def find_prepared(digest: str) -> tokenizers.Tokenizer | None:
        nonlocal is_prepared
        prepared = prepared_tokenizer.load_gguf(file, digest, caches)
        is_prepared = prepared is not None
        return prepared

    try:
        found = load_tokenizer(file, find_prepared)
    except GgufError as error:
        raise TokenizerError(str(error)) from None
    except BaseException as error:  # the library panics
        if not is_panic(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise TokenizerError(f"{file}: its tokenizer cannot be used ({reason}): download the file again") from None
    refuse_long(found.templates, file)
    files = TokenizerFiles(
        special_tokens=found.special_tokens,
        eos_token=found.special_tokens.get("eos_token"),
        added_tokens=[],
        chat_template=one_or_named(found.templates),
        split_special_tokens=False,
    )
    return found.backend, files, is_prepared


def _regular_size(path: Path) -> int:
    """The size of a regular file. Raises OSError for any other file."""
    descriptor = open_regular(path)
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _missing(directory: Path) -> str:
    if not directory.is_dir():
        return f"{directory} is not a directory: give the directory that holds the model's tokenizer.json"
    others = [name for name in _OTHER_FORMATS if (directory / name).is_file()]
    if not others:
        return f"{directory} has no tokenizer.json: download the model's tokenizer files, or set TOKENIZER_NAME"
    if others[0] in _VOCABULARY:
        (other,) = {*_VOCABULARY} - {others[0]}
        return f"{directory} has {others[0]} but neither tokenizer.json nor {other}: download the tokenizer files again"
    from ember.byte_level_bpe import conversion

    return f"{directory} has {others[0]} but no tokenizer.json: {conversion(directory)}"
