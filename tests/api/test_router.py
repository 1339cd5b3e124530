"""Routes, methods, models, and the state of the worker."""

from __future__ import annotations

import pytest
from openai.types import Model

import ember
from ember.front.api.openai_forms import openai_error
from ember.front.errors import ApiError
from tests.api.fakes import MAX_MODEL_LEN, Deployment, refused


@pytest.mark.parametrize("path", ["/none", "/v1", "/v1/score/1", "/v1/chat", "/V1/models"])
def test_unknown_paths(deployment: Deployment, path: str) -> None:
    with pytest.raises(ApiError) as caught:
        deployment.request("GET", path)
    assert caught.value.status == 404
    assert openai_error(caught.value) == {
        "error": {"message": "Not Found", "type": "Not Found", "param": None, "code": 404}
    }


def test_a_route_of_another_task_is_refused_with_what_the_model_does(deployment: Deployment) -> None:
    info = deployment.engine.info
    deployment.pools("embed", "score")
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/chat/completions/batch"):
        error = refused(deployment, path, {"prompt": "x"})
        assert (error.status, error.type, error.param) == (400, "BadRequestError", "model")
        assert error.message == f"{path} needs a model that does generate. The model `org/tiny` does embed, score."
    assert deployment.request("POST", "/tokenize", {"prompt": "x"}).status == 200
    (model,) = deployment.request("GET", "/v1/models").body["data"]
    assert model["tasks"] == ["embed", "score"]
    assert deployment.request("GET", "/health").headers == {"X-Ember-Tasks": "embed, score"}
    deployment.engine._info = info
    assert deployment.complete("x")
    deployment.engine.calls.clear()
    for path in ("/v1/embeddings", "/pooling", "/classify", "/score", "/v1/score", "/v1/rerank", "/v2/embed"):
        error = refused(deployment, path, {"input": "x"})
        assert (error.status, error.param) == (400, "model")
        assert error.message.endswith("The model `org/tiny` does generate.")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/completions", "POST"),
        ("POST", "/v1/models", "GET"),
        ("POST", "/v1/models/x", "GET"),
        ("PUT", "/ping", "GET, HEAD, POST"),
        ("POST", "/health/", "GET, HEAD"),
    ],
)
def test_wrong_methods(deployment: Deployment, method: str, path: str, allowed: str) -> None:
    with pytest.raises(ApiError) as caught:
        deployment.request(method, path)
    body = {"error": {"message": "Method Not Allowed", "type": "Method Not Allowed", "param": None, "code": 405}}
    assert openai_error(caught.value) == body
    assert caught.value.headers == {"Allow": allowed}


def test_models(deploy) -> None:
    body = deploy(served_model_name=["big", "small"]).request("GET", "/v1/models").body
    assert body["object"] == "list"
    assert [model["id"] for model in body["data"]] == ["big", "small"]
    model = body["data"][0]
    Model.model_validate(model)
    assert model["root"] == "org/tiny"
    assert model["parent"] is None
    assert model["max_model_len"] == MAX_MODEL_LEN
    assert model["created"] == 1700000000
    (permission,) = model["permission"]
    assert permission["id"].startswith("modelperm-")
    assert permission["allow_sampling"] is permission["allow_logprobs"] is permission["allow_view"] is True


@pytest.mark.parametrize("path", ["/v1/models/org%2Ftiny", "/v1/models/org/tiny", "/v1/models/org%2ftiny/"])
def test_one_model(deployment: Deployment, path: str) -> None:
    assert deployment.request("GET", path).body["id"] == "org/tiny"


def test_an_unknown_model(deployment: Deployment) -> None:
    with pytest.raises(ApiError) as caught:
        deployment.request("GET", "/v1/models/other")
    assert (caught.value.status, caught.value.type, caught.value.param) == (404, "NotFoundError", "model")
    assert caught.value.message == "The model `other` does not exist."


def test_health_and_ping(deployment: Deployment) -> None:
    statuses = {"ready": (200, 200), "loading": (503, 204), "dead": (503, 503)}
    for state, (health, ping) in statuses.items():
        deployment.engine.state = state
        assert deployment.request("GET", "/health").status == health
        for method in ("GET", "POST", "HEAD"):
            answer = deployment.request(method, "/ping")
            assert (answer.status, answer.body) == (ping, None)


def test_version_and_query(deployment: Deployment) -> None:
    assert deployment.request("GET", "/version?x=1").body == {"version": ember.__version__}


def test_models_are_listed_while_loading(deploy) -> None:
    deployment = deploy(max_model_len=100)
    deployment.engine.state = "loading"
    assert deployment.request("GET", "/v1/models").body["data"][0]["max_model_len"] == 100


def test_what_nobody_expected_is_a_500_without_details(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **more: object) -> None:
        raise RuntimeError("the password is 1234")

    monkeypatch.setattr(deployment.engine, "generate", broken)
    for ask in (deployment.chat, deployment.stream_chat, deployment.complete):
        with pytest.raises(ApiError) as caught:
            ask()
        assert openai_error(caught.value)["error"] == {
            "message": "Internal server error; the worker's log has it.",
            "type": "InternalServerError",
            "param": None,
            "code": 500,
        }
