"""Pooling routes over a real engine and a tiny random encoder: scores and vectors are those of transformers."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import numpy
import orjson
import pytest
import torch
import transformers

from ember.front.errors import ApiError
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
    spaced = {"queries": f"the {' ' * 5000} quick {'x' * 5000}", "documents": DOCUMENTS[0]}  # of 13 tokens
    assert deployment.request("POST", "/score", spaced).body["usage"]["prompt_tokens"] < 20
    ranked = deployment.request("POST", "/v2/rerank", {"query": QUERY, "documents": DOCUMENTS}).body["results"]
    assert [entry["index"] for entry in ranked] == sorted(range(len(expected)), key=lambda index: -expected[index])
    deployment.services.engine.check_empty()  # type: ignore[attr-defined]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_pair_has_no_more_tokens_than_are_asked_for(tmp_path: Path, side: str) -> None:
    """Below three tokens some of its special ones are cut; the tokenizers library ignores such limits."""
    deployment, model, tokenizer = served(tmp_path, "BertForSequenceClassification")
    tokenizer.truncation_side = side
    body = {"text_1": QUERY, "text_2": DOCUMENTS[0], "truncation_side": side}
    special = [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.sep_token_id]
    for count in range(1, 9):
        pair = tokenizer(QUERY, DOCUMENTS[0], truncation=True, max_length=max(count, 3))
        ids, types = pair.input_ids, pair.token_type_ids
        if count < 3:
            assert ids == special
            kept = slice(count) if side == "right" else slice(3 - count, None)
            ids, types = ids[kept], types[kept]
        with torch.no_grad():
            logits = model(torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits
        answer = deployment.request("POST", "/score", {**body, "truncate_prompt_tokens": count}).body
        assert answer["usage"]["prompt_tokens"] == len(ids)
        assert answer["data"][0]["score"] == pytest.approx(torch.sigmoid(logits).item(), abs=1e-4)
    with pytest.raises(ApiError, match="The prompt cannot be empty") as caught:
        deployment.request("POST", "/score", {**body, "truncate_prompt_tokens": 0})
    assert caught.value.status == 400


def test_vectors_of_a_sentence_model(tmp_path: Path) -> None:
    deployment, model, tokenizer = served(tmp_path, "BertModel")
    with torch.no_grad():
        rows = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in DOCUMENTS]
    body = {"input": DOCUMENTS, "task": "token_embed", "use_activation": False}
    for entry, expected in zip(data(deployment, "/pooling", body), rows, strict=True):
        assert torch.allclose(torch.tensor(entry["data"]), expected, atol=1e-4)
    asyncio.run(many_at_once(deployment))
    deployment.services.engine.check_empty()  # type: ignore[attr-defined]


async def many_at_once(deployment: Deployment) -> None:
    """Ten thousand texts of one request beside 256 single ones, and a request that is cancelled in the middle."""

    async def vectors(texts: Any) -> list[Any]:
        body = {"input": texts, "encoding_format": "base64"}
        answer: Any = (await deployment.dispatch("POST", "/v1/embeddings", body)).body  # type: ignore[union-attr]
        return [numpy.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in answer["data"]]

    engine: Any = deployment.services.engine
    alone = [(await vectors(text))[0] for text in DOCUMENTS]
    cancelled = asyncio.create_task(vectors(DOCUMENTS * 1000))
    many = asyncio.create_task(vectors(DOCUMENTS * 3334))
    while engine.num_requests < 500:
        await asyncio.sleep(0)
    cancelled.cancel()
    singles = await asyncio.gather(*(vectors(DOCUMENTS[number % 3]) for number in range(256)))
    assert not many.done(), "single texts do not wait for many"
    for found in ([one for (one,) in singles], await many):
        expected = numpy.stack([alone[number % 3] for number in range(len(found))])
        numpy.testing.assert_allclose(numpy.stack(found), expected, atol=1e-4)
    assert len(many.result()) == 10_002 and cancelled.cancelled()
