"""Reasoning formats: what is reasoning and what is the answer, however the output is cut."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ember.front.text.output import Content, Delta, Marker, Reasoning
from ember.front.text.reasoning import ReasoningFormat, choose_reasoning_format, formats
from ember.front.text.reasoning.formats import ALIASES, FORMATS, WITHOUT_FORM
from ember.front.text.tokenizer import Tokenizer
from tests.support.byte_tokenizer import byte_tokenizer
from tests.text.parts import parts_of

ROLES = ("<|user|>", "<|assistant|>")
MARKS = (
    "<think>",
    "</think>",
    "<seed:think>",
    "</seed:think>",
    "[THINK]",
    "[/THINK]",
    "<|channel>",
    "<channel|>",
    "<|START_THINKING|>",
    "<|END_THINKING|>",
    "<tool_call>",
    "<|tool_calls_section_begin|>",
    "<|open|>",
    "<|close|>",
    "<|sep|>",
    "<|start|>",
    "<|channel|>",
    "<|message|>",
    "<|constrain|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    *("<|message_model|>", "<|content_text|>", "<|content_thinking|>", "<|end_message|>", "<|eom|>", "<|eot|>"),
    *("<|content_invoke_tool_json|>", "<|content_model_end_sampling|>"),
    "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
    "<|START_TEXT|>",
    "<|END_TEXT|>",
    "<|tool_call>",
    "<｜DSML｜tool_calls>",
    "[TOOL_CALLS]",
    "<minimax:tool_call>",
    "<seed:tool_call>",
    "<|plamo:begin_",
    "<|plamo:end_",
    ":plamo|>",
)
WITH_TOKENS = byte_tokenizer(ROLES, MARKS)
WITHOUT_TOKENS = byte_tokenizer(ROLES)
BOTH = {"tokens": WITH_TOKENS, "text": WITHOUT_TOKENS}

# format, end of the prompt, output, reasoning, content
VECTORS = [
    ("qwen3", "", "<think>\nTwo and two.\n</think>\n\nFour.", "Two and two.", "Four."),
    ("qwen3", "", "Four.", "", "Four."),
    ("qwen3", "", "\n\n<think>a\n\nb\n\n</think>c\n", "a\n\nb", "c\n"),
    ("qwen3", "", "  Four.\n", "", "  Four.\n"),
    ("qwen3", "<think>\n", "Two and two.\n</think>\n\nFour.", "Two and two.", "Four."),
    ("qwen3", "<think>\n", "Two and two", "Two and two", ""),
    ("qwen3", "<think>\n\n</think>\n\n", "Four.", "", "Four."),
    ("qwen3", "<think>\n\n</think>\n\n", "a </thin", "", "a </thin"),
    ("qwen3", "", "<think>\n\n</think>\n\nFour.", "", "Four."),
    ("qwen3", "", "<think>a < b </thin</think>x", "a < b </thin", "x"),
    ("qwen3", "<think>\nfirst half", " second half</think>x", " second half", "x"),
    ("qwen3", "<think>\nall</think>\n\nThe answer", "\nis four", "", "\nis four"),
    ("qwen3", "", "   ", "", "   "),
    ("deepseek_r1", "", "Two and two.\n</think>\n\nFour.", "Two and two.", "Four."),
    ("deepseek_r1", "", "<think>\nTwo and two.\n</think>\n\nFour.", "Two and two.", "Four."),
    ("deepseek_r1", "", "No end", "No end", ""),
    ("deepseek_v3", "<think>", "a</think>b", "a", "b"),
    ("deepseek_v3", "</think>", "b", "", "b"),
    ("deepseek_v4", "<think>", "a</think>b", "a", "b"),
    ("gemma4", "", "<|channel>thought\nhm\n<channel|>four", "hm", "four"),
    ("gemma4", "<|channel>thought\n<channel|>", "four", "", "four"),
    ("gemma4", "", "four", "", "four"),
    ("gemma4", "", "<|channel>hm<channel|>four", "hm", "four"),
    ("gemma4", "", "<|channel>thoughts first<channel|>four", "thoughts first", "four"),
    ("gemma4", "", "<|channel>\nhm\n<channel|>four", "hm", "four"),
    ("gemma4", "<|channel>", "thought\nhm<channel|>four", "hm", "four"),
    ("gemma4", "<|channel>", "hm<channel|>four", "hm", "four"),
    ("gemma4", "<|channel>thought\n", "hm<channel|>four", "hm", "four"),
    ("gemma4", "<|channel>thought", "\nhm<channel|>four", "hm", "four"),
    ("gemma4", "", "<|channel>thou", "", ""),
    ("gemma4", "", "<|channel>th", "", ""),
    ("glm45", "", "\n<think>hm</think>\nfour", "hm", "four"),
    ("glm45", "<think></think>", "\nfour", "", "four"),
    ("mistral", "", "[THINK]hm[/THINK]four", "hm", "four"),
    ("mistral", "", "four [2]", "", "four [2]"),
    ("nemotron_v3", "<think>\n", "hm\n</think>\nfour", "hm", "four"),
    ("minimax_m2", "<think>\n", "hm\n</think>\n\nfour", "hm", "four"),
    ("minimax_m2_append_think", "<think>\n", "hm\n</think>\n\nfour", "", "<think>hm\n</think>\n\nfour"),
    ("kimi_k2", "", "<think>hm</think>four", "hm", "four"),
    ("seed_oss", "", "<seed:think>hm</seed:think>four", "hm", "four"),
    ("step3p5", "<think>\n", "hm\n</think>\nfour", "hm", "four"),
    ("granite", "", "Here is my thought process:\nhm\nHere is my response:\nfour", "hm", "four"),
    ("granite", "", "Here's my thought process: hm Here's my response: four", " hm ", " four"),
    ("granite", "", "Here is my thought: four", "", "Here is my thought: four"),
    ("olmo3", "<think>", "hm</think>\nfour", "hm", "four"),
    ("hunyuan_a13b", "", "<think>\nhm\n</think>\n<answer>\nfour\n</answer>", "hm", "four"),
    ("hunyuan_a13b", "", "<think>\n\n</think>\n<answer>\na\n\nb</answer>", "", "a\n\nb"),
    ("hunyuan_a13b", "", "<think>\nhm\n</think>\nfour\n", "hm", "four\n"),
    ("ernie45", "<think>\n", "hm\n</think>\n\n<response>\nfour\n</response>\n", "hm", "four\n"),
    ("cohere_command", "", "<|START_THINKING|>hm<|END_THINKING|>four", "hm", "four"),
    (
        "cohere_command",
        "",
        "<|START_THINKING|> a <co>b 🌈</co: 0:[1]> <|END_THINKING|>\n"
        "<|START_RESPONSE|>foo <co>bar</co: 0:[1,2],1:[3,4]><|END_RESPONSE|>",
        "a b 🌈",
        "foo bar",
    ),
    ("cohere_command", "", "<|START_TEXT|>a <co: 0>b</co: 0> < c </cow> <co<|END_TEXT|>", "", "a b < c </cow> <co"),
    ("kimi_k3", "", "<|open|>think<|sep|>hm<|close|>think<|sep|>four", "hm", "four"),
    (
        "kimi_k3",
        "<|open|>think<|sep|>",
        "hm<|close|>think<|sep|><|open|>response<|sep|>four<|close|>response<|sep|><|close|>message<|sep|>",
        "hm",
        "four",
    ),
    ("plamo3", "", "hm<|plamo:end_think:plamo|>four", "hm", "four"),
    ("plamo3", "", "<|plamo:begin_think:plamo|>hm\n<|plamo:end_think:plamo|>four", "hm", "four"),
]
HARMONY = [
    (
        "",
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>four<|return|>",
        "hm",
        "four",
    ),
    ("", "<|channel|>final<|message|>four", "", "four"),
    ("", "<|channel|>analysis<|message|>hm", "hm", ""),
    (
        "",
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>I will look.<|end|>",
        "a\nb",
        "I will look.",
    ),
    ("<|channel|>final<|message|>The answer", " is four", "", " is four"),
    (
        "<|channel|>analysis<|message|>",
        "hm<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>{}",
        "hm",
        "{}",
    ),
    ("", "Plain text.", "", "Plain text."),
]


def format_of(name: str) -> ReasoningFormat:
    return ReasoningFormat(name, FORMATS[name])


def read(
    name: str, prompt: str, pushes: Sequence[Sequence[str]], tokenizer: Tokenizer, *, with_tools: bool = True, **kw: Any
) -> list[Delta]:
    prompt_ids = tokenizer.encode("<|user|></think> <think> hi<|assistant|>" + prompt, add_special_tokens=False)
    if name == "openai_gptoss":
        prompt_ids = tokenizer.encode("<|start|>user<|message|>hi<|end|><|start|>assistant" + prompt, False)
    parser = format_of(name).parser(tokenizer, prompt_ids, kw, with_tools=with_tools)
    return [delta for parts in pushes for delta in parser.push(parts)] + parser.finish()


def joined(deltas: Sequence[Delta]) -> tuple[str, str]:
    reasoning = "".join(delta.text for delta in deltas if isinstance(delta, Reasoning))
    content = "".join(delta.text for delta in deltas if isinstance(delta, Content))
    return reasoning, content


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(("name", "prompt", "output", "reasoning", "content"), VECTORS)
def test_vectors(name: str, prompt: str, output: str, reasoning: str, content: str, kind: str) -> None:
    tokenizer = BOTH[kind]
    parts = parts_of(output, format_of(name), tokenizer)
    assert joined(read(name, prompt, [parts], tokenizer)) == (reasoning, content)
    assert joined(read(name, prompt, [[part] for part in parts], tokenizer)) == (reasoning, content)


def test_the_worked_example_of_the_table_is_true() -> None:
    lines = [line.removeprefix("    ") for line in (formats.__doc__ or "").splitlines()]
    output = "\n".join(lines[lines.index("<reason>") : lines.index("Four.") + 1])
    row = next(line for line in lines if line.startswith("Tags("))
    chosen = ReasoningFormat("worked example", eval(row, vars(formats)))
    for tokenizer in BOTH.values():
        parser = chosen.parser(tokenizer, [], {}, with_tools=False)
        deltas = [*parser.push(list(output)), *parser.finish()]
        assert joined(deltas) == ("Two and two.", "Four.")


@pytest.mark.parametrize(("prompt", "output", "reasoning", "content"), HARMONY)
def test_harmony(prompt: str, output: str, reasoning: str, content: str) -> None:
    parts = parts_of(output, format_of("openai_gptoss"), WITH_TOKENS)
    assert joined(read("openai_gptoss", prompt, [parts], WITH_TOKENS)) == (reasoning, content)
    assert joined(read("openai_gptoss", prompt, [[part] for part in parts], WITH_TOKENS)) == (reasoning, content)


INK, THINKS, SAYS, DONE = "<|message_model|>", "<|content_thinking|>", "<|content_text|>", "<|end_message|>"
INVOKE = '<|content_invoke_tool_json|>{"name": "f", "args": {}}<|end_message|>'
SELF, USER = " to=self<|message|>", " to=user<|message|>"
# format, end of the prompt, output, reasoning, content
MESSAGES = [
    ("inkling", INK, f"{THINKS}hm{DONE}{INK}{SAYS}four{DONE}", "hm", "four"),
    ("inkling", INK, f"{SAYS}four<|content_model_end_sampling|>", "", "four"),
    ("inkling", INK, "hello world", "", "hello world"),
    ("inkling", INK, f"hello{DONE}", "", "hello"),
    ("inkling", INK + THINKS, f"hm{DONE}{INK}{SAYS}see {SAYS} four", "hm", "see  four"),
    ("inkling", INK, f"{THINKS}a{DONE}{INK}{SAYS}b{DONE}{INK}{THINKS}c{DONE}", "ac", "b"),
    ("inkling", INK, f"f{INVOKE}{INK}f{INVOKE}", "", INVOKE + INVOKE),
    ("inkling", INK, f"{THINKS}hm{INVOKE}", "hm", INVOKE),
    ("inkling", INK, f"{THINKS}hm{DONE}{INK}get_wea", "hm", ""),
    ("muse", "<|start|>assistant", f"{SELF}hm<|eom|><|start|>assistant{USER}four<|eot|>", "hm", "four"),
    ("muse", "<|start|>assistant", f"{USER}four<|eot|>", "", "four"),
    ("muse", "<|start|>assistant", "Just a direct answer.", "", "Just a direct answer."),
    ("muse", "<|start|>assistant", " <|message|>public<|eot|>", "", "public"),
    ("muse", "<|start|>assistant", f"{SELF}a<|eom|><|start|>assistant{SELF}b<|eom|>", "ab", ""),
    ("muse", "<|start|>assistant", f"{SELF}set to=5 and send to=al", "set to=5 and send to=al", ""),
    (
        "muse",
        "<|start|>assistant",
        f"{SELF}<atem:invoke> now to=w.get<|message|><atem:function_calls><|eom|>",
        "<atem:invoke> now",
        "<|message|><atem:function_calls><|eom|>",
    ),
    ("muse", "<|start|>assistant to=self<|message|>", "hm<|eom|>", "hm", ""),
    ("muse", "<|start|>assistant", f"{SELF}hm<|eom|><|start|>assistant to=us", "hm", ""),
]


@pytest.mark.parametrize(("name", "prompt", "output", "reasoning", "content"), MESSAGES)
def test_messages(name: str, prompt: str, output: str, reasoning: str, content: str) -> None:
    parts = parts_of(output, format_of(name), WITH_TOKENS)
    assert joined(read(name, prompt, [parts], WITH_TOKENS)) == (reasoning, content)
    assert joined(read(name, prompt, [[part] for part in parts], WITH_TOKENS)) == (reasoning, content)


def test_what_the_engine_is_told_of_messages() -> None:
    encode = partial(WITH_TOKENS.encode, add_special_tokens=False)
    ink = format_of("inkling").thinking(WITH_TOKENS, encode(INK), {}, 3)
    assert (ink.end_token_ids, ink.break_token_ids, ink.is_open) == ([encode(SAYS)], [], True)
    calls = format_of("inkling").thinking(WITH_TOKENS, encode(INK), {}, 3, with_tools=True, with_calls=True)
    assert calls.break_token_ids == [encode("<|content_invoke_tool_json|>"), encode(SAYS)]
    assert (calls.end_token_ids, calls.forced_token_ids) == ([], encode(DONE + INK))
    muse = format_of("muse").thinking(WITH_TOKENS, [], {}, None, with_calls=True)
    assert muse.end_token_ids == [encode("<|eom|>")]


def test_harmony_passes_calls_on_with_their_marks() -> None:
    call = "<|channel|>commentary to=functions.add <|constrain|>json<|message|>{}<|call|>"
    output = f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant{call}"
    parts = parts_of(output, format_of("openai_gptoss"), WITH_TOKENS)
    deltas = read("openai_gptoss", "", [[part] for part in parts], WITH_TOKENS)
    assert joined(deltas) == ("hm", "<|start|>assistant" + call)
    marks = [delta.text for delta in deltas if isinstance(delta, Content) and type(delta.text) is Marker]
    assert marks == ["<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|call|>"]


PIECES = [
    *MARKS,
    "<think",
    "</",
    "think>",
    "\n",
    "\n\n",
    " ",
    "a",
    "Here is my ",
    "thought process:",
    "thought\n",
    "<co>",
    "</co: 1",
    "<answer>",
    "é",
    "🦜",
]


@given(
    st.sampled_from(sorted(FORMATS)),
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.sampled_from(["", "<think>\n", "</think>", "x"]),
    st.sampled_from(sorted(BOTH)),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_cuts_do_not_matter(
    name: str, output: str, prompt: str, kind: str, with_tools: bool, cuts: random.Random
) -> None:
    tokenizer = BOTH[kind]
    parts = parts_of(output, format_of(name), tokenizer)
    whole = read(name, prompt, [parts], tokenizer, with_tools=with_tools)
    pushes, place = [], 0
    while place < len(parts):
        size = cuts.randint(0, 4)
        pushes.append(parts[place : place + size])
        place += size
    cut = read(name, prompt, pushes, tokenizer, with_tools=with_tools)
    single = read(name, prompt, [[part] for part in parts], tokenizer, with_tools=with_tools)
    assert joined(whole) == joined(cut) == joined(single)
    assert len("".join(joined(whole))) <= len(output) + len("<think>") + 8


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_nothing_is_lost_without_marks(output: str) -> None:
    """Of a parser whose marks never come, the deltas are the output."""
    parts = [part for part in parts_of(output, format_of("seed_oss"), WITHOUT_TOKENS) if "seed" not in part]
    if "<seed:think>" not in output:
        assert joined(read("seed_oss", "", [parts], WITHOUT_TOKENS)) == ("", output)


def test_a_tool_call_ends_the_reasoning_only_where_there_are_tools() -> None:
    parts = parts_of("hm<tool_call>{}", format_of("qwen3"), WITH_TOKENS)
    assert joined(read("qwen3", "<think>\n", [parts], WITH_TOKENS)) == ("hm", "<tool_call>{}")
    assert joined(read("qwen3", "<think>\n", [parts], WITH_TOKENS, with_tools=False)) == ("hm<tool_call>{}", "")


def test_marks_spelled_with_ordinary_tokens_are_text_where_the_tokenizer_has_them_as_tokens() -> None:
    deltas = read("qwen3", "<think>\n", [["the mark </think> ends it", Marker("</think>"), "so"]], WITH_TOKENS)
    assert joined(deltas) == ("the mark </think> ends it", "so")


def test_variables_of_the_template_close_a_format_that_opens_by_itself() -> None:
    parts = ["four"]
    assert joined(read("deepseek_r1", "", [parts], WITH_TOKENS, enable_thinking=False)) == ("", "four")
    assert joined(read("deepseek_r1", "", [parts], WITH_TOKENS, enable_thinking=True)) == ("four", "")


@pytest.mark.parametrize("suffix", ["", ":6124c78e"])
def test_a_checkpoint_may_have_marks_of_its_own(suffix: str) -> None:
    start, end = f"<think{suffix}>", f"</think{suffix}>"
    tokenizer = byte_tokenizer(ROLES, (start, end))
    chosen = format_of("hy_v3")
    assert chosen.markers(tokenizer) == set(tokenizer.encode(start + end, False))
    for prompt, output in (("", f"{start}hm{end}\nfour"), (start, f"hm{end}four")):
        prompt_ids = tokenizer.encode("<|assistant|>" + prompt, False)
        parser = chosen.parser(tokenizer, prompt_ids, {}, with_tools=False)
        deltas = [*parser.push(parts_of(output, chosen, tokenizer)), *parser.finish()]
        assert joined(deltas) == ("hm", "four")
        told = chosen.thinking(tokenizer, prompt_ids, {}, None)
        assert told.is_open == bool(prompt)
        assert told.end_token_ids == [tokenizer.encode(end, False)]


def test_what_the_engine_is_told() -> None:
    qwen = format_of("qwen3")
    (think, end) = WITH_TOKENS.encode("<think></think>", False)
    newline = WITH_TOKENS.encode("\n", False)
    prompt = WITH_TOKENS.encode("<|assistant|>", False)
    closed = qwen.thinking(WITH_TOKENS, prompt, {}, 7)
    assert (closed.start_token_ids, closed.end_token_ids, closed.is_open, closed.budget) == ([think], [[end]], False, 6)
    assert closed.forced_token_ids == [*newline, end]  # the newline is the seventh token of the budget
    tight = qwen.thinking(WITH_TOKENS, prompt, {}, 1)
    assert (tight.budget, tight.forced_token_ids) == (1, [end])
    assert closed.gap_token_ids == newline * 2
    assert qwen.thinking(WITH_TOKENS, [*prompt, think, *newline], {}, None).is_open
    assert not closed.is_over and not qwen.thinking(WITH_TOKENS, [*prompt, think], {}, None).is_over
    for behind in ([], newline, WITH_TOKENS.encode("four", False)):
        over = qwen.thinking(WITH_TOKENS, [*prompt, think, *newline, end, *behind], {}, None)
        assert over.is_over and not over.is_open
    text = qwen.thinking(WITHOUT_TOKENS, prompt, {}, None)
    assert WITHOUT_TOKENS.encode("</think>", False) in text.end_token_ids
    assert WITHOUT_TOKENS.encode("</think>\n\n", False) in text.end_token_ids
    harmony = format_of("openai_gptoss").thinking(WITH_TOKENS, prompt, {}, 3)
    assert harmony.is_open
    assert WITH_TOKENS.encode("<|channel|>final<|message|>", False) in harmony.end_token_ids
    calls = format_of("openai_gptoss").thinking(WITH_TOKENS, prompt, {}, 3, with_calls=True)
    assert calls.end_token_ids == [WITH_TOKENS.encode("<|end|>", False)]


# template, model_type, name, override -> format
CHOICES = [
    ("{{ '<think>\n' if enable_thinking }}", None, "org/x", None, "qwen3"),
    ("<|channel|>analysis<|message|>", None, "org/x", None, "openai_gptoss"),
    ("<|channel>thought\n", None, "org/x", None, "gemma4"),
    ("", "gemma4_unified", "org/x", None, "gemma4"),
    ("", None, "google/gemma-4-E2B-it", None, "gemma4"),
    ("[INST] [THINK]", None, "org/x", None, "mistral"),
    ("<think> <arg_key>", None, "org/x", None, "glm45"),
    ("<think:1a> </think:1a> <tool_sep:1a> <arg_key:1a>", None, "org/x", None, "hy_v3"),
    ("<think> <minimax:tool_call>", None, "org/x", None, "minimax_m2"),
    ("<think> <|tool_calls_section_begin|>", None, "org/x", None, "kimi_k2"),
    ("<｜Assistant｜></think> {% if thinking %}", None, "org/x", None, "deepseek_v3"),
    ("<｜Assistant｜><think>", None, "org/x", None, "deepseek_r1"),
    ("<think> ｜DSML｜", None, "org/x", None, "deepseek_v4"),
    ("<seed:think>", None, "org/x", None, "seed_oss"),
    ("<think> ｜DSML｜ calls", None, "org/x", None, "deepseek_v41"),
    ("<|START_RESPONSE|>", None, "org/x", None, "cohere_command"),
    ("'<|plamo:begin_think:plamo|>'", None, "org/x", None, "plamo3"),
    ("<|open|> think <|sep|> <|close|>", None, "org/x", None, "kimi_k3"),
    ("<|message_model|> <|content_thinking|>", None, "org/x", None, "inkling"),
    ("<|start|>assistant to=self<|message|> <atem:invoke", None, "org/x", None, "muse"),
    ("Here is my thought process:", None, "org/x", None, "granite"),
    ("<think> <answer>", None, "org/x", None, "hunyuan_a13b"),
    ("<think> <response>", None, "org/x", None, "ernie45"),
    ("plain", "gpt_oss", "org/x", None, "openai_gptoss"),
    ("plain", "llama", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", None, "deepseek_r1"),
    ("plain", "qwen2", "Qwen/QwQ-32B", None, "deepseek_r1"),
    ("plain", "llama", "meta-llama/Llama-3.1-8B", None, None),
    ("<think>", None, "org/x", "none", None),
    ("<think>", None, "org/x", "Olmo3", "olmo3"),
]


@pytest.mark.parametrize(("template", "model_type", "name", "override", "expected"), CHOICES)
def test_choice(template: str, model_type: str | None, name: str, override: str | None, expected: str | None) -> None:
    chosen, why = choose_reasoning_format(template, model_type, name, override)
    assert (chosen and chosen.name) == expected
    assert why


def test_an_unknown_override_lists_the_names() -> None:
    with pytest.raises(ValueError, match="REASONING_PARSER=claude: there is no such format; there are qwen3, "):
        choose_reasoning_format("", None, "x", "claude")


@pytest.mark.parametrize("name", sorted(WITHOUT_FORM))
def test_names_of_forms_that_are_not_supported_are_known(name: str) -> None:
    assert name not in FORMATS and name not in ALIASES
    expected = f"REASONING_PARSER={name}: the form of this reasoning is not supported; there are qwen3, .*, none"
    with pytest.raises(ValueError, match=expected):
        choose_reasoning_format("<think>", None, "", name)


def test_other_names_of_a_format() -> None:
    for alias, name in ALIASES.items():
        assert choose_reasoning_format("", None, "x", alias.upper())[0] == format_of(name)
