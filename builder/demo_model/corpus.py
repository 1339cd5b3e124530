"""The mixture of the corpus: how often each kind of conversation comes, and the system prompts before it."""

from __future__ import annotations

import random
from collections.abc import Iterator

from builder.demo_model import words
from builder.demo_model.arithmetic import arithmetic, thinking_arithmetic
from builder.demo_model.chat import Example, Generator
from builder.demo_model.dialogue import multi_turn, small_talk, unknown
from builder.demo_model.facts import fact_example, thinking_fact
from builder.demo_model.repeat import copying, repeat
from builder.demo_model.stories import story
from builder.demo_model.structured import structured
from builder.demo_model.tools import any_tools, no_tool, tool_call, tool_result

MIXTURE: tuple[tuple[Generator, float], ...] = (
    (fact_example, 25.0),
    (arithmetic, 20.0),
    (multi_turn, 10.0),
    (small_talk, 3.0),
    (unknown, 1.5),
    (repeat, 10.0),
    (copying, 2.0),
    (story, 2.0),
    (structured, 16.0),
    (any_tools, 28.0),
)

EVALUATED: tuple[tuple[str, Generator, int], ...] = (
    ("facts", fact_example, 600),
    ("arithmetic", arithmetic, 300),
    ("multi-turn", multi_turn, 200),
    ("small talk", small_talk, 60),
    ("unknown", unknown, 60),
    ("counting and repeating", repeat, 150),
    ("stories", story, 40),
    ("json", structured, 200),
    ("tool calls", tool_call, 300),
    ("no tool", no_tool, 120),
    ("tool result", tool_result, 150),
    ("thinking: arithmetic", thinking_arithmetic, 100),
    ("thinking: facts", thinking_fact, 100),
)
"""Rows of the evaluation: a name, the generator asked for kept-back phrasings, and how many examples."""

_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are a helpful and honest assistant.",
    "You are Ember's demo model.",
    "Answer briefly.",
    "Be brief.",
    "Be helpful.",
    "You answer questions.",
    "You are a polite assistant. Answer in full sentences.",
    "You are a teacher for children.",
    "You are an assistant who knows many facts.",
    "Answer in English.",
    "You are an expert.",
    "You are a helpful AI assistant.",
    "Help the user.",
)


def _system(rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.75:
        return rng.choice(_SYSTEMS)
    if draw < 0.9:
        return f"You are a {rng.choice(('kind', 'quick', 'quiet', 'wise'))} assistant for {rng.choice(words.JOBS)}s."
    return f"You are an assistant of {words.invented(rng).capitalize()}. Today we talk about {words.phrase(rng, 1, 3)}."


def _with_system(rng: random.Random, example: Example) -> Example:
    if example.messages[0]["role"] != "system" and rng.random() < 0.4:
        example.messages.insert(0, {"role": "system", "content": _system(rng)})
    return example


_THOUGHTS = {
    "small talk": "The user is talking to me. I answer kindly.",
    "unknown": "I do not know this. I say so.",
    "counting and repeating": "The user wants a list or a text. I write it out.",
    "stories": "The user wants a story. I think of a hero, some trouble and a friend.",
    "json": "The user wants JSON. I write nothing else.",
    "multi-turn": "I look at what was said before.",
    "no tool needed": "No tool is needed. I can answer this.",
    "tool missing": "I have no tool for this. I say so.",
}


def _with_thought(rng: random.Random, example: Example) -> Example:
    if example.kind in _THOUGHTS and not example.thinking and rng.random() < 0.04:
        example.messages[-1]["reasoning_content"] = _THOUGHTS[example.kind]
        example.thinking = True
    return example


def training_examples(seed: int) -> Iterator[Example]:
    """The endless stream of training conversations."""
    rng = random.Random(seed)
    generators, weights = zip(*MIXTURE, strict=True)
    while True:
        yield _with_system(rng, _with_thought(rng, rng.choices(generators, weights)[0](rng, False)))


def copying_examples(seed: int) -> Iterator[Example]:
    """The endless stream of the first, short stage of training."""
    rng = random.Random(seed)
    while True:
        yield copying(rng, False)


def evaluation_examples(seed: int) -> dict[str, list[Example]]:
    """The conversations of the evaluation, by row; their last questions are phrased as in no training example."""
    rng = random.Random(seed)
    return {
        name: [_with_system(rng, generator(rng, True)) for _ in range(count)] for name, generator, count in EVALUATED
    }
