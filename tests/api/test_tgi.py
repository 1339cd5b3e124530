"""The routes of Text Generation Inference."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ember.front.api.tgi import answers
from ember.front.api.tgi.forms import tgi_error
from ember.front.errors import ApiError
from tests.api.fakes import Deployment


def ask(deployment: Deployment, **parameters: Any) -> Any:
    answer = deployment.request("POST", "/generate", {"inputs": "hi", "parameters": parameters}).body
    answers.TgiAnswer.model_validate(answer, strict=True)
    return answer


def streamed(deployment: Deployment, path: str = "/generate_stream", **parameters: Any) -> list[Any]:
    events = deployment.events(path, {"inputs": "hi", "parameters": parameters, "stream": True})
    chunks = [json.loads(event.data) for event in events]
    for chunk in chunks:
        answers.TgiChunk.model_validate(chunk, strict=True)
    return chunks


def test_a_whole_answer(deployment: Deployment) -> None:
    assert ask(deployment) == {"generated_text": "hello world"}
    assert deployment.engine.sampling.temperature == 0
    assert deployment.engine.sampling.max_tokens == 100
    assert ask(deployment, return_full_text=True)["generated_text"] == "hihello world"
    answer = ask(deployment, details=True, decoder_input_details=True, top_n_tokens=2, seed=3)
    details = answer["details"]
    assert (details["finish_reason"], details["seed"]) == ("eos_token", 3)
    assert details["generated_tokens"] == len(details["tokens"]) == len(details["top_tokens"])
    assert details["tokens"][-1]["special"]
    assert [token["id"] for token in details["prefill"]] == deployment.engine.prompt
    root = deployment.request("POST", "/", {"inputs": "hi"})
    assert root.body == [{"generated_text": "hello world"}]


@pytest.mark.parametrize("per_step", [1, 1000])
def test_a_stream_has_an_event_for_each_token(deployment: Deployment, per_step: int) -> None:
    deployment.says("hello world", per_step)
    for path in ("/generate_stream", "/"):
        chunks = streamed(deployment, path, details=True, top_n_tokens=1)
        assert [chunk["index"] for chunk in chunks] == list(range(1, len(chunks) + 1))
        assert "".join(chunk["token"]["text"] for chunk in chunks if not chunk["token"]["special"]) == "hello world"
        assert [chunk["generated_text"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert chunks[-1]["generated_text"] == "hello world"
        assert chunks[-1]["details"]["generated_tokens"] == len(chunks)
        assert streamed(deployment, path, return_full_text=True)[-1]["generated_text"] == "hihello world"


def test_how_it_ends(deployment: Deployment) -> None:
    cut = ask(deployment, max_new_tokens=2, details=True)
    assert cut["details"]["finish_reason"] == "length"
    stopped = ask(deployment, stop=["wor"], details=True)
    assert (stopped["generated_text"], stopped["details"]["finish_reason"]) == ("hello wor", "stop_sequence")


def test_options_reach_the_engine(deployment: Deployment) -> None:
    ask(deployment, do_sample=True, top_k=3, top_p=0.5, repetition_penalty=1.5, best_of=2, max_new_tokens=7)
    sampling = deployment.engine.sampling
    given = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.repetition_penalty, sampling.n)
    assert given == (1.0, 3, 0.5, 1.5, 2)
    ask(deployment, grammar={"type": "regex", "value": "a+"})
    assert deployment.engine.sampling.grammar is not None
    ask(deployment, truncate=1)
    assert len(deployment.engine.prompt) == 1


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"watermark": True}, "parameters.watermark"),
        ({"typical_p": 0.5}, "parameters.typical_p"),
        ({"adapter_id": "x"}, "parameters.adapter_id"),
        ({"best_of": 0}, "parameters.best_of"),
        ({"best_of": 2}, "do_sample"),
        ({"grammar": {"type": "xml"}}, "parameters.grammar"),
        ({"grammar": {"type": ["json"], "value": {}}}, "parameters.grammar"),
        ({"max_new_tokens": "many"}, "max_new_tokens"),
        ({"top_p": 2}, "parameters.top_p must"),
        ({"max_new_tokens": 0}, "parameters.max_new_tokens must"),
        ({"truncate": 0}, "parameters.truncate"),
        ({"best_of": 1000, "do_sample": True}, "parameters.best_of must"),
    ],
)
def test_bad_input_is_named(deployment: Deployment, parameters: Any, text: str) -> None:
    with pytest.raises(ApiError) as caught:
        ask(deployment, **parameters)
    assert caught.value.status == 422
    found = tgi_error(caught.value)
    answers.TgiError.model_validate(found, strict=True)
    assert (text in found["error"], found["error_type"]) == (True, "validation")


def test_a_stream_refuses_what_it_cannot_have(deployment: Deployment) -> None:
    with pytest.raises(ApiError, match=r"parameters\.decoder_input_details"):
        streamed(deployment, decoder_input_details=True)
    with pytest.raises(ApiError, match="does not exist"):
        deployment.request("POST", "/generate", {"inputs": "hi", "model": "other"})


def test_what_has_no_effect_is_told(deployment: Deployment) -> None:
    answer = deployment.request("POST", "/generate", {"inputs": "hi", "parameters": {"novel": 1}})
    assert answer.headers["X-Ember-Ignored-Fields"] == "parameters.novel"
