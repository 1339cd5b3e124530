"""Decides which requests may join the queue of those that wait for their first token.

A request beyond the limits is refused at once, with a 503 that says when to retry. A client or the platform's balancer
can then use another worker. Without limits every request waits.

A job that was taken from the platform's queue cannot go elsewhere, so jobs are not refused. Instead none is taken while
the queue of waiting requests is full.
"""

from __future__ import annotations

import asyncio

from ember.front.errors import ApiError


class Admission:
    """`max_requests` and `max_tokens` (of prompts) limit the requests that wait at the same time. None is no limit.

    A request with more than `max_tokens` is admitted when no other waits. Otherwise it would never be served.
    """

    def __init__(self, max_requests: int | None = None, max_tokens: int | None = None) -> None:
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._waiting: dict[int, int] = {}  # prompt tokens by request id
        self._left = asyncio.Event()  # replaced whenever somebody leaves
        self.num_tokens = 0
        self.refuses = True

    @property
    def num_requests(self) -> int:
        return len(self._waiting)

    def enter(self, request_id: int, num_tokens: int, *, is_step: bool = False) -> None:
        """Add a request. Raises ApiError 503 when the queue is full, unless requests are never refused or this is a
        later step of a request that was admitted."""
        if self.refuses and not is_step:
            self._check(num_tokens)
        self._waiting[request_id] = num_tokens
        self.num_tokens += num_tokens

    def reduce(self, request_id: int, num_tokens: int) -> None:
        """Let a request wait with fewer tokens: some of its texts are done. An unknown one is ignored."""
        if request_id in self._waiting:
            self._waiting[request_id] -= num_tokens
            self.num_tokens -= num_tokens
            self._tell()

    def leave(self, request_id: int) -> None:
        """Remove a request that has its first token, or is over. An unknown one is ignored."""
        if request_id in self._waiting:
            self.num_tokens -= self._waiting.pop(request_id)
            self._tell()

    def clear(self) -> None:
        """Remove all requests."""
        self._waiting.clear()
        self.num_tokens = 0
        self._tell()

    async def room(self) -> None:
        """Wait until a further request may join, however large it is."""
        while (self._max_requests is not None and len(self._waiting) >= self._max_requests) or (
            self._max_tokens is not None and self.num_tokens >= self._max_tokens
        ):
            await self._left.wait()

    def _tell(self) -> None:
        self._left.set()
        self._left = asyncio.Event()

    def _check(self, num_tokens: int) -> None:
        if self._max_requests is not None and len(self._waiting) >= self._max_requests:
            raise _full(
                f"{len(self._waiting)} requests wait already, as many as MAX_NUM_QUEUED_REQS allows", "requests"
            )
        is_over = self._max_tokens is not None and self.num_tokens + num_tokens > self._max_tokens
        if is_over and self._waiting:
            raise _full(
                f"{self.num_tokens} prompt tokens wait already; with the {num_tokens} of this request they would be "
                f"more than MAX_NUM_QUEUED_TOKENS={self._max_tokens} allows",
                "tokens",
            )


def _full(reason: str, limit: str) -> ApiError:
    error = ApiError(503, f"The worker is busy: {reason}.", type="Service Unavailable")
    error.limit = limit
    return error
