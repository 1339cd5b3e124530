"""Who may wait for the first token, and who is told to come again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from ember.front.errors import ApiError
from ember.front.link.admission import Admission


def refused(admission: Admission, request_id: int, num_tokens: int) -> ApiError:
    with pytest.raises(ApiError) as caught:
        admission.enter(request_id, num_tokens)
    assert caught.value.status == 503
    assert int(caught.value.headers["retry-after-ms"]) > 0
    return caught.value


def test_without_limits_everybody_waits() -> None:
    admission = Admission()
    for number in range(1000):
        admission.enter(number, 10_000)
    assert (admission.num_requests, admission.num_tokens) == (1000, 10_000_000)


def test_requests_are_bounded_until_one_leaves() -> None:
    admission = Admission(max_requests=2)
    admission.enter(1, 5)
    admission.enter(2, 5)
    assert "MAX_NUM_QUEUED_REQS" in refused(admission, 3, 5).message
    admission.leave(1)
    admission.leave(1)  # its later outputs
    admission.enter(3, 5)
    assert admission.num_tokens == 10


def test_prompt_tokens_are_bounded() -> None:
    admission = Admission(max_tokens=100)
    admission.enter(1, 60)
    assert "MAX_NUM_QUEUED_TOKENS=100" in refused(admission, 2, 41).message
    admission.enter(2, 40)
    admission.clear()
    admission.enter(3, 500)  # alone it is served, whatever its size
    refused(admission, 4, 1)


def test_for_jobs_of_a_queue_nobody_is_refused() -> None:
    admission = Admission(max_requests=1, max_tokens=10)
    admission.refuses = False
    for number in range(5):
        admission.enter(number, 100)
    assert (admission.num_requests, admission.num_tokens) == (5, 500)


@pytest.mark.parametrize("limits", [{"max_requests": 2}, {"max_tokens": 100}])
@pytest.mark.parametrize("end", [lambda admission: admission.leave(1), lambda admission: admission.clear()])
def test_waiting_for_room(limits: dict[str, int], end: Callable[[Admission], None]) -> None:
    async def run() -> None:
        admission = Admission(**limits)
        await asyncio.wait_for(admission.room(), 1)
        admission.enter(1, 60)
        await asyncio.wait_for(admission.room(), 1)
        admission.refuses = False
        admission.enter(2, 40)
        waiting = [asyncio.create_task(admission.room()) for _ in range(2)]
        await asyncio.sleep(0)
        waiting.pop().cancel()
        await asyncio.sleep(0.01)
        assert not waiting[0].done()
        end(admission)
        await asyncio.wait_for(waiting[0], 1)

    asyncio.run(run())


def test_without_limits_there_is_always_room() -> None:
    admission = Admission()
    admission.enter(1, 10**9)
    asyncio.run(asyncio.wait_for(admission.room(), 1))
