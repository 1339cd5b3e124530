"""What reaches the engine: every sampling field, its default and its reshaping."""

from __future__ import annotations

from typing import Any

import pytest

from ember.front.api import token_rules
from ember.front.api.sampling_ranges import checked_defaults
from ember.front.errors import ApiError
from ember.wire import SamplingParams
from tests.api.fakes import MAX_MODEL_LEN, VOCAB_SIZE, Deployment, refused


def test_nothing_given(deployment: Deployment) -> None:
    deployment.chat("hi")
    assert deployment.engine.sampling == SamplingParams(max_tokens=MAX_MODEL_LEN - 4)


def test_everything_given(deployment: Deployment) -> None:
    deployment.complete(
        [1, 2],
        max_tokens=50,
        n=2,
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=-0.3,
        logit_bias={"5": 1000, "6": -1000, "7": 1.5},
        allowed_token_ids=[9, 8, 9],
        min_tokens=3,
        ignore_eos=True,
        stop_token_ids=[12, 11, 12],
        seed=42,
        logprobs=5,
        prompt_logprobs=2,
    )
    assert deployment.engine.sampling == SamplingParams(
        max_tokens=50,
        n=2,
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=-0.3,
        logit_bias={5: 100.0, 6: -100.0, 7: 1.5},
        allowed_token_ids=[8, 9],
        min_tokens=3,
        ignore_eos=True,
        stop_token_ids=[11, 12],
        seed=42,
        logprobs=5,
        prompt_logprobs=2,
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 0.001}, {"temperature": 0.01}),
        ({"temperature": 2}, {"temperature": 2.0}),
        (
            {"temperature": 0, "top_p": 0.5, "top_k": 5, "min_p": 0.5},
            {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0},
        ),
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_k": 10**12}, {"top_k": VOCAB_SIZE}),
        ({"seed": -1}, {"seed": None}),
        ({"seed": 0}, {"seed": 0}),
        ({"max_tokens": 10}, {"max_tokens": 10}),
        ({"max_tokens": 10, "max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"max_tokens": MAX_MODEL_LEN}, {"max_tokens": MAX_MODEL_LEN - 4}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 20}, {"logprobs": 20}),
        ({"logprobs": False}, {"logprobs": None}),
        ({"prompt_logprobs": 0}, {"prompt_logprobs": 0}),
        ({"prompt_logprobs": 0, "stream": False}, {"prompt_logprobs": 0}),
    ],
)
def test_reshaping(deployment: Deployment, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    deployment.chat("hi", **fields)
    sampling = deployment.engine.sampling
    assert {name: getattr(sampling, name) for name in expected} == expected


def test_the_newer_name_of_a_length_holds_for_completions_too(deployment: Deployment) -> None:
    for fields in ({"max_completion_tokens": 5}, {"max_completion_tokens": 5, "max_tokens": 5}):
        deployment.complete("hi", **fields)
        assert deployment.engine.sampling.max_tokens == 5
    with pytest.raises(ApiError, match="max_tokens=6 and max_completion_tokens=5") as caught:
        deployment.complete("hi", max_completion_tokens=5, max_tokens=6)
    assert (caught.value.status, caught.value.param) == (400, "max_completion_tokens")
    body = {"prompt": "hi", "max_completion_tokens": 5}
    assert "X-Ember-Ignored-Fields" not in deployment.request("POST", "/v1/completions", body).headers


@pytest.mark.parametrize("name", ["", "é", "a" * 257, "a\nb"])
def test_a_request_id_that_no_header_can_hold(deployment: Deployment, name: str) -> None:
    error = refused(deployment, "/v1/completions", {"prompt": "hi", "request_id": name})
    assert (error.status, error.param) == (400, "request_id")
    assert "256" in error.message
    answer = deployment.request("POST", "/v1/completions", {"prompt": "hi"}, x_request_id=name)
    assert answer.body["id"] != f"cmpl-{name}"  # a proxy's header is replaced


def test_defaults_of_the_deployment_are_weaker_than_the_request(deployment: Deployment) -> None:
    deployment.services.generation_defaults.update(
        temperature=0.6, top_p=0.95, top_k=20, min_p=0.1, repetition_penalty=1.05, max_new_tokens=30
    )
    deployment.chat()
    sampling = deployment.engine.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.6, 0.95, 20, 0.1)
    assert (sampling.repetition_penalty, sampling.max_tokens) == (1.05, 30)
    deployment.chat(temperature=1.5, top_k=0, max_tokens=100, repetition_penalty=1)
    sampling = deployment.engine.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (1.5, 0, 0.95)
    assert (sampling.repetition_penalty, sampling.max_tokens) == (1.0, 100)


@pytest.mark.parametrize(
    "settings", [{"override_generation_config": {"max_new_tokens": 30}}, {"generation_config": "/etc/generation"}]
)
def test_the_operators_max_new_tokens_binds(deploy, settings: dict[str, Any]) -> None:
    deployment = deploy(**settings)
    deployment.services.generation_defaults["max_new_tokens"] = 30
    deployment.chat(max_tokens=100)
    assert deployment.engine.sampling.max_tokens == 30
    deployment.complete()
    assert deployment.engine.sampling.max_tokens == 16


def test_a_bad_word_of_many_tokens_is_refused(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_rules, "MAX_BAD_WORD_TOKENS", 4)
    with pytest.raises(ApiError, match="bad_words contains a word of [0-9]+ tokens; 4 are allowed") as caught:
        deployment.chat(bad_words=["a b c d e f g h"])
    assert caught.value.status == 400 and caught.value.param == "bad_words"


def test_bad_words_with_and_without_a_blank_before_them(deployment: Deployment) -> None:
    deployment.chat(bad_words=["hello", " w"])
    tokenizer = deployment.tokenizer
    forms = [tokenizer.encode(text, False) for text in ("hello", " hello", "w", " w")]
    assert deployment.engine.sampling.bad_words == forms
    deployment.chat(bad_words=["w", "w"])
    assert deployment.engine.sampling.bad_words == forms[2:]


def test_stop_strings_stay_in_the_front(deployment: Deployment) -> None:
    deployment.chat(stop=["x"], stop_token_ids=[7])
    assert deployment.engine.sampling.stop_token_ids == [7]


def test_max_tokens_is_cut_for_each_prompt_by_itself(deployment: Deployment) -> None:
    deployment.complete([[1] * 250, [1] * 10], max_tokens=20)
    assert [call[1].max_tokens for call in deployment.engine.calls] == [6, 20]


def test_a_stream_asks_for_no_prompt_logprobs_it_cannot_show(deployment: Deployment) -> None:
    deployment.stream_chat(prompt_logprobs=0)
    assert deployment.engine.sampling.prompt_logprobs is None


def test_echo_asks_for_the_larger_number_of_prompt_logprobs(deployment: Deployment) -> None:
    for logprobs, prompt_logprobs, expected in ((3, None, 3), (3, 5, 5), (5, 3, 5), (0, None, 0)):
        deployment.complete(echo=True, logprobs=logprobs, prompt_logprobs=prompt_logprobs)
        assert deployment.engine.sampling.prompt_logprobs == expected
    choice = deployment.complete(echo=True, logprobs=3, prompt_logprobs=1)["choices"][0]
    assert {len(entry) for entry in choice["prompt_logprobs"][1:]} == {2}


GOOD_DEFAULTS: dict[str, Any] = {
    "max_new_tokens": 100,
    "temperature": 0,
    "top_p": 0.95,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.1,
    "presence_penalty": -2,
    "frequency_penalty": 2.0,
    "skip_special_tokens": False,
}


def test_defaults_that_can_be_used(deployment: Deployment) -> None:
    checked_defaults({})
    checked_defaults(GOOD_DEFAULTS)
    checked_defaults(dict.fromkeys(GOOD_DEFAULTS))
    deployment.services.generation_defaults.update(GOOD_DEFAULTS)
    deployment.chat()


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("max_new_tokens", 0, "a whole number of at least 1, not 0"),
        ("max_new_tokens", 10.5, "a whole number of at least 1, not 10.5"),
        ("max_new_tokens", True, "a whole number of at least 1, not True"),
        ("temperature", 2.5, "a number, in [0, 2], not 2.5"),
        ("temperature", "hot", "a number, in [0, 2], not 'hot'"),
        ("temperature", float("nan"), "a number, in [0, 2], not nan"),
        ("top_p", 0, "a number, in (0, 1], not 0"),
        ("top_k", 1.5, "a whole number, 0 (disable), or at least 1, not 1.5"),
        ("top_k", -2, "a whole number, 0 (disable), or at least 1, not -2"),
        ("min_p", -0.1, "a number, in [0, 1], not -0.1"),
        ("repetition_penalty", 0, "a number, greater than zero, not 0"),
        ("repetition_penalty", float("inf"), "a number, greater than zero, not inf"),
        ("presence_penalty", 3, "a number, in [-2, 2], not 3"),
        ("frequency_penalty", [1], "a number, in [-2, 2], not [1]"),
        ("skip_special_tokens", "no", "true or false, not 'no'"),
    ],
)
def test_defaults_that_cannot_be_used(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError) as caught:
        checked_defaults({"top_p": 0.5, name: value})
    assert str(caught.value) == f"the sampling default {name} must be {allowed}"


def test_a_default_nobody_knows() -> None:
    with pytest.raises(ValueError) as caught:
        checked_defaults({"temprature": 1})
    assert str(caught.value).startswith("'temprature' is no sampling default; there are max_new_tokens, temperature,")
    assert "\n" not in str(caught.value)


def test_a_priority_without_the_policy_is_reported(deploy) -> None:
    for policy, header in (("fcfs", "priority"), ("priority", None)):
        deployment = deploy(scheduling_policy=policy)
        answer = deployment.request("POST", "/v1/completions", {"prompt": "x", "priority": 3})
        assert answer.headers.get("X-Ember-Ignored-Fields") == header
        assert deployment.engine.calls[-1][2] == 3
