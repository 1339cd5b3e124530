"""The requests of a load test: prompts of random words with wanted lengths, or those of a file."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ember.cli.api_client import ApiClient, ServerError
from ember.regular_file import read_regular
from ember.untrusted_json import loads

Endpoint = Literal["chat", "completions"]
PATHS: dict[Endpoint, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
WORDS = (
    *("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state"),
    *("family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system"),
    *("program", "question", "work", "government", "number", "night", "point", "home", "water", "room", "mother"),
    *("area", "money", "story", "fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "business"),
)
MAX_BYTES = 1 << 30  # of a file of prompts
_TIMES = (1, 3)  # that each word stands in the two prompts by which the tokens of words are counted

# Lengths of conversations with assistants, as ShareGPT's are spread: log-normal, medians and sigmas of the logarithms
# in tokens, cut where vLLM's benchmark cuts (prompts of 4 to 1,024 tokens, at most 2,048 with their answer).
SHAREGPT_INPUT = (60.0, 1.6)
SHAREGPT_OUTPUT = (130.0, 1.2)
_MOST_INPUT, _MOST_TOTAL, _LEAST = 1024, 2048, 4


class PromptError(Exception):
    """The file has no prompts that can be used. The message is for the person who named it."""


@dataclass
class Prompt:
    """What one request asks: `fields` has `messages` or `prompt`, and `max_tokens` if the answer's length is set."""

    fields: dict[str, Any]
    wanted_input: int | None = None  # tokens that the prompt was made for
    max_tokens: int | None = None


def lengths(
    kind: Literal["random", "sharegpt"], count: int, mean: tuple[int, int], spread: float, rng: random.Random
) -> list[tuple[int, int]]:
    """The tokens of prompts and of answers. `random`: even between (1 - spread) and (1 + spread) of the two means."""
    if kind == "random":
        return [(_around(mean[0], spread, rng), _around(mean[1], spread, rng)) for _ in range(count)]
    found = []
    for _ in range(count):
        (in_median, in_sigma), (out_median, out_sigma) = SHAREGPT_INPUT, SHAREGPT_OUTPUT
        num_input = round(math.exp(rng.gauss(math.log(in_median), in_sigma)))
        num_input = min(max(num_input, _LEAST), _MOST_INPUT)
        num_output = round(math.exp(rng.gauss(math.log(out_median), out_sigma)))
        found.append((num_input, min(max(num_output, _LEAST), _MOST_TOTAL - num_input)))
    return found


def _around(mean: int, spread: float, rng: random.Random) -> int:
    return max(1, round(mean * rng.uniform(1 - spread, 1 + spread)))


@dataclass
class WordCosts:
    """How many tokens of a server's model a prompt of random words has: `fixed` and `each` for every word."""

    fixed: float
    each: float

    @classmethod
    async def measured(cls, client: ApiClient, endpoint: Endpoint, model: str, rng: random.Random) -> WordCosts:
        """Ask for short answers to prompts of known words, and read the server's counts. Raises ServerError."""
        counts = []
        for times in _TIMES:
            text = " ".join(rng.sample(WORDS * times, len(WORDS) * times))
            answer = await client.post(PATHS[endpoint], {"model": model, "max_tokens": 1, **fields(endpoint, text)})
            count = (answer.get("usage") or {}).get("prompt_tokens") if isinstance(answer, dict) else None
            if not isinstance(count, int):
                raise ServerError("answers have no usage.prompt_tokens, so prompts of a length cannot be made", 200)
            counts.append(count)
        each = max((counts[1] - counts[0]) / (_TIMES[1] - _TIMES[0]) / len(WORDS), 1e-3)
        return cls(counts[0] - len(WORDS) * each, each)

    def num_words(self, num_tokens: int) -> int:
        """The words of a prompt of about so many tokens, at least one."""
        return max(1, round((num_tokens - self.fixed) / self.each))


def words(count: int, rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def fields(endpoint: Endpoint, text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]} if endpoint == "chat" else {"prompt": text}


def made(endpoint: Endpoint, wanted: list[tuple[int, int]], costs: WordCosts, rng: random.Random) -> list[Prompt]:
    """Prompts of random words with the wanted tokens of prompts and answers."""
    return [
        Prompt(fields(endpoint, words(costs.num_words(num_input), rng)), num_input, num_output)
        for num_input, num_output in wanted
    ]


def read(path: Path, endpoint: Endpoint, count: int, rng: random.Random) -> list[Prompt]:
    """`count` prompts of a file, in random order, again from the start where it has fewer: ShareGPT's JSON
    (`conversations`), or JSON lines with `messages`, `prompt`, or the `body` of OpenAI's batch files. Raises
    PromptError."""
    try:
        text = read_regular(path, MAX_BYTES).decode("utf-8")
    except OSError as error:
        raise PromptError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PromptError(f"{path} is no UTF-8 text") from None
    rows = _rows(path, text)
    found = [prompt for row in rows if (prompt := _of_row(row, endpoint)) is not None]
    if not found:
        raise PromptError(f"{path}: none of its {len(rows)} rows has conversations, messages, a prompt or a body")
    rng.shuffle(found)
    return [found[i % len(found)] for i in range(count)]


def _rows(path: Path, text: str) -> list[Any]:
    try:
        whole = loads(text)
    except ValueError:
        pass
    else:
        return whole if isinstance(whole, list) else [whole]
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                rows.append(loads(line))
            except ValueError as error:
                raise PromptError(f"{path}: line {number} is no JSON: {error}") from None
    return rows


def _of_row(row: Any, endpoint: Endpoint) -> Prompt | None:
    if not isinstance(row, dict):
        return None
    if isinstance(row.get("body"), dict):
        row = row["body"]
    conversation = row.get("conversations")
    if isinstance(conversation, list) and conversation and isinstance(conversation[0], dict):
        text = conversation[0].get("value")
        return Prompt(fields(endpoint, text)) if isinstance(text, str) and text else None
    max_tokens = row.get("max_tokens", row.get("max_completion_tokens"))
    limit = max_tokens if isinstance(max_tokens, int) else None
    messages, prompt = row.get("messages"), row.get("prompt")
    if isinstance(prompt, str) and prompt:
        return Prompt(fields(endpoint, prompt), max_tokens=limit)
    if not isinstance(messages, list) or not messages:
        return None
    if endpoint == "chat":
        return Prompt({"messages": messages}, max_tokens=limit)
    texts = [part["content"] for part in messages if isinstance(part, dict) and isinstance(part.get("content"), str)]
    return Prompt(fields(endpoint, "\n".join(texts)), max_tokens=limit) if texts else None
