"""What each option of `wire.SamplingParams` does to an output, for every path that draws tokens.

`EFFECTS` has a line for each option: a request without it and the same request with it. `check` runs both and says
what must differ. A field that has no line fails the tests: who adds an option shows its effect here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from ember.engine.core.engine import Engine
from ember.wire import Generate, Grammar, SamplingParams, SequenceOutput, Thinking
from tests.engine_core.inline import Outputs, run, tokens

PROMPT = [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 20, 20]
GREEDY: dict[str, Any] = {"max_tokens": 4, "temperature": 0.0, "ignore_eos": True}
RANDOM: dict[str, Any] = {"max_tokens": 4, "temperature": 1.5, "seed": 5, "ignore_eos": True}
TWO = {3: 1000.0, 7: 1010.0}  # a bias that leaves two tokens, the second one the more likely

Samples = list[list[SequenceOutput]]


def said(samples: Samples) -> list[int]:
    return tokens(samples[0])


@dataclass(frozen=True)
class Effect:
    without: dict[str, Any]
    value: Any
    shows: Callable[[Samples, Samples], bool]  # of the outputs without the option and with it


def differs(without: Samples, with_option: Samples) -> bool:
    return said(without) != said(with_option)


def only(*allowed: int) -> Callable[[Samples, Samples], bool]:
    """The option leaves these tokens, and others would be said without it."""
    return lambda without, with_option: set(said(with_option)) <= set(allowed) and differs(without, with_option)


def entries(samples: Samples) -> list[Any]:
    return [entry for output in samples[0] for entry in output.logprobs or []]


EFFECTS: dict[str, Effect] = {
    "max_tokens": Effect(GREEDY, 3, lambda a, b: len(said(a)) == 4 and len(said(b)) == 3),
    "n": Effect(RANDOM, 2, lambda a, b: len(a) == 1 and len(b) == 2 and tokens(b[0]) != tokens(b[1])),
    "temperature": Effect({**RANDOM, "temperature": 0.0}, 5.0, differs),
    "top_p": Effect(RANDOM, 1e-6, differs),
    "top_k": Effect(RANDOM, 1, differs),
    "min_p": Effect(RANDOM, 1.0, differs),
    "repetition_penalty": Effect({**GREEDY, "logit_bias": TWO}, 2.0, differs),
    "presence_penalty": Effect({**GREEDY, "logit_bias": TWO}, 50.0, differs),
    "frequency_penalty": Effect({**GREEDY, "logit_bias": TWO}, 50.0, differs),
    "logit_bias": Effect(GREEDY, {7: 1000.0}, only(7)),
    "allowed_token_ids": Effect(GREEDY, [3, 33], only(3, 33)),
    "bad_words": Effect({**GREEDY, "logit_bias": TWO}, [[7]], only(3)),
    "min_tokens": Effect(
        {"max_tokens": 4, "temperature": 0.0, "logit_bias": {3: 1000.0, 7: 1010.0}, "stop_token_ids": [7]},
        3,
        lambda a, b: said(a) == [7] and said(b) == [3, 3, 3, 7],
    ),
    "ignore_eos": Effect(
        {"max_tokens": 4, "temperature": 0.0, "logit_bias": {265: 1000.0}},
        True,
        lambda a, b: len(said(a)) == 1 and len(said(b)) == 4,
    ),
    "stop_token_ids": Effect({**GREEDY, "logit_bias": TWO}, [7], lambda a, b: len(said(a)) == 4 and said(b) == [7]),
    "seed": Effect(RANDOM, 77, differs),
    "logprobs": Effect(
        GREEDY, 2, lambda a, b: not entries(a) and [len(entry.top_ids) for entry in entries(b)] == [2] * 4
    ),
    "logprob_token_ids": Effect(
        {**GREEDY, "logprobs": 1},
        [5, 77],
        lambda a, b: not entries(a)[0].asked_ids and all(entry.asked_ids == [5, 77] for entry in entries(b)),
    ),
    "prompt_logprobs": Effect(
        GREEDY, 1, lambda a, b: a[0][0].prompt_logprobs is None and len(b[0][0].prompt_logprobs or []) == len(PROMPT)
    ),
    "grammar": Effect(GREEDY, Grammar("regex", "a{6}"), differs),
    "thinking": Effect(
        {**GREEDY, "logit_bias": {3: 1000.0}},
        Thinking(end_token_ids=[[8]], is_open=True, budget=2),
        lambda a, b: said(a) == [3] * 4 and said(b)[:3] == [3, 3, 8],
    ),
}
WORD = {"bad_words": [[298, 299]]}  # of several tokens, none of which occur: rows with it are drawn late on a GPU


def run_effects(
    engine: Engine, options: Collection[str] = tuple(EFFECTS), common: dict[str, Any] | None = None
) -> dict[str, tuple[Samples, Samples]]:
    """The outputs without each of the options and with it, all in one batch. `common` is in every request."""
    requests = []
    for i, name in enumerate(options):
        effect = EFFECTS[name]
        base = {**(common or {}), **effect.without}
        value = [*effect.value, *(common or {}).get(name, [])] if name == "bad_words" else effect.value
        requests.append(Generate(2 * i, PROMPT, SamplingParams(**base)))
        requests.append(Generate(2 * i + 1, PROMPT, SamplingParams(**{**base, name: value})))
    outputs = run(engine, requests)
    return {name: (_samples(outputs, 2 * i), _samples(outputs, 2 * i + 1)) for i, name in enumerate(options)}


def _samples(outputs: Outputs, request_id: int) -> Samples:
    found = {index: made for (key, index), made in outputs.items() if key == request_id}
    assert all(output.error is None for made in found.values() for output in made), found
    return [found[index] for index in sorted(found)]
