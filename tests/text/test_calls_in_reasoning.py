"""Calls that begin inside reasoning: which formats' reasoning they end, and what is made of both."""

from __future__ import annotations

import json
import random

import pytest

from ember.front.api.output_reader import ReaderOptions
from ember.front.api.tools import ToolUse
from ember.front.text.output import Delta, Reasoning
from ember.front.text.reasoning import ReasoningFormat
from ember.front.text.reasoning.formats import FORMATS
from ember.front.text.reasoning.messages import INKLING, MUSE
from ember.front.text.tokenizer import Tokenizer
from ember.front.text.tools import ToolFormat
from tests.support.byte_tokenizer import byte_tokenizer
from tests.text.parts import parts_between
from tests.text.test_tools import SPECIAL, cut, joined
from tests.text.tool_vectors import ARGUMENTS, K_BEGIN, K_END, KIMI, ONE, TOOLS, Q, coder, dsml, glm, hermes, minimax

ROLES = ("<|user|>", "<|assistant|>")
THINKING = {mark for tags in FORMATS.values() for mark in (*tags.starts, *tags.ends)}
MARKS = (*SPECIAL, *sorted(mark for mark in THINKING if mark.startswith(("<", "[")) and "<|open|>" not in mark))
MARKS = (*MARKS, *INKLING.marks, *MUSE.marks)
TOKENIZERS = {
    "tokens": byte_tokenizer(ROLES, tuple(mark for mark in dict.fromkeys(MARKS) if mark.count("plamo") < 2)),
    "text": byte_tokenizer(ROLES),
}
DSML_CALL = dsml("weather", ("city", True, "Zürich"), ("days", False, "3"))
CODER = coder("weather", city="Zürich", days="3")
MINIMAX = f"<minimax:tool_call>\n{minimax('weather', city='Zürich', days='3')}</minimax:tool_call>"
PLAMO = (
    "<|plamo:begin_tool_requests:plamo|><|plamo:begin_tool_request:plamo|><|plamo:begin_tool_name:plamo|>weather"
    "<|plamo:end_tool_name:plamo|><|plamo:begin_tool_arguments:plamo|><|plamo:constrain|>json<|plamo:msg|>"
    + ARGUMENTS
    + "<|plamo:end_tool_arguments:plamo|><|plamo:end_tool_request:plamo|><|plamo:end_tool_requests:plamo|>"
)
# reasoning format, what the prompt ends with, tool format, a call
BROKEN = [
    ("qwen3", "<think>\n", "hermes", hermes()),
    ("qwen3", "", "qwen3_coder", CODER),
    ("nemotron_v3", "<think>\n", "qwen3_coder", CODER),
    ("deepseek_v4", "<think>", "deepseek_v4", f"<｜DSML｜tool_calls>\n{DSML_CALL}</｜DSML｜tool_calls>"),
    (
        "deepseek_v41",
        "<think>",
        "deepseek_v41",
        "<｜DSML｜ calls>\n" + DSML_CALL.replace("DSML｜", "DSML｜ ") + "</｜DSML｜ calls>",
    ),
    ("gemma4", "", "gemma4", f"<|tool_call>call:weather{{city:{Q}Zürich{Q},days:3}}<tool_call|>"),
    ("glm45", "", "glm45", glm("weather", city="Zürich", days="3")),
    ("glm47", "<think>", "glm47", glm("weather", "", city="Zürich", days="3")),
    ("ling3", "<think>", "glm45", glm("weather", city="Zürich", days="3")),
    ("poolside_v1", "<think>", "glm47", glm("weather", "", city="Zürich", days="3")),
    ("kimi_k2", "", "kimi_k2", K_BEGIN + KIMI.format("weather:0", ARGUMENTS) + K_END),
    ("minimax_m2", "<think>\n", "minimax_m2", MINIMAX),
    ("mistral", "", "mistral", f"[TOOL_CALLS]weather[ARGS]{ARGUMENTS}"),
    ("seed_oss", "<seed:think>", "seed_oss", CODER.replace("tool_call>", "seed:tool_call>")),
    ("step3p5", "<think>\n", "step3p5", CODER),
    ("step5", "", "step3p5", CODER),
    ("mimo", "<think>", "mimo", CODER.replace(">\nZürich\n<", ">Zürich<").replace(">\n3\n<", ">3<")),
    ("granite_thinking_parser", "<think>", "granite4", hermes()),
    ("minicpmv", "<think>\n", "qwen3_coder", CODER),
    ("plamo3", "", "plamo3", PLAMO),
]
KEPT = [
    ("deepseek_r1", "<think>", "hermes", hermes()),
    ("deepseek_v32", "<think>", "deepseek_v32", f"<｜DSML｜function_calls>\n{DSML_CALL}</｜DSML｜function_calls>"),
]


INVOKE = '<|content_invoke_tool_json|>{"name": "weather", "args": {"city": "Zürich", "days": 3}}<|end_message|>'
ATEM = (
    '<|message|>\n<atem:function_calls>\n<atem:invoke name="weather.weather">\n'
    '<atem:parameter name="city">Zürich</atem:parameter>\n<atem:parameter name="days">3</atem:parameter>\n'
    "</atem:invoke>\n</atem:function_calls><|eom|>"
)
# formats, what the prompt ends with, the output, its content
MESSAGES = [
    ("inkling", "<|message_model|>", f"<|content_thinking|>I look.{INVOKE}", ""),
    (
        "inkling",
        "<|message_model|>",
        "<|content_thinking|>I look.<|end_message|><|message_model|><|content_text|>So.<|end_message|><|message_model|>"
        f"weather{INVOKE}<|message_model|><|content_text|>Done.<|end_message|>",
        "So.Done.",
    ),
    ("muse", "<|start|>assistant", f" to=self<|message|>I look.<|eom|><|start|>assistant to=weather.weather{ATEM}", ""),
    (
        "muse",
        "<|start|>assistant",
        f" to=self<|message|>I look. to=weather{ATEM}"
        "<|start|>assistant to=user<|message|><atem:invoke name='now'>!<|eot|>",
        "<atem:invoke name='now'>!",
    ),
]


def options_of(reasoning: str, tools: str, tokenizer: Tokenizer, is_whole: bool) -> ReaderOptions:
    use = ToolUse(TOOLS, tuple(TOOLS), "auto")
    chosen = ReasoningFormat(reasoning, FORMATS[reasoning])
    return ReaderOptions(tokenizer, chosen, ToolFormat(tools), use, is_whole=is_whole)


def parts_of(text: str, options: ReaderOptions) -> list[str]:
    return parts_between(text, options.markers, options.tokenizer)


def read(options: ReaderOptions, prompt: str, pushes: list[list[str]]) -> list[Delta]:
    prompt_ids = options.tokenizer.encode("<|user|>hi<|assistant|>" + prompt, add_special_tokens=False)
    reader = options.reader_for(prompt_ids, skip_special_tokens=True)
    assert reader is not None
    deltas = [delta for parts in pushes for delta in (*reader.push(parts), *reader.release())]
    return deltas + reader.finish()


def told(deltas: list[Delta]) -> tuple[str, str, list[tuple[str, str]]]:
    content, calls = joined(deltas)
    reasoning = "".join(delta.text for delta in deltas if isinstance(delta, Reasoning))
    return reasoning, content, [(name, arguments) for name, _, arguments in calls]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(("reasoning", "prompt", "tools", "call"), BROKEN, ids=lambda value: value[:12])
def test_a_call_ends_the_reasoning(reasoning: str, prompt: str, tools: str, call: str, kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    chosen = FORMATS[reasoning]
    start = "" if prompt or chosen.opens else chosen.starts[0]
    for thought in ("I look.\n", ""):
        options = options_of(reasoning, tools, tokenizer, True)
        parts = parts_of(f"{start}{thought}{call}", options)
        found = told(read(options, prompt, [parts]))
        assert (found[0], found[1]) == (thought.strip(), "")
        assert [(name, json.loads(arguments)) for name, arguments in found[2]] == [ONE]
        for is_whole in (True, False):
            again = options_of(reasoning, tools, tokenizer, is_whole)
            assert told(read(again, prompt, [[part] for part in parts])) == found
            for seed in range(3):
                assert told(read(again, prompt, cut(parts, random.Random(seed)))) == found


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(("reasoning", "prompt", "tools", "call"), KEPT, ids=lambda value: value[:12])
def test_a_call_that_is_reasoning(reasoning: str, prompt: str, tools: str, call: str, kind: str) -> None:
    options = options_of(reasoning, tools, TOKENIZERS[kind], True)
    parts = parts_of(f"I look.\n{call}\nNo.</think>Bye.", options)
    assert told(read(options, prompt, [parts])) == (f"I look.\n{call}\nNo.", "Bye.", [])


@pytest.mark.parametrize(("reasoning", "prompt", "tools", "call"), BROKEN, ids=lambda value: value[:12])
def test_the_engine_is_told(reasoning: str, prompt: str, tools: str, call: str) -> None:
    """Of marks that the grammar of forced calls begins with."""
    tokenizer = TOKENIZERS["tokens"]
    chosen = ReasoningFormat(reasoning, FORMATS[reasoning])
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    breaks = chosen.thinking(tokenizer, prompt_ids, {}, None, with_tools=True).break_token_ids
    opened = tokenizer.encode(call, add_special_tokens=False)
    assert any(opened[: len(marker)] == marker for marker in breaks)
    assert not chosen.thinking(tokenizer, prompt_ids, {}, None).break_token_ids


@pytest.mark.parametrize(("name", "prompt", "output", "content"), MESSAGES)
def test_calls_in_messages(name: str, prompt: str, output: str, content: str) -> None:
    tokenizer = TOKENIZERS["tokens"]
    parts = parts_of(output, options_of(name, name, tokenizer, True))
    for is_whole in (True, False):
        options = options_of(name, name, tokenizer, is_whole)
        for pushes in ([parts], [[part] for part in parts], cut(parts, random.Random(1)), cut(parts, random.Random(2))):
            found = told(read(options, prompt, pushes))
            assert (found[0], found[1]) == ("I look.", content)
            assert [(called, json.loads(arguments)) for called, arguments in found[2]] == [ONE]
