"""Embeddings, classes, scores and rerank: bodies, answers and errors. The values of the fake engine tell its input."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import struct
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import orjson
import pytest
import torch

from ember.front.api.openai_forms import openai_error
from ember.front.api.pooling import late_interaction
from ember.front.api.pooling.answers import CohereEmbeddings, CohereError, CohereFloats
from ember.front.api.pooling.routes import COHERE_ERRORS, POOLING_ROUTES
from ember.front.api.pooling.vectors import SIZES, as_bytes
from ember.front.api.routes import ROUTER
from ember.front.errors import ApiError
from ember.front.link.pooling import PoolOptions, PoolText
from ember.front.text.sentence_files import PairForm, SentenceFiles
from ember.front.worker.handler import Handling, ThisLoop, make_handler
from ember.wire import Pooled
from tests.api.fakes import ASSISTANT, BOS, MAX_MODEL_LEN, USER, VOCAB_SIZE, Deployment

EMBED, COHERE, POOLING, CLASSIFY = "/v1/embeddings", "/v2/embed", "/pooling", "/classify"
SCORE, RERANK = "/score", "/rerank"
LONGER = {"texts": ["abc"], "input_type": "clustering"}
DOCS = Path(__file__).parents[2] / "docs" / "pooling.md"


@pytest.fixture
def embedder(deployment: Deployment) -> Deployment:
    deployment.pools("embed", "token_embed")
    return deployment


@pytest.fixture
def reranker(deployment: Deployment) -> Deployment:
    deployment.pools("classify", "token_classify", "score", has_token_types=True)
    return deployment


def ask(deployment: Deployment, path: str, body: Any) -> Any:
    """The answer as a client reads it."""
    answer = deployment.request("POST", path, body)
    return orjson.loads(orjson.dumps(answer.body))


def refusal(deployment: Deployment, path: str, body: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        deployment.request("POST", path, body)
    assert not deployment.engine.pooled
    return caught.value


def texts(deployment: Deployment) -> list[str]:
    """What the engine was last given, special tokens included."""
    found, _ = deployment.engine.pooled[-1]
    return [deployment.tokenizer.decode(text.token_ids, skip_special_tokens=False) for text in found]


def options(deployment: Deployment) -> PoolOptions:
    return deployment.engine.pooled[-1][1]


def run_job(deployment: Deployment, job: Any) -> Any:
    """The only output of a job."""

    async def run() -> list[Any]:
        async def answer(request: Any) -> Any:
            return await ROUTER.dispatch(deployment.services, request)

        handler = make_handler(Handling(ThisLoop(), answer, ROUTER, model="org/tiny", native_tokens=True))
        return [output async for output in handler({"id": "job", "input": job})]

    (output,) = asyncio.run(run())
    return orjson.loads(orjson.dumps(output))


def test_the_examples_of_the_docs(deployment: Deployment) -> None:
    def pooled(text: PoolText, options: PoolOptions) -> Pooled:
        is_short = len(text.token_ids) < 4 if options.task == "score" else len(text.token_ids) < 3
        row = {"classify": (0.25, 0.75), "score": (0.125 if is_short else 0.875,)}.get(options.task)
        row = row or ((0.625, 0.78125) if is_short else (0.78125, -0.625))
        rows = len(text.token_ids) if options.task == "token_embed" else 1
        shape = [rows, len(row)] if options.task == "token_embed" else [len(row)]
        return Pooled(struct.pack(f"<{rows * len(row)}f", *row * rows), shape)

    deployment.pools("embed", "token_embed", "classify", "score", dimensions=2)
    deployment.engine.pool = pooled  # type: ignore[method-assign]
    found = re.findall(r"```json\nPOST (\S+)\n(.*?)```\s*```json\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(found) == 6
    for path, body, documented in found:
        answer, expected = ask(deployment, path, json.loads(body)), json.loads(documented)
        assert answer.pop("id").startswith(expected.pop("id").partition("-")[0] + "-")
        for each in (answer, expected):
            each.pop("created", None)
        assert answer == expected, path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("hello", [f"{BOS}hello"]),
        ("", [BOS]),
        (["hello", "a b", {"text": "c"}], [f"{BOS}hello", f"{BOS}a b", f"{BOS}c"]),
        ([1, 2], ['"#']),
        ([[1], [2, 3]], ['"', "#$"]),
    ],
)
def test_forms_of_input(embedder: Deployment, given: Any, expected: list[str]) -> None:
    answer = ask(embedder, EMBED, {"input": given, "user": "me", "priority": 0, "request_id": "mine"})
    assert texts(embedder) == expected
    assert answer["id"] == "embd-mine"
    assert [entry["index"] for entry in answer["data"]] == list(range(len(expected)))
    count = sum(len(text.token_ids) for text in embedder.engine.pooled[-1][0])
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == count
    assert embedder.services.metrics.finished["stop"] == len(expected)
    assert embedder.services.metrics.prompt_tokens.count == len(expected)
    assert embedder.services.metrics.in_flight == 0


def test_a_conversation(embedder: Deployment) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    ask(embedder, EMBED, {"messages": messages})
    assert texts(embedder) == [f"{USER}hello"]
    ask(embedder, EMBED, {"messages": messages, "add_generation_prompt": True, "add_special_tokens": True})
    assert texts(embedder) == [f"{BOS}{USER}hello{ASSISTANT}"]


@pytest.mark.parametrize("field", ["input", "messages"])
@pytest.mark.parametrize("path", [EMBED, POOLING, CLASSIFY])
def test_conversations_of_either_field(embedder: Deployment, path: str, field: str) -> None:
    embedder.pools("embed", "classify")
    one, other = [{"role": "user", "content": "a"}], [{"role": "user", "content": [{"type": "text", "text": "b"}]}]
    ask(embedder, path, {field: one})
    assert texts(embedder) == [f"{USER}a"]
    answer = ask(embedder, path, {field: [one, other], "add_generation_prompt": True})
    assert texts(embedder) == [f"{USER}a{ASSISTANT}", f"{USER}b{ASSISTANT}"]
    assert [entry["index"] for entry in answer["data"]] == [0, 1]


def test_options_reach_the_engine(embedder: Deployment) -> None:
    embedder.pools("embed", is_matryoshka=True, matryoshka_dimensions=[2, 4])
    body = {"input": "hello", "dimensions": 4, "use_activation": False, "cache_salt": "salt", "priority": 3}
    answer = ask(embedder, EMBED, body)
    assert options(embedder) == PoolOptions("embed", 4, False, 3, "salt")
    assert len(answer["data"][0]["embedding"]) == 4
    ask(embedder, EMBED, {"input": "hello", "normalized": False, "truncate": True, "task": "retrieval.query"})  # Jina's
    assert options(embedder).use_activation is False
    ask(embedder, EMBED, {"input": "hello", "add_special_tokens": False})
    assert texts(embedder) == ["hello"]


def test_dimensions_that_a_model_was_trained_for(embedder: Deployment) -> None:
    """Its own number, with and without the cut that it makes by itself, is always one."""
    embedder.pools("embed", dimensions=4, most_dimensions=8, is_matryoshka=True, matryoshka_dimensions=[2, 6])
    for asked, allowed in ((2, True), (4, True), (8, True), (3, False), (9, False)):
        body = {"input": "a", "dimensions": asked}
        if allowed:
            assert len(ask(embedder, EMBED, body)["data"][0]["embedding"]) == asked
        else:
            with pytest.raises(ApiError, match=r"only supports \[2, 6\] matryoshka dimensions"):
                ask(embedder, EMBED, body)
    embedder.pools("embed", is_matryoshka=True)
    with pytest.raises(ApiError, match="dimensions must be at most 8, the model's own, got 9"):
        ask(embedder, EMBED, {"input": "a", "dimensions": 9})
    embedder.pools("embed", dimensions=16, is_matryoshka=True)
    with pytest.raises(ApiError, match="multiple of 8") as caught:
        ask(embedder, EMBED, {"input": "a", "dimensions": 9, "embedding_type": "binary"})
    assert caught.value.param == "embedding_type"


def test_a_text_is_cut_and_keeps_its_special_tokens(embedder: Deployment) -> None:
    for fields, expected in (
        ({"truncate_prompt_tokens": 3}, f"{BOS}ab"),
        ({"truncate_prompt_tokens": 3, "truncation_side": "left"}, f"{BOS}ef"),
        ({"truncate_prompt_tokens": 3, "add_special_tokens": False}, "abc"),
        ({"truncate_prompt_tokens": -1}, f"{BOS}abcdef"),
    ):
        ask(embedder, EMBED, {"input": "abcdef", **fields})
        assert texts(embedder) == [expected]
    ask(embedder, EMBED, {"input": "xyz" * 33_334, "truncate_prompt_tokens": -1})
    (text,) = embedder.engine.pooled[-1][0]
    assert len(text.token_ids) == MAX_MODEL_LEN


def test_prompts_of_the_model(embedder: Deployment) -> None:
    embedder.services.sentences = SentenceFiles({"query": "q: ", "document": "d: "}, "document")
    for body, expected in (
        ({}, "d: a"),
        ({"prompt_name": "query"}, "q: a"),
        ({"task": "query"}, "q: a"),
    ):
        ask(embedder, EMBED, {"input": "a", **body})
        assert texts(embedder) == [BOS + expected]
    for kind, expected in (("search_query", "q: a"), ("search_document", "d: a"), ("clustering", "a")):
        ask(embedder, COHERE, {"texts": ["a"], "input_type": kind})
        assert texts(embedder) == [BOS + expected]
    embedder.pools("embed", includes_prompt=False)
    ask(embedder, EMBED, {"input": "a", "prompt_name": "query"})
    assert embedder.engine.pooled[-1][0][0].num_instruction_tokens == 4
    with pytest.raises(ApiError, match="prompt_name 'other' is unknown. The prompts of org/tiny: document, query"):
        ask(embedder, EMBED, {"input": "a", "prompt_name": "other"})


def test_base64_and_bytes_are_the_numbers(embedder: Deployment) -> None:
    body = {"input": ["hello", "a"]}
    numbers = [entry["embedding"] for entry in ask(embedder, EMBED, body)["data"]]
    encoded = ask(embedder, EMBED, {**body, "encoding_format": "base64"})["data"]
    assert [array("f", base64.b64decode(entry["embedding"])).tolist() for entry in encoded] == numbers
    whole = embedder.request("POST", EMBED, {**body, "encoding_format": "bytes", "embed_dtype": "float16"})
    metadata = json.loads(whole.headers["metadata"])
    assert isinstance(whole.body, bytes)
    for item, row in zip(metadata["data"], numbers, strict=True):
        assert list(struct.unpack("<8e", whole.body[item["start"] : item["end"]])) == row
    alone = embedder.request("POST", EMBED, {**body, "encoding_format": "bytes_only", "endianness": "big"})
    assert numpy.frombuffer(alone.body, ">f4").tolist() == [value for row in numbers for value in row]
    bits = ask(embedder, EMBED, {"input": "a", "embedding_type": "ubinary"})["data"][0]["embedding"]
    encoded = {"input": "a", "embedding_type": "ubinary", "encoding_format": "base64"}
    assert ask(embedder, EMBED, encoded)["data"][0]["embedding"] == bits
    assert bits == numpy.packbits(numpy.array(numbers[1]) >= 0).tolist()
    with pytest.raises(ApiError, match="'bytes' describes each text in a header"):
        embedder.request("POST", EMBED, {"input": ["a"] * 1000, "encoding_format": "bytes"})


def test_number_formats_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = (1.0, 1e-3, 300.0, 1e-6, 30000.0)
    ends = torch.tensor([0.0, -0.0, 1.0, 448.0, 464.0, 465.0, 65519.0, 65520.0, 57344.0, 61440.0, 61441.0, 1e30])
    values = torch.cat([*(torch.randn(512, generator=generator) * scale for scale in scales), ends])
    pooled = Pooled(values.numpy().tobytes(), [len(values)])
    for name, dtype in (
        ("float16", torch.float16),
        ("bfloat16", torch.bfloat16),
        ("fp8_e4m3", torch.float8_e4m3fn),
        ("fp8_e5m2", torch.float8_e5m2),
    ):
        expected = values.to(dtype).view(torch.uint8 if SIZES[name] == 1 else torch.int16)
        assert as_bytes(pooled, name, "little") == expected.numpy().tobytes(), name


def test_types_of_cohere(embedder: Deployment) -> None:
    kinds = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    answer = ask(embedder, COHERE, {"texts": ["a"], "input_type": "classification", "embedding_types": kinds})
    (row,) = answer["embeddings"]["float"]
    clipped = numpy.clip(numpy.array(row), -1, 1)
    signs = numpy.packbits(numpy.array(row) >= 0).astype(int)
    assert answer["embeddings"]["int8"] == [numpy.rint(clipped * 127).tolist()]
    assert answer["embeddings"]["uint8"] == [(numpy.rint(clipped * 127) + 128).tolist()]
    assert answer["embeddings"]["ubinary"] == [signs.tolist()]
    assert answer["embeddings"]["binary"] == [(signs - 128).tolist()]
    assert base64.b64decode(answer["embeddings"]["base64"][0]) == struct.pack("<8f", *row)
    parts = {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    ask(embedder, COHERE, {"inputs": [parts], "input_type": "clustering", "truncate": "START", "max_tokens": 2})
    assert texts(embedder) == [f"{BOS}b"]


def test_the_first_api_of_cohere(embedder: Deployment) -> None:
    """Its client takes vectors without types as they are; `input_type` is for newer models."""
    answer = ask(embedder, "/v1/embed", {"texts": ["a", "b"], "truncate": "END"})
    assert (answer["response_type"], answer["meta"]["api_version"]) == ("embeddings_floats", {"version": "1"})
    assert answer["texts"] == ["a", "b"] and [len(row) for row in answer["embeddings"]] == [8, 8]
    typed = ask(embedder, "/v1/embed", {"texts": ["a"], "embedding_types": ["int8"], "input_type": "clustering"})
    assert typed["response_type"] == "embeddings_by_type" and typed["embeddings"].keys() == {"int8"}
    CohereFloats.model_validate(answer)
    CohereEmbeddings.model_validate(typed)


def test_cohere_needs_no_input_type(embedder: Deployment) -> None:
    embedder.services.sentences = SentenceFiles({"query": "q: "}, "query")
    answer = ask(embedder, COHERE, {"texts": ["a"], "embedding_types": ["float"]})
    assert texts(embedder) == [f"{BOS}q: a"] and answer["meta"]["api_version"] == {"version": "2"}


def test_errors_of_cohere_have_both_forms() -> None:
    """Its clients read `message`, and those of vLLM, which has routes of the same names, `error`."""
    for error in (ApiError(400, "no", param="texts"), ApiError(401, "no")):
        body = COHERE_ERRORS.body(error)
        assert body == {"message": "no", **openai_error(error)}
        CohereError.model_validate(body)


def test_raw_scores_are_without_activation(deployment: Deployment) -> None:
    """The name that Infinity and text-embeddings-inference have for it."""
    deployment.pools("classify", "score")
    bodies = ((SCORE, {"text_1": "a", "text_2": "b"}), (RERANK, {"query": "a", "documents": ["b"]}))
    for path, body in (*bodies, (CLASSIFY, {"input": "a"})):
        for fields, expected in (
            ({"raw_scores": True}, False),
            ({"raw_scores": False}, True),
            ({"raw_scores": True, "use_activation": True}, True),
            ({}, None),
        ):
            ask(deployment, path, {**body, **fields})
            assert options(deployment).use_activation is expected


def test_pairs_of_a_cross_encoder(reranker: Deployment) -> None:
    body = {"queries": "he", "documents": ["a", "b c"]}
    answer = ask(reranker, SCORE, body)
    assert texts(reranker) == [f"{BOS}hea", f"{BOS}heb c"]  # this tokenizer has no separator
    assert [entry["score"] for entry in answer["data"]] == [3.0, 5.0]
    assert options(reranker).task == "score"
    ask(reranker, SCORE, {"data_1": ["abc", "d"], "data_2": ["efg", "h"], "max_tokens_per_query": 2})
    assert texts(reranker) == [f"{BOS}abefg", f"{BOS}dh"]
    ask(
        reranker,
        SCORE,
        {"text_1": "abc", "text_2": {"content": [{"type": "text", "text": "efgh"}]}, "truncate_prompt_tokens": 5},
    )
    assert texts(reranker) == [f"{BOS}abef"]
    template = "{{ instruction | default('judge') }}|{{ messages[0].content }}|{{ messages[1]['content'] }}"
    reranker.services.settings.custom_chat_template = template
    ask(reranker, RERANK, {"query": "q", "documents": ["d"], "instruction": "compare"})
    with pytest.raises(ApiError, match="chat_template_kwargs has a name that is reserved") as caught:
        ask(reranker, RERANK, {"query": "q", "documents": ["d"], "chat_template_kwargs": {"messages": 1}})
    assert caught.value.status == 400
    assert texts(reranker) == [f"{BOS}compare|q|d"]
    reranker.services.sentences = SentenceFiles({"query": "rank"}, "query")
    ask(reranker, RERANK, {"query": "q", "documents": ["d"]})
    assert texts(reranker) == [f"{BOS}rank|q|d"]


def test_a_template_of_messages_has_its_own_special_tokens(
    reranker: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "{% for message in messages if message.role in ('query', 'document') %}{{ message.content }}|{% endfor %}"
    monkeypatch.setattr(reranker.tokenizer, "chat_template", source)
    for pairs, custom, start in ((None, None, BOS), (PairForm(), None, ""), (PairForm(), source, BOS)):
        reranker.services.sentences = SentenceFiles(pairs=pairs)
        reranker.services.settings.custom_chat_template = custom
        ask(reranker, RERANK, {"query": "q", "documents": ["d"]})
        assert texts(reranker) == [f"{start}q|d|"]


def test_a_rendered_pair_is_cut_before_its_end(reranker: Deployment) -> None:
    """A reranker's score is read from the last tokens of the template."""
    reranker.services.settings.custom_chat_template = "{{ messages[0].content }}|{{ messages[1].content }}|yes?"
    body = {"queries": ["q", "r"], "documents": ["abcdef", "ab"], "truncate_prompt_tokens": 11}
    ask(reranker, SCORE, body)
    assert texts(reranker) == [f"{BOS}q|abc|yes?", f"{BOS}r|ab|yes?"]
    ask(reranker, SCORE, {**body, "truncation_side": "left"})
    assert texts(reranker) == [f"{BOS}bcdef|yes?", f"{BOS}r|ab|yes?"]
    ask(reranker, SCORE, {**body, "truncate_prompt_tokens": 3})
    assert texts(reranker) == ["es?", "es?"]


def test_tokens_that_the_model_lacks(reranker: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the texts, and in what the post-processor puts around them."""
    tokenizer = reranker.tokenizer
    monkeypatch.setattr(tokenizer, "single_layout", replace(tokenizer.single_layout, special=((VOCAB_SIZE,), ())))
    for path, body in (
        (SCORE, {"queries": "a", "documents": "b"}),
        (RERANK, {"query": "a", "documents": ["b"]}),
        (CLASSIFY, {"input": "a"}),
    ):
        error = refusal(reranker, path, body)
        assert error.status == 400 and f"Token id {VOCAB_SIZE} " in error.message


def test_scores_of_an_embedder_are_cosines(embedder: Deployment) -> None:
    answer = ask(embedder, SCORE, {"text_1": "hello", "text_2": ["hello", "a b"]})
    vectors = [
        numpy.frombuffer(embedder.engine.pool(text, options(embedder)).data, "<f4")
        for text in embedder.engine.pooled[-1][0]
    ]
    expected = vectors[0] @ vectors[2] / numpy.linalg.norm(vectors[0]) / numpy.linalg.norm(vectors[2])
    assert [entry["score"] for entry in answer["data"]] == pytest.approx([1.0, expected])
    assert answer["data"][0]["score"] <= 1.0


def test_the_default_prompt_stands_before_texts_that_are_compared(embedder: Deployment) -> None:
    embedder.services.sentences = SentenceFiles({"query": "find "}, "query")
    ask(embedder, SCORE, {"text_1": "a", "text_2": "b"})
    assert texts(embedder) == [f"{BOS}find a", f"{BOS}find b"]
    ask(embedder, "/v2/rerank", {"query": "a", "documents": ["b" * 400], "max_tokens_per_doc": 4096})
    assert texts(embedder)[1] == BOS + "find " + "b" * (MAX_MODEL_LEN - 6)


def test_scores_of_late_interaction(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """The documents come in parts, and each token of the query is compared with all of its document."""

    def pooled(text: PoolText, options: PoolOptions) -> Pooled:
        rows = numpy.random.default_rng(text.token_ids).standard_normal((len(text.token_ids), 3)).astype("<f4")
        return Pooled(rows.tobytes(), list(rows.shape))

    def vectors(text: str) -> numpy.ndarray[Any, Any]:
        rows = pooled(PoolText(deployment.tokenizer.encode(text, True)), options(deployment))
        return numpy.frombuffer(rows.data, "<f4").reshape(rows.shape)

    deployment.pools("token_embed", dimensions=3)
    deployment.engine.pool = pooled  # type: ignore[method-assign]
    documents = ["a", "b c", "hello w", "x"]
    monkeypatch.setattr(late_interaction, "MAX_TOKENS", 6)
    answer = ask(deployment, RERANK, {"query": "he", "documents": documents})
    expected = [(vectors("he") @ vectors(document).T).max(axis=1).sum() for document in documents]
    for entry in answer["results"]:
        assert entry["relevance_score"] == pytest.approx(expected[entry["index"]], rel=1e-5)
    assert [len(found) for found, _ in deployment.engine.pooled] == [1, 2, 2]
    monkeypatch.setattr(late_interaction, "MAX_PRODUCTS", 1)  # one token of a query at a time
    deployment.engine.pooled.clear()
    pairs = ask(deployment, SCORE, {"text_1": documents, "text_2": documents[::-1]})["data"]
    expected = [(vectors(a) @ vectors(b).T).max(axis=1).sum() for a, b in zip(documents, documents[::-1], strict=True)]
    assert [entry["score"] for entry in pairs] == pytest.approx(expected, rel=1e-5)
    most = max(sum(len(text.token_ids) for text in texts) for texts, _ in deployment.engine.pooled)
    assert len(deployment.engine.pooled) > 2 and most <= 12, "the queries come in parts too"


def test_documents_are_sorted(reranker: Deployment) -> None:
    body = {"query": "q", "documents": ["a", {"text": "a b c"}, "a b"]}
    answer = ask(reranker, RERANK, body)
    assert [(entry["index"], entry["document"]["text"]) for entry in answer["results"]] == [
        (1, "a b c"),
        (2, "a b"),
        (0, "a"),
    ]
    (best,) = ask(reranker, "/v2/rerank", {**body, "top_n": 1, "max_tokens_per_doc": 4096})["results"]
    long = {"query": "a" * 100, "documents": ["b" * 400], "max_tokens_per_doc": 4096}
    ask(reranker, "/v2/rerank", long)
    assert texts(reranker) == [BOS + "a" * 100 + "b" * (MAX_MODEL_LEN - 101)]
    reranker.services.settings.custom_chat_template = "{{ messages[0].content }}|{{ messages[1].content }}|"
    ask(reranker, "/v2/rerank", long)
    assert texts(reranker) == [BOS + "a" * 100 + "|" + "b" * (MAX_MODEL_LEN - 103) + "|"]
    reranker.services.settings.custom_chat_template = None
    assert best.keys() == {"index", "relevance_score"}
    ask(reranker, "/v1/rerank", {**body, "top_n": 0, "return_documents": False})


def test_classes(reranker: Deployment) -> None:
    entry = ask(reranker, CLASSIFY, {"input": "a"})["data"][0]
    assert entry == {"index": 0, "label": "bad", "probs": [2.0, entry["probs"][1]], "num_classes": 2}


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        (EMBED, {}, "input", "`input` is missing or empty"),
        (EMBED, {"input": []}, "input", "`input` is missing or empty"),
        (EMBED, {"input": [[]]}, "input", "The prompt cannot be empty"),
        (EMBED, {"input": "", "add_special_tokens": False}, "input", "The prompt cannot be empty"),
        (EMBED, {"input": "x", "messages": [{"role": "user", "content": "x"}]}, "input", "not both"),
        (EMBED, {"input": [VOCAB_SIZE]}, "input", "out of vocabulary"),
        (
            EMBED,
            {"input": ["a", "b " * 200]},
            "input_tokens",
            "maximum context length is 256 tokens. However",
        ),
        (EMBED, {"input": ["a", "b " * 200]}, "input_tokens", "It is input.1."),
        (
            EMBED,
            {"input": "a", "embedding_type": "binary", "encoding_format": "bytes"},
            "embedding_type",
            "encoding_format bytes contradict",
        ),
        (EMBED, {"input": [{"role": "user", "content": 5}]}, "body.input.0.content", "validation error"),
        (EMBED, {"input": [[{"role": "user"}], [{"content": "a"}]]}, "body.input.1.0.role", "1 validation error"),
        (EMBED, {"messages": [[]]}, "body.messages.0", "1 validation error"),
        (EMBED, {"messages": [{"role": "user", "content": "a"}, []]}, "body.messages.1", "1 validation error"),
        (
            EMBED,
            {"messages": [[{"role": "user", "content": text}] for text in ("a", "b " * 200)]},
            "input_tokens",
            "It is messages.1.",
        ),
        (EMBED, {"input": "a" * 100_000}, "input_text", "maximum context length is 256 tokens"),
        (EMBED, {"input": "\ud800"}, "body.input", "lone surrogate"),
        (EMBED, {"input": "a", "truncate_prompt_tokens": 257}, "truncate_prompt_tokens", "cannot be greater than"),
        (EMBED, {"input": "a", "truncate_prompt_tokens": -2}, "body.truncate_prompt_tokens", "validation error"),
        (EMBED, {"input": "a", "dimensions": 4}, "dimensions", "does not support matryoshka representation"),
        (EMBED, {"input": "a", "dimensions": 0}, "dimensions", "must be greater than 0"),
        (EMBED, {"input": "a", "normalize": True}, "normalize", "use `use_activation` instead"),
        (EMBED, {"input": "a", "encoding_format": "hex"}, "body.encoding_format", "'base64'"),
        (EMBED, {"input": "a", "embed_dtype": "int8"}, "body.embed_dtype", "'float16'"),
        (EMBED, {"input": "a", "late_chunking": True}, "late_chunking", "not supported"),
        (EMBED, {"input": "a", "cache_salt": ""}, "cache_salt", "1 to 128 characters"),
        (EMBED, {"input": "a", "request_id": "\n"}, "request_id", "printable"),
        (EMBED, {"input": ["a"] * 131_073}, "input", "at most 131072 items, got 131073"),
        (EMBED, {"messages": [{"role": "forbidden", "content": "x"}]}, None, "Only user and assistant roles"),
        (POOLING, {"data": {"image": "x"}, "task": "plugin"}, "data", "give `input` or `messages`"),
        (POOLING, {"input": "a", "task": "encode"}, "task", "was removed; use token_embed"),
        (POOLING, {"input": "a", "task": "generate"}, "task", "Unsupported task: 'generate'"),
        (SCORE, {"text_1": "a"}, "body", "give `queries` and `documents`"),
        (SCORE, {"text_1": [], "text_2": "a"}, "text_1", "At least one text must be given in text_1"),
        (SCORE, {"text_1": ["a", "b"], "text_2": ["a"]}, "text_2", "1:1, 1:N or N:N"),
        (
            SCORE,
            {"text_1": {"content": [{"type": "image_url"}]}, "text_2": "a"},
            "text_1",
            "the type 'image_url'",
        ),
        (RERANK, {"query": "a", "documents": []}, "documents", "at least one document"),
        (RERANK, {"query": "a", "documents": ["b"], "top_n": -1}, "body.top_n", "validation error"),
        (
            RERANK,
            {"query": "a", "documents": ["b"], "max_tokens_per_doc": 256},
            "max_tokens_per_doc",
            "must be less than",
        ),
        (COHERE, {"texts": ["a"], "input_type": "x"}, "input_type", "Supported values: search_query, search_document"),
        (COHERE, {"texts": [], "input_type": "clustering"}, "texts", "missing or empty"),
        (COHERE, {"images": ["x"], "input_type": "image"}, "images", "not supported"),
        (
            COHERE,
            {"texts": ["abc"], "input_type": "clustering", "truncate": "NONE", "max_tokens": 2},
            "max_tokens",
            "exceeds",
        ),
        (COHERE, {"texts": ["a"], "input_type": "clustering", "output_dimension": 3}, "output_dimension", "matryoshka"),
    ],
)
def test_errors(embedder: Deployment, path: str, body: Any, param: str | None, words: str) -> None:
    error = refusal(embedder, path, body)
    assert (error.status, error.param) == (400, param)
    assert words in error.message
    assert openai_error(error)["error"]["code"] == 400
    assert ROUTER.find("POST", COHERE).route.errors is COHERE_ERRORS


def body_of(path: str, text: Any) -> dict[str, Any]:
    """A body for a route with one text."""
    if path.endswith("embed"):
        return {"texts": [text], "input_type": "clustering", "truncate": "NONE"}
    if path.endswith("score"):
        return {"text_1": "a", "text_2": text}
    return {"query": "a", "documents": [text]} if path.endswith("rerank") else {"input": text}


@pytest.mark.parametrize("path", [route.path for route in POOLING_ROUTES])
def test_the_table_of_errors_on_each_route(deployment: Deployment, path: str) -> None:
    """What clients of vLLM match on, in the form of the route."""
    deployment.pools("embed", "classify")
    good, long = body_of(path, "a"), body_of(path, "b " * 200)
    rows: list[tuple[Any, int, str, str | None, str]] = [
        ({**good, "model": "x"}, 404, "NotFoundError", "model", "The model `x` does not exist."),
        ({**good, "cache_salt": "@"}, 400, "BadRequestError", "cache_salt", "cache_salt"),
        ({**good, "priority": "high"}, 400, "Bad Request", "body.priority", "1 validation error"),
        ([], 400, "Bad Request", "body", "valid"),
        (body_of(path, 5), 400, "Bad Request", None, "validation error"),
        (body_of(path, "\ud800"), 400, "Bad Request", None, "surrogate"),
        (long, 400, "BadRequestError", "input_tokens", f"maximum context length is {MAX_MODEL_LEN} tokens. However"),
        (body_of(path, "a" * 100_000), 400, "BadRequestError", "input_text", "100000 characters"),
    ]
    if not path.endswith("embed"):
        most = {**good, "truncate_prompt_tokens": MAX_MODEL_LEN + 1}
        rows.append((most, 400, "BadRequestError", "truncate_prompt_tokens", "cannot be greater than max_model_len"))
    form = ROUTER.find("POST", path).route.errors
    for body, status, kind, param, words in rows:
        error = refusal(deployment, path, body)
        assert (error.status, error.type) == (status, kind), error.message
        assert param in (None, error.param) and words in error.message
        assert words in orjson.dumps(form.body(error)).decode()
    assert ask(
        deployment,
        path,
        {**long, **({"truncate": "END"} if path.endswith("embed") else {"truncate_prompt_tokens": -1})},
    )
    deployment.pools("token_classify")
    if path != POOLING:
        deployment.engine.pooled.clear()
        assert refusal(deployment, path, good).param == "model"


def test_values_that_are_no_numbers_are_an_error(embedder: Deployment) -> None:
    embedder.engine.pool = lambda text, options: Pooled(struct.pack("<2f", float("nan"), 1), [2])  # type: ignore[method-assign]
    for form in ("float", "base64", "bytes_only"):
        with pytest.raises(ApiError, match="not finite") as caught:
            embedder.request("POST", EMBED, {"input": "a", "encoding_format": form})
        assert caught.value.status == 500


@pytest.mark.parametrize(
    ("tasks", "body", "kind"),
    [
        (("embed",), {"input": "a"}, "embd"),
        (("embed",), {"texts": ["a"], "input_type": "clustering"}, "embd"),
        (("classify",), {"input": "a"}, "classify"),
        (("classify", "token_classify"), {"input": "a", "task": "token_classify"}, "pooling"),
        (("token_classify",), {"input": "a"}, "pooling"),
        (("embed", "token_embed"), {"input": "a", "task": "retrieval.query"}, "embd"),
        (("score",), {"text_1": "a", "text_2": "b"}, "score"),
        (("embed",), {"query": "a", "documents": ["b"]}, "rerank"),
    ],
)
def test_invocations(deployment: Deployment, tasks: tuple[str, ...], body: Any, kind: str) -> None:
    """The fields tell the route, as do those of a job that names none."""
    deployment.pools(*tasks)
    assert ask(deployment, "/invocations", body)["id"].startswith(f"{kind}-")
    if "input" in body:
        assert run_job(deployment, body)["id"].startswith(f"{kind}-")
    with pytest.raises(ApiError, match=f"Cannot find suitable handler.*`{next(iter(body))}`.*does {tasks[0]}"):
        deployment.request("POST", "/invocations", {"prompt": "a"})


@pytest.mark.parametrize(
    ("job", "field"),
    [
        ({"input": ["a", "b"]}, "data"),
        ({"model": "org/tiny", "input": "a", "stream": True}, "data"),
        ({"openai_route": "/v1/embeddings", "openai_input": {"input": "a", "encoding_format": "base64"}}, "data"),
        ({"route": "/openai/v2/embed", "body": {"texts": ["a"], "input_type": "clustering"}}, "embeddings"),
        ({"query": "a", "docs": ["b", "c"], "return_docs": True}, "results"),
        ({"query": "a", "documents": ["b"], "top_n": 1}, "results"),
        ({"input": "a", "encoding_format": "bytes"}, "error"),
        ({"messages": [{"role": "user", "content": "a"}], "stream": False}, "error"),
    ],
)
def test_jobs(embedder: Deployment, job: Any, field: str) -> None:
    output = run_job(embedder, job)
    assert field in output
    if "docs" in job:
        assert output["results"][0]["document"] is not None
