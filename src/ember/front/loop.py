"""The loop that owns the engine's client, in a thread of its own.

Offline use (`front/offline/`) calls from any thread, also from one whose own event loop is running. The SDK calls
`asyncio.run` more than once, and only after the engine is ready. The client's socket and every generation must live on
one loop from the start of the boot to the end of the last job. So that loop runs in a thread, while the main thread
imports the SDK. `submit` passes a job to the loop, and its events come back through `Pieces`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class EngineLoop:
    """An event loop in a daemon thread. `stop` cancels what still runs on it."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="engine-loop", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine on the loop, from any thread. Cancelling the future cancels the coroutine's task. Raises
        RuntimeError in a forked child, whose copy of the loop has no thread."""
        if os.getpid() != self._process:
            coroutine.close()
            raise RuntimeError("The engine is the parent's: a forked process makes one of its own.")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def stop(self, timeout: float = 5.0) -> None:
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()
