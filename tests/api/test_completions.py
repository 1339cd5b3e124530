"""POST /v1/completions, whole answers and streams."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from openai.types import Completion

from ember import wire
from ember.front.errors import ApiError
from tests.api.fakes import BOS, MAX_MODEL_LEN, Deployment, Step, say


def text_of(chunks: list[Any], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(choice["text"] for choice in choices if choice["index"] == index)


def test_the_answer_has_every_key_in_its_place(deployment: Deployment) -> None:
    body = deployment.complete()
    Completion.model_validate(body)
    assert body["id"].startswith("cmpl-")
    assert body["system_fingerprint"].startswith("ember-")
    for volatile in ("id", "created", "system_fingerprint"):
        del body[volatile]
    assert body == {
        "object": "text_completion",
        "model": "org/tiny",
        "choices": [
            {
                "index": 0,
                "text": "hello world",
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
                "token_ids": None,
                "prompt_logprobs": None,
                "prompt_token_ids": None,
                "routed_experts": None,
                "weight_versions": None,
            }
        ],
        "service_tier": None,
        "usage": {
            "prompt_tokens": 3,
            "total_tokens": 10,
            "completion_tokens": 7,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        },
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def test_the_prompt_begins_with_bos_unless_told_not_to(deployment: Deployment) -> None:
    deployment.complete("hi")
    assert deployment.prompt_text == BOS + "hi"
    deployment.complete("hi", add_special_tokens=False)
    assert deployment.prompt_text == "hi"
    deployment.complete([5, 6, 299])
    assert deployment.engine.prompt == [5, 6, 299]


def test_sixteen_tokens_when_nothing_is_said(deployment: Deployment) -> None:
    deployment.complete()
    assert deployment.engine.sampling.max_tokens == 16
    deployment.complete(max_tokens=None)
    assert deployment.engine.sampling.max_tokens == 16


@pytest.mark.parametrize("prompts", [["a", "b", "c"], [[1], [2], [3]]])
def test_prompts_are_requests_of_their_own_in_order(deployment: Deployment, prompts: Any) -> None:
    def script(prompt: list[int], sampling: wire.SamplingParams) -> list[Step]:
        text = deployment.tokenizer.decode(prompt)
        return list(say(deployment.tokenizer, text * (3 if text in ("a", "\x01") else 1))(prompt, sampling))

    deployment.engine.script = script
    body = deployment.complete(prompts, n=2)
    texts = [deployment.tokenizer.decode(prompt) if isinstance(prompt, list) else prompt for prompt in prompts]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3, 4, 5]
    said = [choice["text"] for choice in body["choices"]]
    assert [said[0][:1], said[2], said[4]] == texts
    assert said[0::2] == said[1::2]
    assert len(deployment.engine.calls) == 3
    assert body["usage"]["prompt_tokens"] == sum(len(call[0]) for call in deployment.engine.calls)
    chunks = deployment.stream_completion(prompts, n=2)
    assert [text_of(chunks, index) for index in range(6)] == said
    assert all(generation.is_closed for generation in deployment.engine.generations)


def test_the_failure_of_one_prompt_fails_the_request_and_stops_the_others(deployment: Deployment) -> None:
    good = say(deployment.tokenizer, "hello world")

    def script(prompt: list[int], sampling: wire.SamplingParams) -> list[Step]:
        return [ApiError(500, "boom")] if prompt == [2] else list(good(prompt, sampling))

    deployment.engine.script = script
    with pytest.raises(ApiError, match="boom"):
        deployment.complete([[1], [2], [3]])
    assert all(generation.is_closed for generation in deployment.engine.generations)
    assert None in deployment.engine.generations[0].aborted + deployment.engine.generations[2].aborted


def test_echo(deployment: Deployment) -> None:
    assert deployment.complete("hi ", echo=True)["choices"][0]["text"] == "hi hello world"
    ids = deployment.tokenizer.encode("hi ", False)
    assert deployment.complete(ids, echo=True)["choices"][0]["text"] == "hi hello world"
    assert text_of(deployment.stream_completion("hi ", echo=True)) == "hi hello world"
    special = deployment.tokenizer.encode("<|user|>hi ")
    for skips in (True, False):
        body = deployment.complete(special, echo=True, skip_special_tokens=skips, return_token_ids=True)
        assert body["choices"][0]["text"] == "<s><|user|>hi hello world"
        assert deployment.tokenizer.decode(body["choices"][0]["token_ids"]) == "hello world"
        chunks = deployment.stream_completion(special, echo=True, skip_special_tokens=skips, return_token_ids=True)
        assert text_of(chunks) == body["choices"][0]["text"]
        streamed = [token_id for chunk in chunks for token_id in chunk["choices"][0]["token_ids"]]
        assert streamed == body["choices"][0]["token_ids"]
    assert text_of(deployment.stream_completion(["a ", "b "], echo=True), 1) == "b hello world"


def test_scoring_only(deployment: Deployment) -> None:
    body = deployment.complete("hi", echo=True, max_tokens=0, logprobs=1, return_token_ids=True)
    choice = body["choices"][0]
    assert deployment.engine.sampling.max_tokens == 0
    assert (choice["text"], choice["finish_reason"]) == ("hi", "length")
    assert choice["token_ids"] == []  # of generated tokens, and there are none
    assert choice["prompt_token_ids"] == deployment.engine.prompt
    assert choice["logprobs"]["tokens"] == [BOS, "h", "i"]
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -1.0]
    assert choice["logprobs"]["top_logprobs"][0] is None
    assert body["usage"]["completion_tokens"] == 0
    chunks = deployment.stream_completion(
        "hi", echo=True, max_tokens=0, logprobs=1, stream_options={"include_usage": True}
    )
    assert text_of(chunks) == "hi"
    assert chunks[0]["choices"][0]["logprobs"] == choice["logprobs"]
    assert chunks[-1]["usage"] == {"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0}


def test_echo_with_logprobs_of_prompt_and_output(deployment: Deployment) -> None:
    logprobs = deployment.complete("hi", echo=True, logprobs=2)["choices"][0]["logprobs"]
    assert deployment.engine.sampling.prompt_logprobs == 2
    assert logprobs["tokens"] == [BOS, "h", "i", "hello", " w", "o", "r", "l", "d", "</s>"]
    assert logprobs["text_offset"] == [0, 0, 1, 2, 7, 9, 10, 11, 12, 13]  # the text has no BOS
    assert [len(top) for top in logprobs["top_logprobs"][1:]] == [2] * 9
    chunks = deployment.stream_completion("hi", echo=True, logprobs=2)
    streamed: dict[str, list[Any]] = {key: [] for key in logprobs}
    for chunk in chunks:
        for key, values in (chunk["choices"][0]["logprobs"] or {}).items():
            streamed[key] += values
    assert streamed == logprobs


def test_logprobs_zero_means_the_sampled_token_alone(deployment: Deployment) -> None:
    deployment.says("hi")
    logprobs = deployment.complete(logprobs=0)["choices"][0]["logprobs"]
    assert logprobs == {
        "text_offset": [0, 1, 2],
        "token_logprobs": [-1.0, -1.0, -1.0],
        "tokens": ["h", "i", "</s>"],
        "top_logprobs": [{"h": -1.0}, {"i": -1.0}, {"</s>": -1.0}],
    }


def test_prompt_logprobs_per_choice(deployment: Deployment) -> None:
    choice = deployment.complete("hi", prompt_logprobs=1)["choices"][0]
    assert choice["prompt_logprobs"][0] is None
    _, h, i = deployment.engine.prompt
    assert choice["prompt_logprobs"][1] == {
        str(h): {"logprob": -1.0, "rank": 2, "decoded_token": "h"},
        str(h + 1): {"logprob": -0.5, "rank": 1, "decoded_token": deployment.tokenizer.token_text(h + 1)},
    }
    assert list(choice["prompt_logprobs"][2]) == [str(i), str(i + 1)]
    assert choice["logprobs"] is None


def test_the_chunks_one_by_one(deployment: Deployment) -> None:
    deployment.says("hello w")
    chunks = deployment.stream_completion()
    assert chunks[-1].pop("system_fingerprint").startswith("ember-")
    heads = {(chunk.pop("id"), chunk.pop("object"), chunk.pop("created"), chunk.pop("model")) for chunk in chunks}
    assert len(heads) == 1
    assert heads.pop()[1::2] == ("text_completion", "org/tiny")
    nothing_else = {"logprobs": None, "finish_reason": None, "stop_reason": None}
    assert chunks == [
        {"choices": [{"index": 0, "text": "hello", **nothing_else}]},
        {"choices": [{"index": 0, "text": " w", **nothing_else}]},
        {"choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop", "stop_reason": None}]},
    ]


def test_token_ids_on_request(deployment: Deployment) -> None:
    choice = deployment.complete(return_token_ids=True)["choices"][0]
    assert choice["prompt_token_ids"] == deployment.engine.prompt
    assert deployment.tokenizer.decode(choice["token_ids"], False) == "hello world</s>"
    chunks = deployment.stream_completion(return_token_ids=True)
    assert chunks[0]["choices"][0]["prompt_token_ids"] == deployment.engine.prompt
    assert [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]] == choice["token_ids"]


def test_usage_in_streams(deployment: Deployment) -> None:
    chunks = deployment.stream_completion(["a", "b"], stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 4, "total_tokens": 18, "completion_tokens": 14}
    assert not any("usage" in chunk for chunk in chunks[:-1])
    chunks = deployment.stream_completion(stream_options={"continuous_usage_stats": True})
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 4, 5, 6, 7, 7]


def test_a_stop_string_ends_one_choice_and_not_the_others(deployment: Deployment) -> None:
    steps: list[Step] = []
    for word in ("a", "b", "c"):
        ids = deployment.tokenizer.encode(word, False)
        other = deployment.tokenizer.encode("x", False)
        steps.append([wire.SequenceOutput(1, 0, ids), wire.SequenceOutput(1, 1, other)])
    steps.append([wire.SequenceOutput(1, 0, [], "length"), wire.SequenceOutput(1, 1, [], "length")])
    deployment.engine.script = lambda prompt, sampling: steps
    choices = deployment.complete(n=2, stop="b")["choices"]
    assert [choice["text"] for choice in choices] == ["a", "xxx"]
    assert [choice["finish_reason"] for choice in choices] == ["stop", "length"]
    assert deployment.engine.generations[0].aborted == [0]


def test_scoring_a_prompt_that_fills_the_context(deployment: Deployment) -> None:
    body = deployment.complete([5] * MAX_MODEL_LEN, echo=True, max_tokens=0, logprobs=0, n=2)
    assert deployment.engine.sampling.max_tokens == 0
    assert len(body["choices"][1]["logprobs"]["tokens"]) == MAX_MODEL_LEN
    assert body["usage"]["completion_tokens"] == 0
    with pytest.raises(ApiError, match="max_tokens must be at least 1, got 0"):
        deployment.complete([5] * MAX_MODEL_LEN, echo=True, max_tokens=1)
    with pytest.raises(ApiError, match="min_tokens must be less than or equal to max_tokens=0, got 1"):
        deployment.complete("hi", echo=True, max_tokens=0, min_tokens=1)


def test_all_choices_show_the_prompt_logprobs_that_the_first_sample_brings(deployment: Deployment) -> None:
    steps = list(say(deployment.tokenizer, "hi")([1, 2], wire.SamplingParams(4, n=2, logprobs=1, prompt_logprobs=1)))
    first = [output for step in steps if isinstance(step, list) for output in step if output.index == 0]
    second = [output for step in steps if isinstance(step, list) for output in step if output.index == 1]
    assert second[0].prompt_logprobs is None
    fields: dict[str, Any] = {"echo": True, "logprobs": 1, "n": 2}
    for order in ([*second, *first], [second[0], *first, *second[1:]], [second[0], first[0], *second[1:], *first[1:]]):
        deployment.engine.script = partial(lambda steps, prompt, sampling: steps, [[output] for output in order])
        choices = deployment.complete([1, 2], prompt_logprobs=1, **fields)["choices"]
        assert choices[0]["logprobs"] == choices[1]["logprobs"]
        assert choices[0]["prompt_logprobs"] == choices[1]["prompt_logprobs"]
        assert choices[0]["prompt_logprobs"] is not None
        chunks = deployment.stream_completion([1, 2], **fields)
        begun = set()
        for chunk in chunks:
            choice = chunk["choices"][0]
            if choice["index"] not in begun:
                begun.add(choice["index"])
                assert choice["logprobs"]["token_logprobs"][:2] == [None, -1.0]
                assert choice["logprobs"]["top_logprobs"][1] is not None
        assert begun == {0, 1}


def test_a_first_sample_that_never_comes_keeps_nobody_waiting(deployment: Deployment) -> None:
    steps = list(say(deployment.tokenizer, "hi")([1, 2], wire.SamplingParams(4, n=2, logprobs=1, prompt_logprobs=1)))
    second = [[step[1]] for step in steps if isinstance(step, list)]
    deployment.engine.script = lambda prompt, sampling: second
    choices = deployment.complete([1, 2], echo=True, logprobs=1, n=2)["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["abort", "stop"]
    assert choices[1]["text"].endswith("hi")
