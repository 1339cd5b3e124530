"""The evaluation: greedy answers to questions in phrasings that no training example has.

Every row asks for the whole answer: the exact sentence, the same JSON value, the same calls. The table goes into
the document of the model, between its two marks.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from builder.demo_model.bpe import END_OF_TEXT
from builder.demo_model.chat import END, Example, render_prompt
from builder.demo_model.config import DOCUMENT, OUTPUT
from builder.demo_model.corpus import evaluation_examples
from builder.demo_model.export import load
from builder.demo_model.generate import generate

SEED = 20_000
LIMIT = 480
BEGIN, FINISH = "<!-- evaluation: begin -->", "<!-- evaluation: end -->"
_CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)
_ABOUT = {
    "facts": "the exact sentence",
    "arithmetic": "the exact sum",
    "arithmetic: numbers never trained": "the exact sum",
    "multi-turn": "the exact sentence, which needs an earlier turn",
    "small talk": "the exact sentence",
    "unknown": "says that it does not know",
    "counting and repeating": "the exact text",
    "stories": "ends by itself, 100 to 300 tokens, with the hero asked for",
    "json": "parses and equals the value asked for",
    "json: valid": "parses and has the keys asked for",
    "tool calls": "parses, with the right names and arguments",
    "no tool": "answers, or says that the tool is missing, without a call",
    "tool result": "the exact sentence made from the results",
    "thinking: arithmetic": "thinks first, then the exact sum",
    "thinking: facts": "thinks first, then the exact sentence",
}


@dataclass
class Outcome:
    """One answered question."""

    row: str
    example: Example
    text: str
    tokens: int
    ended: bool
    right: bool


def calls_in(text: str) -> list[dict[str, Any]] | None:
    """The calls of an answer, or None where one does not parse."""
    try:
        return [json.loads(block) for block in _CALL.findall(text)]
    except json.JSONDecodeError:
        return None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def _shape(value: Any) -> Any:
    """What must agree for JSON to have the right keys: kinds, keys, and lengths."""
    if isinstance(value, dict):
        return {key: _shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shape(item) for item in value]
    return isinstance(value, str)


def is_right(row: str, example: Example, text: str, tokens: int, ended: bool) -> bool:
    """Whether an answer is what its row asks for."""
    wanted = example.messages[-1]
    if not ended:
        return False
    if row == "stories":
        return 100 <= tokens <= 300 and example.notes["hero"] in text and example.notes["name"] in text
    if row == "json":
        return bool(_value(text) == json.loads(wanted["content"]))
    if row == "json: valid":
        return bool(_shape(_value(text)) == _shape(json.loads(wanted["content"])))
    if row == "tool calls":
        return calls_in(text) == [call["function"] for call in wanted["tool_calls"]]
    if row.startswith("thinking"):
        thought, mark, text = text.partition("\n</think>\n\n")
        if not (mark and thought.startswith("<think>\n") and len(thought) > len("<think>\n")):
            return False
    return bool(text == wanted["content"])


Answer = Callable[[list[list[int]], set[int], int], list[list[int]]]
"""From prompts, stop tokens and the most tokens of an answer to the greedy answers, with their stop tokens."""


def outcomes(folder: Path, answer: Answer | None = None) -> list[Outcome]:
    """Answer everything: with the files' weights in the training's own model, or by `answer`."""
    if answer is None:
        model, tokenizer = load(folder)
        answer = partial(generate, model)
    else:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    stops = {tokenizer.get_vocab()[text] for text in (END, END_OF_TEXT)}
    asked = [(row, example) for row, examples in evaluation_examples(SEED).items() for example in examples]
    prompts = [tokenizer.encode(render_prompt(example)).ids for _, example in asked]
    found = []
    for (row, example), ids in zip(asked, answer(prompts, stops, LIMIT), strict=True):
        ended = ids[-1] in stops
        text = tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=False)
        names = [row]
        if row == "arithmetic" and example.notes["kept_back"]:
            names = ["arithmetic: numbers never trained"]
        if row == "json":
            names.append("json: valid")
        for name in names:
            right = is_right(name, example, text, len(ids), ended)
            found.append(Outcome(name, example, text, len(ids), ended, right))
    return found


def table(found: list[Outcome]) -> str:
    """The outcome by row, in Markdown."""
    lines = ["| what | counted as right | questions | right |", "| --- | --- | ---: | ---: |"]
    for row, about in _ABOUT.items():
        of_row = [outcome.right for outcome in found if outcome.row == row]
        if of_row:
            lines.append(f"| {row} | {about} | {len(of_row)} | {sum(of_row) / len(of_row):.1%} |")
    return "\n".join(lines)


def report(folder: Path, shown: int = 3) -> None:
    """Measure, print the table and some wrong answers; the table of the shipped files goes into their document."""
    started = time.time()
    found = outcomes(folder)
    text = table(found)
    print(text)
    for row in _ABOUT:
        wrong = [outcome for outcome in found if outcome.row == row and not outcome.right]
        for outcome in wrong[:shown]:
            wanted = outcome.example.messages[-1]
            asked = outcome.example.messages[-2]["content"]
            print(f"[{row}] {asked!r}: {outcome.text!r}, not {wanted['content'] or wanted.get('tool_calls')!r}")
    print(f"evaluated in {time.time() - started:.0f} seconds")
    if folder.resolve() == OUTPUT and DOCUMENT.exists():
        document = DOCUMENT.read_text(encoding="utf-8")
        head, _, rest = document.partition(BEGIN)
        tail = rest.partition(FINISH)[2]
        DOCUMENT.write_text(f"{head}{BEGIN}\n{text}\n{FINISH}{tail}", encoding="utf-8")
