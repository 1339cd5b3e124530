"""The front's handle on the engine process: it sends requests, receives outputs, and fails requests in flight on a
crash.

Everything here runs in one event loop. Messages written in one turn of the loop leave as one frame; each frame that
arrives holds one engine step, whose outputs are handed to the requests they belong to. A request that is not being read
gathers its outputs, and its reader gets all of them at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from ember import wire
from ember.boot import Timeline
from ember.front.errors import ApiError, shutting_down
from ember.front.link.admission import Admission
from ember.front.link.control import Control
from ember.front.link.engine import EngineError
from ember.front.link.gate import Gate
from ember.front.link.generation import Generation
from ember.front.link.in_flight import InFlight
from ember.front.link.liveness import is_ending, is_stopped
from ember.front.link.outbox import Outbox
from ember.front.link.pooling import PoolBatch, PooledText, PoolOptions, PoolText
from ember.front.link.reap import describe, reap
from ember.front.link.silence import Silence
from ember.front.link.spawn import EngineProcess, spawn

log = logging.getLogger(__name__)

_UNKILLABLE = "its process cannot be ended and holds the device's memory"
HEALTHY_S = 3600.0  # an engine that ran so long starts with the full number of restarts again


class EngineClient:
    """Owns the engine process: configures it, routes its outputs, and restarts it after a crash.

    It restarts at most `restarts` times. A failed boot is final, as it would fail again. A later boot whose process is
    killed without a word, as it wakes up or restarts, counts as a crash. `admission` limits the requests that wait.
    """

    def __init__(
        self,
        engine: EngineProcess,
        configure: wire.Configure,
        timeline: Timeline,
        restarts: int = 0,
        admission: Admission | None = None,
    ) -> None:
        self._engine = engine
        self.admission = admission or Admission()
        self._configure = configure
        self._timeline = timeline
        self._restarts = restarts
        self._restarts_left = restarts
        self._ready_at = 0.0
        self._transport: asyncio.Transport | None = None
        self._link: _Link | None = None  # the current connection; messages of earlier ones are dropped
        self._outbox = Outbox()
        self.in_flight = InFlight(self._outbox, self.admission, lambda: self._info is not None)
        self._num_requests = 0
        self._stats_waiters: list[asyncio.Future[wire.Stats]] = []
        self._failure: wire.Failed | None = None
        self._info: wire.Ready | None = None  # None while no process serves
        self._last_info: wire.Ready | None = None  # of the process that served last
        self._end_tokens = wire.EndTokens([])  # of the tokenizer
        self._is_closing = False
        self._is_stopped = False  # the process was ended for a sleep
        self._is_asleep = False  # as `_is_stopped`, and until the next process is ready or has failed
        self._recovery: asyncio.Task[None] | None = None  # of the last crash
        self.gate = Gate()
        self.control = Control(self)
        self._tasks: set[asyncio.Task[None]] = set()
        self._silence = Silence(configure.step_timeout, self._is_expecting, self._ask, self._give_up)
        self.located: asyncio.Future[wire.Located]
        self._ready: asyncio.Future[wire.Ready]
        self.dead = asyncio.Event()  # set when the engine is gone for good
        self.error: str | None = None  # why
        self.on_first_token: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Connect to the engine and configure it. Returns at once; see `wait_ready`."""
        loop = asyncio.get_running_loop()
        self.located = loop.create_future()
        self._ready = loop.create_future()
        if self._configure.step_timeout:
            self._keep(self._silence.watch())
        await self._connect()

    @property
    def info(self) -> wire.Ready:
        """The engine's description of itself. During a sleep it is that of the process that served before. Raises
        ApiError while the engine is not ready, and when it is dead."""
        if self._is_asleep and self._last_info is not None:
            return self._last_info
        return self._running()

    @property
    def tasks(self) -> Sequence[str]:
        """What the model does, as the engine said when it was last ready. It is empty before."""
        return () if self._last_info is None else self._last_info.tasks

    def _running(self) -> wire.Ready:
        """The description of the process that serves. Raises ApiError when there is none."""
        if self._info is None:
            if self.is_dead:
                raise ApiError(
                    500,
                    f"The engine is not running: {self.error or 'its process ends'}",
                    headers={"x-should-retry": "false"},
                )
            if self._is_asleep:
                raise ApiError(503, "The engine is asleep; try again when it runs.")
            raise ApiError(503, "The model is being loaded; try again in a moment.")
        return self._info

    @property
    def is_ready(self) -> bool:
        """Whether the engine can serve. It is False as soon as the process is killed, long before its socket closes,
        while the process is stopped, and while the engine is paused or asleep."""
        process = self._engine.process
        return self._info is not None and self.gate.is_open and not is_ending(process) and not is_stopped(process)

    @property
    def is_dead(self) -> bool:
        """Whether the engine has ended, or is ending, and is not restarted."""
        if self.dead.is_set() or self._is_stopped:
            return self.dead.is_set()
        return not self._may_restart() and is_ending(self._engine.process)

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way."""
        return bool(self.in_flight.handles or self.gate.inside)

    @property
    def model_dir(self) -> str:
        """The directory or file of the model, once it was found."""
        return self.located.result().model_dir

    def add_end_tokens(self, token_ids: list[int]) -> None:
        """Let the tokenizer's end tokens end answers too, also after a restart of the engine."""
        self._end_tokens = wire.EndTokens(token_ids)
        if self._info is not None:
            self._info = self._with_end_tokens(self._info)

    async def wait_ready(self) -> wire.Ready:
        """Wait for the boot or the restart to end, and for that of a pause or a sleep. Raises EngineError when the
        engine fails, and ApiError 503 when the worker shuts down."""
        while True:
            await self.gate.wait()
            info = await asyncio.shield(self._ready)
            if self.gate.is_open:
                return self._info or info  # which may know more end tokens by now

    def generate(
        self,
        prompt_token_ids: list[int],
        sampling: wire.SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        adapter: str | None = None,
        is_step: bool = False,
    ) -> Generation:
        """Start a request. Raises ApiError while the engine is not ready, when too many wait already, when a value
        cannot be encoded, and for a request that ended the engine before. `is_step` is a later step of a request in
        `gate.inside`: neither a pause nor a full queue refuses it."""
        request = wire.Generate(
            self._next_id(),
            prompt_token_ids,
            sampling,
            priority=priority,
            cache_salt=cache_salt,
            adapter=adapter,
        )
        return self._start(request, is_step)

    async def pool_many(
        self, texts: Sequence[PoolText], options: PoolOptions, *, is_step: bool = False
    ) -> list[wire.SequenceOutput]:
        """Run texts and return their outputs, in the same order. Being cancelled aborts them. They count as one request
        that waits. Raises ApiError as `generate` does, and a 400 where the engine says that its model does not do this
        task."""
        self._check_start(is_step)
        batch_id = self._next_id()
        self.admission.enter(batch_id, sum(len(text.token_ids) for text in texts), is_step=is_step)

        def send(text: PoolText, batch: PoolBatch, position: int) -> wire.Pool:
            request = options.request(self._next_id(), text)
            self.in_flight.start(PooledText(request, batch, position))
            return request

        def stop(request_id: int) -> None:
            self.in_flight.abort(request_id, None, True)

        batch = PoolBatch(texts, self._running(), send, stop)
        batch.on_output = lambda num_tokens: self.admission.reduce(batch_id, num_tokens)
        try:
            return await batch.result()
        finally:
            self.admission.leave(batch_id)

    async def pool(
        self, prompt_token_ids: list[int], task: wire.PoolingTask, token_type_ids: Sequence[int] = (), **options: Any
    ) -> wire.SequenceOutput:
        """The same for one text. `options` are those of `PoolOptions`."""
        (output,) = await self.pool_many(
            [PoolText(prompt_token_ids, list(token_type_ids))], PoolOptions(task, **options)
        )
        return output

    def _next_id(self) -> int:
        self._num_requests += 1
        return self._num_requests

    def _check_start(self, is_step: bool) -> None:
        """Raises ApiError when a request cannot start now."""
        self._running()
        if not is_step:
            self.gate.check()

    def _start(self, request: wire.Generate, is_step: bool) -> Generation:
        """Start a request. Raises ApiError."""
        self._check_start(is_step)
        self.admission.enter(request.request_id, len(request.prompt_token_ids), is_step=is_step)
        generation = Generation(request, self.in_flight.abort)
        try:
            self.in_flight.start(generation)
        except ApiError:
            self.admission.leave(request.request_id)
            raise
        return generation

    async def stats(self) -> wire.Stats:
        """The engine's statistics at its next step. Raises ApiError while the engine is not ready."""
        self._running()
        waiter: asyncio.Future[wire.Stats] = asyncio.get_running_loop().create_future()
        self._stats_waiters.append(waiter)
        self._outbox.send(wire.GetStats())
        return await waiter

    def abort_all(self) -> None:
        """End the requests that run, as if their clients had left."""
        for entrant in list(self.gate.inside):
            entrant.abort()
        self.in_flight.abort_all()

    def pause_steps(self, is_paused: bool) -> None:
        """Let the engine run no steps, or run them again."""
        self._outbox.send(wire.Pause(is_paused))

    async def reset_prefix_cache(self) -> None:
        """Returns when the prefix cache is empty. Raises ApiError while the engine is not ready."""
        self._running()
        self._outbox.send(wire.ResetPrefixCache())
        await self.stats()  # the engine reads its messages in order

    async def stop_process(self) -> None:
        """End the engine's process until `start_process`. No request may be under way. Raises ApiError 500 when the
        engine is dead, or cannot be ended."""
        self._is_stopped = self._is_asleep = True
        if self._recovery is not None:  # of a crash a moment ago; it starts no process now
            await asyncio.wait((self._recovery,))
        if self._transport is not None:
            self._transport.abort()
        self._forget_process()
        self._fail_in_flight("The engine is put to sleep; try again when it runs.", status=503)
        self._engine.process.kill()  # the process has no state to save
        status = await reap(self._engine.process)
        self._failure = None
        if status is None and not self.dead.is_set():
            self._end_for_good(_UNKILLABLE)
        if self.dead.is_set():
            self._running()

    async def start_process(self) -> None:
        """Start the engine again and wait for its boot. Raises OSError when it cannot be started, EngineError when its
        boot fails, and ApiError 503 when the worker is shutting down."""
        if self._is_closing:
            raise shutting_down()
        engine = spawn()
        self._engine, self._is_stopped = engine, False
        await self._connect()
        await asyncio.shield(self._ready)

    async def close(self) -> None:
        """End the engine process, and fail the requests in flight."""
        self._is_closing = True
        if self._transport is not None:
            self._transport.close()
        self._fail_in_flight("The worker is shutting down.", status=503)
        self.gate.end()
        if not self._ready.done():
            self._ready.set_exception(shutting_down())
            self._ready.exception()  # a future nobody waits for is no unhandled error
        self._engine.process.kill()  # the process has no state to save
        await reap(self._engine.process)
        for task in self._tasks:
            task.cancel()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        self._link = link = _Link(self)
        self._transport, _ = await loop.create_connection(lambda: link, sock=self._engine.socket)
        self._outbox.connect(self._transport)
        self._outbox.send(self._configure)

    def _receive(self, message: wire.EngineMessage) -> None:
        match message:
            case wire.Outputs():
                is_first = "first_token" not in self._timeline.marks
                self._timeline.mark("first_token")
                self.in_flight.feed(message.outputs)
                if is_first:
                    self.on_first_token()
            case wire.Stats():
                for waiter in self._stats_waiters:
                    if not waiter.done():
                        waiter.set_result(message)
                self._stats_waiters.clear()
            case wire.Located():
                if not self.located.done():
                    self.located.set_result(message)
            case wire.Notice():
                log.log(logging.WARNING if message.level == "warning" else logging.INFO, "%s", message.message)
            case wire.Ready():
                if self._ready_at:
                    log.info("the engine is ready again")
                self._info = self._last_info = self._with_end_tokens(message)
                self._is_asleep = False
                self._ready_at = time.monotonic()
                self._ready.set_result(self._info)
            case wire.Phases():
                self._timeline.extend(message.phases)
            case wire.Failed():
                self._failure = message

    def _with_end_tokens(self, info: wire.Ready) -> wire.Ready:
        """Send the tokenizer's end tokens that are new to the engine. Returns its description with them."""
        new = [token_id for token_id in self._end_tokens.token_ids if 0 <= token_id < info.vocab_size]
        new = [token_id for token_id in new if token_id not in info.eos_token_ids]
        if not new:
            return info
        self._outbox.send(wire.EndTokens(new))
        return msgspec.structs.replace(info, eos_token_ids=[*info.eos_token_ids, *new])

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine as a task. `close` cancels the task if it still runs."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _is_expecting(self) -> bool:
        """Whether a ready engine has requests to answer."""
        waits = bool(self.in_flight.handles) or any(not waiter.done() for waiter in self._stats_waiters)
        return self._info is not None and waits

    def _ask(self) -> None:
        self._outbox.send(wire.GetStats())

    def _give_up(self, seconds: float) -> None:
        """End an engine that does not answer, as if it had crashed."""
        limit = f"STEP_TIMEOUT={self._configure.step_timeout:g} seconds"
        self._failure = wire.Failed(f"the engine hangs: it has not answered for {seconds:.0f} seconds ({limit})", "run")
        self._engine.process.kill()
        if self._transport is not None:
            self._transport.abort()  # a process that the kernel holds keeps its end of the socket open

    def _may_restart(self) -> bool:
        return self._restarts_left > 0 or (self._restarts > 0 and self._has_been_healthy())

    def _has_been_healthy(self) -> bool:
        return self._info is not None and time.monotonic() - self._ready_at > HEALTHY_S

    def _disconnected(self, link: _Link) -> None:
        """Handle a closed socket: the process has ended or is about to."""
        if self._is_closing or self._is_stopped or link is not self._link:
            return
        was_ready = self._info is not None
        if self._has_been_healthy():
            self._restarts_left = self._restarts
        self._forget_process()
        if was_ready:
            reason = self._failure.message if self._failure else "the engine process ended unexpectedly"
            self.in_flight.blame()
            self._fail_in_flight(f"The engine failed while this request was running: {reason}.")
        self._recovery = self._keep(self._recover(was_ready))

    def _forget_process(self) -> None:
        """Serve nothing until the next process is ready, for which `wait_ready` waits from now on."""
        self._info = None
        self._outbox.clear()
        if self._ready.done():
            self._ready = asyncio.get_running_loop().create_future()

    def _fail_in_flight(self, message: str, status: int = 500) -> None:
        self.in_flight.fail(message, status)
        for waiter in self._stats_waiters:
            if not waiter.done():
                waiter.set_exception(ApiError(status, message))
        self._stats_waiters.clear()

    async def _recover(self, was_ready: bool) -> None:
        """Start the engine again after a crash, or end it for good. A crash during a sleep counts, and the next process
        is that of the wake-up."""
        status = await reap(self._engine.process)
        if self._is_closing:
            return
        failure, self._failure = self._failure, None
        reason = failure.message if failure else f"the engine process ended unexpectedly ({describe(status)})"
        if status is None:
            reason = f"{reason}; {_UNKILLABLE}"
        elif (was_ready or (self._last_info is not None and failure is None)) and self._restarts_left > 0:
            self._restarts_left -= 1
            if self._is_stopped:
                log.error("%s; it is started again at the end of the sleep", reason)
                return
            log.error("%s; the engine is being restarted (ENGINE_RESTARTS allows %d more)", reason, self._restarts_left)
            try:
                self._engine = spawn()
                await self._connect()
                return
            except Exception as error:  # out of processes, files or memory: this worker is of no more use
                reason = f"{reason}; it could not be restarted: {type(error).__name__}: {error}"
        self._end_for_good(reason)

    def _end_for_good(self, reason: str) -> None:
        """The engine is dead: fail those that wait for it."""
        self.error, self._is_asleep = reason, False
        self.dead.set()
        for future in (self.located, self._ready):
            if not future.done():
                future.set_exception(EngineError(reason))
                future.exception()  # a future nobody waits for is no unhandled error


class _Link(asyncio.Protocol):
    """Splits the socket's bytes into messages."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._frames = wire.FrameBuffer()

    def data_received(self, data: bytes) -> None:
        if self is not self._client._link:
            return
        self._client._silence.end()
        for payload in self._frames.feed(data):
            self._client._receive(wire.decode_engine(payload))

    def connection_lost(self, exc: Exception | None) -> None:
        self._client._disconnected(self)
