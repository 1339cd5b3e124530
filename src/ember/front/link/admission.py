"""Who may still join the queue of requests that wait for their first token.

One that would be too many is refused at once, with a 503 that says when to come again: a client, or the platform's
balancer, can then turn to another worker. Without limits everybody waits.

A job that was taken from the platform's queue has nowhere else to go: such jobs are not refused, but none is taken
while this queue is full.
"""

from __future__ import annotations

import asyncio

from ember.front.errors import ApiError


class Admission:
    """`max_requests` and `max_tokens` (of prompts) are of the requests that wait together; None: any number.

    A single request may be larger than `max_tokens` when it has the queue for itself: it would never be served.
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

    def enter(self, request_id: int, num_tokens: int) -> None:
        """Raises ApiError 503 where the queue is full, unless nobody is to be refused."""
        if self.refuses:
            self._check(num_tokens)
        self._waiting[request_id] = num_tokens
        self.num_tokens += num_tokens

    def leave(self, request_id: int) -> None:
        """The request has its first token, or is over. Does nothing for one that has left before."""
        if request_id in self._waiting:
            self.num_tokens -= self._waiting.pop(request_id)
            self._tell()

    def clear(self) -> None:
        """Nobody waits any more."""
        self._waiting.clear()
        self.num_tokens = 0
        self._tell()

    async def room(self) -> None:
        """Until one more may wait, however large."""
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
