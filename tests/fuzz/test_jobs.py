"""Any job input whatever, and any text whatever in an event: an answer, or an error that is the client's."""

from __future__ import annotations

import json
from typing import Any

import orjson
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from ember.front.api.openai_forms import openai_error
from ember.front.api.route import NO_ROUTE
from ember.front.api.routes import ROUTER
from ember.front.api.streaming import event
from ember.front.errors import ApiError
from ember.front.worker.coalesce import MAX_PIECE_BYTES, cut, wire_bytes
from ember.front.worker.inputs import parse_input, wants_stream
from ember.front.worker.outputs import ParsedChunks, StreamText
from ember.platform.jobs import PlatformError, new_job, split_chunk

FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

surrogates = st.characters(categories=["Cs"])
text = st.one_of(st.text(max_size=10), st.text(alphabet=surrogates, min_size=1, max_size=2))
scalar = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), text)
junk = st.recursive(scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))
keys = (
    "openai_input openai_route route body method messages prompt sampling_params stream apply_chat_template "
    "use_openai_format max_batch_size min_batch_size batch_size_growth_factor model"
)
route = st.one_of(
    st.sampled_from(["/v1/models", "v1/completions", "/openai/v1/models?a=b", "//x", "http://[", "?"]), text
)
job_input = st.one_of(
    junk,
    st.fixed_dictionaries({}, optional={key: st.one_of(junk, route) for key in keys.split()}),
)


@FUZZ
@given(job_input, st.booleans())
@example({"openai_route": "http://[", "openai_input": {"a": 1}}, False)
@example({"prompt": "x", "max_batch_size": "1e999"}, True)
@example({"prompt": "x", "batch_size_growth_factor": float("nan")}, True)
def test_job_inputs(given_input: Any, native_tokens: bool) -> None:
    """What is accepted can be encoded again and has a path; what is not is a 400."""
    assert isinstance(wants_stream(given_input), bool)
    try:
        job = parse_input(given_input, ROUTER, model="m", job_id="id", native_tokens=native_tokens)
    except ApiError as error:
        assert error.status == 400
        orjson.dumps(openai_error(error))
        return
    assert job.request.path.startswith("/")
    assert job.request.method in ("GET", "POST", "DELETE")
    assert job.request.body is None or isinstance(job.request.body, dict)
    orjson.dumps([job.request.path, job.request.body, dict(job.request.query)])


@FUZZ
@given(job_input)
def test_requests_of_the_platform(given_input: Any) -> None:
    try:
        job = new_job(given_input, 0, is_sync=False)
    except PlatformError as error:
        assert error.status == 400
        return
    json.dumps(job.body())
    json.dumps(job.for_worker())


def decoded(text: str) -> list[Any]:
    """As the openai SDK's own parser reads a stream."""
    events = SSEDecoder().iter_bytes(iter([text.encode()]))
    return [json.loads(each.data) for each in events if each.data != "[DONE]"]


plain = st.text(max_size=20)  # what the tokenizer may make; it has no halves of surrogate pairs
lines = st.text(alphabet='\n\r\u2028\u2029\x85\x0b\x0c\x1c\x1dab:\\" ', max_size=20)


@FUZZ
@given(st.lists(st.one_of(plain, lines), max_size=5))
@example(["a\u2028b", "c\x85", "\r\n\r\ndata: [DONE]\n\n"])
def test_texts_in_events_arrive_whole(texts: list[str]) -> None:
    """Over SSE text as the openai SDK reads it, and as parsed chunks."""
    chunks = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    events = [event(chunk) for chunk in chunks]
    for form in (StreamText(NO_ROUTE), ParsedChunks(NO_ROUTE)):
        pieces = form.pieces([*(form.encode(each) for each in events), *filter(None, [form.end()])])
        read = decoded("".join(pieces)) if type(form) is StreamText else [chunk for piece in pieces for chunk in piece]
        assert read == chunks


@FUZZ
@given(text, text)
def test_errors_in_events_are_read_as_errors(message: str, param: str) -> None:
    error = ApiError(400, message, param=param)
    (read,) = decoded("".join(StreamText(NO_ROUTE).failed(error)))
    assert read == openai_error(error)
    (piece,) = ParsedChunks(NO_ROUTE).failed(error)
    assert piece == [openai_error(error)]


@FUZZ
@given(st.one_of(st.text(max_size=300), lines), st.integers(8, 50))
def test_cut_texts_are_whole_again(text: str, limit: int) -> None:
    parts = cut(text, limit)
    assert "".join(parts) == text
    assert all(wire_bytes(part) <= limit for part in parts)


@FUZZ
@given(st.text(max_size=100), st.integers(1, 30))
def test_what_the_platform_splits_is_whole_again(text: str, times: int) -> None:
    large = text * (times * 1000)
    assert "".join(split_chunk(large)) == large
    assert all(len(part.encode()) <= 1_000_000 for part in split_chunk(large))
    assert MAX_PIECE_BYTES < 1_000_000  # so that nothing of ours is ever split there
