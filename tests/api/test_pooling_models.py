"""Pooling routes over a real engine and a tiny random encoder: scores and vectors are those of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
import transformers

from ember.front.text.tokenizer import Tokenizer
from tests.api.fakes import Deployment
from tests.engine_models.tiny_encoders import randomised
from tests.support.inline_engine import InlineEngine
from tests.text.test_layout import BERT

QUERY, DOCUMENTS = "the quick fox", ["a lazy dog", "hello , dogs !", "the fox jumped over a dog"]


def served(directory: Path, name: str) -> tuple[Deployment, Any, Any]:
    """A deployment of a tiny model of this class, transformers' model and its tokenizer."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    config = transformers.BertConfig(vocab_size=len(BERT), max_position_embeddings=64, num_labels=1, **sizes)
    model = randomised(getattr(transformers, name)(config))
    model.save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(BERT) + "\n")
    deployment = Deployment(Tokenizer.load(directory))
    engine = InlineEngine(directory)
    deployment.engine = engine  # type: ignore[assignment]
    deployment.services.engine = engine  # type: ignore[assignment]
    return deployment, model, transformers.AutoTokenizer.from_pretrained(str(directory))


def data(deployment: Deployment, path: str, body: Any) -> Any:
    """The entries of an answer as a client reads them."""
    return orjson.loads(orjson.dumps(deployment.request("POST", path, body).body))["data"]


def test_scores_of_a_cross_encoder(tmp_path: Path) -> None:
    deployment, model, tokenizer = served(tmp_path, "BertForSequenceClassification")
    pairs = tokenizer([QUERY] * len(DOCUMENTS), DOCUMENTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = torch.sigmoid(model(**pairs).logits).flatten().tolist()
    answer = deployment.request("POST", "/score", {"queries": QUERY, "documents": DOCUMENTS}).body
    assert [entry["score"] for entry in answer["data"]] == pytest.approx(expected, abs=1e-4)
    ranked = deployment.request("POST", "/v2/rerank", {"query": QUERY, "documents": DOCUMENTS}).body["results"]
    assert [entry["index"] for entry in ranked] == sorted(range(len(expected)), key=lambda index: -expected[index])
    deployment.services.engine.check_empty()  # type: ignore[attr-defined]


def test_vectors_of_a_sentence_model(tmp_path: Path) -> None:
    deployment, model, tokenizer = served(tmp_path, "BertModel")
    with torch.no_grad():
        rows = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in DOCUMENTS]
    body = {"input": DOCUMENTS, "task": "token_embed", "use_activation": False}
    for entry, expected in zip(data(deployment, "/pooling", body), rows, strict=True):
        assert torch.allclose(torch.tensor(entry["data"]), expected, atol=1e-4)
    many = data(deployment, "/v1/embeddings", {"input": DOCUMENTS * 50})
    (alone,) = data(deployment, "/v1/embeddings", {"input": DOCUMENTS[0]})
    assert len(many) == 150
    assert many[-3]["embedding"] == pytest.approx(alone["embedding"], abs=1e-4)
    deployment.services.engine.check_empty()  # type: ignore[attr-defined]
