"""The grammar that the engine enforces for a chat's tool calls, alone or as an alternative to a text answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from ember.front.api.output_reader import ReaderOptions
from ember.front.errors import bad_request
from ember.front.text import lark
from ember.wire import Grammar, SamplingParams

_START_RULE = re.compile(r"^start(?=\s*:)", re.MULTILINE)


def constrained(params: SamplingParams, options: ReaderOptions, prompt_token_ids: Sequence[int]) -> SamplingParams:
    """The parameters with a grammar for the tool calls that are demanded. Where a grammar or a budget needs it, they
    also say how reasoning is told from the answer. Raises ApiError 400."""
    grammar = _grammar(options, params.grammar)
    thinking = None
    if options.reasoning is not None and (grammar is not None or options.budget is not None):
        thinking = options.reasoning.thinking(
            options.tokenizer,
            prompt_token_ids,
            options.variables,
            options.budget,
            with_tools=options.calls_with is not None,
            with_calls=grammar is not params.grammar,
        )
    if grammar is params.grammar and thinking is None:
        return params
    return msgspec.structs.replace(params, grammar=grammar, thinking=thinking)


def _grammar(options: ReaderOptions, demanded: Grammar | None) -> Grammar | None:
    use = options.use
    if options.calls_with is None:
        return demanded
    if use.mode == "auto":
        if demanded is not None:
            return _either(options, demanded)
        return _calls_or_text(options) if use.is_strict else None
    if demanded is not None and demanded.param != "response_format":  # that is of content, which forced calls lack
        message = "You can only either use constraints for structured outputs or tools, not both."
        raise bad_request(message, demanded.param)
    return _of_calls(options, at_least_one=True)


def _of_calls(options: ReaderOptions, *, at_least_one: bool) -> Grammar:
    assert options.calls_with is not None
    field = "functions" if options.use.is_legacy else "tools"
    try:
        text = options.calls_with.grammar(
            list(options.use.callable),
            at_least_one=at_least_one,
            parallel=options.use.parallel,
            tokenizer=options.tokenizer,
        )
    except ValueError as error:
        raise bad_request(f"`{field}` cannot be used: {error}", field) from None
    return Grammar("lark", text, field)


def _calls_or_text(options: ReaderOptions) -> Grammar:
    if not _answer_mark(options):
        return _of_calls(options, at_least_one=False)
    return _with_answer(options, "other_answer: /(?s:.*)/", "tools")


def _either(options: ReaderOptions, demanded: Grammar) -> Grammar:
    """A grammar of calls, or of an answer in the demanded form. For a form other than a JSON schema only the answer."""
    if demanded.kind != "json":
        return demanded
    return _with_answer(options, _START_RULE.sub("other_answer", demanded.text, count=1), demanded.param)


def _with_answer(options: ReaderOptions, answer: str, param: str) -> Grammar:
    """A grammar of calls or of an answer, never both. The answer has these rules and follows its mark."""
    calls = _START_RULE.sub("tool_calls_instead", _of_calls(options, at_least_one=True).text, count=1)
    mark = lark.literal(_answer_mark(options), options.tokenizer) if _answer_mark(options) else ""
    text = f"{calls}\nstart: tool_calls_instead | {mark} other_answer\n{answer}\n"
    return Grammar("lark", text, param)


def _answer_mark(options: ReaderOptions) -> str:
    return "" if options.reasoning is None else options.reasoning.answer_mark
