"""What is refused, and with which words: status, type, param and message of every rule."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.fakes import MAX_MODEL_LEN, VOCAB_SIZE, Deployment, refused

TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


# fields -> (param, message or its beginning). All 400 BadRequestError.
BOTH: list[tuple[dict[str, Any], str | None, str]] = [
    ({"max_tokens": 0}, "max_tokens", "max_tokens must be at least 1, got 0."),
    ({"max_tokens": -1}, "max_tokens", "max_tokens must be at least 1, got -1."),
    (
        {"max_tokens": MAX_MODEL_LEN + 1},
        "max_tokens",
        f"max_tokens={MAX_MODEL_LEN + 1} cannot be greater than max_model_len={MAX_MODEL_LEN}. Please request fewer "
        f"output tokens. (parameter=max_tokens, value={MAX_MODEL_LEN + 1})",
    ),
    ({"n": 0}, "n", "n must be at least 1, got 0."),
    ({"n": 129}, "n", "n must be at most 128, got 129."),
    (
        {"logit_bias": {str(i).zfill(4): 1 for i in range(VOCAB_SIZE + 1)}},
        "logit_bias",
        f"logit_bias must have at most {VOCAB_SIZE} entries, one for each token, got {VOCAB_SIZE + 1}.",
    ),
    ({"n": 2, "temperature": 0}, "n", "n must be 1 when using greedy sampling, got 2."),
    ({"temperature": 3}, "temperature", "temperature must be in [0, 2], got 3."),
    ({"temperature": -0.5}, "temperature", "temperature must be in [0, 2], got -0.5."),
    ({"temperature": float("nan")}, "temperature", "temperature must be in [0, 2], got nan."),
    ({"top_p": 0}, "top_p", "top_p must be in (0, 1], got 0."),
    ({"top_p": 1.5}, "top_p", "top_p must be in (0, 1], got 1.5."),
    ({"top_k": -2}, "top_k", "top_k must be 0 (disable), or at least 1, got -2."),
    ({"min_p": 2}, "min_p", "min_p must be in [0, 1], got 2."),
    ({"presence_penalty": 2.5}, "presence_penalty", "presence_penalty must be in [-2, 2], got 2.5."),
    ({"frequency_penalty": -3}, "frequency_penalty", "frequency_penalty must be in [-2, 2], got -3."),
    ({"repetition_penalty": 0}, "repetition_penalty", "repetition_penalty must be greater than zero, got 0."),
    ({"min_tokens": -1}, "min_tokens", "min_tokens must be greater than or equal to 0, got -1."),
    (
        {"min_tokens": 5, "max_tokens": 4},
        "min_tokens",
        "min_tokens must be less than or equal to max_tokens=4, got 5.",
    ),
    ({"stop": list("abcde")}, "stop", "stop must have at most 4 items, got 5."),
    ({"stop": ""}, "stop", "stop cannot contain an empty string."),
    ({"stop": ["a", ""]}, "stop", "stop cannot contain an empty string."),
    ({"stop_token_ids": [1, VOCAB_SIZE]}, "stop_token_ids", f"token_id(s) [{VOCAB_SIZE}] in stop_token_ids contain"),
    ({"stop_token_ids": [-1]}, "stop_token_ids", "token_id(s) [-1] in stop_token_ids contain"),
    ({"allowed_token_ids": []}, "allowed_token_ids", "allowed_token_ids must not be empty."),
    ({"allowed_token_ids": [VOCAB_SIZE]}, "allowed_token_ids", f"token_id(s) [{VOCAB_SIZE}] in allowed_token_ids"),
    ({"logit_bias": {"a": 1}}, "logit_bias", "Invalid key in 'logit_bias': 'a'"),
    (
        {"logit_bias": {str(VOCAB_SIZE): 1, "5": 1, "-1": 2, "0300": 0}},
        "logit_bias",
        f"token_id(s) [{VOCAB_SIZE}, -1] in logit_bias contain out-of-vocab token ids. Vocabulary size: {VOCAB_SIZE}. "
        f"An id out of vocabulary cannot be used. (parameter=logit_bias, value=[{VOCAB_SIZE}, -1])",
    ),
    (
        {"logit_bias": {"a": 1, "999": 1, "b": 1, "-7": float("nan")}},
        "logit_bias",
        "Invalid keys in 'logit_bias': 'a', 'b'. Keys must be token ids. (parameter=logit_bias, value='a', 'b') "
        "token_id(s) [999, -7] in logit_bias contain out-of-vocab token ids.",
    ),
    (
        {"logit_bias": {"a": 1, "5": 1, "1.5": 1, "": 2}},
        "logit_bias",
        "Invalid keys in 'logit_bias': 'a', '1.5', ''. Keys must be token ids.",
    ),
    ({"logit_bias": {"1": float("nan")}}, "logit_bias", "The value of '1' in 'logit_bias'"),
    ({"bad_words": [""]}, "bad_words", "bad_words contains '', which has no tokens."),
    ({"bad_words": ["a", " "]}, "bad_words", "bad_words contains ' ', which has no tokens."),
    ({"bad_words": ["a"] * 129}, "bad_words", "bad_words must have at most 128 entries, got 129."),
    (
        {"bad_words": [chr(0x4E00 + i) for i in range(65)]},
        "bad_words",
        "bad_words must have at most 128 entries after tokenising, got 130.",
    ),
    (
        {"prompt_logprobs": 21},
        "prompt_logprobs",
        "Requested prompt logprobs of 21, which is greater than max allowed: 20",
    ),
    ({"prompt_logprobs": -2}, "prompt_logprobs", "`prompt_logprobs` must be a positive value or -1, got -2."),
    (
        {"prompt_logprobs": 1, "stream": True},
        "prompt_logprobs",
        "`prompt_logprobs` are not available when `stream=True`.",
    ),
    ({"prompt_logprobs": -1, "stream": True}, "prompt_logprobs", "`prompt_logprobs` are not available"),
    (
        {"stream_options": {"include_usage": True}},
        "stream_options",
        "Stream options can only be defined when `stream=True`.",
    ),
    ({"cache_salt": ""}, "cache_salt", "cache_salt must be"),
    ({"cache_salt": "a" * 129}, "cache_salt", "cache_salt must be"),
    ({"cache_salt": "a@b"}, "cache_salt", "cache_salt must be"),
    ({"cache_salt": "a/b"}, "cache_salt", "cache_salt must be"),
    ({"cache_salt": "a\\b"}, "cache_salt", "cache_salt must be"),
    ({"cache_salt": "a\0b"}, "cache_salt", "cache_salt must be"),
    (
        {"truncate_prompt_tokens": MAX_MODEL_LEN + 1},
        "truncate_prompt_tokens",
        f"truncate_prompt_tokens={MAX_MODEL_LEN + 1} cannot be greater than max_model_len={MAX_MODEL_LEN}.",
    ),
    ({"truncate_prompt_tokens": 0}, "prompt", "The decoder prompt cannot be empty"),
    ({"best_of": 1, "n": 2}, "best_of", "best_of must be greater than or equal to n, got n=2 and best_of=1."),
    (
        {"response_format": {"type": "json_schema"}},
        "response_format",
        "When response_format type is 'json_schema', the 'json_schema' field must be provided.",
    ),
    ({"response_format": {"type": "yaml"}}, "response_format", "response_format type must be one of"),
]

# What comes in a later version.
LATER_BOTH: dict[str, Any] = {
    "logits_processors": ["x"],
    "prompt_embeds": "AAAA",
    "audio": {"voice": "alloy"},
    "modalities": ["text", "audio"],
    "prediction": {"type": "content", "content": "x"},
    "kv_transfer_params": {"a": 1},
}
LATER_CHAT: dict[str, Any] = {
    "mm_processor_kwargs": {"a": 1},
    "media_io_kwargs": {"a": 1},
}
LATER_COMPLETIONS: dict[str, Any] = {
    "functions": [{"name": "f"}],
    "function_call": "auto",
    "thinking_token_budget": 10,
}

CHAT: list[tuple[dict[str, Any], str | None, str]] = [
    *((fields, param, message) for fields, param, message in BOTH),
    *(({name: value}, name, f"`{name}` is not supported by this version") for name, value in LATER_BOTH.items()),
    *(({name: value}, name, f"`{name}` is not supported by this version") for name, value in LATER_CHAT.items()),
    *(
        ({"thinking_token_budget": value}, "thinking_token_budget", "thinking_token_budget must be a whole number")
        for value in (-2, 1.5, True, "8", 2**31)
    ),
    ({"thinking_token_budget": 8}, "thinking_token_budget", "thinking_token_budget needs a model whose reasoning"),
    (
        {"max_completion_tokens": 1000, "max_tokens": 1},
        "max_completion_tokens",
        f"max_completion_tokens=1000 cannot be greater than max_model_len={MAX_MODEL_LEN}.",
    ),
    (
        {"logprobs": True, "top_logprobs": 21},
        "top_logprobs",
        "Requested sample logprobs of 21, which is greater than max allowed: 20",
    ),
    (
        {"logprobs": True, "top_logprobs": -1},
        "top_logprobs",
        f"Requested sample logprobs of {VOCAB_SIZE}, which is greater than max allowed: 20",
    ),
    ({"logprobs": True, "top_logprobs": -2}, "top_logprobs", "`top_logprobs` must be a positive value or -1"),
    ({"top_logprobs": 2}, "top_logprobs", "when using `top_logprobs`, `logprobs` must be set to true."),
    ({"tools": []}, "tools", "`tools` must not be an empty list."),
    ({"tool_choice": "auto"}, "tool_choice", "When using `tool_choice`, `tools` must be set."),
    ({"tool_choice": "perhaps", "tools": [TOOL]}, "tool_choice", "Invalid value for `tool_choice`: 'perhaps'"),
    (
        {"tools": [TOOL]},
        "tools",
        '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set. (the format of this '
        "model's tool calls is unknown; set TOOL_CALL_PARSER; ",
    ),
    (
        {"tools": [TOOL], "tool_choice": "auto"},
        "tool_choice",
        '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
    ),
    (
        {"tools": [TOOL], "tool_choice": "required"},
        "tool_choice",
        'tool_choice="required" requires --tool-call-parser to be set. (the format of this model',
    ),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "sub"}}},
        "tool_choice",
        "The tool specified in `tool_choice` does not match any of the specified `tools`",
    ),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "add"}}},
        "tool_choice",
        "A named tool_choice requires --tool-call-parser to be set. (the format of this model",
    ),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function"}},
        "tool_choice",
        "Expected field `function` with a `name` in `tool_choice`.",
    ),
    ({"tools": [{"type": "web_search"}]}, "tools", "`tools.0.type` must be 'function', got 'web_search'."),
    ({"tools": [TOOL, {"type": "function"}]}, "tools", "`tools.1.function` must be an object."),
    ({"tools": [{"function": {"name": ""}}]}, "tools", "`tools.0.function.name` must be a non-empty string."),
    (
        {"tools": [{"function": {"name": "f", "parameters": []}}]},
        "tools",
        "`tools.0.function.parameters` must be a JSON schema, an object.",
    ),
    (
        {"tools": [{"function": {"name": "f", "strict": 1}}]},
        "tools",
        "`tools.0.function.strict` must be true or false.",
    ),
    ({"functions": [{"name": "f"}], "tools": [TOOL]}, "functions", "`functions` cannot be used beside `tools`"),
    ({"function_call": "auto"}, "function_call", "When using `function_call`, `functions` must be set."),
    ({"functions": []}, "functions", "`functions` must not be an empty list."),
    ({"functions": [{"name": "f"}]}, "functions", '"auto" tool choice requires --enable-auto-tool-choice'),
    (
        {"functions": [{"name": "f"}], "function_call": {"name": "g"}},
        "function_call",
        "The tool specified in `function_call` does not match any of the specified `tools`",
    ),
    (
        {"chat_template": "{{ messages }}"},
        "chat_template",
        "Chat template is passed with request, but --trust-request-chat-template is not set. "
        "Refused request with untrusted chat template.",
    ),
    ({"chat_template_kwargs": {"chat_template": ""}}, "chat_template_kwargs", "`chat_template` is not allowed"),
    ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs", "`tokenize` is not allowed"),
    (
        {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
        "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
    ),
    (
        {"messages": [{"role": "forbidden", "content": "x"}]},
        None,
        "Only user and assistant roles are supported!",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages",
        "org/tiny is not a multimodal model",
    ),
    (
        {"messages": [{"role": "user", "content": [{"image_url": "x"}]}]},
        "messages",
        "org/tiny is not a multimodal model",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "smell"}]}]},
        "messages",
        "Unsupported chat content part type: 'smell'. Supported types: text,",
    ),
    ({"messages": [{"role": "user", "content": [{}]}]}, "messages", "A content part must have a `type`"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages",
        "A content part of type 'text' must have a string `text`.",
    ),
]

COMPLETIONS: list[tuple[dict[str, Any], str | None, str]] = [
    *((fields, param, message) for fields, param, message in BOTH),
    *(({name: value}, name, f"`{name}` is not supported by this version") for name, value in LATER_BOTH.items()),
    *(({name: value}, name, f"`{name}` is not supported by this") for name, value in LATER_COMPLETIONS.items()),
    ({"suffix": "end"}, "suffix", "suffix is not currently supported by org/tiny, whose tokenizer has no tokens"),
    ({"prompt": None}, "prompt", "Either prompt or prompt_embeds must be provided and non-empty."),
    ({"prompt": ""}, "prompt", "Either prompt or prompt_embeds must be provided and non-empty."),
    ({"prompt": []}, "prompt", "Either prompt or prompt_embeds must be provided and non-empty."),
    ({"prompt": [""]}, "prompt", "The decoder prompt cannot be empty"),
    ({"prompt": [[]]}, "prompt", "The decoder prompt cannot be empty"),
    ({"prompt": [1, 2], "truncate_prompt_tokens": 0}, "prompt", "The decoder prompt cannot be empty"),
    ({"prompt": [1, VOCAB_SIZE]}, "prompt", f"token_id(s) [{VOCAB_SIZE}] in prompt contain out-of-vocab"),
    ({"prompt": [[1], [-1]]}, "prompt", "token_id(s) [-1] in prompt contain out-of-vocab"),
    ({"prompt": ["a"] * 43, "n": 3}, "n", "n times the number of prompts must be at most 128, got 129."),
    ({"prompt": ["a"] * 1025}, "prompt", "prompt must have at most 1024 items, got 1025."),
    ({"prompt": [[1]] * 1025}, "prompt", "prompt must have at most 1024 items, got 1025."),
    ({"prompt": [2**70]}, "prompt", f"token_id(s) [{2**70}] in prompt contain out-of-vocab"),
    (
        {"logprobs": 21},
        "logprobs",
        "Requested sample logprobs of 21, which is greater than max allowed: 20",
    ),
    ({"logprobs": -2}, "logprobs", "`logprobs` must be a positive value or -1, got -2."),
    (
        {"prompt": [1] * (MAX_MODEL_LEN + 1)},
        "input_tokens",
        f"This model's maximum context length is {MAX_MODEL_LEN} tokens. However, your prompt contains "
        f"{MAX_MODEL_LEN + 1} input tokens, which exceeds this limit even without any output tokens. "
        "Please reduce the length of the input prompt.",
    ),
    ({"prompt": [1] * MAX_MODEL_LEN}, "max_tokens", "max_tokens must be at least 1, got 0."),
]


def named(cases: list[tuple[dict[str, Any], str | None, str]]) -> list[Any]:
    return [pytest.param(*case, id=f"{number}-{'-'.join(case[0])}"[:48]) for number, case in enumerate(cases)]


@pytest.mark.parametrize(("fields", "param", "message"), named(CHAT))
def test_chat(deployment: Deployment, fields: dict[str, Any], param: str | None, message: str) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    error = refused(deployment, "/v1/chat/completions", body)
    assert (error.status, error.type, error.param) == (400, "BadRequestError", param)
    assert error.message.startswith(message)


@pytest.mark.parametrize(("fields", "param", "message"), named(COMPLETIONS))
def test_completions(deployment: Deployment, fields: dict[str, Any], param: str | None, message: str) -> None:
    error = refused(deployment, "/v1/completions", {"prompt": "hi", **fields})
    assert (error.status, error.type, error.param) == (400, "BadRequestError", param)
    assert error.message.startswith(message)


HARMLESS: dict[str, Any] = {
    "best_of": 1,
    "use_beam_search": False,
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "logprob_token_ids": [],
    "thinking_token_budget": -1,
    "cache_salt": "x" * 128,
    "min_tokens": 0,
    "top_k": -1,
    "truncate_prompt_tokens": -1,
    "prompt_logprobs": 20,
    "stop": ["a", "b", "c", "d"],
    "length_penalty": 1.0,
    "early_stopping": True,
}
HARMLESS_CHAT: dict[str, Any] = {
    "tool_choice": "none",
    "function_call": "none",
    "parallel_tool_calls": True,
    "add_generation_prompt": False,
    "reasoning_effort": "low",
    "include_reasoning": False,
    "enable_thinking": True,
    "chat_template_kwargs": {"enable_thinking": True, "thinking": None, "reasoning_effort": "high"},
}


@pytest.mark.parametrize(("name", "value"), [*HARMLESS.items(), *HARMLESS_CHAT.items()])
def test_what_asks_for_nothing_special_passes(deployment: Deployment, name: str, value: Any) -> None:
    deployment.chat(**{name: value})
    if name not in HARMLESS_CHAT:
        deployment.complete(**{name: value})
