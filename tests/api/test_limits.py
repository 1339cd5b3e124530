"""What a deployment refuses because of what it is and how it is set: lengths, models, templates, numbers of samples."""

from __future__ import annotations

import msgspec
import pytest

from ember.front.errors import ApiError
from tests.api.fakes import Deployment, refused


def test_a_long_chat_prompt(deployment: Deployment) -> None:
    error = refused(deployment, "/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 300}]})
    assert error.param == "input_tokens"
    assert "maximum context length is 256 tokens" in error.message
    assert "contains 302 input tokens" in error.message
    assert error.message.endswith("(parameter=input_tokens, value=302)")


def test_a_text_that_cannot_fit_is_refused_before_tokenising(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    encode = deployment.tokenizer.encode

    def watched(text: str, add_special_tokens: bool = True) -> list[int]:
        encoded.append(text)
        return encode(text, add_special_tokens)

    monkeypatch.setattr(deployment.tokenizer, "encode", watched)
    error = refused(deployment, "/v1/completions", {"prompt": "x" * 1_000_000})
    assert error.param == "input_text"
    assert "maximum context length is 256 tokens" in error.message
    assert not encoded
    deployment.complete("x" * 1_000_000 + "end", truncate_prompt_tokens=4)
    assert len(encoded[0]) < 10_000
    assert deployment.prompt_text == "xend"


def test_unknown_model(deployment: Deployment) -> None:
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "model": "other"}),
        ("/v1/completions", {"prompt": "x", "model": "other"}),
    ):
        error = refused(deployment, path, body)
        assert (error.status, error.type, error.param) == (404, "NotFoundError", "model")
        assert error.message == "The model `other` does not exist."


def test_no_chat_template(deployment: Deployment) -> None:
    deployment.services.template = None
    error = refused(deployment, "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
    assert (error.status, error.type) == (400, "BadRequestError")
    assert error.message == (
        "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if "
        "the tokenizer does not define one."
    )


def test_a_bad_priority_header(deployment: Deployment) -> None:
    for value in ("high", "1.5", "9" * 40):
        with pytest.raises(ApiError, match="X-Vllm-Priority") as caught:
            deployment.request("POST", "/v1/completions", {"prompt": "x"}, x_vllm_priority=value)
        assert caught.value.status == 400


def test_limits_are_the_operators(deploy) -> None:
    deployment = deploy(max_logprobs=-1, max_stop_strings=6)
    deployment.chat(logprobs=True, top_logprobs=-1, stop=list("uvwxyz"))
    assert deployment.engine.sampling.logprobs == -1
    deployment.complete(logprobs=-1)
    assert deployment.engine.sampling.logprobs == -1


def test_the_number_of_samples_follows_the_size_of_a_step(deployment: Deployment) -> None:
    deployment.complete("x", n=128)
    deployment.complete(["x"] * 1024)  # one of each prompt is always fine
    deployment.engine._info = msgspec.structs.replace(deployment.engine._info, max_num_seqs=50)
    deployment.complete("x", n=200)
    with pytest.raises(ApiError, match="n must be at most 200, got 201"):
        deployment.complete("x", n=201)
    deployment.engine._info = msgspec.structs.replace(deployment.engine._info, max_num_seqs=10**6)
    with pytest.raises(ApiError, match="n must be at most 16384, got 16385"):
        deployment.complete("x", n=16385)
