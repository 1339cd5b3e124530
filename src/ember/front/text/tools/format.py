"""A format of tool calls: the parser of a sample, the grammar of a request, and the ids of calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from ember.front.text.output import Content, Delta, Marker, OutputParser
from ember.front.text.reasoning.harmony import MARKS, HarmonyParser
from ember.front.text.reasoning.messages import MessageParser
from ember.front.text.tokenizer import Tokenizer
from ember.front.text.tools.choose import choose_name
from ember.front.text.tools.dialect import CallParser, Dialect
from ember.front.text.tools.entry import Entry
from ember.front.text.tools.formats import FORMATS
from ember.front.text.tools.grammar import calls_grammar
from ember.front.text.tools.ids import make_id
from ember.front.text.tools.marks import Markers
from ember.front.text.tools.schema import Tools


class ToolParser(OutputParser, Protocol):
    """An `OutputParser` that returns a call when it is complete, and only if its arguments are JSON."""

    @property
    def num_calls(self) -> int:
        """The number of calls that have begun."""
        ...

    def release(self) -> list[Delta]:
        """The deltas of an incomplete call. A released call cannot be taken back: arguments that turn out not to be
        JSON are passed on unchanged."""
        ...


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """The format of a model's tool calls. `choose_tool_format` makes one."""

    name: str

    def markers(self, tokenizer: Tokenizer) -> frozenset[int]:
        """The tokens that must reach the parser as `Marker`s."""
        return _compiled(self.name, tokenizer)[2]

    def parser(self, tools: Sequence[Mapping[str, Any]] | None, tokenizer: Tokenizer) -> ToolParser:
        """The parser of one sample. It reads the content of a reasoning parser, or the whole output."""
        dialect, markers, _ = _compiled(self.name, tokenizer)
        parser = CallParser(dialect, markers, Tools(tools))
        entry = FORMATS[self.name]
        if entry.is_harmony:
            return _BehindMessages(parser, HarmonyParser(), "")
        return (
            parser if entry.frames is None else _BehindMessages(parser, MessageParser(entry.frames), entry.frames.start)
        )

    def grammar(
        self, tools: Sequence[Mapping[str, Any]], *, at_least_one: bool, parallel: bool, tokenizer: Tokenizer
    ) -> str:
        """A Lark grammar of the model's own format. With `at_least_one` it allows only calls, all of which must fit
        their tools' schemas. Otherwise it allows text that may end in calls, and only `strict` tools' schemas are
        enforced.

        Raises ValueError for tools that cannot be enforced.
        """
        offered = list(Tools(tools))
        form = FORMATS[self.name].fitted(tokenizer)
        return calls_grammar(form, offered, tokenizer, at_least_one=at_least_one, parallel=parallel)

    def make_id(self, index: int, name: str) -> str:
        """An id for a call in a format without ids."""
        return make_id(FORMATS[self.name].id_form, index, name)


def choose_tool_format(
    template: str, model_type: str | None, model_name: str, override: str | None
) -> tuple[ToolFormat | None, str]:
    """The format (None: no tool calls), and the reason. Raises ValueError for an unknown override."""
    name, why = choose_name(template, model_type, model_name, override)
    return (None if name is None else ToolFormat(name)), why


@lru_cache(maxsize=16)
def _compiled(name: str, tokenizer: Tokenizer) -> tuple[Dialect, Markers, frozenset[int]]:
    entry: Entry = FORMATS[name]
    calls = entry.fitted(tokenizer)
    frames = MARKS if entry.is_harmony else entry.frames.marks if entry.frames is not None else ()
    markers = Markers([*calls.marks, *frames], tokenizer)
    return calls.dialect(markers), markers, frozenset(markers.token_ids)


class _BehindMessages:
    """Splits messages first if the output begins with the mark of a header (any mark if that is ""). An output that
    begins with text was split by a reasoning parser before."""

    def __init__(self, calls: CallParser, messages: HarmonyParser | MessageParser, start: str) -> None:
        self._messages = messages
        self._start = start
        self._calls = calls
        self._is_whole: bool | None = None  # whether the output has all headers; None before the first part

    def push(self, parts: Sequence[str]) -> list[Delta]:
        if self._is_whole is None:
            first = next((part for part in parts if part), None)
            if first is None:
                return []
            self._is_whole = type(first) is Marker and self._start in ("", first)
        return self._read(self._messages.push(parts)) if self._is_whole else self._calls.push(parts)

    def finish(self) -> list[Delta]:
        held = self._messages.finish() if self._is_whole else []
        return [*self._read(held), *self._calls.finish()]

    @property
    def num_calls(self) -> int:
        return self._calls.num_calls

    def release(self) -> list[Delta]:
        return self._calls.release()

    def _read(self, deltas: Sequence[Delta]) -> list[Delta]:
        found: list[Delta] = []
        for delta in deltas:
            found += self._calls.push([delta.text]) if isinstance(delta, Content) else [delta]
        return found
