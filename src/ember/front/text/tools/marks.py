"""A format's marks in one tokenizer, and the search for them.

Inside the parsers a special token is one character, an unpaired surrogate, which decoded text never has. So a format's
marks are ordinary strings, whether they are tokens of the tokenizer, text, or a sequence of both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from ember.front.text import lark
from ember.front.text.output import Marker
from ember.front.text.tokenizer import Tokenizer

_FIRST_SURROGATE, _NUM_SURROGATES = 0xD800, 0x800
_SURROGATE = re.compile("[\ud800-\udfff]")


class Markers:
    """The special tokens of a format in one tokenizer, and their characters inside the parsers."""

    def __init__(self, marks: Iterable[str], tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.token_ids: dict[int, str] = {}
        self._characters: dict[str, str] = {}
        for mark in marks:
            self.encode(mark)
        self._texts = {ord(character): text for text, character in self._characters.items()}
        self._json_texts = {key: json_escaped(text) for key, text in self._texts.items()}

    def encode(self, mark: str) -> str:
        """A mark in the parsers' form."""
        made = []
        for part in lark.parts(mark, self._tokenizer):
            if isinstance(part, str):
                made.append(part)
                continue
            text = self._tokenizer.vocab_entry(part) or ""
            made.append(self._characters.setdefault(text, chr(_FIRST_SURROGATE + len(self._characters))))
            self.token_ids[part] = text
        return "".join(made)

    def encode_all(self, marks: Iterable[str]) -> tuple[str, ...]:
        return tuple(self.encode(mark) for mark in marks if mark)

    def take_in(self, part: str) -> str:
        """A part of the stream in the parsers' form. A marker of another format becomes ordinary text."""
        if type(part) is Marker:
            return self._characters.get(part, part)
        return part if part.isascii() else _SURROGATE.sub("\ufffd", part)

    def plain(self, text: str) -> str:
        """The text with its markers spelled out."""
        return text if text.isascii() else text.translate(self._texts)

    def json_plain(self, text: str) -> str:
        """JSON text with the markers in its strings spelled out."""
        return text if text.isascii() else text.translate(self._json_texts)


def json_escaped(text: str) -> str:
    """The text as the content of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


class Finder:
    """Searches for the first of some marks. Of two that begin at the same character the longer one is found."""

    def __init__(self, marks: Iterable[str]) -> None:
        self._marks = sorted({mark for mark in marks if mark}, key=len, reverse=True)
        firsts = "".join(sorted({re.escape(mark[0]) for mark in self._marks}))
        self._first = re.compile(f"[{firsts}]" if firsts else "(?!)")

    def find(self, text: str, start: int, is_end: bool) -> tuple[int, str | None]:
        """The position and the mark; or None with the position from which one may still match."""
        for candidate in self._first.finditer(text, start):
            place = candidate.start()
            for mark in self._marks:
                if text.startswith(mark, place):
                    return place, mark
                if not is_end and len(text) - place < len(mark) and mark.startswith(text[place:]):
                    return place, None
        return len(text), None
