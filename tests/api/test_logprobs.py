"""Log probabilities in their three shapes."""

from __future__ import annotations

import json
import math

import pytest
from openai.types.chat import ChatCompletion

from ember.front.api.logprobs import (
    CompletionLogprobs,
    TokenNames,
    chat_logprobs,
    finite,
    prompt_logprobs,
    prompt_offsets,
)
from ember.front.text.detokenizer import Detokenizer
from ember.front.text.tokenizer import Tokenizer
from ember.wire import TokenLogprobs
from tests.api.fakes import Deployment


@pytest.mark.parametrize("logprob", [-math.inf, math.nan, -1e9, math.inf])
def test_what_json_cannot_say_is_minus_9999(logprob: float) -> None:
    assert finite(logprob) == -9999.0
    assert finite(-0.25) == -0.25


def test_the_sampled_token_comes_first(deployment: Deployment) -> None:
    deployment.says("h")
    body = deployment.chat(logprobs=True, top_logprobs=3)
    ChatCompletion.model_validate(body)
    json.dumps(body, allow_nan=False)
    first = body["choices"][0]["logprobs"]["content"][0]
    token_id = deployment.tokenizer.token_id("h")
    assert token_id is not None
    following = [deployment.tokenizer.token_text(token_id + shift) for shift in (1, 2)]
    assert first == {
        "token": "h",
        "logprob": -1.0,
        "bytes": [104],
        "top_logprobs": [
            {"token": "h", "logprob": -1.0, "bytes": [104]},
            {"token": following[0], "logprob": -0.5, "bytes": list(following[0].encode())},
            {"token": following[1], "logprob": -2.0, "bytes": list(following[1].encode())},
        ],
    }


@pytest.mark.parametrize("num_top", [0, 1, 4])
def test_there_are_as_many_alternatives_as_asked(deployment: Deployment, num_top: int) -> None:
    content = deployment.chat(logprobs=True, top_logprobs=num_top)["choices"][0]["logprobs"]["content"]
    assert {len(entry["top_logprobs"]) for entry in content} == {num_top}
    if num_top == 4:
        assert content[0]["top_logprobs"][-1]["logprob"] == -9999.0


def test_the_bytes_of_split_characters_can_be_joined(deployment: Deployment) -> None:
    deployment.says("👍")
    content = deployment.chat(logprobs=True)["choices"][0]["logprobs"]["content"]
    assert bytes([byte for entry in content[:-1] for byte in entry["bytes"]]).decode() == "👍"
    assert [entry["token"] for entry in content[:-1]] == ["\ufffd"] * 4


def test_tokens_as_ids(deploy) -> None:
    for deployment, fields in (
        (deploy(), {"return_tokens_as_token_ids": True}),
        (deploy(return_tokens_as_token_ids=True), {}),
    ):
        token_id = deployment.tokenizer.token_id("hello")
        name = f"token_id:{token_id}"
        content = deployment.chat(logprobs=True, top_logprobs=1, **fields)["choices"][0]["logprobs"]["content"]
        assert content[0]["token"] == content[0]["top_logprobs"][0]["token"] == name
        logprobs = deployment.complete(logprobs=1, **fields)["choices"][0]["logprobs"]
        assert logprobs["tokens"][0] == name
        assert list(logprobs["top_logprobs"][0]) == [name, f"token_id:{token_id + 1}"]
    off = deploy(return_tokens_as_token_ids=True).chat(logprobs=True, return_tokens_as_token_ids=False)
    assert off["choices"][0]["logprobs"]["content"][0]["token"] == "hello"


def test_columns_run_on_over_calls(tokenizer: Tokenizer) -> None:
    names = TokenNames(tokenizer, as_ids=False)
    columns = CompletionLogprobs(2, names, Detokenizer(tokenizer))
    ids = tokenizer.encode("hello wo", add_special_tokens=False)
    entries = [TokenLogprobs(i, -1.0, 1, [i, 0], [-1.0, -3.0]) for i in ids]
    first, rest = columns.take(ids[:1], entries[:1]), columns.take(ids[1:], entries[1:])
    assert first["text_offset"] + rest["text_offset"] == [0, 5, 7]
    assert rest["top_logprobs"] == [{" w": -1.0, "!": -3.0}, {"o": -1.0, "!": -3.0}]


def test_of_two_tokens_with_one_name_the_first_stays(tokenizer: Tokenizer) -> None:
    broken = [tokenizer.token_id("Ã"), tokenizer.token_id("Ä")]  # two different first bytes of a character
    assert None not in broken
    first, second = (token_id or 0 for token_id in broken)
    entry = TokenLogprobs(first, -1.0, 2, [second, first], [-0.5, -1.0])
    columns = CompletionLogprobs(2, TokenNames(tokenizer, as_ids=False), Detokenizer(tokenizer)).take([first], [entry])
    assert columns["top_logprobs"] == [{"\ufffd": -1.0}]


def test_prompt_logprobs_have_the_rank_of_each_token(tokenizer: Tokenizer) -> None:
    names = TokenNames(tokenizer, as_ids=False)
    entry = TokenLogprobs(70, -5.0, 9, [65, 66], [-0.1, -math.inf])
    assert prompt_logprobs([None, entry], 2, names) == [
        None,
        {
            "70": {"logprob": -5.0, "rank": 9, "decoded_token": names.name(70)},
            "65": {"logprob": -0.1, "rank": 1, "decoded_token": names.name(65)},
            "66": {"logprob": -9999.0, "rank": 2, "decoded_token": names.name(66)},
        },
    ]
    assert prompt_logprobs(None, 2, names) is None


def test_everything_with_minus_one(tokenizer: Tokenizer) -> None:
    names = TokenNames(tokenizer, as_ids=False)
    entry = TokenLogprobs(70, -5.0, 3, list(range(60, 75)), [-1.0] * 15)
    assert len(chat_logprobs([entry], -1, names)["content"][0]["top_logprobs"]) == 15
    assert len(CompletionLogprobs(-1, names, Detokenizer(tokenizer)).take([70], [entry])["top_logprobs"][0]) == 15
    positions = prompt_logprobs([entry], -1, names)
    assert positions is not None
    assert len(positions[0] or {}) == 15


def test_prompt_logprobs_of_a_chat(deployment: Deployment) -> None:
    body = deployment.chat("hi", prompt_logprobs=0)
    assert [entry and len(entry) for entry in body["prompt_logprobs"]] == [None, 1, 1, 1]


def test_of_more_than_was_asked_for_only_the_likeliest_are_shown(tokenizer: Tokenizer) -> None:
    """The engine has one number for a prompt's log probabilities, and a request has two: `logprobs` with `echo`, and
    `prompt_logprobs`."""
    names = TokenNames(tokenizer, as_ids=False)
    likely = TokenLogprobs(70, -0.1, 1, [70, 71, 72, 73], [-0.1, -2.0, -3.0, -4.0])
    unlikely = TokenLogprobs(69, -9.0, 50, [70, 71, 72, 73], [-0.1, -2.0, -3.0, -4.0])
    columns = CompletionLogprobs(2, names, Detokenizer(tokenizer)).take([70, 69], [likely, unlikely])
    assert [len(top) for top in columns["top_logprobs"]] == [2, 3]
    assert [list(position or ()) for position in prompt_logprobs([likely, unlikely], 1, names) or ()] == [
        ["70"],
        ["69", "70"],
    ]


# ------------------------------------------------------------------------------------------- offsets into the text


def named(offsets: list[int], tokens: list[str], text: str) -> list[str]:
    """What the text has from each token's offset to the next one's."""
    ends = [*offsets[1:], len(text)]
    assert all(start <= end for start, end in zip(offsets, ends, strict=True))
    return [text[start:end] for start, end in zip(offsets, ends, strict=True)]


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(("text", "is_ids"), [("hé <|user|>hi 👍", False), ("hé <|user|>hi 👍", True), ("hello", True)])
def test_offsets_fit_the_text_with_and_without_echo(
    deployment: Deployment, text: str, is_ids: bool, streams: bool
) -> None:
    said = deployment.tokenizer.encode("a👍b<|system|>c", add_special_tokens=False)
    deployment.says(said)
    prompt = deployment.tokenizer.encode(text) if is_ids else text
    for fields in ({"echo": True}, {}, {"skip_special_tokens": False}, {"echo": True, "n": 2}):
        wanted = {"logprobs": 0, "return_token_ids": True, **fields}
        for index in range(wanted.get("n", 1)):
            if streams:
                parts = [
                    chunk["choices"][0]
                    for chunk in deployment.stream_completion(prompt, **wanted)
                    if chunk["choices"][0]["index"] == index
                ]
            else:
                parts = [deployment.complete(prompt, **wanted)["choices"][index]]
            whole = "".join(part["text"] for part in parts)
            token_ids = [token_id for part in parts for token_id in part["token_ids"]]
            columns = {
                name: [value for part in parts for value in (part["logprobs"] or {name: []})[name]]
                for name in ("text_offset", "tokens", "token_logprobs", "top_logprobs")
            }
            pieces = named(columns["text_offset"], columns["tokens"], whole)
            assert token_ids[:-1] == said  # of what was generated alone
            echoed = len(columns["tokens"]) - len(token_ids)
            assert echoed == (len(deployment.engine.prompt) if "echo" in fields else 0)
            assert "".join(pieces[echoed:]) == ("a👍b<|system|>c" if "skip_special_tokens" in fields else "a👍bc")
            if "echo" in fields:
                assert whole.startswith("<s>" + text if is_ids else text)
                assert pieces[0] == ("<s>" if is_ids else "")
            for token, piece in zip(columns["tokens"], pieces, strict=True):
                assert piece in (token, "", "é", "👍")


def test_offsets_of_a_text_that_the_tokenizer_changes_stay_inside(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("hello world")
    for text in ("hello world", "HELLO", "", "hello worlds and more"):
        offsets = prompt_offsets(token_ids, text, tokenizer)
        assert offsets == sorted(offsets)
        assert len(offsets) == len(token_ids)
        assert offsets[-1] <= len(text)
