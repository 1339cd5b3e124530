"""How the output of a chat request is read: reasoning, then tool calls; and what the engine must enforce for that."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from ember.front.api.schemas import ChatRequest
from ember.front.api.services import Services
from ember.front.api.tools import ToolUse
from ember.front.errors import bad_request
from ember.front.text import lark
from ember.front.text.output import Content, Delta, Marker, Reasoning, ToolCallArguments, ToolCallStart
from ember.front.text.reasoning import ReasoningFormat, ReasoningParser
from ember.front.text.tokenizer import Tokenizer
from ember.wire import Grammar, SamplingParams

if TYPE_CHECKING:
    from ember.front.text.tools import ToolFormat, ToolParser

_START_RULE = re.compile(r"^start(?=\s*:)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Reading:
    """One request's part of it. Without a reasoning format and callable tools there is nothing to read."""

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

    def reader(self, prompt_token_ids: Sequence[int], skip_special_tokens: bool) -> OutputReader | None:
        """For one sample; None where its text is its content."""
        if self.reasoning is None and self.calls_with is None:
            return None
        return OutputReader(self, prompt_token_ids, skip_special_tokens)

    def constrained(self, params: SamplingParams, prompt_token_ids: Sequence[int]) -> SamplingParams:
        """With the grammar of the calls that are asked for, and with what tells reasoning from the answer where a
        grammar or a budget needs it. Raises ApiError 400."""
        grammar = self._grammar(params.grammar)
        thinking = None
        if self.reasoning is not None and (grammar is not None or self.budget is not None):
            thinking = self.reasoning.thinking(
                self.tokenizer,
                prompt_token_ids,
                self.variables,
                self.budget,
                with_tools=self.calls_with is not None,
                with_calls=grammar is not params.grammar,
            )
        if grammar is params.grammar and thinking is None:
            return params
        return msgspec.structs.replace(params, grammar=grammar, thinking=thinking)

    def _grammar(self, demanded: Grammar | None) -> Grammar | None:
        use = self.use
        if self.calls_with is None:
            return demanded
        if use.mode == "auto":
            if demanded is not None:
                return self._either(demanded)
            return self._calls_or_text() if use.is_strict else None
        if demanded is not None and demanded.param != "response_format":  # that is of content, which forced calls lack
            message = "You can only either use constraints for structured outputs or tools, not both."
            raise bad_request(message, demanded.param)
        return self._of_calls(at_least_one=True)

    def _of_calls(self, *, at_least_one: bool) -> Grammar:
        assert self.calls_with is not None
        field = "functions" if self.use.is_legacy else "tools"
        try:
            text = self.calls_with.grammar(
                list(self.use.callable),
                at_least_one=at_least_one,
                parallel=self.use.parallel,
                tokenizer=self.tokenizer,
            )
        except ValueError as error:
            raise bad_request(f"`{field}` cannot be used: {error}", field) from None
        return Grammar("lark", text, field)

    def _calls_or_text(self) -> Grammar:
        if not self._answer_mark:
            return self._of_calls(at_least_one=False)
        return self._with_answer("other_answer: /(?s:.*)/", "tools")

    def _either(self, demanded: Grammar) -> Grammar:
        """Calls, or an answer in the form that the request demands. A form that is no JSON schema stands alone."""
        if demanded.kind != "json":
            return demanded
        return self._with_answer(_START_RULE.sub("other_answer", demanded.text, count=1), demanded.param)

    def _with_answer(self, answer: str, param: str) -> Grammar:
        """Calls alone, or an answer alone, which has these rules and stands behind its mark."""
        calls = _START_RULE.sub("tool_calls_instead", self._of_calls(at_least_one=True).text, count=1)
        mark = lark.literal(self._answer_mark, self.tokenizer) if self._answer_mark else ""
        text = f"{calls}\nstart: tool_calls_instead | {mark} other_answer\n{answer}\n"
        return Grammar("lark", text, param)

    @property
    def _answer_mark(self) -> str:
        return "" if self.reasoning is None else self.reasoning.answer_mark


def requested_reading(request: ChatRequest, services: Services, use: ToolUse, variables: Mapping[str, Any]) -> Reading:
    """Raises ApiError 400."""
    return Reading(
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
    """One sample's way from parts to deltas. Every `ToolCallStart` that it gives has an id."""

    def __init__(self, reading: Reading, prompt_token_ids: Sequence[int], skip_special_tokens: bool) -> None:
        tokenizer, tool_format = reading.tokenizer, reading.calls_with
        self.markers = reading.markers
        self.num_calls = 0
        self.is_over = False  # a second call has begun where only one is wanted: the sample is to end here
        self._use = reading.use
        self._format = tool_format
        self._shows_reasoning = reading.shows_reasoning
        special = self.markers & tokenizer.special_token_ids if skip_special_tokens else frozenset()
        self._hidden = frozenset(tokenizer.vocab_entry(token_id) for token_id in special)
        of_tools = tool_format.markers(tokenizer) if tool_format is not None else ()
        self._of_tools = frozenset(tokenizer.vocab_entry(token_id) for token_id in of_tools)
        self._reasoning: ReasoningParser | None = None
        if reading.reasoning is not None:
            self._reasoning = reading.reasoning.parser(
                tokenizer, prompt_token_ids, reading.variables, with_tools=tool_format is not None
            )
        self._is_whole = reading.is_whole
        self._tools: ToolParser | None = None
        if tool_format is not None:
            self._tools = tool_format.parser(list(reading.use.callable), tokenizer)

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
