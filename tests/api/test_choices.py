"""How many samples are made and which of them are shown: best_of, repetition detection, the interval of a stream."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ember import wire
from ember.front.api.repetition import Repetition, RepetitionDetector
from tests.api.fakes import Deployment, Script, Step, parsed

# ----------------------------------------------------------------------------------------------------------- best_of


def candidates(deployment: Deployment, texts: list[tuple[str, float]]) -> Script:
    """Sample i says texts[i], a token a step, each token with that log probability."""
    said = [(deployment.tokenizer.encode(text, False), logprob) for text, logprob in texts]

    def script(prompt: list[int], sampling: wire.SamplingParams) -> list[Step]:
        assert sampling.n == len(texts)
        steps: list[Step] = []
        for position in range(max(len(tokens) for tokens, _ in said)):
            step = []
            for index, (tokens, logprob) in enumerate(said):
                if position < len(tokens):
                    reason = "length" if position == len(tokens) - 1 else None
                    entry = wire.TokenLogprobs(tokens[position], logprob, 1, [], [])
                    logprobs = None if sampling.logprobs is None else [entry]
                    step.append(wire.SequenceOutput(1, index, [tokens[position]], reason, logprobs=logprobs))
            steps.append(step)
        return steps

    return script


def test_the_best_by_summed_logprob_are_the_choices(deployment: Deployment) -> None:
    deployment.engine.script = candidates(deployment, [("abc", -2.0), ("de", -1.0), ("fghi", -0.25), ("j", -7.0)])
    answer = deployment.complete(n=2, best_of=4)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [(0, "fghi"), (1, "de")]
    assert answer["usage"]["completion_tokens"] == 10, "all that was generated"
    assert [choice["logprobs"] for choice in answer["choices"]] == [None, None], "nobody asked for them"
    chat = deployment.chat(n=1, best_of=4, logprobs=True)
    assert chat["choices"][0]["message"]["content"] == "fghi"
    assert [entry["logprob"] for entry in chat["choices"][0]["logprobs"]["content"]] == [-0.25] * 4


def test_equal_candidates_stay_in_order_and_each_prompt_has_its_own(deployment: Deployment) -> None:
    deployment.engine.script = candidates(deployment, [("a", -1.0), ("b", -1.0), ("c", -0.5)])
    answer = deployment.complete(["x", "y"], n=2, best_of=3)
    assert [choice["text"] for choice in answer["choices"]] == ["c", "a", "c", "a"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]


def test_a_stream_of_the_best_begins_when_they_are_known(deployment: Deployment) -> None:
    deployment.engine.script = candidates(deployment, [("abc", -2.0), ("de", -1.0)])
    chunks = deployment.stream_completion(best_of=2, stream_options={"include_usage": True})
    assert [(c["choices"][0]["text"], c["choices"][0]["finish_reason"]) for c in chunks[:-1]] == [("de", "length")]
    assert chunks[-1]["usage"]["completion_tokens"] == 5


def test_a_stop_string_ends_a_candidate_before_they_are_compared(deployment: Deployment) -> None:
    deployment.engine.script = candidates(deployment, [("axxxxxxx", -1.0), ("bcd", -1.0)])
    answer = deployment.complete(best_of=2, stop="x")
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("a", "stop")


def test_candidates_that_never_end_are_closed(deployment: Deployment) -> None:
    def script(prompt: list[int], sampling: wire.SamplingParams) -> list[Step]:
        entry = wire.TokenLogprobs(5, -1.0, 1, [], [])
        return [[wire.SequenceOutput(1, index, [5], logprobs=[entry] * (1 + index)) for index in range(2)]]

    deployment.engine.script = script
    (choice,) = deployment.complete(best_of=2)["choices"]
    assert choice["finish_reason"] == "abort"


# ---------------------------------------------------------------------------------------------- repetition detection


def naive(tokens: list[int], options: Repetition) -> bool:
    """Whether the tokens end with a pattern that has come min_count times."""
    for size in range(options.min_size, options.max_size + 1):
        tail = tokens[-size * options.min_count :]
        if len(tail) == size * options.min_count and tail == tail[-size:] * options.min_count:
            return True
    return False


@settings(max_examples=300, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 2), max_size=40),
    smallest=st.integers(1, 4),
    more=st.integers(0, 5),
    count=st.integers(2, 4),
)
def test_the_detector_finds_what_a_plain_search_finds(tokens: list[int], smallest: int, more: int, count: int) -> None:
    options = Repetition(smallest, smallest + more, count)
    detector = RepetitionDetector(options)
    for end, token in enumerate(tokens, start=1):
        assert detector.push(token) == naive(tokens[:end], options)


@pytest.mark.parametrize("per_step", [1, 3, 50])
def test_a_repetition_ends_the_choice(deployment: Deployment, per_step: int) -> None:
    deployment.says("well, " + "no " * 20, per_step)
    options = {"max_pattern_size": 5, "min_pattern_size": 2, "min_count": 3}
    answer = deployment.complete(repetition_detection=options, max_tokens=100)
    (choice,) = answer["choices"]
    assert choice["text"] == "well, no no no"
    assert (choice["finish_reason"], choice["stop_reason"]) == ("repetition", "repetition_detected")
    assert answer["usage"]["completion_tokens"] == len(deployment.tokenizer.encode("well, no no no", False))
    assert deployment.engine.generations[-1].is_closed
    (chat,) = deployment.chat(repetition_detection=options, stop="zz", max_tokens=100)["choices"]
    assert (chat["message"]["content"], chat["finish_reason"]) == ("well, no no no", "repetition")


def test_a_repetition_waits_for_min_tokens_and_for_an_ending_of_its_own(deployment: Deployment) -> None:
    options = {"max_pattern_size": 2, "min_count": 3}
    deployment.says("a" * 10)
    assert deployment.complete(repetition_detection=options, min_tokens=6)["choices"][0]["text"] == "a" * 6
    (choice,) = deployment.complete(repetition_detection=options, max_tokens=3)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("aaa", "length")
    assert deployment.complete(repetition_detection={"max_pattern_size": 0})["choices"][0]["text"] == "a" * 10


# ---------------------------------------------------------------------------------------------------- stream interval


def pieces(chunks: list[Any]) -> list[str]:
    return [chunk["choices"][0]["text"] for chunk in chunks]


def test_an_interval_gathers_tokens_after_the_first(deployment: Deployment, deploy) -> None:
    deployment.says("abcdefgh")
    assert pieces(deployment.stream_completion(stream_interval=3)) == ["a", "bcd", "efg", "h"]
    assert pieces(deployment.stream_completion()) == [*"abcdefgh", ""]
    server = deploy(stream_interval=100)
    server.says("abcdefgh")
    assert pieces(server.stream_completion()) == ["a", "bcdefgh"]
    assert pieces(server.stream_completion(stream_interval=4)) == ["a", "bcde", "fgh"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(interval=st.integers(1, 12), per_step=st.integers(1, 4), n=st.integers(1, 3))
def test_nothing_is_lost_between_intervals(deployment: Deployment, interval: int, per_step: int, n: int) -> None:
    deployment.says("hello world, hello", per_step)
    body = {"prompt": "x", "stream": True, "stream_interval": interval, "n": n, "logprobs": 1, "max_tokens": 100}
    texts, tokens = [""] * n, [0] * n
    for chunk in parsed(deployment.events("/v1/completions", body)):
        choice = chunk["choices"][0]
        texts[choice["index"]] += choice["text"]
        tokens[choice["index"]] += len((choice["logprobs"] or {"tokens": []})["tokens"])
    assert texts == ["hello world, hello"] * n
    assert tokens == [len(deployment.tokenizer.encode("hello world, hello", False)) + 1] * n


# ---------------------------------------------------------------------------------------------- logprobs of given ids


@pytest.mark.parametrize("num_top", [0, 1, 5])
def test_named_tokens_replace_the_likeliest_in_logprobs(deployment: Deployment, num_top: int) -> None:
    a, b, c = (deployment.tokenizer.encode(text, False)[0] for text in "abc")

    def script(prompt: list[int], sampling: wire.SamplingParams) -> list[Step]:
        assert (sampling.logprobs, sampling.logprob_token_ids) == (0, [b, a, c])
        entry = wire.TokenLogprobs(a, -1.0, 2, [], [], [b, a, c], [-4.0, -1.0, -0.5])
        return [[wire.SequenceOutput(1, 0, [a], "length", logprobs=[entry])]]

    deployment.engine.script = script
    (choice,) = deployment.complete(logprobs=num_top, logprob_token_ids=[b, a, b, c])["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{"a": -1.0, "b": -4.0, "c": -0.5}]
    (chunk, *_) = deployment.stream_completion(logprobs=num_top, logprob_token_ids=[b, a, c])
    assert chunk["choices"][0]["logprobs"] == choice["logprobs"]
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": num_top, "logprob_token_ids": [b, a, c]}
    expected = [("a", -1.0), ("b", -4.0), ("c", -0.5)]
    (chat,) = deployment.chat(**fields)["choices"]
    conversation = [{"role": "user", "content": "hi"}]
    batch = deployment.request("POST", "/v1/chat/completions/batch", {"messages": [conversation] * 2, **fields}).body
    streamed = [part["choices"][0] for part in deployment.stream_chat(**fields)]
    for shown in (chat, *batch["choices"], next(part for part in streamed if part["logprobs"])):
        top = shown["logprobs"]["content"][0]["top_logprobs"]
        assert [(entry["token"], entry["logprob"]) for entry in top] == expected


def test_without_named_tokens_the_likeliest_stay(deployment: Deployment) -> None:
    deployment.says("h")
    nothing: list[list[int] | None] = [[], None]
    for token_ids in nothing:
        (choice,) = deployment.complete(logprobs=3, logprob_token_ids=token_ids)["choices"]
        assert [len(top) for top in choice["logprobs"]["top_logprobs"]] == [3, 3]
    echoed = deployment.complete("hi", echo=True, logprobs=2, logprob_token_ids=[5])["choices"][0]["logprobs"]
    assert deployment.engine.sampling.prompt_logprobs == 2
    assert [top and len(top) for top in echoed["top_logprobs"][:3]] == [None, 2, 2]  # of the prompt


def test_a_closed_stream_of_candidates_aborts_them(deployment: Deployment) -> None:
    deployment.engine.script = candidates(deployment, [("abc", -2.0), ("de", -1.0)])
    deployment.engine.delay = 0.01

    async def leave() -> None:
        body = {"prompt": "x", "stream": True, "best_of": 2}
        task = asyncio.create_task(deployment.dispatch("POST", "/v1/completions", body))
        await asyncio.sleep(0.015)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert deployment.engine.generations[-1].aborted == [None]
