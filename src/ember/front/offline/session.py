"""The engine of one `LLM`: its process, the loop that its client runs on, and the feeding of many requests.

The loop has a thread of its own, so that callers may be anywhere: in a notebook, whose own loop is running, or in
several threads at a time.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from ember.front.api.feed import feed
from ember.front.api.services import Services
from ember.front.errors import ApiError
from ember.front.link.engine import EngineError
from ember.front.loop import EngineLoop
from ember.front.offline.checks import check_argument
from ember.front.offline.errors import raise_for
from ember.front.start import Worker, launch
from ember.wire import Ready

if TYPE_CHECKING:
    from ember.settings import Settings

Item = TypeVar("Item")
Result = TypeVar("Result")

CLOSE_SECONDS = 10.0
POLL_SECONDS = 0.1  # the poll interval of the progress, where that is shown
STEPS_AHEAD = 2  # requests in the front and the engine, in steps of the engine that are full


class Session:
    """A booted engine. Raises RuntimeError, with one line, when the boot fails."""

    def __init__(self, settings: Settings) -> None:
        self._loop = EngineLoop()
        self._loop.start()
        self._worker = launch(settings, owns_process=False)
        self._worker.engine.admission.refuses = False  # what is fed is bounded here
        self.is_closed = False
        try:
            self.services: Services = self._wait(_boot(self._worker))
        except EngineError as error:
            self.close()
            raise RuntimeError(str(error)) from None
        except BaseException:
            self.close()
            raise

    @property
    def info(self) -> Ready:
        """What the engine says of itself, once it is ready: it may be being restarted. Raises RuntimeError."""
        self._check_open()
        try:
            info: Ready = self._wait(self.services.ready())
        except ApiError as error:
            raise RuntimeError(error.message) from None
        return info

    @property
    def window(self) -> int:
        """How many requests are under way at a time: enough for the next step to be full when one is done."""
        return STEPS_AHEAD * self.info.max_num_seqs

    def close(self) -> None:
        """End the engine's process. Requests that still run fail."""
        if not self.is_closed:
            self.is_closed = True
            with contextlib.suppress(Exception):
                self._loop.submit(self._worker.close()).result(CLOSE_SECONDS)
            self._loop.stop()

    def run(
        self,
        items: Iterable[Item],
        work: Callable[[int, Item], Awaitable[Result]],
        progress: Progress,
        window: int | None = None,
    ) -> list[Result]:
        """The results of `work` for each item, in the order of the items. `work` gets the place of the item too. Only
        so many items as fit the window are under way at a time. An interruption aborts them.

        Raises PromptError and RuntimeError for the first item that fails.
        """
        self._check_open()
        given = list(items)
        results: list[Any] = [None] * len(given)

        async def place(numbered: tuple[int, Item]) -> None:
            index, item = numbered
            try:
                results[index] = await work(index, item)
            except ApiError as error:
                raise_for(error, index, len(given), results)
            progress.num_done += 1

        numbered_items = enumerate(given)

        async def next_item() -> tuple[int, Item] | None:
            return next(numbered_items, None)

        with progress:
            self._wait(feed(next_item, place, min(window or self.window, len(given))), progress)
        return results

    def wait(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """The result of a coroutine, which runs on the loop. Raises RuntimeError after the end of the engine."""
        if self.is_closed:
            coroutine.close()
        self._check_open()
        result: Result = self._wait(coroutine)
        return result

    def _check_open(self) -> None:
        if self.is_closed:
            raise RuntimeError("The engine was shut down.")

    def _wait(self, coroutine: Any, progress: Progress | None = None) -> Any:
        """Wait for the result of a coroutine on the loop, and show the progress meanwhile. An exception in this thread,
        such as KeyboardInterrupt, cancels it."""
        future = self._loop.submit(coroutine)
        poll_interval = POLL_SECONDS if progress is not None and progress.is_shown else None
        try:
            while not concurrent.futures.wait([future], poll_interval).done:
                assert progress is not None
                progress.show()
            return future.result()
        except BaseException:
            future.cancel()
            raise


async def _boot(worker: Worker) -> Services:
    await worker.start()
    return await worker.ready()


class Progress:
    """How many items are done, on a terminal: tqdm's line, or that of a class with tqdm's interface that the caller
    gives. It is written by the caller's thread."""

    def __init__(self, total: int, use_tqdm: bool | Callable[..., Any], description: str) -> None:
        is_fit = use_tqdm is None or isinstance(use_tqdm, bool) or callable(use_tqdm)
        check_argument("use_tqdm", use_tqdm, is_fit, "true, false, or a class with tqdm's interface")
        self._total = total
        self._description = description
        self._make: Callable[..., Any] | None = None
        self._options: dict[str, Any] = {}
        if callable(use_tqdm):
            self._make = use_tqdm
        elif use_tqdm and total:
            from tqdm import tqdm

            self._make, self._options = tqdm, {"disable": None}  # it is shown on a terminal alone
        self._bar: Any = None
        self._num_shown = 0
        self.num_done = 0  # counted by the loop's thread

    @property
    def is_shown(self) -> bool:
        return self._bar is not None and not getattr(self._bar, "disable", False)

    def __enter__(self) -> Progress:
        if self._make is not None:
            self._bar = self._make(total=self._total, desc=self._description, dynamic_ncols=True, **self._options)
        return self

    def show(self) -> None:
        num_new, self._num_shown = self.num_done - self._num_shown, self.num_done
        if num_new and self._bar is not None:
            self._bar.update(num_new)

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self.show()
            self._bar.close()
