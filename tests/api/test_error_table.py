"""The table of errors that clients of vLLM know, row by row: status, type, param and the words they match on."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from ember.front.api.openai_forms import openai_error
from ember.front.errors import ApiError
from tests.api.fakes import MAX_MODEL_LEN, VOCAB_SIZE, Deployment

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
LONGEST = MAX_MODEL_LEN
EMPTY: list[Any] = ["", [], None]
EMPTY_IN_LISTS: list[Any] = [[""], ["a", ""], [[]], [[1], []]]


class Row(NamedTuple):
    case: str
    path: str
    fields: dict[str, Any]
    param: str | None
    words: str
    status: int = 400
    type: str = "BadRequestError"


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


ROWS = [
    Row("a field is missing", CHAT, {"messages": None}, "body.messages", "1 validation error", type="Bad Request"),
    Row("a value has another type", CHAT, {"n": "many"}, "body.n", "1 validation error", type="Bad Request"),
    Row("model unknown", CHAT, {"model": "x"}, "model", "The model `x` does not exist.", 404, "NotFoundError"),
    Row("path unknown", "/v1/nothing", {}, None, "Not Found", 404, "Not Found"),
    Row(
        "prompt tokens > max_model_len",
        COMPLETIONS,
        {"prompt": [1] * (LONGEST + 1)},
        "input_tokens",
        f"This model's maximum context length is {LONGEST} tokens. However, your prompt contains {LONGEST + 1} input "
        "tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt",
    ),
    Row("prompt text far too long", COMPLETIONS, {"prompt": "a" * 10**6}, "input_text", "maximum context length is"),
    *(
        Row(
            f"{name} > max_model_len",
            CHAT,
            {name: LONGEST + 1},
            name,
            f"{name}={LONGEST + 1} cannot be greater than max_model_len={LONGEST}. Please request fewer output tokens.",
        )
        for name in ("max_tokens", "max_completion_tokens")
    ),
    Row(
        "prompt == max_model_len",
        COMPLETIONS,
        {"prompt": [1] * LONGEST},
        "max_tokens",
        "max_tokens must be at least 1, got 0.",
    ),
    Row("max_tokens 0", COMPLETIONS, {"max_tokens": 0}, "max_tokens", "max_tokens must be at least 1, got 0."),
    Row(
        "truncate_prompt_tokens > max_model_len",
        CHAT,
        {"truncate_prompt_tokens": LONGEST + 1},
        "truncate_prompt_tokens",
        "cannot be greater than max_model_len",
    ),
    *(
        Row(
            f"empty prompt {prompt!r}",
            COMPLETIONS,
            {"prompt": prompt},
            "prompt",
            "Either prompt or prompt_embeds must be provided and non-empty.",
        )
        for prompt in EMPTY
    ),
    *(
        Row(
            f"an empty prompt in a list, {prompt!r}",
            COMPLETIONS,
            {"prompt": prompt},
            "prompt",
            "The decoder prompt cannot be empty. Either prompt or prompt_embeds must be provided and non-empty.",
        )
        for prompt in EMPTY_IN_LISTS
    ),
    *(
        Row(
            f"empty prompt_embeds {embeds!r}",
            COMPLETIONS,
            {"prompt": "", "prompt_embeds": embeds},
            "prompt",
            "Either prompt or prompt_embeds must be provided and non-empty.",
        )
        for embeds in EMPTY
    ),
    Row("token id out of vocab", COMPLETIONS, {"prompt": [VOCAB_SIZE]}, "prompt", "out of vocabulary"),
    Row("> 1024 prompts", COMPLETIONS, {"prompt": ["a"] * 1025}, "prompt", "at most 1024 items, got 1025"),
    Row("stop > 4 strings", CHAT, {"stop": list("abcde")}, "stop", "stop must have at most 4 items, got 5."),
    Row("empty stop string", CHAT, {"stop": [""]}, "stop", "stop cannot contain an empty string."),
    Row("n > 16384", CHAT, {"n": 16385}, "n", "n must be at most"),
    Row("n < 1", CHAT, {"n": 0}, "n", "n must be at least 1, got 0."),
    Row("n > 1 greedy", CHAT, {"n": 2, "temperature": 0}, "n", "n must be 1 when using greedy sampling, got 2."),
    Row("temperature", CHAT, {"temperature": 3}, "temperature", "temperature must be in [0, 2], got 3."),
    Row("top_p", CHAT, {"top_p": 0}, "top_p", "top_p must be in (0, 1], got 0."),
    Row("top_k", CHAT, {"top_k": -2}, "top_k", "top_k must be 0 (disable), or at least 1, got -2."),
    Row("min_p", CHAT, {"min_p": -1}, "min_p", "min_p must be in [0, 1], got -1."),
    Row("presence_penalty", CHAT, {"presence_penalty": 3}, "presence_penalty", "must be in [-2, 2], got 3."),
    Row("frequency_penalty", CHAT, {"frequency_penalty": 3}, "frequency_penalty", "must be in [-2, 2], got 3."),
    Row("repetition_penalty", CHAT, {"repetition_penalty": 0}, "repetition_penalty", "must be greater than zero"),
    Row(
        "logprobs > max_logprobs",
        COMPLETIONS,
        {"logprobs": 21},
        "logprobs",
        "Requested sample logprobs of 21, which is greater than max allowed: 20",
    ),
    Row(
        "top_logprobs > max_logprobs",
        CHAT,
        {"logprobs": True, "top_logprobs": 21},
        "top_logprobs",
        "Requested sample logprobs of 21, which is greater than max allowed: 20",
    ),
    Row("top_logprobs alone", CHAT, {"top_logprobs": 2}, "top_logprobs", "`logprobs` must be set to true"),
    Row(
        "prompt_logprobs with stream",
        CHAT,
        {"prompt_logprobs": 1, "stream": True},
        "prompt_logprobs",
        "`prompt_logprobs` are not available when `stream=True`.",
    ),
    Row("logit_bias bad key", CHAT, {"logit_bias": {"a": 1}}, "logit_bias", "Invalid key in 'logit_bias': 'a'"),
    Row("logit_bias out of vocab", CHAT, {"logit_bias": {"300": 1}}, "logit_bias", "out of vocabulary"),
    Row(
        "logit_bias no number",
        CHAT,
        {"logit_bias": {"1": "x"}},
        "body.logit_bias.1",
        "1 validation error",
        type="Bad Request",
    ),
    Row("allowed_token_ids empty", CHAT, {"allowed_token_ids": []}, "allowed_token_ids", "must not be empty"),
    Row("allowed_token_ids", CHAT, {"allowed_token_ids": [-1]}, "allowed_token_ids", "out of vocabulary"),
    Row("bad_words of nothing", CHAT, {"bad_words": [" "]}, "bad_words", "has no tokens"),
    Row("bad_words > 128", CHAT, {"bad_words": ["a"] * 129}, "bad_words", "at most 128 entries, got 129"),
    Row(
        "stream_options without stream",
        CHAT,
        {"stream_options": {"include_usage": True}},
        "stream_options",
        "Stream options can only be defined when `stream=True`.",
    ),
    Row("tools: []", CHAT, {"tools": []}, "tools", "`tools` must not be an empty list."),
    Row(
        "tool_choice without tools",
        CHAT,
        {"tool_choice": "auto"},
        "tool_choice",
        "When using `tool_choice`, `tools` must be set.",
    ),
    Row(
        "tool_choice unknown",
        CHAT,
        {"tools": [TOOL], "tool_choice": "maybe"},
        "tool_choice",
        "Invalid value for `tool_choice`",
    ),
    Row(
        "named tool not in tools",
        CHAT,
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "sub"}}},
        "tool_choice",
        "The tool specified in `tool_choice` does not match any of the specified `tools`",
    ),
    Row(
        "auto without a parser",
        CHAT,
        {"tools": [TOOL], "tool_choice": "auto"},
        "tool_choice",
        '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
    ),
    Row(
        "required without a parser",
        CHAT,
        {"tools": [TOOL], "tool_choice": "required"},
        "tool_choice",
        'tool_choice="required" requires --tool-call-parser to be set',
    ),
    Row(
        "chat template, not trusted",
        CHAT,
        {"chat_template": "{{ messages }}"},
        "chat_template",
        "Chat template is passed with request, but --trust-request-chat-template is not set. Refused request with "
        "untrusted chat template.",
    ),
    Row(
        "template raises",
        CHAT,
        {"messages": [{"role": "forbidden", "content": "x"}]},
        None,
        "Only user and assistant roles are supported!",
    ),
    *(
        Row(
            f"chat_template_kwargs with {name}",
            CHAT,
            {"chat_template_kwargs": {name: "x"}},
            "chat_template_kwargs",
            f"`{name}` is not allowed in chat_template_kwargs.",
        )
        for name in ("chat_template", "tokenize")
    ),
    Row(
        "json_schema without one",
        CHAT,
        {"response_format": {"type": "json_schema"}},
        "response_format",
        "the 'json_schema' field must be provided",
    ),
    Row("no constraint", CHAT, {"structured_outputs": {}}, "structured_outputs", "structured_outputs"),
    Row(
        "two constraints",
        COMPLETIONS,
        {"structured_outputs": {"regex": "a", "choice": ["a"]}},
        "structured_outputs",
        "structured_outputs",
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.case)
def test_row(deployment: Deployment, row: Row) -> None:
    body = {"messages": user("hi")} if row.path == CHAT else {"prompt": "hi"}
    with pytest.raises(ApiError) as caught:
        deployment.request("POST", row.path, {**body, **row.fields})
    error = openai_error(caught.value)["error"]
    assert (error["code"], error["type"], error["param"]) == (row.status, row.type, row.param)
    assert row.words in error["message"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert not deployment.engine.calls


def test_no_chat_template(deployment: Deployment) -> None:
    deployment.services.template = None
    with pytest.raises(
        ApiError, match="As of transformers v4.44, default chat template is no longer allowed"
    ) as caught:
        deployment.chat()
    assert (caught.value.status, caught.value.param) == (400, None)


def test_max_tokens_is_cut_and_no_error_where_both_fit_alone(deployment: Deployment) -> None:
    prompt = [1] * (LONGEST - 10)
    deployment.complete(prompt, max_tokens=LONGEST)
    assert deployment.engine.sampling.max_tokens == 10


def test_max_tokens_0_with_echo_scores(deployment: Deployment) -> None:
    deployment.complete("hi", max_tokens=0, echo=True, logprobs=1)
    assert deployment.engine.sampling.max_tokens == 0


def test_another_method(deployment: Deployment) -> None:
    with pytest.raises(ApiError, match="Method Not Allowed") as caught:
        deployment.request("GET", CHAT)
    assert (caught.value.status, caught.value.type, caught.value.param) == (405, "Method Not Allowed", None)
