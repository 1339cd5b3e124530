"""The operator's control over the engine: pausing it, and putting it to sleep.

Asleep, the engine's process has ended, so that the device's memory is free: weights, KV cache and all. Level 1 leaves
the weights in the host's memory (the page cache), level 2 drops them from there too. Waking up is a boot of the engine,
which reads them from where they are. Level 0 only pauses. Requests that come meanwhile wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Literal, Protocol, get_args

from ember.front.errors import ApiError, bad_request
from ember.front.link.gate import Gate
from ember.front.link.weight_files import drop_from_memory, keep_in_memory, weight_files

Mode = Literal["abort", "wait", "keep"]  # what happens to requests that run: end them, await them, freeze them
MODES: tuple[Mode, ...] = get_args(Mode)
TAGS = ("weights", "kv_cache")
LEVELS = (0, 1, 2)
_POLL_S = 0.05  # between two checks of whether the last request has ended


class Controlled(Protocol):
    """What this needs of the engine's client."""

    gate: Gate

    @property
    def is_busy(self) -> bool: ...
    @property
    def model_dir(self) -> str: ...
    def abort_all(self) -> None: ...
    def pause_steps(self, is_paused: bool) -> None: ...
    async def reset_prefix_cache(self) -> None: ...
    async def stop_process(self) -> None: ...
    async def start_process(self) -> None: ...


class Control:
    """Makes one change at a time: a second one waits for the first. A change that has begun is made to its end, also
    when the client that asked for it has left. Only a pause that still waits for running requests is ended by
    `resume`. A second pause or sleep that ends the running requests ends those too for which the first one waits."""

    def __init__(self, engine: Controlled) -> None:
        self._engine = engine
        self._changing = asyncio.Lock()
        self._asleep: set[str] = set()  # tags that are still to be woken up
        self._are_steps_paused = False
        self.level: int | None = None  # of the sleep
        self._is_paused = False
        self._num_resumes = 0
        self._modes: list[Mode] = []  # of the pauses and sleeps that are under way or wait for their turn
        self._tasks: set[asyncio.Task[None]] = set()  # references, so that they are not garbage collected

    @property
    def is_sleeping(self) -> bool:
        return self.level is not None

    @property
    def _is_stopped(self) -> bool:
        """Whether the sleep has ended the engine's process, and no part was woken up since."""
        return self.level is not None and self.level > 0 and len(self._asleep) == len(TAGS)

    @property
    def is_paused(self) -> bool:
        """Whether no request may start: from the beginning of a pause or a sleep, while running requests may still end,
        until its end, when the engine serves again."""
        return not self._engine.gate.is_open

    async def pause(self, mode: Mode, *, clears_cache: bool = True) -> None:
        """Let no request start. Raises ApiError 409 when `resume` ended the pause while it waited, and for requests
        that are to be frozen while another pause or sleep waits for their end."""
        await self._stop_requests(mode, self._pause(mode, clears_cache))

    async def resume(self) -> None:
        """End a pause, also one that still waits for running requests. A sleep goes on."""
        self._num_resumes += 1
        await self._change(self._resume())

    async def sleep(self, level: int, mode: Mode) -> None:
        """Raises ApiError 400 for a level that frees the memory of requests that are to be kept, and 409 as `pause`
        does for them."""
        if level > 0 and mode == "keep":
            message = f"mode 'keep' needs level 0: level {level} frees the memory of running requests."
            raise bad_request(message, "query.mode")
        await self._stop_requests(mode, self._sleep(level, mode))

    async def wake_up(self, tags: Collection[str] = ()) -> None:
        """Wake up these parts, or all. The first one starts the engine; requests go on with the last one. Raises
        ApiError 500 when the engine cannot start, and EngineError when its boot fails."""
        await self._change(self._wake_up(tags))

    async def _stop_requests(self, mode: Mode, work: Coroutine[Any, Any, None]) -> None:
        """Make a pause or a sleep."""

        async def counted() -> None:
            try:
                await work
            finally:
                self._modes.remove(mode)

        if mode == "keep" and "wait" in self._modes:
            work.close()
            raise ApiError(
                409,
                "Another /pause or /sleep waits for the end of the running requests, which mode 'keep' would freeze: "
                "end them with mode 'abort', or wait.",
            )
        self._modes.append(mode)
        await self._change(counted())

    async def _change(self, work: Coroutine[Any, Any, None]) -> None:
        async def alone() -> None:
            async with self._changing:
                try:
                    await work
                finally:
                    self._open()

        task = asyncio.create_task(alone())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    async def _pause(self, mode: Mode, clears_cache: bool) -> None:
        num_resumes = self._num_resumes

        def check_wanted() -> None:
            if self._num_resumes != num_resumes:
                raise ApiError(409, "The pause was ended by /resume while it waited for the running requests.")

        await self._quiesce(mode, clears_cache, check_wanted)
        self._is_paused = True

    async def _resume(self) -> None:
        self._is_paused = False

    async def _sleep(self, level: int, mode: Mode) -> None:
        if self.level is not None and self.level > 0 and (level == 0 or (self._is_stopped and level <= self.level)):
            return  # it sleeps as deeply; but after a wake-up of one part the process runs, and is stopped again
        if not self._is_stopped:
            await self._quiesce(mode, clears_cache=level == 0)
        if level > 0:
            files = await asyncio.to_thread(weight_files, self._engine.model_dir)
            if not self._is_stopped:
                if level == 1:
                    await asyncio.to_thread(keep_in_memory, files)
                try:
                    await self._engine.stop_process()
                except ApiError:  # the engine is dead: requests that wait are to be told
                    self.level = None
                    raise
            if level == 2:
                await asyncio.to_thread(drop_from_memory, files)
        self.level = level
        self._asleep = set(TAGS)

    async def _wake_up(self, tags: Collection[str]) -> None:
        if self.level is None:
            return
        if self._is_stopped:
            try:
                await self._engine.start_process()
            except OSError as error:
                raise ApiError(500, f"The engine cannot be started: {error.strerror or error}.") from None
            except Exception:  # its boot failed, which is final: requests that wait are to be told
                self.level = None
                raise
        self._asleep -= set(tags or TAGS)
        if not self._asleep:
            self.level = None

    async def _quiesce(self, mode: Mode, clears_cache: bool, check_wanted: Callable[[], None] = lambda: None) -> None:
        """Let no request start, and end, await or freeze those that run. Raises what `check_wanted` raises, which is
        called while requests are awaited."""
        self._engine.gate.close()
        if mode == "keep":
            self._are_steps_paused = True
            self._engine.pause_steps(True)
            return
        if mode == "abort":
            self._engine.abort_all()
        self._release()  # requests that were frozen could not end
        while self._engine.is_busy:
            check_wanted()
            if mode == "wait" and "abort" in self._modes:  # a later change ends the requests
                mode = "abort"
                self._engine.abort_all()
            await asyncio.sleep(_POLL_S)
        if clears_cache:
            await self._engine.reset_prefix_cache()

    def _open(self) -> None:
        """Let requests start, unless there is a pause or a sleep, or one follows at once."""
        if not (self._is_paused or self.is_sleeping or self._modes):
            self._release()
            self._engine.gate.open()

    def _release(self) -> None:
        if self._are_steps_paused:
            self._are_steps_paused = False
            self._engine.pause_steps(False)
