"""Maps a token's entry in the vocabulary to its bytes.

Two kinds of decoders map each token to fixed bytes, so a sequence's text is the UTF-8 of the joined bytes:

- byte level (GPT-2, Llama 3, Qwen, ...): each character of a vocabulary entry is one byte. A token with a character
  outside that alphabet (for example an added token with a space) is its own UTF-8.
- byte fallback (Llama 2, Mistral, Gemma, ...): the entry is text with "▁" for a space, and `<0x0A>` is one raw byte.
  Some of these drop a space at the start of a text (`leading_spaces`), which the encoder had added.

With all other decoders (WordPiece, Unigram with Metaspace, none) a token's text depends on its neighbours, and
`pieces_of` returns None.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class TokenPieces:
    """How the entries of one vocabulary are converted to bytes."""

    to_bytes: Callable[[str], bytes]  # vocabulary entry -> bytes
    leading_spaces: int = 0  # how many spaces at the start of a whole text are dropped


class ByteTable(dict[int, bytes]):
    """token id -> bytes. Entries are made at their first use, so that a large vocabulary costs nothing at boot.

    Ids in `skip` and ids outside the vocabulary have no bytes.
    """

    def __init__(
        self, id_to_token: Callable[[int], str | None], to_bytes: Callable[[str], bytes], skip: Container[int] = ()
    ) -> None:
        super().__init__()
        self._id_to_token = id_to_token
        self._to_bytes = to_bytes
        self._skip = skip

    def __missing__(self, token_id: int) -> bytes:
        token = None if token_id in self._skip else self._id_to_token(token_id)
        piece = b"" if token is None else self._to_bytes(token)
        self[token_id] = piece
        return piece


def pieces_of(decoder: dict[str, Any] | None) -> TokenPieces | None:
    """The rule of a tokenizer.json `decoder`; None if a token's text depends on its neighbours."""
    match _flat(decoder):
        case [{"type": "ByteLevel"}]:
            return TokenPieces(byte_level_bytes)
        case [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, *rest]:
            match rest:
                case [] | [{"type": "Fuse"}]:
                    return TokenPieces(byte_fallback_bytes)
                case [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": int(start), "stop": 0}]:
                    return TokenPieces(byte_fallback_bytes, leading_spaces=start)
    return None


def decoder_state(decoder: object | None) -> dict[str, Any] | None:
    """The JSON form of a `tokenizers` decoder object, as in tokenizer.json."""
    if decoder is None:
        return None
    state = decoder.__getstate__()  # type: ignore[attr-defined]
    return json.loads(state) if isinstance(state, (bytes, str)) else None


def _flat(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    if decoder.get("type") != "Sequence":
        return [decoder]
    return [step for part in decoder.get("decoders", []) for step in _flat(part)]


def _byte_alphabet() -> dict[str, int]:
    """character -> byte: printable bytes of Latin-1 are themselves; the others, in order, are the characters from
    U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def byte_level_bytes(token: str) -> bytes:
    try:
        return bytes([_ALPHABET[character] for character in token])
    except KeyError:
        return utf8(token)


def byte_fallback_bytes(token: str) -> bytes:
    if match := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(match[1], 16)])
    return utf8(token.replace("▁", " "))


def is_byte_token(token: str) -> bool:
    """Whether a vocabulary entry is one raw byte, such as `<0x0A>`."""
    return _BYTE_TOKEN.fullmatch(token) is not None


def utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")
