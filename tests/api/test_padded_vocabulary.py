"""A model with more rows than its tokenizer has tokens, as many are padded: what is sampled there has no text."""

from __future__ import annotations

import json

import pytest

from ember.front.errors import ApiError
from tests.api.fakes import VOCAB_SIZE, Deployment, make_tokenizer
from tests.engine_models.tiny import make_tiny
from tests.support.inline_engine import InlineEngine

ROWS = 2 * VOCAB_SIZE + 11


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    directory = tmp_path_factory.mktemp("padded")
    tokenizer = make_tokenizer(directory)
    assert tokenizer.vocab_size <= VOCAB_SIZE
    make_tiny("llama", directory, vocab_size=ROWS, eos_token_id=tokenizer.token_id("</s>"))
    deployment = Deployment(tokenizer)
    deployment.services.engine = InlineEngine(directory)
    return deployment


def test_rows_without_a_token_have_no_text(padded: Deployment) -> None:
    fields = {"max_tokens": 60, "temperature": 1.0, "seed": 3, "ignore_eos": True, "return_token_ids": True}
    whole = padded.complete("hello", logprobs=2, **fields)
    choice = whole["choices"][0]
    ids = choice["token_ids"]
    without_text = [token_id for token_id in ids if token_id >= padded.tokenizer.vocab_size]
    assert without_text and whole["usage"]["completion_tokens"] == 60
    known = [token_id for token_id in ids if token_id < padded.tokenizer.vocab_size]
    assert choice["text"] == padded.tokenizer.decode(known) == padded.tokenizer.decode(ids)
    tokens = choice["logprobs"]["tokens"]
    assert all(not tokens[place] for place, token_id in enumerate(ids) if token_id in without_text)
    chunks = padded.stream_completion("hello", **fields)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == choice["text"]


def test_rows_without_a_token_may_be_in_a_prompt_but_no_further_ones(padded: Deployment) -> None:
    assert padded.complete([3, ROWS - 1], max_tokens=1)["usage"]["prompt_tokens"] == 2
    with pytest.raises(ApiError, match=rf"token_id\(s\) \[{ROWS}\] in prompt .* Vocabulary size: {ROWS}") as raised:
        padded.complete([3, ROWS], max_tokens=1)
    assert raised.value.status == 400


@pytest.mark.parametrize("seed", range(3))
def test_a_grammar_never_allows_rows_without_a_token(padded: Deployment, seed: int) -> None:
    fields = {"max_tokens": 40, "temperature": 1.0, "seed": seed, "return_token_ids": True}
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    choice = padded.complete("hello", structured_outputs={"json": schema}, **fields)["choices"][0]
    assert json.loads(choice["text"])["a"] in (1, 2)
    assert max(choice["token_ids"]) < padded.tokenizer.vocab_size
