"""What is refused of best_of, beam search, repetition detection and the log probabilities of given tokens."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.fakes import VOCAB_SIZE, Deployment, refused

# fields -> (param, message or its beginning). All 400 BadRequestError.
BOTH: list[tuple[dict[str, Any], str, str]] = [
    ({"best_of": 129}, "best_of", "best_of must be at most 128, got 129."),
    ({"best_of": 2, "temperature": 0}, "best_of", "best_of must be 1 when using greedy sampling, got 2."),
    ({"logprob_token_ids": [1]}, "logprob_token_ids", "when using `logprob_token_ids`, `logprobs` must be set."),
    ({"logprob_token_ids": [1], "best_of": 2}, "logprob_token_ids", "when using `logprob_token_ids`, `logprobs`"),
    (
        {"logprob_token_ids": [VOCAB_SIZE], "logprobs": 1},
        "logprob_token_ids",
        f"token_id(s) [{VOCAB_SIZE}] in logprob_token_ids contain out-of-vocab token ids.",
    ),
    (
        {"logprob_token_ids": [1] * 129, "logprobs": 1},
        "logprob_token_ids",
        "Requested logprob_token_ids of length 129, which is greater than max allowed: 128",
    ),
    (
        {"repetition_detection": {"max_pattern_size": 2, "min_pattern_size": 3, "min_count": 2}},
        "repetition_detection",
        "repetition_detection needs 0 <= min_pattern_size <= max_pattern_size <= 1024, got 3 and 2.",
    ),
    ({"repetition_detection": {"max_pattern_size": 1025}}, "repetition_detection", "repetition_detection needs 0 <="),
    (
        {"repetition_detection": {"max_pattern_size": 3}},
        "repetition_detection",
        "repetition_detection.min_count must be at least 2, got 0.",
    ),
    *(
        (
            {"use_beam_search": True, "logprobs": 1, name: value},
            name,
            f"`{name}` cannot be used with `use_beam_search`.",
        )
        for name, value in {
            "stop": "x",
            "logit_bias": {"1": 1},
            "bad_words": ["x"],
            "allowed_token_ids": [1],
            "logprob_token_ids": [1],
            "repetition_detection": {"max_pattern_size": 3, "min_count": 2},
            "presence_penalty": 1.0,
            "frequency_penalty": -1.0,
            "repetition_penalty": 1.1,
        }.items()
    ),
    ({"use_beam_search": True, "n": 129}, "n", "n must be at most 128, got 129."),
    (
        {"use_beam_search": True, "length_penalty": 21},
        "length_penalty",
        "length_penalty must be in [-20, 20], got 21.",
    ),
    (
        {"use_beam_search": True, "length_penalty": float("nan")},
        "length_penalty",
        "length_penalty must be in [-20, 20], got nan.",
    ),
    (
        {"use_beam_search": True, "early_stopping": "always"},
        "early_stopping",
        "early_stopping must be true, false or \"never\", got 'always'.",
    ),
]
COMPLETIONS: list[tuple[dict[str, Any], str, str]] = [
    *BOTH,
    (
        {"echo": True, "max_tokens": 0, "logprobs": 1, "logprob_token_ids": [1]},
        "logprob_token_ids",
        "`logprob_token_ids` are of generated tokens, and with `max_tokens` 0 there are none.",
    ),
    ({"use_beam_search": True, "stream": True}, "stream", "`stream` cannot be used with `use_beam_search`"),
    (
        {"use_beam_search": True, "echo": True, "logprobs": 1},
        "use_beam_search",
        "`echo` with `logprobs` cannot be used with `use_beam_search`.",
    ),
    (
        {"use_beam_search": True, "echo": True, "max_tokens": 0},
        "max_tokens",
        "`max_tokens` must be at least 1 with `use_beam_search`.",
    ),
    (
        {"use_beam_search": True, "echo": True, "max_completion_tokens": 0},
        "max_completion_tokens",
        "`max_completion_tokens` must be at least 1 with `use_beam_search`.",
    ),
    ({"use_beam_search": True, "prompt": ["a"] * 65, "best_of": 2}, "n", "n times the number of prompts must be at"),
]


@pytest.mark.parametrize(("fields", "param", "message"), BOTH)
def test_chat(deployment: Deployment, fields: dict[str, Any], param: str, message: str) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    if "logprobs" in body:
        body["logprobs"] = True
    error = refused(deployment, "/v1/chat/completions", body)
    assert (error.status, error.type, error.param) == (400, "BadRequestError", param)
    assert error.message.startswith(message)


@pytest.mark.parametrize(("fields", "param", "message"), COMPLETIONS)
def test_completions(deployment: Deployment, fields: dict[str, Any], param: str, message: str) -> None:
    error = refused(deployment, "/v1/completions", {"prompt": "hi", **fields})
    assert (error.status, error.type, error.param) == (400, "BadRequestError", param)
    assert error.message.startswith(message)
