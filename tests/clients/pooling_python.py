"""What clients for embeddings and rerank do: python -m tests.clients.pooling_python BASE_URL."""

import base64
import json
import math
import struct
import sys
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import cohere
import openai
from cohere.core import ApiError
from langchain_cohere import CohereEmbeddings, CohereRerank
from langchain_openai import OpenAIEmbeddings
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.postprocessor.cohere_rerank import CohereRerank as LlamaIndexRerank

TEXTS = ["Paris is the capital of France.", "A cat sleeps.", "Rome is the capital of Italy."]
QUERY = "What is the capital of France?"


def near(left: list[float], right: list[float]) -> bool:
    return len(left) == len(right) and all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip(left, right, strict=True))


def post(url: str, body: dict[str, Any]) -> Any:
    """As curl does."""
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        return json.load(answer)


def with_openai(base_url: str) -> list[list[float]]:
    client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
    vectors = [entry.embedding for entry in client.embeddings.create(model="demo", input=TEXTS).data]  # as base64
    numbers = client.embeddings.create(model="demo", input=TEXTS, encoding_format="float")
    assert all(map(near, vectors, [entry.embedding for entry in numbers.data]))
    assert numbers.usage.prompt_tokens == numbers.usage.total_tokens > 0
    assert near(client.embeddings.create(model="demo", input=TEXTS[1]).data[0].embedding, vectors[1])
    for fields, says in (({"dimensions": 0}, "dimensions"), ({"input": []}, "input")):
        try:
            body: dict[str, Any] = {"model": "demo", "input": "x", **fields}
            client.embeddings.create(**body)
        except openai.APIStatusError as error:
            assert says in str(error), error
        else:
            raise AssertionError(f"no error for {fields}")
    return vectors


def with_cohere(root: str, vectors: list[list[float]]) -> None:
    client = cohere.ClientV2("none", base_url=root)
    kinds = ["float", "int8", "ubinary", "base64"]
    answer = client.embed(model="demo", texts=TEXTS, input_type="search_document", embedding_types=kinds)
    floats = answer.embeddings.float_
    assert floats is not None and all(map(near, floats, vectors))
    assert answer.embeddings.int8 is not None and len(answer.embeddings.int8) == len(TEXTS)
    packed = answer.embeddings.base64
    assert packed is not None
    assert near(list(struct.unpack(f"<{len(vectors[0])}f", base64.b64decode(packed[0]))), vectors[0])
    ranked = client.rerank(model="demo", query=QUERY, documents=TEXTS, top_n=2).results
    assert len(ranked) == 2 and ranked[0].relevance_score >= ranked[1].relevance_score
    older = cohere.Client("none", base_url=root)
    first = older.rerank(model="demo", query=QUERY, documents=TEXTS)
    assert [each.index for each in first.results][:2] == [each.index for each in ranked]
    plain = older.embed(model="demo", texts=TEXTS)
    assert plain.response_type == "embeddings_floats" and all(map(near, plain.embeddings, vectors))
    typed = older.embed(model="demo", texts=TEXTS, input_type="search_query", embedding_types=["int8"])
    assert typed.response_type == "embeddings_by_type" and typed.embeddings.int8 == answer.embeddings.int8
    try:
        client.embed(model="demo", texts=[], input_type="search_document")
    except ApiError as error:
        assert "texts" in str(error.body), error.body
    else:
        raise AssertionError("no error for an empty list")


def with_langchain(base_url: str, root: str, vectors: list[list[float]]) -> None:
    embeddings = OpenAIEmbeddings(model="demo", base_url=base_url, api_key="none", check_embedding_ctx_length=False)
    assert all(map(near, embeddings.embed_documents(TEXTS), vectors))
    assert near(embeddings.embed_query(TEXTS[0]), vectors[0])
    adapter = CohereEmbeddings(model="demo", base_url=root, cohere_api_key="none")
    assert all(map(near, adapter.embed_documents(TEXTS), vectors))
    assert near(adapter.embed_query(TEXTS[0]), vectors[0])
    reranker = CohereRerank(model="demo", base_url=root, cohere_api_key="none", top_n=2)
    assert len(reranker.rerank(TEXTS, QUERY)) == 2


def with_llama_index(base_url: str, root: str, vectors: list[list[float]]) -> None:
    embeddings = OpenAILikeEmbedding(model_name="demo", api_base=base_url, api_key="none", max_retries=0)
    assert all(map(near, embeddings.get_text_embedding_batch(TEXTS), vectors))
    reranker = LlamaIndexRerank(model="demo", base_url=root, api_key="none", top_n=2)
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
    ranked = reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert len(ranked) == 2 and ranked[0].score >= ranked[1].score


def with_jina(base_url: str, vectors: list[list[float]]) -> None:
    body: dict[str, object] = {
        "model": "demo",
        "task": "retrieval.passage",
        "truncate": True,
        "embedding_type": "float",
    }
    found = post(f"{base_url}/embeddings", {**body, "normalized": True, "input": TEXTS})
    assert all(map(near, [entry["embedding"] for entry in found["data"]], vectors))
    body = {"model": "demo", "query": QUERY, "documents": [{"text": text} for text in TEXTS]}
    results = post(f"{base_url}/rerank", {**body, "top_n": 3, "return_documents": True})["results"]
    assert [result["document"]["text"] for result in results] == [TEXTS[result["index"]] for result in results]
    try:
        post(f"{base_url}/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
    except HTTPError as error:
        assert "embed" in json.load(error)["error"]["message"]
    else:
        raise AssertionError("a model for embeddings answers a chat")


def main(base_url: str) -> None:
    root = base_url.removesuffix("/v1")
    vectors = with_openai(base_url)
    with_cohere(root, vectors)
    with_langchain(base_url, root, vectors)
    with_llama_index(base_url, root, vectors)
    with_jina(base_url, vectors)
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1])
