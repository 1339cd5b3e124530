"""POST /v1/chat/completions, whole answers."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from tests.api.fakes import Deployment


def test_the_answer_has_every_key_in_its_place(deployment: Deployment) -> None:
    body = deployment.chat()
    parsed = ChatCompletion.model_validate(body)
    assert parsed.choices[0].message.content == "hello world"
    assert body["id"].startswith("chatcmpl-") and len(body["id"]) == len("chatcmpl-") + 32
    assert body["system_fingerprint"].startswith("ember-")
    assert len(body["system_fingerprint"].rpartition("-")[2]) == 8
    for volatile in ("id", "created", "system_fingerprint"):
        del body[volatile]
    assert body == {
        "object": "chat.completion",
        "model": "org/tiny",
        "service_tier": None,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "hello world",
                    "refusal": None,
                    "annotations": None,
                    "audio": None,
                    "function_call": None,
                    "reasoning": None,
                    "reasoning_content": None,
                },
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
                "token_ids": None,
                "routed_experts": None,
                "weight_versions": None,
            }
        ],
        # <|user|> h i <|assistant|>, and: hello _w o r l d </s>
        "usage": {
            "prompt_tokens": 4,
            "total_tokens": 11,
            "completion_tokens": 7,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        },
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "prompt_text": None,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def test_the_prompt_is_the_rendered_template_without_a_second_bos(deployment: Deployment) -> None:
    deployment.chat("hi")
    assert deployment.prompt_text == "<|user|>hi<|assistant|>"
    deployment.chat("hi", add_special_tokens=True)
    assert deployment.prompt_text == "<s><|user|>hi<|assistant|>"


def test_n_choices_share_one_usage(deployment: Deployment) -> None:
    body = deployment.chat(n=3)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in body["choices"]] == ["hello world"] * 3
    assert body["usage"]["completion_tokens"] == 21
    assert body["usage"]["prompt_tokens"] == 4


def test_length(deployment: Deployment) -> None:
    choice = deployment.chat(max_tokens=2)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"], choice["stop_reason"]) == ("hello w", "length", None)


@pytest.mark.parametrize("per_step", [1, 3, 100])
def test_a_stop_string_is_cut_and_the_tokens_up_to_it_count(deployment: Deployment, per_step: int) -> None:
    deployment.says("hello world, good day", per_step)
    body = deployment.chat(stop=["x", "ld, g"], return_token_ids=True, logprobs=True)
    choice = body["choices"][0]
    assert choice["message"]["content"] == "hello wor"
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "ld, g")
    taken = deployment.tokenizer.decode(choice["token_ids"])
    assert taken == "hello world, g", "the tokens up to the one that completed the stop string"
    assert len(choice["logprobs"]["content"]) == len(choice["token_ids"])
    assert body["usage"]["completion_tokens"] == len(choice["token_ids"]), "however many the engine made meanwhile"
    if per_step < 100:
        assert deployment.engine.generations[0].aborted == [0]


def test_a_stop_string_can_stay(deployment: Deployment) -> None:
    deployment.says("hello world, good day")
    choice = deployment.chat(stop="ld,", include_stop_str_in_output=True)["choices"][0]
    assert (choice["message"]["content"], choice["stop_reason"]) == ("hello world,", "ld,")


def test_a_stop_token_is_reported_and_hidden(deployment: Deployment) -> None:
    deployment.says("hello world")
    token = deployment.tokenizer.token_id("r")
    choice = deployment.chat(stop_token_ids=[token])["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"], choice["stop_reason"]) == ("hello wo", "stop", token)
    choice = deployment.chat(stop_token_ids=[token], include_stop_str_in_output=True)["choices"][0]
    assert choice["message"]["content"] == "hello wor"


def test_special_tokens_show_when_asked_but_not_the_final_eos(deployment: Deployment) -> None:
    token_id = deployment.tokenizer.token_id("<|user|>")
    assert token_id is not None
    deployment.says([104, token_id, 105])
    shown = deployment.tokenizer.decode([104, token_id, 105], skip_special_tokens=False)
    assert "<|user|>" in shown
    assert deployment.chat()["choices"][0]["message"]["content"] == shown.replace("<|user|>", "")
    assert deployment.chat(skip_special_tokens=False)["choices"][0]["message"]["content"] == shown
    deployment.services.generation_defaults["skip_special_tokens"] = False
    assert deployment.chat()["choices"][0]["message"]["content"] == shown
    assert deployment.chat(skip_special_tokens=True)["choices"][0]["message"]["content"] != shown


def test_min_tokens_hold_off_stop_strings(deployment: Deployment) -> None:
    deployment.says("a.b.c.d")
    assert deployment.chat(stop=".", min_tokens=0)["choices"][0]["message"]["content"] == "a"
    assert deployment.chat(stop=".", min_tokens=2)["choices"][0]["message"]["content"] == "a.b"
    assert deployment.chat(stop=".", min_tokens=5)["choices"][0]["message"]["content"] == "a.b"[:3] + ".c"
    assert deployment.chat(stop=".b.", min_tokens=4)["choices"][0]["message"]["content"] == "a.b.c.d"


def test_token_ids_and_prompt_text_on_request(deployment: Deployment) -> None:
    body = deployment.chat(return_token_ids=True, return_prompt_text=True)
    assert body["prompt_token_ids"] == deployment.engine.prompt
    assert body["prompt_text"] == "<|user|>hi<|assistant|>"
    assert deployment.tokenizer.decode(body["choices"][0]["token_ids"], False) == "hello world</s>"


def test_continuing_the_last_message(deployment: Deployment) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "well, "}]
    fields: dict[str, Any] = {"messages": messages, "continue_final_message": True, "echo": True}
    body = deployment.chat(**fields)
    assert deployment.prompt_text == "<|user|>hi<|assistant|>well, "
    assert body["choices"][0]["message"]["content"] == "well, hello world"
    assert deployment.chat(**{**fields, "echo": False})["choices"][0]["message"]["content"] == "hello world"


def test_without_a_generation_prompt_the_role_is_that_of_the_last_message(deployment: Deployment) -> None:
    body = deployment.chat("hi", add_generation_prompt=False, echo=True)
    assert deployment.prompt_text == "<|user|>hi"
    assert body["choices"][0]["message"] | {"role": "user", "content": "hihello world"} == body["choices"][0]["message"]


def test_echo_of_another_role_adds_nothing(deployment: Deployment) -> None:
    assert deployment.chat("hi", echo=True)["choices"][0]["message"]["content"] == "hello world"


def test_the_response_role_is_the_operators(deploy) -> None:
    assert deploy(response_role="bot").chat()["choices"][0]["message"]["role"] == "bot"


def test_cached_tokens_where_the_deployment_reports_them(deploy) -> None:
    usage = deploy(enable_prompt_tokens_details=True).chat(n=2)["usage"]
    assert usage["prompt_tokens_details"] == {
        "cached_tokens": 3,
        "created_cache_tokens": None,
        "multimodal_tokens": None,
    }


def test_a_character_split_over_tokens_is_whole(deployment: Deployment) -> None:
    deployment.says("né 👍")
    assert deployment.chat()["choices"][0]["message"]["content"] == "né 👍"
    assert deployment.chat(max_tokens=5)["choices"][0]["message"]["content"] == "né \ufffd"


def test_ids(deployment: Deployment) -> None:
    assert deployment.chat(request_id="mine")["id"] == "chatcmpl-mine"
    body = {"messages": [{"role": "user", "content": "hi"}], "request_id": "mine"}
    answer = deployment.request("POST", "/v1/chat/completions", body, x_request_id="theirs")
    assert answer.body["id"] == "chatcmpl-theirs"
    assert answer.headers == {}


def test_the_request_id_header_is_answered_where_wanted(deploy) -> None:
    deployment = deploy(enable_request_id_headers=True)
    body = {"messages": [{"role": "user", "content": "hi"}]}
    answer = deployment.request("POST", "/v1/chat/completions", body, x_request_id="theirs")
    assert answer.headers == {"X-Request-Id": "theirs"}
    broken = deployment.request("POST", "/v1/chat/completions", body, x_request_id="a\r\nSet-Cookie: b")
    assert broken.headers["X-Request-Id"].isalnum()


def test_ignored_fields_are_named(deployment: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "colour": "red",
        "shape\n,": 1,
        "unset": None,
        "user": "me",
        "metadata": {},
        "store": True,
        "service_tier": "auto",
        "early_stopping": False,
        "kv_transfer_params": None,
    }
    answer = deployment.request("POST", "/v1/chat/completions", body)
    assert answer.headers == {"X-Ember-Ignored-Fields": "colour, shape??"}
    deployment.request("POST", "/v1/chat/completions", body)
    assert sum("colour" in record.getMessage() for record in caplog.records) <= 1


def test_ignored_fields_of_objects_are_named(deployment: Deployment) -> None:
    tool = {"type": "function", "strict": True, "function": {"name": "f"}}
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "repetition_detection": {"max_pattern": 4},
        "response_format": {"type": "json_object", "schema": {"type": "object"}, "foo": 1},
        "tools": [tool, tool],
        "tool_choice": "none",
    }
    answer = deployment.request("POST", "/v1/chat/completions", body)
    assert (
        answer.headers["X-Ember-Ignored-Fields"]
        == "repetition_detection.max_pattern, response_format.foo, tools.strict"
    )


def test_ignored_fields_beside_a_schema_are_named(deployment: Deployment) -> None:
    inner = {"name": "n", "description": "d", "strict": None, "schema": {"type": "object"}, "scheme": 1, "x": None}
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "response_format": {"type": "json_schema", "json_schema": inner},
    }
    answer = deployment.request("POST", "/v1/chat/completions", body)
    assert answer.headers["X-Ember-Ignored-Fields"] == "response_format.json_schema.scheme"


def test_priority_and_cache_salt_reach_the_engine(deployment: Deployment) -> None:
    deployment.chat(priority=7, cache_salt="pepper")
    assert deployment.engine.calls[-1][2:] == (7, "pepper")
    body = {"messages": [{"role": "user", "content": "hi"}], "priority": 7}
    deployment.request("POST", "/v1/chat/completions", body, x_vllm_priority="-2")
    assert deployment.engine.calls[-1][2:] == (-2, None)


def test_any_served_name_will_do(deploy) -> None:
    deployment = deploy(served_model_name=["big", "small"])
    for name in ("big", "small", "", None):
        assert deployment.chat(model=name)["model"] == "big"


def test_values_are_coerced_and_null_is_left_out(deployment: Deployment) -> None:
    deployment.chat(max_tokens="3", temperature="0.5", top_k=5.0, n=None, stop=None, stream="false", tools=None)
    sampling = deployment.engine.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_k, sampling.n) == (3, 0.5, 5, 1)


def test_what_the_template_does_not_read_is_named(deployment: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "hi"}],
        "chat_template_kwargs": {"enable_thinking": False, "unread_one": 1, "bos_token": "x", "tools": []},
        "documents": [{"text": "d"}],
        "tools": tools,
        "tool_choice": "none",
        "reasoning_effort": "none",
    }
    ours = "chat_template_kwargs.unread_one, chat_template_kwargs.bos_token, chat_template_kwargs.tools"
    answer = deployment.request("POST", "/v1/chat/completions", body)
    assert answer.headers == {"X-Ember-Ignored-Fields": ours}
    deployment.use_template("{{ messages[0].content }}")
    answer = deployment.request("POST", "/v1/chat/completions", {**body, "colour": 1})
    assert answer.headers == {
        "X-Ember-Ignored-Fields": f"colour, chat_template_kwargs.enable_thinking, {ours}, reasoning_effort, documents, "
        "tools"
    }
    assert sum("unread_one" in record.getMessage() for record in caplog.records) <= 1
    assert all("is not known" not in line for line in caplog.messages if "documents" in line)


def test_many_ignored_fields_fit_in_a_header(deployment: Deployment) -> None:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
    body |= {f"unknown{number}": number for number in range(100)}
    body |= {"chat_template_kwargs": {f"unread{number}": number for number in range(100)}}
    names = deployment.request("POST", "/v1/chat/completions", body).headers["X-Ember-Ignored-Fields"]
    assert names.count(",") == 31
