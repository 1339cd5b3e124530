"""A row of the table of tool-call formats."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ember.front.text.reasoning.messages import Frames
from ember.front.text.tokenizer import Tokenizer
from ember.front.text.tools.brace_calls import BraceCalls
from ember.front.text.tools.element_calls import ElementCalls
from ember.front.text.tools.json_calls import JsonCalls
from ember.front.text.tools.pythonic_calls import PythonicCalls
from ember.front.text.tools.section_calls import SectionCalls
from ember.front.text.tools.xml_calls import XmlCalls

_SUFFIXED = re.compile("<tool_calls?(:[^<>]+)>")  # a mark with a suffix that is specific to a checkpoint

Calls = JsonCalls | SectionCalls | XmlCalls | ElementCalls | PythonicCalls | BraceCalls


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One format: the form of its calls, and other properties of the family."""

    calls: Calls
    id_form: str = "openai"  # see ids.py
    is_harmony: bool = False  # calls are messages of Harmony
    frames: Frames | None = None  # calls are messages, which the reasoning parser splits
    has_suffix: bool = False  # a checkpoint may have a suffix of its own in all marks: <tool_call:1a2b>

    def fitted(self, tokenizer: Tokenizer) -> Calls:
        """The form of the calls in this tokenizer."""
        if not self.has_suffix or not isinstance(self.calls, XmlCalls):
            return self.calls
        tokens = (tokenizer.vocab_entry(token_id) or "" for token_id in sorted(tokenizer.added_token_ids))
        found = next((match for token in tokens if (match := _SUFFIXED.fullmatch(token))), None)
        if found is None:
            return self.calls

        def suffixed(mark: str) -> str:
            return mark.replace(">", f"{found[1]}>")

        calls = self.calls
        return replace(
            calls,
            begin=suffixed(calls.begin),
            end=suffixed(calls.end),
            call=(suffixed(calls.call[0]), suffixed(calls.call[1])),
            call_end=suffixed(calls.call_end),
            key=(suffixed(calls.key[0]), suffixed(calls.key[1])),
            value_begin=suffixed(calls.value_begin),
            value_end=suffixed(calls.value_end),
        )
