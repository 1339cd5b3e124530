"""Starts the engine's process. Kept free of other imports: the sooner it runs, the sooner torch is being imported."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from typing import NamedTuple

# Read by OpenMP when torch loads it. Threads that spin while they wait for each other steal the cores they wait for as
# soon as anything else runs on the machine: on two shared cores a decode step took 2 to 16 times as long.
# oneDNN keeps what it generated for every shape of a matrix product it met; 1024 of them, its default, are 250 MB after
# a few thousand requests of different lengths, and 128 are no slower.
# torch looks through the metadata of every installed package for backends of other devices; the engine uses none.
_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
}


class EngineProcess(NamedTuple):
    """A running engine process and the front's end of the socket to it."""

    process: subprocess.Popen[bytes]
    socket: socket.socket
    started: float  # on the clock of ember.boot.now(), which would be one more import here


_prepared: list[EngineProcess] = []


def spawn() -> EngineProcess:
    """Start an engine process, or hand out the one that `prepare` started."""
    if _prepared:
        return _prepared.pop()
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "ember.engine", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**_ENVIRONMENT, **os.environ},
            stdin=subprocess.DEVNULL,
            stdout=2,  # what a library prints must not mix with an answer on stdout
        )
    return EngineProcess(process, ours, time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)))


def prepare() -> None:
    """Start the engine process before the settings are even read. One that is never configured ends with the front."""
    _prepared.append(spawn())
