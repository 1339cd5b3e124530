"""Starts the engine's process. This module has few imports, so that the engine can begin to import torch early."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import weakref
from typing import NamedTuple

from ember.interpreter import module_command

# OpenMP reads its variable when torch loads it. Threads that spin while they wait take cores from the threads that they
# wait for: on two shared cores a decode step took 2 to 16 times as long.
# oneDNN caches the code that it generates for every shape of a matrix product. Its default of 1024 entries takes 250 MB
# after a few thousand requests of different lengths, and 128 entries are not slower.
# torch searches the metadata of every installed package for backends of other devices. The engine uses none.
# numpy's OpenBLAS starts threads for its products when it is loaded, which takes 50 ms of a core. The engine multiplies
# with torch. On other machines torch itself may use OpenBLAS.
_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    **({"OPENBLAS_NUM_THREADS": "1"} if os.uname().machine == "x86_64" else {}),
}


class EngineProcess(NamedTuple):
    """A running engine process and the front's end of the socket to it."""

    process: subprocess.Popen[bytes]
    socket: socket.socket
    started: float  # on the clock of ember.boot.now(), which would be one more import here


_prepared: list[EngineProcess] = []
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()  # to all engines of this process


def _close_in_child() -> None:
    """Close the sockets in a process that was forked off. One that outlives this process would hold them open, and
    the engines would not see that their front is gone."""
    for each in list(_sockets):
        each.close()


os.register_at_fork(after_in_child=_close_in_child)


def spawn() -> EngineProcess:
    """Start an engine process, or return the one that `prepare` started."""
    if _prepared:
        return _prepared.pop()
    ours, theirs = socket.socketpair()
    _sockets.add(ours)
    with theirs:
        process = subprocess.Popen(
            module_command("ember.engine", str(theirs.fileno())),
            pass_fds=[theirs.fileno()],
            env={**_ENVIRONMENT, **os.environ},
            stdin=subprocess.DEVNULL,
            stdout=2,  # stderr: what a library prints must not mix with an answer on stdout
        )
    return EngineProcess(process, ours, time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)))


def prepare() -> None:
    """Start the engine process before the settings are read. A process that is never configured ends with the front."""
    _prepared.append(spawn())
