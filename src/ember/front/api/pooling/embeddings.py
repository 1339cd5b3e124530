"""POST /v1/embeddings and /pooling: vectors of texts, in OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ember.front.api.body import parse_body, reported
from ember.front.api.exchange import Request, Response
from ember.front.api.pooling import vectors
from ember.front.api.pooling.call import PoolingCall, open_pooling_call, prompt_of, written
from ember.front.api.pooling.schemas import EmbeddingRequest, EncodedRequest, PoolRequest
from ember.front.api.pooling.texts import read_texts
from ember.front.api.services import Services
from ember.front.api.unsupported import later
from ember.front.errors import bad_request
from ember.wire import Pooled, PoolingTask, Ready

MAX_METADATA_BYTES = 2**15  # of the header that describes an answer in bytes
REMOVED_TASKS = {"encode": "token_embed or token_classify", "reward": "classify or token_classify"}
_BY_DEFAULT: tuple[PoolingTask, ...] = ("embed", "classify", "score", "token_embed", "token_classify")


async def create_embeddings(services: Services, raw_request: Request) -> Response:
    """Embed the texts of `input`, or the conversation in `messages`. Raises ApiError."""
    info = await services.ready()
    request = await parse_body(EmbeddingRequest, raw_request.body)
    extra = request.model_extra or {}
    if extra.get("late_chunking"):
        raise later("late_chunking")
    if request.truncate and request.truncate_prompt_tokens is None:
        request.truncate_prompt_tokens = -1
    prompt_name = request.prompt_name
    ignored: list[str] = []
    if prompt_name is None and request.task is not None:
        if request.task in services.sentences.prompts:
            prompt_name = request.task
        else:
            ignored = reported(["task"], "the request field %s names no prompt of the model (logged once per name)")
    call = open_pooling_call(raw_request, request, services, info, "embd", ignored)
    check_dimensions(request.dimensions, "dimensions", services, info)
    given, encoding = request.embedding_type, request.encoding_format
    # OpenAI's clients ask for base64 where nobody chose, and leave a list of numbers as it is.
    allowed = {"binary": (None, "float", "base64"), "ubinary": (None, "float", "base64"), "base64": (None, "base64")}
    if encoding not in allowed.get(given or "", (encoding,)):
        message = f"embedding_type {given} and encoding_format {encoding} contradict each other: leave one of them out."
        raise bad_request(message, "embedding_type")
    texts = await read_texts(request, services, info, prompt_of(prompt_name, services))
    use_activation = request.normalized if request.use_activation is None else request.use_activation
    pooled = await call.run(texts, "embed", dimensions=request.dimensions, use_activation=use_activation)
    kind = request.embedding_type
    if kind in ("binary", "ubinary"):
        signed = kind == "binary"
        check_bits(pooled, "embedding_type")
        return await written(pooled, lambda: _listed(call, [vectors.as_bits(each, signed=signed) for each in pooled]))
    return await encoded_answer(call, request, pooled, "embedding", "embedding", kind or "float")


async def create_pooling(services: Services, raw_request: Request) -> Response:
    """Run a pooling task on the texts of `input`, or the conversation in `messages`. Raises ApiError."""
    info = await services.ready()
    request = await parse_body(PoolRequest, raw_request.body)
    if (request.model_extra or {}).get("data") is not None:
        raise later("data", "vLLM's plugins read it; give `input` or `messages`")
    call = open_pooling_call(raw_request, request, services, info, "pooling")
    task = _requested_task(request.task, info)
    if request.dimensions is not None and task not in ("embed", "token_embed"):
        raise bad_request(f"dimensions is for embeddings; the task is {task}.", "dimensions")
    check_dimensions(request.dimensions, "dimensions", services, info)
    is_embedding = task in ("embed", "token_embed")
    prompt = prompt_of(request.prompt_name, services) if is_embedding else ""
    texts = await read_texts(request, services, info, prompt)
    pooled = await call.run(texts, task, dimensions=request.dimensions, use_activation=request.use_activation)
    return await encoded_answer(call, request, pooled, "pooling", "data", "float")


def check_dimensions(asked: int | None, param: str, services: Services, info: Ready) -> None:
    """Raises ApiError 400 for dimensions that the model's embeddings cannot be cut to."""
    if asked is None or info.pooling is None:
        return
    pooling, name = info.pooling, services.model_name
    if asked < 1:
        raise bad_request(f"{param} must be greater than 0, got {asked}.", param)
    if asked in (pooling.dimensions, pooling.most_dimensions):  # the model's own number
        return
    if not pooling.is_matryoshka:
        message = (
            f'Model "{name}" does not support matryoshka representation, changing output dimensions will lead to poor '
            f"results. ({param}={asked}; its embeddings have {pooling.dimensions} dimensions.)"
        )
        raise bad_request(message, param)
    allowed = pooling.matryoshka_dimensions
    if allowed and asked not in allowed:
        message = (
            f'Model "{name}" only supports {allowed} matryoshka dimensions, use other output dimensions will lead to '
            f"poor results. ({param}={asked})"
        )
        raise bad_request(message, param)
    if asked > pooling.most_dimensions:
        raise bad_request(f"{param} must be at most {pooling.most_dimensions}, the model's own, got {asked}.", param)


def check_bits(pooled: Sequence[Pooled], param: str) -> None:
    """Raises ApiError 400 for embeddings that cannot be packed eight values to a number."""
    width = pooled[0].shape[-1]
    if width % 8:
        message = f"Embedding dimension must be a multiple of 8 for binary embedding types, but got {width}."
        raise bad_request(message, param)


async def encoded_answer(
    call: PoolingCall, request: EncodedRequest, pooled: Sequence[Pooled], kind: str, name: str, default: str
) -> Response:
    """The answer in the format that the request asks for. `kind` and `name` are those of an entry and its field."""
    form = request.encoding_format or default
    dtype, endianness = request.embed_dtype or "float32", request.endianness or "native"
    if form == "float":
        return await written(pooled, lambda: _listed(call, [vectors.as_json(each) for each in pooled], kind, name))
    if form == "base64":
        return await written(
            pooled, lambda: _listed(call, [vectors.as_base64(each, dtype, endianness) for each in pooled], kind, name)
        )
    headers = dict(call.headers)
    if form == "bytes":
        headers["metadata"] = _metadata(call, pooled, dtype, endianness)
    data = await written(pooled, lambda: b"".join([vectors.as_bytes(each, dtype, endianness) for each in pooled]))
    return Response(200, data, headers)


def _listed(call: PoolingCall, entries: Sequence[Any], kind: str = "embedding", name: str = "embedding") -> Response:
    body = {
        "id": call.id,
        "object": "list",
        "created": call.created,
        "model": call.services.model_name,
        "data": [{"index": index, "object": kind, name: entry} for index, entry in enumerate(entries)],
        "usage": call.usage(),
    }
    return Response(200, body, call.headers)


def _metadata(call: PoolingCall, pooled: Sequence[Pooled], dtype: str, endianness: str) -> str:
    """The header that says where each text's values are. Raises ApiError 400 for too many texts."""
    items, start = [], 0
    for index, each in enumerate(pooled):
        end = start + len(each.data) // 4 * vectors.SIZES[dtype]
        item = {"index": index, "embed_dtype": dtype, "endianness": endianness, "start": start, "end": end}
        items.append({**item, "shape": each.shape})
        start = end
    body = {"id": call.id, "created": call.created, "model": call.services.model_name, "data": items}
    text = json.dumps({**body, "usage": call.usage()})
    if len(text) > MAX_METADATA_BYTES:
        message = (
            f"encoding_format 'bytes' describes each text in a header, which would have {len(text)} bytes; "
            f"{MAX_METADATA_BYTES} are allowed. Ask for 'bytes_only' or 'base64', or send fewer texts."
        )
        raise bad_request(message, "encoding_format")
    return text


def _requested_task(given: str | None, info: Ready) -> PoolingTask:
    """The task of POST /pooling. Raises ApiError 400."""
    if given is None:
        return next(task for task in _BY_DEFAULT if task in info.tasks)
    if given in REMOVED_TASKS:
        raise bad_request(f"The task {given!r} was removed; use {REMOVED_TASKS[given]} instead.", "task")
    for task in _BY_DEFAULT:
        if task == given and task in info.tasks:
            return task
    raise bad_request(f"Unsupported task: {given[:80]!r} Supported tasks: {', '.join(info.tasks)}", "task")
