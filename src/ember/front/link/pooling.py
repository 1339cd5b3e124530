"""The texts of one pooling request on their way through the engine.

A request may have thousands of texts. They are no tasks of the event loop: the engine's outputs are put in place as
they arrive, and one future waits for the last. Only some texts are in the engine at a time, as many as it needs to be
busy, so that a request with few texts that comes later does not wait for all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ember import wire
from ember.front.errors import ApiError
from ember.front.link.generation import check_output

# Steps' worth of prompt tokens that a request has in the engine. On a CPU a step takes so long that the wait for the
# next texts does not matter, and a query that comes meanwhile runs before them.
STEPS_AHEAD, STEPS_AHEAD_ON_CPU = 2, 1
MIN_AHEAD = 16  # texts that it has there at least


@dataclass(frozen=True, slots=True)
class PoolText:
    """One text, or one pair of texts, as the model reads it."""

    token_ids: list[int]
    token_type_ids: list[int] = field(default_factory=list)  # the segment of each token; empty: all 0
    num_instruction_tokens: int = 0  # the first tokens, which are no part of the text itself


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """What a request asks of all its texts."""

    task: wire.PoolingTask
    dimensions: int | None = None
    use_activation: bool | None = None
    priority: int = 0
    cache_salt: str | None = None
    adapter: str | None = None

    def request(self, request_id: int, text: PoolText) -> wire.Pool:
        return wire.Pool(
            request_id,
            text.token_ids,
            self.task,
            token_type_ids=text.token_type_ids,
            num_instruction_tokens=text.num_instruction_tokens,
            dimensions=self.dimensions,
            use_activation=self.use_activation,
            priority=self.priority,
            cache_salt=self.cache_salt,
            adapter=self.adapter,
        )


class PooledText:
    """One text in the engine. The client hands it its output, as it does to a `Generation`."""

    __slots__ = ("_batch", "_position", "request")

    def __init__(self, request: wire.Pool, batch: PoolBatch, position: int) -> None:
        self.request = request
        self._batch = batch
        self._position = position

    def feed(self, output: wire.SequenceOutput) -> bool:
        """Take the output. Returns whether the text is done, which it is with its only output."""
        self._batch.take(self._position, self.request, output)
        return True

    def abort(self) -> None:
        """End the whole request, whose other texts are then ended in the engine."""
        self._batch.fail(ApiError(503, "The request was aborted."))

    def fail(self, error: ApiError) -> None:
        """End the whole request: the engine is gone, and its texts with it."""
        self._batch.lose(error)


Send = Callable[[PoolText, "PoolBatch", int], wire.Pool]  # starts the text at a position; raises ApiError
Stop = Callable[[int], None]  # ends the text with this request id


class PoolBatch:
    """All texts of one request. `result` waits for them and ends those that are left when it is cancelled."""

    def __init__(self, texts: Sequence[PoolText], info: wire.Ready, send: Send, stop: Stop) -> None:
        self._texts = texts
        steps = STEPS_AHEAD_ON_CPU if info.device == "cpu" else STEPS_AHEAD
        self._tokens_ahead = steps * info.max_num_batched_tokens
        self._send = send
        self._stop = stop
        self._outputs: list[wire.SequenceOutput | None] = [None] * len(texts)
        self._open: dict[int, int] = {}  # tokens of the texts in the engine, by request id
        self._num_open_tokens = 0
        self._num_sent = 0
        self._num_left = len(texts)
        self._sending: asyncio.Handle | None = None
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_output: Callable[[int], None] = lambda num_tokens: None  # with the tokens of a text that is done

    async def result(self) -> list[wire.SequenceOutput]:
        """The outputs, in the order of the texts. Raises ApiError when a text could not be started, when the engine
        reports an error for one, and when it crashes."""
        try:
            self._send_some()
            if self._num_left:
                await self._done
        finally:
            if self._sending is not None:
                self._sending.cancel()
            for request_id in list(self._open):
                self._stop(request_id)
            self._open.clear()
        return [output for output in self._outputs if output is not None]

    def take(self, position: int, request: wire.Pool, output: wire.SequenceOutput) -> None:
        """Put the output of a text in its place, and let the next texts follow."""
        self._close(request.request_id)
        self.on_output(len(request.prompt_token_ids))
        try:
            check_output(output)
        except ApiError as error:
            self.fail(error)
            return
        self._outputs[position] = output
        self._num_left -= 1
        if not self._num_left and not self._done.done():
            self._done.set_result(None)
        elif self._num_sent < len(self._texts) and self._sending is None:
            # After all outputs of this step, as one frame.
            self._sending = asyncio.get_running_loop().call_soon(self._send_more)

    def fail(self, error: ApiError) -> None:
        """End the request with an error. The first one counts."""
        if not self._done.done():
            self._done.set_exception(error)
            self._done.exception()  # the request may have been cancelled, so that nobody waits for it

    def lose(self, error: ApiError) -> None:
        """End the request with an error where nothing of it is left in the engine."""
        self._open.clear()
        self.fail(error)

    def _send_more(self) -> None:
        self._sending = None
        if self._done.done():
            return
        try:
            self._send_some()
        except ApiError as error:
            self.fail(error)

    def _send_some(self) -> None:
        while self._num_sent < len(self._texts) and (
            len(self._open) < MIN_AHEAD or self._num_open_tokens < self._tokens_ahead
        ):
            position = self._num_sent
            self._num_sent += 1
            text = self._texts[position]
            request = self._send(text, self, position)
            self._open[request.request_id] = len(text.token_ids)
            self._num_open_tokens += len(text.token_ids)

    def _close(self, request_id: int) -> None:
        self._num_open_tokens -= self._open.pop(request_id, 0)
