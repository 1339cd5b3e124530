"""`suffix` of a completion: for models that can fill in the middle."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.api.fakes import BOS, EOS, Deployment, refused
from tests.text.test_fim import FAMILIES, tokenizer_with

COMPLETIONS = "/v1/completions"


@pytest.fixture
def coder(tmp_path: Path) -> Deployment:
    return Deployment(tokenizer_with(tmp_path, [BOS, EOS, *FAMILIES["qwen"][0]]))


def test_the_prompt_goes_around_the_gap(coder: Deployment) -> None:
    answer = coder.complete(["a = ", ""], suffix=" + 1")
    assert [choice["text"] for choice in answer["choices"]] == ["hello world"] * 2
    texts = [coder.tokenizer.decode(call[0], skip_special_tokens=False) for call in coder.engine.calls]
    marks = "<|fim_prefix|>{}<|fim_suffix|> + 1<|fim_middle|>"
    assert texts == [marks.format("a = "), marks.format("")]
    coder.complete("", suffix="x")
    assert coder.prompt_text == "<|fim_prefix|><|fim_suffix|>x<|fim_middle|>"
    coder.complete("a = ", suffix="")
    assert coder.prompt_text == "a = "


def test_what_cannot_be_combined(coder: Deployment) -> None:
    error = refused(coder, COMPLETIONS, {"prompt": [1, 2], "suffix": "x"})
    assert (error.param, error.message) == ("suffix", "`suffix` needs a prompt that is text, not token ids.")
    error = refused(coder, COMPLETIONS, {"prompt": "a", "suffix": "x", "echo": True})
    assert (error.param, error.message) == ("suffix", "`echo` cannot be used with `suffix`.")
