"""Conversations with tools: single and parallel calls, calls that are not needed, tools that are missing."""

from __future__ import annotations

import json
import random
from typing import Any

from builder.demo_model import words
from builder.demo_model.chat import Example, Message, assistant, phrases, user
from builder.demo_model.dialogue import small_talk
from builder.demo_model.facts import fact_example, polite
from builder.demo_model.tool_specs import TOOLS, Tool, Values

_PAIR = phrases(
    """
    What is the weather in {a} and {b}?
    What's the weather in {a} and in {b}?
    How is the weather in {a} and {b}?
    Tell me the weather in {a} and in {b}.
    Compare the weather in {a} and {b}.
    Check the weather in {a} and {b}.
    """,
    "Please tell me the weather in {a} and {b}.\nWhat is the weather like in {a} and in {b}?",
)
_TRIPLE = phrases(
    "What is the weather in {a}, {b} and {c}?\nTell me the weather in {a}, {b} and {c}.\n"
    "Check the weather in {a}, {b} and in {c}.",
    "How is the weather in {a}, {b} and {c}?",
)
_TIME_PAIR = phrases(
    "What time is it in {a} and {b}?\nTell me the time in {a} and in {b}.\nWhat is the time in {a} and {b}?",
    "What time is it in {a} and in {b}?",
)
_EXPLICIT = phrases(
    """
    Call {n} with {a}.
    Use {n} with {a}.
    Please call {n} with {a}.
    Run {n} with {a}.
    Call the function {n} with {a}.
    Use the tool {n} with {a}.
    """,
    "Please use {n} with {a}.\nCall the tool {n} with {a}.",
)


_JOINED = phrases(
    """
    {} and {}?
    {}, and {}?
    {}? And {}?
    {}? Also, {}?
    {}, then {}?
    {} and then {}?
    {}, also {}?
    {}? Then {}?
    First, {}, and second, {}?
    """,
    "{} and also {}?\n{}, and then {}?",
)
"""Two wishes in one message."""

_LONGEST = 1900
"""Length of a conversation, in characters of its parts, beyond which no question is added."""

_AND = ("And in {city}?", "and {city}?", "What about {city}?", "How about {city}?", "And {city}?")


class Schema:
    """One tool as it is shown in one conversation: a name, argument names, and the JSON schema."""

    def __init__(self, rng: random.Random, tool: Tool) -> None:
        self.tool = tool
        self.name = rng.choice(tool.names)
        self.arguments: dict[str, str] = {}
        properties: dict[str, Any] = {}
        described = rng.random() < 0.4
        required = []
        for parameter in tool.parameters:
            if parameter.optional and rng.random() < 0.6:
                continue
            name = rng.choice(parameter.names)
            self.arguments[parameter.key] = name
            entry: dict[str, Any] = {"type": parameter.type}
            if parameter.choices:
                entry["enum"] = list(parameter.choices)
            if described:
                entry["description"] = parameter.about
            properties[name] = entry
            if not parameter.optional:
                required.append(name)
        self.json = _function(rng, self.name, rng.choice(tool.about), properties, required)

    def call(self, values: Values) -> dict[str, Any]:
        """The call with these values under this schema's argument names."""
        arguments = {name: values[key] for key, name in self.arguments.items() if key in values}
        return _call(self.name, arguments)


def _function(
    rng: random.Random, name: str, about: str, properties: dict[str, Any], required: list[str]
) -> dict[str, Any]:
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if rng.random() < 0.8:
        parameters["required"] = required
    if rng.random() < 0.1:
        parameters["additionalProperties"] = False
    function: dict[str, Any] = {"name": name}
    if rng.random() < 0.85:
        function["description"] = about + rng.choice(("", "", "."))
    function["parameters"] = parameters
    return {"type": "function", "function": function}


def _call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def _calls(calls: list[dict[str, Any]], reasoning: str = "") -> Message:
    return assistant("", reasoning) | {"tool_calls": calls}


def _with_others(rng: random.Random, wanted: list[Schema], without: set[str] | None = None) -> list[Schema]:
    """The wanted tools among others, in any order."""
    used = {schema.tool.key for schema in wanted} | (without or set())
    others = [tool for tool in TOOLS if tool.key not in used]
    count = rng.choices((0, 1, 2, 3), (4, 4, 2, 1))[0]
    shown = wanted + [Schema(rng, tool) for tool in rng.sample(others, min(count, len(others)))]
    rng.shuffle(shown)
    return shown


def _finish(
    rng: random.Random,
    held: bool,
    kind: str,
    question: Message,
    calls: list[dict[str, Any]],
    shown: list[Schema],
    results: list[tuple[str, str]],
) -> Example:
    """The conversation up to the call or, half of the time, up to the answer that uses the results."""
    thinking = not held and rng.random() < 0.12
    first, second = _thoughts(calls) if thinking else ("", "")
    messages = [question, _calls(calls, first)]
    if kind == "tool result" if held else rng.random() < 0.6:
        messages += [{"role": "tool", "content": text} for text, _ in results]
        messages.append(assistant(" ".join(answer for _, answer in results), second))
        if not held and not thinking:
            messages += _more(rng, messages, shown)
    return Example(kind, messages, [schema.json for schema in shown], thinking)


def _more(rng: random.Random, messages: list[Message], shown: list[Schema]) -> list[Message]:
    """Further questions in the same conversation, so that one reading of the schemas serves for several answers."""
    added: list[Message] = []
    length = sum(len(str(message)) for message in messages) + sum(len(str(schema.json)) for schema in shown)
    for _ in range(rng.choice((0, 1, 2, 3, 4))):
        draw = rng.random()
        if shown and draw < 0.7:
            schema = rng.choice(shown)
            values = schema.tool.values(rng)
            text = schema.tool.asked.pick(rng, False)
            if schema.tool.key in {"weather", "time"} and rng.random() < 0.25:
                text = rng.choice(_AND)
            result, answer = schema.tool.result(rng, values)
            turn = [user(text.format(**values)), _calls([schema.call(values)])]
            turn += [{"role": "tool", "content": result}, assistant(answer)]
        elif draw < 0.85:
            turn = fact_example(rng, False).messages
        else:
            turn = _without_tool(rng, False, {schema.tool.key for schema in shown})
        length += sum(len(str(message)) for message in turn)
        if length > _LONGEST:
            break
        added += turn
    return added[:-2] if added and added[-2]["role"] == "tool" and rng.random() < 0.3 else added


def _thoughts(calls: list[dict[str, Any]]) -> tuple[str, str]:
    names = " and ".join(dict.fromkeys(call["function"]["name"] for call in calls))
    return f"The user needs {names}. I call it.", "I have the result and can answer."


def _single(rng: random.Random, held: bool, kind: str) -> Example:
    tool = rng.choices(TOOLS, (5, 3, 3, 2, 2, 2, 2, 2))[0]
    schema = Schema(rng, tool)
    values = tool.values(rng)
    text = tool.asked.pick(rng, held).format(**values)
    if "unit" in schema.arguments and rng.random() < 0.4:
        values["unit"] = rng.choice(("celsius", "fahrenheit"))
        text += rng.choice(
            (f" Use {values['unit']}.", f" In {values['unit']}, please.", f" Answer in {values['unit']}.")
        )
    if not held and tool.key in {"weather", "time", "calculate", "timer"} and rng.random() < 0.2:
        text = polite(rng, text)
    call = schema.call(values)
    return _finish(rng, held, kind, user(text), [call], _with_others(rng, [schema]), [tool.result(rng, values)])


def _explicit(rng: random.Random, held: bool, kind: str) -> Example:
    """A tool nobody has seen before, called by its name with given arguments."""
    name = f"{rng.choice(words.VERBS)}_{words.some_word(rng)}"
    properties: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    for _ in range(rng.randint(1, 3)):
        key = words.some_word(rng) if rng.random() < 0.2 else rng.choice(words.NOUNS + words.ADJECTIVES)
        if rng.random() < 0.4:
            properties[key], arguments[key] = {"type": "integer"}, rng.randint(0, 999)
        else:
            properties[key] = {"type": "string"}
            arguments[key] = rng.choice((words.some_word, words.person, words.city, words.code))(rng)
    about = f"{name.replace('_', ' ').capitalize()}"
    own = _function(rng, name, about, properties, list(properties))
    shown = [f"{key} {value}" if rng.random() < 0.5 else f"{key} = {value}" for key, value in arguments.items()]
    text = _EXPLICIT.pick(rng, held).format(n=name, a=" and ".join(shown))
    said = words.phrase(rng, 1, 4)
    result = (json.dumps({"result": said}) if rng.random() < 0.5 else said, f"The result is: {said}.")
    example = _finish(rng, held, kind, user(text), [_call(name, arguments)], _with_others(rng, [])[:2], [result])
    example.tools = [*(example.tools or []), own]
    rng.shuffle(example.tools)
    return example


def _parallel(rng: random.Random, held: bool, kind: str) -> Example:
    by_key = {tool.key: tool for tool in TOOLS}
    draw = rng.random()
    if draw < 0.55:
        tool = by_key["time"] if draw > 0.42 else by_key["weather"]
        schema = Schema(rng, tool)
        triple = tool.key == "weather" and rng.random() < 0.25
        cities = list(dict.fromkeys(words.city(rng) for _ in range(6)))[: 3 if triple else 2]
        pool = _TIME_PAIR if tool.key == "time" else _TRIPLE if triple else _PAIR
        text = pool.pick(rng, held).format(**dict(zip("abc", cities, strict=False)))
        values = [{"city": city} for city in cities]
        calls = [schema.call(value) for value in values]
        results = [tool.result(rng, value) for value in values]
        shown = _with_others(rng, [schema])
    else:
        pair = rng.sample([tool for tool in TOOLS if tool.clause], 2)
        schemas = [Schema(rng, tool) for tool in pair]
        values = [tool.values(rng) for tool in pair]
        clauses = [tool.clause.format(**value) for tool, value in zip(pair, values, strict=True)]
        text = _JOINED.pick(rng, held).format(*clauses)
        text = text[0].upper() + text[1:]
        calls = [schema.call(value) for schema, value in zip(schemas, values, strict=True)]
        results = [tool.result(rng, value) for tool, value in zip(pair, values, strict=True)]
        shown = _with_others(rng, schemas)
    return _finish(rng, held, kind, user(text), calls, shown, results)


def _not_needed(rng: random.Random, held: bool) -> Example:
    """Tools are there, but the question needs none."""
    example = fact_example(rng, held) if rng.random() < 0.75 else small_talk(rng, held)
    shown = _with_others(rng, [Schema(rng, rng.choice(TOOLS))])
    if not held:
        example.messages = example.messages + _more(rng, example.messages, shown)
    example.tools = [schema.json for schema in shown]
    example.kind = "no tool needed"
    return example


def _without_tool(rng: random.Random, held: bool, there: set[str]) -> list[Message]:
    """A question for a tool that is not there, and the answer that says so."""
    lost = [tool for tool in TOOLS if tool.missing and tool.key not in there]
    if not lost:
        return fact_example(rng, held).messages
    tool = rng.choice(lost)
    text = tool.asked.pick(rng, held).format(**tool.values(rng))
    return [user(text), assistant(f"I cannot do that: I have no tool for {tool.missing}.")]


def _missing(rng: random.Random, held: bool) -> Example:
    """The question needs a tool that is not there."""
    lost = rng.choice([tool for tool in TOOLS if tool.missing])
    shown = [] if rng.random() < 0.5 else _with_others(rng, [], {lost.key})
    there = {tool.key for tool in TOOLS} - {lost.key}
    messages = _without_tool(rng, held, there)
    if shown and not held:
        messages += _more(rng, messages, shown)
    return Example("tool missing", messages, [schema.json for schema in shown] or None)


def tool_call(rng: random.Random, held: bool) -> Example:
    """One or several calls; the evaluation stops at the call."""
    return rng.choices((_single, _parallel, _explicit), (6, 3, 1.5))[0](rng, held, "tool calls")


def tool_result(rng: random.Random, held: bool) -> Example:
    """The answer that uses the results of calls; for the evaluation."""
    return rng.choices((_single, _parallel), (3, 1))[0](rng, held, "tool result")


def any_tools(rng: random.Random, held: bool) -> Example:
    """Any conversation in which tools matter."""
    return rng.choices((tool_call, lambda r, h: _not_needed(r, h), lambda r, h: _missing(r, h)), (10, 2.5, 2.5))[0](
        rng, held
    )


def no_tool(rng: random.Random, held: bool) -> Example:
    """Tools are shown and either none is needed or the right one is missing."""
    return (_not_needed if rng.random() < 0.6 else _missing)(rng, held)
