"""Whether a child process is ending or stopped, as the kernel reports it.

A killed process frees its memory, 80 ms a GiB, before its socket closes, and can be waited for only after that.
/proc/PID/stat (proc(5)) tells at once: by a pending SIGKILL, the flag PF_EXITING, and the state. Reading it takes 16
us.
"""

from __future__ import annotations

import signal
from subprocess import Popen
from typing import Any
from weakref import WeakSet

_STATE, _FLAGS, _PENDING = 0, 6, 28  # fields 3, 9 and 31, counted behind the name
_PF_EXITING = 0x4  # include/linux/sched.h
_KILLED = 1 << (signal.SIGKILL - 1)


_ending: WeakSet[Popen[Any]] = WeakSet()  # an ending process may show no sign for a moment


def is_ending(process: Popen[Any]) -> bool:
    """Whether the process was killed, is exiting or has ended. Without /proc only the last can be seen."""
    if process.returncode is not None or process in _ending:
        return True
    if _shows_signs(process):
        _ending.add(process)
        return True
    return False


def is_stopped(process: Popen[Any]) -> bool:
    """Whether the process is stopped by a signal (SIGSTOP). Without /proc this is always False."""
    try:
        return _fields(process)[_STATE] == b"T"
    except (OSError, IndexError):
        return False


def _fields(process: Popen[Any]) -> list[bytes]:
    with open(f"/proc/{process.pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()


def _shows_signs(process: Popen[Any]) -> bool:
    try:
        fields = _fields(process)
        if fields[_STATE] in (b"Z", b"X"):
            return True
        return bool(int(fields[_FLAGS]) & _PF_EXITING or int(fields[_PENDING]) & _KILLED)
    except (OSError, IndexError, ValueError):
        return process.poll() is not None
