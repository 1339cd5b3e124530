"""Conversations of the corpus and their rendering through the shipped chat template.

The corpus is rendered with the very template that is shipped, so the model is trained on exactly the text that
a server sends it. Only what the assistant writes itself is trained: `trained_spans` finds those characters.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = dict[str, Any]
TEMPLATE_PATH = Path(__file__).with_name("chat_template.jinja")
ASSISTANT = "<|im_start|>assistant\n"
END = "<|im_end|>"
NO_THOUGHT = "<think>\n\n</think>\n\n"


@dataclass
class Example:
    """One conversation; the last message is the assistant's and is what the evaluation expects."""

    kind: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    thinking: bool = False
    notes: dict[str, Any] = field(default_factory=dict)


Generator = Callable[[random.Random, bool], Example]
"""Makes one example; the flag asks for a phrasing that is kept for the evaluation."""


class Phrases(NamedTuple):
    """Ways to say one thing: those that are trained, and those only the evaluation uses."""

    train: tuple[str, ...]
    held: tuple[str, ...]

    def pick(self, rng: random.Random, held: bool) -> str:
        """One phrasing of the wanted side."""
        return rng.choice(self.held if held else self.train)


def phrases(train: str, held: str) -> Phrases:
    """Phrases from two texts with one phrasing a line."""
    return Phrases(
        tuple(line.strip() for line in train.strip().splitlines()),
        tuple(line.strip() for line in held.strip().splitlines()),
    )


def user(content: str) -> Message:
    """A user message."""
    return {"role": "user", "content": content}


def assistant(content: str, reasoning: str = "") -> Message:
    """An assistant message, with its reasoning where there is one."""
    message: Message = {"role": "assistant", "content": content}
    if reasoning:
        message["reasoning_content"] = reasoning
    return message


def exchange(kind: str, question: str, answer: str, reasoning: str = "") -> Example:
    """One question and its answer."""
    return Example(kind, [user(question), assistant(answer, reasoning)], thinking=bool(reasoning))


@functools.cache
def template() -> Template:
    """The chat template in the environment that servers use."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(TEMPLATE_PATH.read_text(encoding="utf-8"))


def render(example: Example) -> str:
    """The whole conversation as text."""
    return template().render(messages=example.messages, tools=example.tools)


def render_prompt(example: Example) -> str:
    """The conversation up to the last answer, with the generation prompt."""
    return template().render(
        messages=example.messages[:-1],
        tools=example.tools,
        add_generation_prompt=True,
        enable_thinking=example.thinking,
    )


def trained_spans(text: str, thinking: bool) -> list[tuple[int, int]]:
    """The character ranges of a rendered conversation that the assistant would have written in this mode.

    Without thinking the empty thought belongs to the prompt and a turn with a thought is history; with thinking
    it is the other way round.
    """
    spans = []
    start = text.find(ASSISTANT)
    while start >= 0:
        start += len(ASSISTANT)
        end = text.index(END, start) + len(END)
        empty = text.startswith(NO_THOUGHT, start)
        if thinking and not empty:
            spans.append((start, end))
        elif not thinking and empty:
            spans.append((start + len(NO_THOUGHT), end))
        start = text.find(ASSISTANT, end)
    return spans
