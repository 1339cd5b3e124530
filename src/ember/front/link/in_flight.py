"""The requests that are under way in the engine: they are sent, get their outputs, and end, here.

After a crash they are suspects (`link.suspects`). A suspect that is sent again is held back while another one is tried,
so the engine has not heard of it yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ember import wire
from ember.front.errors import ApiError
from ember.front.link.admission import Admission
from ember.front.link.generation import Generation
from ember.front.link.outbox import Outbox
from ember.front.link.pooling import PooledText
from ember.front.link.suspects import Suspects, fingerprint


class InFlight:
    """Owns the handles of the requests. `is_serving` tells whether an engine process is ready for messages."""

    def __init__(self, outbox: Outbox, admission: Admission, is_serving: Callable[[], bool]) -> None:
        self._outbox = outbox
        self._admission = admission
        self._is_serving = is_serving
        self._suspects = Suspects()
        self._tried: dict[int, bytes] = {}  # suspects by request id, the first of which is in the engine
        self.handles: dict[int, Generation | PooledText] = {}  # by request id

    def start(self, handle: Generation | PooledText) -> None:
        """Send a request to the engine, or hold it back while another suspect is tried. Raises ApiError."""
        request = handle.request
        try:
            if not self._hold_suspect(request):
                self._outbox.send(request)
        except ValueError as error:
            raise ApiError(400, f"The request holds a value that cannot be passed on: {error}") from None
        self.handles[request.request_id] = handle

    def feed(self, outputs: Sequence[wire.SequenceOutput]) -> None:
        """Hand the outputs of a step to their requests. Those of requests that are over are dropped."""
        for output in outputs:
            self._admission.leave(output.request_id)
            handle = self.handles.get(output.request_id)
            if handle is not None and handle.feed(output):
                self._end(output.request_id, is_answered=True)

    def abort(self, request_id: int, index: int | None, is_over: bool) -> None:
        """Let the engine end a request, or one of its samples. `is_over`: no sample of the request is left."""
        is_held = request_id in self._tried and next(iter(self._tried)) != request_id  # the engine has not heard of it
        if self._is_serving() and not is_held:
            self._outbox.send(wire.Abort(request_id, None if is_over else index))
        if is_over:
            self._end(request_id, is_answered=False)

    def abort_all(self) -> None:
        """End all requests, as if their clients had left."""
        for handle in list(self.handles.values()):
            handle.abort()

    def blame(self) -> None:
        """Suspect the requests that the engine was working on when it crashed."""
        waiting = list(self._tried)[1:]
        self._suspects.blame(
            [fingerprint(handle.request) for request_id, handle in self.handles.items() if request_id not in waiting]
        )
        self._tried.clear()

    def fail(self, message: str, status: int) -> None:
        """End all requests with an error."""
        self._admission.clear()
        handles, self.handles = self.handles, {}
        for handle in handles.values():
            handle.fail(ApiError(status, message))

    def _hold_suspect(self, request: wire.Generate | wire.Pool) -> bool:
        """Whether the request has to wait until another suspect has been tried. Raises ApiError when it is the
        culprit."""
        if not self._suspects:
            return False
        key = fingerprint(request)
        if self._suspects.is_guilty(key):
            message = "This request crashed the engine twice and is not run again; the worker's log has the reason."
            raise ApiError(500, message, headers={"x-should-retry": "false"})
        if not self._suspects.is_suspect(key):
            return False
        self._tried[request.request_id] = key
        return len(self._tried) > 1

    def _end(self, request_id: int, is_answered: bool) -> None:
        """Forget a request that is over. If it was a suspect, the next suspect is sent."""
        self._admission.leave(request_id)
        handle = self.handles.pop(request_id, None)
        if request_id not in self._tried or handle is None:
            return
        was_running = next(iter(self._tried)) == request_id
        key = self._tried.pop(request_id)
        if is_answered:
            self._suspects.clear(key)
        if was_running and self._tried and self._is_serving():
            self._outbox.send(self.handles[next(iter(self._tried))].request)
