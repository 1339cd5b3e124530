"""Incremental detokenizing of a stream: token ids to text, a few at a time.

However the ids are divided into pushes, the texts of all pushes and of the final flush, joined, equal
`tokenizer.decode(ids)`. No push ends in part of a character.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from ember.front.text.token_pieces import TokenPieces, is_byte_token
from ember.front.text.tokenizer import Tokenizer

# Tokens kept before the new ones, so that the new ones are not decoded as the beginning of a text.
_CONTEXT_TOKENS = 6
# The window is cut back to the context when it has this size, or later while text is held back.
_WINDOW_TOKENS = 16
_WINDOW_TOKENS_HELD = 64
# A character has at most four bytes, so at most this many trailing U+FFFD may still become a character.
_MAX_BROKEN = 3


class Detokenizer:
    """The text of one sample.

    `prompt_token_ids` are the tokens before the sample; with them the text continues the prompt's, which matters for
    tokenizers that drop the first space of a text. With `skip_special_tokens`, special tokens give no text.
    `spaces_between_special_tokens=False` drops the space that some decoders put between two neighbouring added tokens;
    byte-level and byte-fallback decoders never put one.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> None:
        self._stream: _ByteStream | _WindowStream
        if tokenizer.pieces is not None:
            self._stream = _ByteStream(tokenizer, tokenizer.pieces, prompt_token_ids, skip_special_tokens)
        else:
            self._stream = _WindowStream(
                tokenizer, prompt_token_ids, skip_special_tokens, spaces_between_special_tokens or skip_special_tokens
            )

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete. Part of a character is held back until it is complete or invalid."""
        return self._stream.push(token_ids)

    def flush(self) -> str:
        """The text held back at the end of the sample. Bytes that are not a character become U+FFFD."""
        return self._stream.flush()


class _ByteStream:
    """The detokenizer for tokens with fixed bytes: look the bytes up, join them, decode complete characters."""

    def __init__(self, tokenizer: Tokenizer, pieces: TokenPieces, prompt: Sequence[int], skip_special: bool) -> None:
        self._table = tokenizer.byte_table(skip_special)
        self._held = self._unfinished(prompt)  # the first bytes of a character
        self._leading_spaces = pieces.leading_spaces  # how many more spaces are dropped; 0 once the text has begun
        if pieces.leading_spaces:
            self._drop_in_prompt(prompt)

    def push(self, token_ids: Sequence[int]) -> str:
        table = self._table
        data = self._held + b"".join([table[token_id] for token_id in token_ids])
        text, consumed = codecs.utf_8_decode(data, "replace", False)
        self._held = data[consumed:]
        return self._drop_leading(text) if self._leading_spaces else text

    def flush(self) -> str:
        text = self._held.decode("utf-8", "replace")
        self._held = b""
        return text

    def _unfinished(self, prompt: Sequence[int]) -> bytes:
        """The bytes of an incomplete character at the prompt's end (only in prompts given as token ids)."""
        tail = b""
        for token_id in reversed(prompt):
            tail = self._table[token_id] + tail
            if len(tail) >= _MAX_BROKEN:  # whatever comes before cannot reach beyond these
                break
        return tail[codecs.utf_8_decode(tail, "replace", False)[1] :]

    def _drop_in_prompt(self, prompt: Sequence[int]) -> None:
        for token_id in prompt:
            self._drop_leading(self._table[token_id].decode("utf-8", "replace"))
            if not self._leading_spaces:
                break

    def _drop_leading(self, text: str) -> str:
        """Drop the remaining leading spaces, up to the first other character."""
        kept = text.lstrip(" ")
        dropped = min(self._leading_spaces, len(text) - len(kept))
        self._leading_spaces = 0 if kept else self._leading_spaces - dropped
        return text[dropped:]


class _WindowStream:
    """The detokenizer for tokens whose text depends on their neighbours: decode a window that ends in the new tokens.

    The window begins with a few tokens whose text has been released. A decoder's special treatment of the first token
    (no space before it, ...) then applies to a token that is not shown. Text is released once it can no longer change:
    not while it ends in U+FFFD, which may become a character, nor within a run of raw byte tokens, which decodes as a
    whole.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], skip_special: bool, spaces: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = tokenizer.special_token_ids if skip_special else frozenset[int]()
        self._unspaced = frozenset[int]() if spaces else tokenizer.added_token_ids
        context: list[int] = []
        for token_id in reversed(prompt):
            if len(context) == _CONTEXT_TOKENS:
                break
            if self._is_visible(token_id):
                context.append(token_id)
        self._window = context[::-1]
        self._shown = len(self._text())  # characters of the window's text that have been released
        self._after_added = bool(self._window) and self._window[-1] in self._unspaced

    def push(self, token_ids: Sequence[int]) -> str:
        return "".join([self._push_one(token_id) for token_id in token_ids if self._is_visible(token_id)])

    def flush(self) -> str:
        text = self._text()[self._shown :]
        self._shown += len(text)
        return text

    def _push_one(self, token_id: int) -> str:
        is_added = token_id in self._unspaced
        if is_added and self._after_added:
            return self._push_unspaced(token_id)
        self._after_added = is_added
        self._window.append(token_id)
        if is_byte_token(self._tokenizer.vocab_entry(token_id) or ""):
            return ""
        text = self._text()
        whole = len(text.rstrip("\ufffd"))
        end = max(whole, len(text) - _MAX_BROKEN, self._shown)
        new = text[self._shown : end]
        self._shown = end
        held = max(0, len(text) - end)
        if len(self._window) >= (_WINDOW_TOKENS_HELD if held else _WINDOW_TOKENS):
            del self._window[:-_CONTEXT_TOKENS]
            self._shown = len(self._text()) - held
        return new

    def _push_unspaced(self, token_id: int) -> str:
        """Push an added token directly after another one: its text has no space from the decoder."""
        held = self.flush()
        self._window.append(token_id)
        del self._window[:-_CONTEXT_TOKENS]
        self._shown = len(self._text())
        return held + (self._tokenizer.vocab_entry(token_id) or "")

    def _is_visible(self, token_id: int) -> bool:
        return token_id not in self._skip and self._tokenizer.vocab_entry(token_id) is not None

    def _text(self) -> str:
        return self._tokenizer.decode_exact(self._window)
