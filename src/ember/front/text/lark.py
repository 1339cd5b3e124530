"""Helpers that write grammars in the engine's dialect of Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from ember.front.text.tokenizer import Tokenizer

# Strings and comments, which are skipped, and regular expressions.
_PIECES = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|#[^\n]*|/((?:\\.|[^/\\\n])+)/')


def quoted(text: str) -> str:
    """A string literal for exactly this text."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def regex_quoted(text: str) -> str:
    """The text inside a `/.../` regular expression."""
    return re.sub(r"[^0-9A-Za-z]", lambda match: f"\\x{{{ord(match[0]):x}}}", text)


def in_slashes(pattern: str) -> str:
    """A regular expression for use between slashes: slashes in it are escaped unless they already are."""
    made = []
    position = 0
    while position < len(pattern):
        size = 2 if pattern[position] == "\\" else 1
        piece = pattern[position : position + size]
        made.append("\\/" if piece == "/" else "\\n" if piece == "\n" else piece)
        position += size
    return "".join(made)


def regexes(grammar: str) -> list[str]:
    """The regular expressions between slashes in a grammar."""
    return [found[1].replace("\\/", "/") for found in _PIECES.finditer(grammar) if found[1] is not None]


def parts(text: str, tokenizer: Tokenizer) -> list[str | int]:
    """The text split at the tokenizer's added tokens: plain text and token ids.

    A model generates a marker that is an added token as that token, which no text in a grammar matches.
    """
    found: list[str | int] = []
    position = 0
    for token_id in tokenizer.encode(text, add_special_tokens=False):
        if token_id not in tokenizer.added_token_ids:
            continue
        content = tokenizer.vocab_entry(token_id) or ""
        start = text.find(content, position)
        if not content or start < 0:
            continue
        if start > position:
            found.append(text[position:start])
        found.append(token_id)
        position = start + len(content)
    return [*found, text[position:]] if position < len(text) else found


def literal(text: str, tokenizer: Tokenizer) -> str:
    """An expression for the text as the model generates it: strings and token references."""
    return sequence([quoted(part) if isinstance(part, str) else token(part) for part in parts(text, tokenizer)])


def token(token_id: int) -> str:
    return f"<[{token_id}]>"


def sequence(expressions: Sequence[str]) -> str:
    return " ".join(expressions) or '""'


def choice(texts: Sequence[str]) -> str:
    """A grammar for one of these texts. It is one lexeme, since the parser allows 2,000 alternatives at a time."""
    some = " | ".join(quoted(text) for text in dict.fromkeys(texts) if text)
    start = "start: CHOICE" + (" |" if "" in texts else "") if some else "start:"
    return f"{start}\nCHOICE: {some}" if some else start
