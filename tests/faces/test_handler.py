"""The queue handler with a fake api: outputs, errors, and what reaches the engine when nobody listens any more."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import pytest

from ember.front.api.exchange import Event, EventStream, Response
from ember.front.errors import ApiError
from ember.front.loop import EngineLoop
from ember.front.worker.coalesce import BatchSizes
from ember.front.worker.handler import Answer, Handler, Handling, make_handler
from tests.faces.fakes import FAKE_ROUTER, FakeWorker, event, frame

CHAT = "/v1/chat/completions"


class Bench:
    """A handler over a fake worker that lives on its own loop, as in the real process."""

    def __init__(self) -> None:
        self.worker = FakeWorker()
        self.loop = EngineLoop()
        self.loop.start()
        self.loop.submit(self.worker.start()).result(5)

    def handler(self, raw: bool = True, answer: Answer | None = None, **options: Any) -> Handler:
        async def fake_answer(request: Any) -> Any:
            return await FAKE_ROUTER.dispatch(self.worker.services, request)

        return make_handler(Handling(self.loop, answer or fake_answer, FAKE_ROUTER, model="m", raw=raw, **options))

    def run(self, job: Any, raw: bool = True) -> list[Any]:
        async def collect() -> list[Any]:
            return [output async for output in self.handler(raw)(job)]

        return asyncio.run(collect())

    def body(self, raw: bool = True, **body: Any) -> list[Any]:
        return self.run({"id": "j", "input": {"openai_route": CHAT, "openai_input": {"messages": [], **body}}}, raw)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.loop.stop()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_is_what_the_sdk_takes_for_a_stream(bench: Bench) -> None:
    assert inspect.isasyncgenfunction(bench.handler())


def test_whole_answer_is_one_body(bench: Bench) -> None:
    assert bench.body(words=3) == [{"object": "chat.completion", "echo": {"messages": [], "words": 3, "model": "m"}}]


def test_get_route(bench: Bench) -> None:
    assert bench.run({"id": "j", "input": {"openai_route": "/v1/models"}}) == [{"object": "list", "query": {}}]
    assert bench.run({"id": "j", "input": {"route": "/metrics"}}) == ["requests 1\n"]


def test_stream_is_sse_text(bench: Bench) -> None:
    outputs = bench.body(words=50, stream=True)
    assert all(isinstance(output, str) for output in outputs)
    assert "".join(outputs) == "".join(frame(f"wört {n}") for n in range(50)) + "data: [DONE]\n\n"


def test_stream_of_parsed_chunks(bench: Bench) -> None:
    outputs = bench.body(raw=False, words=5, stream=True)
    assert all(isinstance(output, list) for output in outputs)
    assert [chunk for output in outputs for chunk in output] == [{"text": f"wört {n}"} for n in range(5)]


def test_an_event_beyond_the_limit_is_cut(bench: Bench) -> None:
    outputs = bench.body(words=1, stream=True, word="日" * 600_000)
    assert len(outputs) > 1
    assert max(len(json.dumps(output, ensure_ascii=False).encode()) for output in outputs) < 1_000_000
    assert "".join(outputs).endswith("data: [DONE]\n\n")


def test_error_of_a_whole_answer_is_json_text(bench: Bench) -> None:
    (output,) = bench.body(fail="bad")
    assert json.loads(output["error"]) == {
        "message": "temperature must be in [0, 2], got 3",
        "type": "BadRequestError",
        "param": "temperature",
        "code": 400,
    }
    (output,) = bench.run({"id": "j", "input": {"route": "/nowhere"}})
    assert json.loads(output["error"])["code"] == 404


@pytest.mark.parametrize("raw", [True, False])
def test_error_of_a_stream_is_an_event(bench: Bench, raw: bool) -> None:
    (output,) = bench.body(raw, fail="bad", stream=True)
    if raw:
        first, done = output.split("\n\n")[:2]
        assert done == "data: [DONE]"
        chunk = json.loads(first.removeprefix("data: "))
    else:
        (chunk,) = output
    assert chunk["error"]["param"] == "temperature"


@pytest.mark.parametrize("fail", ["crash", "late"])
def test_a_bug_is_a_plain_500(bench: Bench, fail: str) -> None:
    outputs = bench.body(fail=fail, stream=fail == "late", words=5)
    text = json.dumps(outputs)
    assert "Internal server error" in text
    assert "path.py" not in text
    assert "Traceback" not in text
    assert bench.body(words=1)  # and the next job is fine


@pytest.mark.parametrize("at", ["answer", "events"])
def test_a_failure_that_is_no_exception_ends_its_job_too(bench: Bench, at: str) -> None:
    """A bug in a library written in another language: nobody may wait for the job for ever."""

    class Panic(BaseException):
        pass

    async def answer(request: Any) -> Any:
        if at == "answer":
            raise Panic

        async def events() -> AsyncGenerator[Event, None]:
            yield event("a")
            raise Panic

        return EventStream(events())

    async def collect() -> list[Any]:
        handler = bench.handler(answer=answer)
        return [output async for output in handler({"id": "j", "input": {"prompt": "a", "stream": True}})]

    outputs = asyncio.run(asyncio.wait_for(collect(), 20))
    assert '"code":500' in outputs[-1] and outputs[-1].endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("job", [None, 5, [], {}, {"id": "j"}, {"id": 7, "input": None}, {"id": "j", "input": [1]}])
def test_garbage_is_an_error(bench: Bench, job: Any) -> None:
    (output,) = bench.run(job)
    assert json.loads(output["error"])["code"] == 400


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("job_input", [{"openai_route": CHAT, "openai_input": {"model": "\ud800"}}, {"prompt": 2**70}])
def test_what_no_json_can_carry_is_a_bad_request(bench: Bench, job_input: Any, stream: bool) -> None:
    (output,) = bench.run({"id": "j", "input": {**job_input, "stream": stream}})
    error = (
        json.loads(output.split("\n")[0].removeprefix("data: ")) if stream else {"error": json.loads(output["error"])}
    )
    assert error["error"]["code"] == 400


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("fault", ["body", "error"])
def test_what_leaves_can_always_be_encoded(bench: Bench, fault: str, raw: bool, stream: bool) -> None:
    """The SDK drops a result that it cannot encode, and the job then never ends."""

    async def answer(request: Any) -> Any:
        if fault == "error":
            raise ApiError(404, "there is no \ud800", param="\ud800")
        if not stream:
            return Response(200, {"model": "\ud800"})

        async def events() -> AsyncGenerator[Event, None]:
            yield Event('{"text": "\ud800"}')

        return EventStream(events())

    async def collect() -> list[Any]:
        handler = bench.handler(raw, answer)
        return [output async for output in handler({"id": "j", "input": {"prompt": "a", "stream": stream}})]

    outputs = asyncio.run(collect())
    assert outputs
    json.dumps(outputs, ensure_ascii=False, allow_nan=False).encode()


def test_a_body_is_what_a_client_over_http_would_read(bench: Bench) -> None:
    async def answer(request: Any) -> Any:
        return Response(200, {"value": float("nan"), "counts": {1: 2}})

    async def collect() -> list[Any]:
        return [output async for output in bench.handler(answer=answer)({"input": {"prompt": "a"}})]

    assert asyncio.run(collect()) == [{"value": None, "counts": {"1": 2}}]


@pytest.mark.parametrize(("of_job", "expected"), [({}, 3), ({"max_batch_size": 2}, 2), ({"max_batch_size": 7}, 7)])
def test_events_in_a_piece_are_bounded(bench: Bench, of_job: dict[str, int], expected: int) -> None:
    async def collect() -> list[str]:
        pieces = []
        async for piece in bench.handler(sizes=BatchSizes(most=3))(
            {"input": {"prompt": "a", "stream": True, "words": 30, **of_job}}
        ):
            pieces.append(piece)
            await asyncio.sleep(0.02)
        return pieces

    assert max(piece.count("data: ") for piece in asyncio.run(collect())) == expected


def test_slow_consumer_gets_fewer_pieces(bench: Bench) -> None:
    async def scenario() -> list[str]:
        pieces = []
        body = {"messages": [], "stream": True, "words": 100}
        async for piece in bench.handler()({"id": "j", "input": {"openai_input": body}}):
            pieces.append(piece)
            await asyncio.sleep(0.2)
        return pieces

    pieces = asyncio.run(scenario())
    assert len(pieces) < 20
    assert "".join(pieces).count("data: ") == 101


LONG = {"id": "long", "input": {"openai_input": {"messages": [], "stream": True, "words": 100_000, "pace": 0.001}}}


def test_closing_aborts(bench: Bench) -> None:
    async def scenario() -> None:
        outputs = bench.handler()(LONG)
        await anext(outputs)
        await outputs.aclose()

    asyncio.run(scenario())
    _until(lambda: bench.worker.aborted == ["long"])


def test_cancelling_while_waiting_for_an_event_aborts(bench: Bench) -> None:
    async def consume() -> None:
        async for _ in bench.handler()(LONG):
            pass

    async def scenario() -> None:
        task = asyncio.create_task(consume())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    _until(lambda: bench.worker.aborted == ["long"])


def test_leaving_the_generator_behind_aborts(bench: Bench) -> None:
    """As the SDK does when a job is stopped while it sends a piece: the generator stays suspended, somewhere alive."""
    kept = []

    async def consume() -> None:
        outputs = bench.handler()(LONG)
        kept.append(outputs)
        async for _ in outputs:
            await asyncio.sleep(60)

    async def scenario() -> None:
        task = asyncio.create_task(consume())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(500):
            if bench.worker.aborted:
                break
            await asyncio.sleep(0.01)
        assert bench.worker.aborted == ["long"]

    asyncio.run(scenario())


def test_cancelling_before_the_first_token_aborts(bench: Bench) -> None:
    async def scenario() -> None:
        body = {"messages": [], "words": 1, "pace": 60}
        task = asyncio.create_task(anext(bench.handler()({"id": "w", "input": {"openai_input": body}})))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    _until(lambda: bench.worker.aborted == ["w"])


@pytest.mark.parametrize("stream", [False, True])
def test_jobs_can_be_ended_from_outside(bench: Bench, stream: bool) -> None:
    async def answer(request: Any) -> Any:
        return await FAKE_ROUTER.dispatch(bench.worker.services, request)

    handling = Handling(bench.loop, answer, FAKE_ROUTER, model="m")

    async def scenario() -> list[Any]:
        body = {"messages": [], "stream": stream, "words": 100_000, "pace": 0.001}
        collecting = asyncio.create_task(_collect(make_handler(handling), {"id": "j", "input": {"openai_input": body}}))
        await asyncio.sleep(0.1)
        handling.fail_all(ApiError(503, "going down"))
        return await asyncio.wait_for(collecting, 5)

    last = asyncio.run(scenario())[-1]
    assert "going down" in (last if stream else last["error"])
    assert not handling.runs
    _until(lambda: bench.worker.aborted == ["j"])


async def _collect(handler: Handler, job: Any) -> list[Any]:
    return [output async for output in handler(job)]
