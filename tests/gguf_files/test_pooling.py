"""Embedding models and rerankers in GGUF files: their pooling is that of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH

from ember.engine.core.prediction import predict
from ember.engine.description.pooling import TaskSettings
from ember.engine.description.read_config import RunsBy, load_config
from ember.engine.errors import ModelError
from ember.wire import Configure
from tests.engine_core.inline import make_engine
from tests.engine_core.test_pooling import hidden_states, pooled, prompts, unit
from tests.engine_models.tiny import make_tiny
from tests.gguf_files.convert import Arrays, Case, convert

QWEN3 = Case(MODEL_ARCH.QWEN3, "qwen3")
TASKS = RunsBy("ember", tasks=TaskSettings())


def made(directory: Path, metadata: dict[str, Any], head: np.ndarray | None = None) -> tuple[Path, Path]:
    """A checkpoint, and its file. `head`: the rows of the classes."""

    def change(arrays: Arrays) -> dict[str, tuple[np.ndarray, str]]:
        if head is not None:
            arrays["cls.output.weight"] = head
        return {name: (each, "F32") for name, each in arrays.items()}

    checkpoint = make_tiny(QWEN3.variant, directory / "checkpoint")
    extra = {f"qwen3.{key}": value for key, value in metadata.items()}
    return checkpoint, convert(checkpoint, directory / "model.gguf", QWEN3, change=change, extra=extra)


@pytest.mark.parametrize("kind", [1, 2, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_vectors_are_pooled_as_the_file_says(kind: int, causal: bool, tmp_path: Path) -> None:
    checkpoint, file = made(tmp_path, {"pooling_type": kind, "attention.causal": causal})
    engine, texts = make_engine(file), prompts("gguf")
    assert load_config(file, runs_by=TASKS).bidirectional == (not causal)
    states = hidden_states(checkpoint, texts) if causal else whole_states(checkpoint, texts)
    pool = {1: lambda state: state.mean(0), 2: lambda state: state[0], 3: lambda state: state[-1]}[kind]
    for found, state in zip(pooled(engine, texts, "embed"), states, strict=True):
        np.testing.assert_allclose(found, unit(pool(state)), atol=1e-4)


def whole_states(checkpoint: Path, texts: list[list[int]]) -> list[np.ndarray]:
    """The hidden states in transformers of each text, whose tokens see the whole text."""
    import transformers

    model = transformers.AutoModel.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    found = []
    with torch.inference_mode():
        for text in texts:
            nothing = torch.zeros(1, 1, len(text), len(text))
            found.append(model(torch.tensor([text]), attention_mask=nothing).last_hidden_state[0].numpy())
    return found


def test_a_model_of_vectors_generates_only_when_it_is_asked_to(tmp_path: Path) -> None:
    _, file = made(tmp_path, {"pooling_type": 3})
    assert predict(Configure(model=str(file)), []).tasks == ["embed", "token_embed"]
    assert load_config(file, runs_by=RunsBy("ember", tasks=TaskSettings("generate"))).pooling is None


def test_classes_are_those_of_the_file(tmp_path: Path) -> None:
    head = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    labels = ["bad", "fair", "good"]
    checkpoint, file = made(tmp_path, {"pooling_type": 4, "classifier.output_labels": labels}, head)
    engine, texts = make_engine(file), prompts("classes")
    config = load_config(file, runs_by=TASKS)
    assert config.pooling is not None and config.pooling.labels == tuple(labels) and not config.warnings
    for found, state in zip(pooled(engine, texts, "classify"), hidden_states(checkpoint, texts), strict=True):
        expected = torch.softmax(torch.from_numpy(head @ state[-1]), 0)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_reranker_with_yes_and_no_scores_by_the_probability_of_yes(tmp_path: Path) -> None:
    head = np.random.default_rng(1).normal(size=(2, 64)).astype(np.float32)
    checkpoint, file = made(tmp_path, {"pooling_type": 4, "classifier.output_labels": ["yes", "no"]}, head)
    engine, texts = make_engine(file), prompts("rank")
    for found, state in zip(pooled(engine, texts, "score"), hidden_states(checkpoint, texts), strict=True):
        expected = torch.softmax(torch.from_numpy(head @ state[-1]), 0)[:1]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_unknown_kind_of_pooling_is_named(tmp_path: Path) -> None:
    _, file = made(tmp_path, {"pooling_type": 7})
    with pytest.raises(ModelError, match=r"qwen3.pooling_type must be 0 \(none\), 1 \(mean\).*not 7"):
        load_config(file, runs_by=TASKS)
