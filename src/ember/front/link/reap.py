"""Waits for the engine's process to end."""

from __future__ import annotations

import asyncio
import time
from subprocess import Popen
from typing import Any

EXIT_TIMEOUT_S = 5.0  # for a process whose socket is closed to be gone too, and once more when it was killed
POLL_S = 0.01


async def reap(process: Popen[Any]) -> int | None:
    """Wait for the process to end, and kill it after a while. Returns its exit status. It is None when the kernel
    cannot end the process, as in the call of a driver that hangs."""
    for force in (process.poll, process.kill):
        force()
        give_up_at = time.monotonic() + EXIT_TIMEOUT_S
        while (status := process.poll()) is None and time.monotonic() < give_up_at:
            await asyncio.sleep(POLL_S)
        if status is not None:
            return status
    return None


def describe(status: int | None) -> str:
    """How a process ended, for the log."""
    if status is None:
        return "it still runs"
    return f"signal {-status}" if status < 0 else f"exit status {status}"
