"""Any body whatever for the routes of pooling models: an answer, or an error that is the client's."""

from __future__ import annotations

import asyncio
import json
from typing import Any, get_args

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from ember.front.api.pooling import schemas
from ember.front.api.pooling.routes import POOLING_ROUTES
from ember.front.errors import ApiError
from ember.front.text.sentence_files import SentenceFiles
from ember.front.text.tokenizer import Tokenizer
from ember.wire import PoolingTask
from tests.api.fakes import Deployment
from tests.fuzz.bodies import junk, switch, text, token_ids

part = st.fixed_dictionaries({"type": st.sampled_from(["text", "text", "image_url"])}, optional={"text": text})
parts = st.lists(part, max_size=2)
content = st.one_of(text, text, st.fixed_dictionaries({}, optional={"text": text, "content": parts}))
some_texts = st.one_of(content, st.lists(content, max_size=4))
limit = st.one_of(st.integers(-2, 300), st.none())
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "input": st.one_of(some_texts, token_ids, st.lists(token_ids, max_size=3)),
    "messages": st.just([{"role": "user", "content": "hello"}]),
    **dict.fromkeys(("text_1", "text_2", "queries", "documents", "items", "data_1", "data_2"), some_texts),
    "query": content,
    "texts": st.lists(text, max_size=4),
    "inputs": st.lists(st.fixed_dictionaries({"content": parts}), max_size=3),
    "input_type": st.sampled_from(["search_query", "clustering", "query", "x"]),
    "embedding_types": st.lists(st.sampled_from(["float", "int8", "uint8", "binary", "ubinary", "base64"]), max_size=3),
    "embedding_type": st.sampled_from(["float", "base64", "binary", "ubinary"]),
    "encoding_format": st.sampled_from(["float", "base64", "bytes", "bytes_only"]),
    "embed_dtype": st.sampled_from(["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"]),
    "endianness": st.sampled_from(["native", "little", "big"]),
    "truncation_side": st.sampled_from(["left", "right"]),
    "truncate": st.one_of(switch, st.sampled_from(["NONE", "START", "END"])),
    "task": st.sampled_from([*get_args(PoolingTask), "encode", "query"]),
    "prompt_name": st.sampled_from(["query", "x"]),
    **dict.fromkeys(("truncate_prompt_tokens", "max_tokens_per_query", "max_tokens_per_doc", "max_tokens"), limit),
    **dict.fromkeys(("dimensions", "output_dimension", "top_n", "priority"), st.integers(-1, 10)),
    **dict.fromkeys(("request_id", "cache_salt", "instruction", "model"), st.one_of(st.just("org/tiny"), text)),
    "chat_template_kwargs": st.dictionaries(text, junk, max_size=2),
}
ROUTES = [(route.path, getattr(schemas, str(route.about.body[0]))) for route in POOLING_ROUTES]
REQUIRED: dict[str, tuple[str, ...]] = {
    "EmbeddingRequest": ("input",),
    "PoolRequest": ("input",),
    "ClassifyRequest": ("input",),
}
REQUIRED |= {"ScoreRequest": ("text_1", "text_2"), "RerankRequest": ("query", "documents")}
REQUIRED |= {"CohereEmbedRequest": ("texts",)}


def body_of(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """What the route needs, a few more fields, and often something odd."""
    names = sorted(model.model_fields)
    required = st.fixed_dictionaries({name: LIKELY[name] for name in REQUIRED[model.__name__]})
    more = st.lists(st.sampled_from(names), max_size=4, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({name: LIKELY.get(name, switch) for name in chosen})
    )
    odd = st.one_of(st.just({}), st.just({}), st.dictionaries(st.sampled_from([*names, "normalize"]), junk, max_size=1))
    return st.builds(lambda *parts: {key: part[key] for part in parts for key in part}, required, more, odd)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    from tests.api.fakes import make_tokenizer

    tokenizer: Tokenizer = make_tokenizer(tmp_path_factory.mktemp("fuzz"))
    deployment = Deployment(tokenizer)
    deployment.pools(*get_args(PoolingTask), is_matryoshka=True, has_token_types=True, includes_prompt=False)
    deployment.services.sentences = SentenceFiles({"query": "q: "}, lower_case=True)
    return deployment


@settings(max_examples=220, deadline=None, suppress_health_check=list(HealthCheck))
@given(asked=st.sampled_from(ROUTES).flatmap(lambda route: st.tuples(st.just(route[0]), body_of(route[1]))))
def test_pooling_routes(deployment: Deployment, asked: tuple[str, dict[str, Any]]) -> None:
    path, body = asked
    try:
        answer = asyncio.run(deployment.dispatch("POST", path, body))
    except ApiError as error:
        assert error.status in (400, 404), f"not the client's fault: {error.message}"
        return
    if isinstance(answer.body, dict):  # type: ignore[union-attr]
        json.loads(orjson.dumps(answer.body))  # type: ignore[union-attr]
