"""A stream, put together, is the whole answer: text, token ids, log probabilities and reasons, whatever is combined."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.api.fakes import Deployment

SAID = "say 👍 wörld<|user|>done"
PROMPTS: dict[str, Any] = {"text": "hé <|user|>hi", "ids": [261, 71, 72, 263, 5], "both": ["a", "bc"]}
SWITCHES: list[dict[str, Any]] = [
    {"stop": "rld"},
    {"stop": ["rl", "👍"], "include_stop_str_in_output": True},
    {"max_tokens": 5},
    {"max_tokens": 0, "echo": True},
    {"skip_special_tokens": False},
    {"ignore_eos": True, "min_tokens": 3, "max_tokens": 12},
    {"stream_interval": 4},
]


def joined(chunks: list[Any], num_choices: int) -> list[dict[str, Any]]:
    """The choices of a streamed completion."""
    choices: list[dict[str, Any]] = [
        {"text": "", "token_ids": [], "prompt_token_ids": None, "logprobs": None} for _ in range(num_choices)
    ]
    for chunk in chunks:
        for part in chunk["choices"]:
            choice = choices[part["index"]]
            assert choice.get("finish_reason") is None, "nothing may follow the end"
            choice["text"] += part["text"]
            choice["token_ids"] += part.get("token_ids", [])
            choice["prompt_token_ids"] = choice["prompt_token_ids"] or part.get("prompt_token_ids")
            if part["logprobs"] is not None:
                columns = choice["logprobs"] = choice["logprobs"] or {name: [] for name in part["logprobs"]}
                for name, values in part["logprobs"].items():
                    columns[name] += values
            choice["finish_reason"], choice["stop_reason"] = part["finish_reason"], part["stop_reason"]
    return choices


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda switches: " ".join(switches))
@pytest.mark.parametrize("kind", PROMPTS)
def test_completions(deployment: Deployment, kind: str, switches: dict[str, Any]) -> None:
    deployment.says(deployment.tokenizer.encode(SAID, add_special_tokens=False), per_step=2)
    for echo, logprobs, n, best_of in itertools.product((False, True), (None, 0, 3), (1, 2), (0, 1)):
        fields = {"echo": echo, "logprobs": logprobs, "n": n, "best_of": n + best_of, "return_token_ids": True}
        fields |= {"max_tokens": 50, **switches}
        choices = deployment.complete(PROMPTS[kind], **fields)["choices"]
        streamed = joined(deployment.stream_completion(PROMPTS[kind], **fields), len(choices))
        for whole, stream in zip(choices, streamed, strict=True):
            if fields["max_tokens"] == 0 and logprobs is not None:
                assert whole["logprobs"]["text_offset"]
            assert stream == {name: whole[name] for name in stream}
            assert (whole["logprobs"] is None) == (logprobs is None)
            if logprobs is not None:
                columns = whole["logprobs"]
                assert len({len(column) for column in columns.values()}) == 1
                num_echoed = len(whole["prompt_token_ids"]) if fields["echo"] else 0
                assert len(columns["tokens"]) == num_echoed + len(whole["token_ids"])
                assert columns["text_offset"] == sorted(columns["text_offset"])


@pytest.mark.parametrize("switches", [*SWITCHES[:3], *SWITCHES[4:]], ids=lambda switches: " ".join(switches))
def test_chats(deployment: Deployment, switches: dict[str, Any]) -> None:
    deployment.says(deployment.tokenizer.encode(SAID, add_special_tokens=False), per_step=2)
    for echo, logprobs, n, best_of in itertools.product((False, True), (None, 0, 3), (1, 2), (0, 1)):
        fields: dict[str, Any] = {"echo": echo, "n": n, "best_of": n + best_of, "return_token_ids": True}
        if echo:
            fields |= {"continue_final_message": True}
        if logprobs is not None:
            fields |= {"logprobs": True, "top_logprobs": logprobs}
        fields |= {"max_tokens": 50, **switches}
        answer = deployment.chat("some words", **fields)
        chunks = deployment.stream_chat("some words", **fields)
        assert [chunk["prompt_token_ids"] for chunk in chunks[:n]] == [answer["prompt_token_ids"]] * n
        for whole in answer["choices"]:
            parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == whole["index"]]
            assert "".join(part["delta"].get("content", "") for part in parts) == whole["message"]["content"]
            assert [i for part in parts for i in part.get("token_ids", [])] == whole["token_ids"]
            content = [entry for part in parts if part["logprobs"] for entry in part["logprobs"]["content"]]
            assert content == (whole["logprobs"] or {"content": []})["content"]
            assert len(content) == (len(whole["token_ids"]) if logprobs is not None else 0)
            assert (parts[-1]["finish_reason"], parts[-1]["stop_reason"]) == (
                whole["finish_reason"],
                whole["stop_reason"],
            )
