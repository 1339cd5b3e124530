"""Texts in the parts in which a detokenizer gives them."""

from __future__ import annotations

from collections.abc import Container

from ember.front.text.output import Marker
from ember.front.text.reasoning import ReasoningFormat
from ember.front.text.tokenizer import Tokenizer
from ember.front.text.tools import ToolFormat


def parts_of(text: str, chosen: ReasoningFormat | ToolFormat, tokenizer: Tokenizer) -> list[str]:
    """One part for each token, as the detokenizer would give them at the most. The format's markers are parts of their
    own."""
    return parts_between(text, chosen.markers(tokenizer), tokenizer)


def parts_between(text: str, markers: Container[int], tokenizer: Tokenizer) -> list[str]:
    """The same with the ids of all markers."""
    parts: list[str] = []
    held: list[int] = []
    for token_id in tokenizer.encode(text, add_special_tokens=False):
        if token_id in markers:
            assert not held
            parts.append(Marker(tokenizer.vocab_entry(token_id) or ""))
            continue
        held.append(token_id)
        if "\ufffd" not in (piece := tokenizer.decode(held, skip_special_tokens=False)):
            parts.append(piece)
            held = []
    return parts
