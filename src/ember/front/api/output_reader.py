"""How the outputs of a chat request are read: text becomes reasoning, content and tool calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ember.front.api.schemas import ChatRequest
from ember.front.api.services import Services
from ember.front.api.tools import ToolUse
from ember.front.errors import bad_request
from ember.front.text.output import Content, Delta, Marker, Reasoning, ToolCallArguments, ToolCallStart
from ember.front.text.reasoning import ReasoningFormat, ReasoningParser
from ember.front.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ember.front.text.tools import ToolFormat, ToolParser


@dataclass(frozen=True, slots=True)
class ReaderOptions:
    """How the outputs of one request are read. Without a reasoning format and callable tools all text is content."""

    tokenizer: Tokenizer
    reasoning: ReasoningFormat | None
    tool_format: ToolFormat | None
    use: ToolUse
    shows_reasoning: bool = True
    variables: Mapping[str, Any] = field(default_factory=dict)  # of the template, as asked for
    budget: int | None = None  # reasoning tokens
    is_whole: bool = False  # the answer is sent when all of it is there

    @property
    def markers(self) -> frozenset[int]:
        """The tokens that reach the parsers as `Marker`s."""
        found: frozenset[int] = frozenset()
        if self.reasoning is not None:
            found |= self.reasoning.markers(self.tokenizer)
        if self.calls_with is not None:
            found |= self.calls_with.markers(self.tokenizer)
        return found

    @property
    def calls_with(self) -> ToolFormat | None:
        """The format of the calls, where there may be any."""
        return self.tool_format if self.use.callable else None

    def reader_for(self, prompt_token_ids: Sequence[int], skip_special_tokens: bool) -> OutputReader | None:
        """The reader of one sample. It is None when all of the sample's text is content."""
        if self.reasoning is None and self.calls_with is None:
            return None
        return OutputReader(self, prompt_token_ids, skip_special_tokens)


def requested_reader(
    request: ChatRequest, services: Services, use: ToolUse, variables: Mapping[str, Any]
) -> ReaderOptions:
    """Raises ApiError 400."""
    return ReaderOptions(
        tokenizer=services.tokenizer,
        reasoning=services.reasoning_format,
        tool_format=services.tool_format,
        use=use,
        shows_reasoning=request.include_reasoning is not False,
        variables=variables,
        budget=_budget(request, services),
        is_whole=not request.stream,
    )


def _budget(request: ChatRequest, services: Services) -> int | None:
    """Raises ApiError 400."""
    budget = request.thinking_token_budget
    if budget is None or (type(budget) is int and budget == -1):
        return None
    if type(budget) is not int or not 0 <= budget < 2**31:
        message = (
            f"thinking_token_budget must be a whole number of tokens, or -1 for no limit, got {repr(budget)[:64]}."
        )
        raise bad_request(message, "thinking_token_budget")
    if services.reasoning_format is None:
        message = "thinking_token_budget needs a model whose reasoning format is known; set REASONING_PARSER."
        raise bad_request(message, "thinking_token_budget")
    return budget


class OutputReader:
    """Reads one sample: parts of text become deltas. Every `ToolCallStart` that it gives has an id."""

    def __init__(self, options: ReaderOptions, prompt_token_ids: Sequence[int], skip_special_tokens: bool) -> None:
        tokenizer, tool_format = options.tokenizer, options.calls_with
        self.markers = options.markers
        self.num_calls = 0
        self.is_over = False  # a second call has begun where only one is wanted: the sample is to end here
        self._use = options.use
        self._format = tool_format
        self._shows_reasoning = options.shows_reasoning
        special = self.markers & tokenizer.special_token_ids if skip_special_tokens else frozenset()
        self._hidden = frozenset(tokenizer.vocab_entry(token_id) for token_id in special)
        of_tools = tool_format.markers(tokenizer) if tool_format is not None else ()
        self._of_tools = frozenset(tokenizer.vocab_entry(token_id) for token_id in of_tools)
        self._reasoning: ReasoningParser | None = None
        if options.reasoning is not None:
            self._reasoning = options.reasoning.parser(
                tokenizer, prompt_token_ids, options.variables, with_tools=tool_format is not None
            )
        self._is_whole = options.is_whole
        self._tools: ToolParser | None = None
        if tool_format is not None:
            self._tools = tool_format.parser(list(options.use.callable), tokenizer)

    @property
    def shows_reasoning(self) -> bool:
        return self._shows_reasoning

    @property
    def is_reasoning(self) -> bool:
        return self._reasoning is not None and self._reasoning.is_reasoning

    @property
    def is_settled(self) -> bool:
        """No token but a `Marker` can begin reasoning any more."""
        return self._reasoning is None or self._reasoning.is_settled

    @property
    def is_forced(self) -> bool:
        """Whether there can be nothing but calls behind the reasoning."""
        return self._use.mode in ("required", "named")

    def release(self) -> list[Delta]:
        """What there is of a call that is not yet whole, where the answer is sent piece by piece. To be asked when all
        that is there is about to be sent: until then a call can be taken back."""
        return [] if self._tools is None or self._is_whole else self._shown(self._tools.release())

    def push(self, parts: Sequence[str]) -> list[Delta]:
        """Reads further parts and returns what is new for the client, without calls that are not yet whole."""
        if self._reasoning is not None:
            deltas = self._reasoning.push(parts)
            if self._tools is not None:
                deltas = self._call(self._tools, deltas)
        elif self._tools is not None:
            deltas = self._tools.push(parts)
        else:
            deltas = [Content(part) for part in parts]
        if len(deltas) == 1 and type(deltas[0]) is Content and type(deltas[0].text) is not Marker and not self.is_over:
            return deltas
        shown = self._shown(deltas)
        if self._tools is not None and not self._use.parallel and self._tools.num_calls > 1:
            self.is_over = True
        return shown

    def finish(self) -> list[Delta]:
        """What was held back, at the end of the sample."""
        deltas = self._reasoning.finish() if self._reasoning is not None else []
        if self._tools is not None:
            deltas = self._call(self._tools, deltas)
            held = self._tools.finish()
            if self.is_forced:  # a call that was cut before its name is no content
                held = [delta for delta in held if not isinstance(delta, Content)]
            deltas = [*deltas, *held]
        return self._shown(deltas)

    def finish_reason(self, reason: str) -> str:
        """As the API tells it: an end after calls has a name of its own, unless the request named the function."""
        if reason == "stop" and self.num_calls and self._use.mode != "named":
            return "function_call" if self._use.is_legacy else "tool_calls"
        return reason

    def _call(self, tools: ToolParser, deltas: Sequence[Delta]) -> list[Delta]:
        """Content goes through the tool parser, in its place among the rest. Markers of the reasoning's alone, which
        are text for that parser, are none where special tokens are hidden."""
        read: list[Delta] = []
        parts: list[str] = []
        for delta in deltas:
            if isinstance(delta, Content):
                if type(delta.text) is not Marker or delta.text in self._of_tools or delta.text not in self._hidden:
                    parts.append(delta.text)
                continue
            if parts:
                read += tools.push(parts)
                parts = []
            read.append(delta)
        return read + tools.push(parts) if parts else read

    def _shown(self, deltas: Sequence[Delta]) -> list[Delta]:
        shown: list[Delta] = []
        for delta in deltas:
            if self.is_over:
                break
            if isinstance(delta, ToolCallStart):
                if delta.index > 0 and not self._use.parallel:
                    self.is_over = True
                    break
                self.num_calls += 1
                if delta.id is None:
                    assert self._format is not None
                    delta = ToolCallStart(delta.index, delta.name, self._format.make_id(delta.index, delta.name))
            elif not isinstance(delta, ToolCallArguments) and self._is_hidden(delta):
                continue
            shown.append(delta)
        return shown

    def _is_hidden(self, delta: Content | Reasoning) -> bool:
        if type(delta.text) is Marker and delta.text in self._hidden:
            return True
        return isinstance(delta, Reasoning) and not self._shows_reasoning
