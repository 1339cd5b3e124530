"""An `ember serve` of a command's own: on a free port of this machine, gone when the command is."""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ember.interpreter import module_command

_PR_SET_PDEATHSIG = 1  # prctl(2)
_POLL_SECONDS = 0.02
_END_SECONDS = 1.0  # for which the log of a server that does not answer is watched for its end
_STOP_SECONDS = 15.0
_KEPT_LINES = 20


class OwnServerError(Exception):
    """The server did not start. The message is the last line of its log."""


@dataclass(frozen=True)
class OwnServer:
    """A server that runs: its URL, and an API key that nobody else knows."""

    url: str
    key: str
    _log: _Log

    def end(self) -> str | None:
        """The last line of the log of a server that has ended; None while it runs."""
        return self._log.last_line() if self._log.has_ended() else None


@contextmanager
def own_server(environment: dict[str, str]) -> Iterator[OwnServer]:
    """Start a server and stop it at the end. `environment`: its settings, as variables. The server listens at once, and
    requests wait while the model loads. Raises OwnServerError."""
    key, port = secrets.token_hex(16), free_port()
    own = {"API_KEY": key, "HOST": "127.0.0.1", "PORT": str(port), "LOG_FORMAT": "text"}
    libc = ctypes.CDLL(None)

    def end_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    process = subprocess.Popen(
        module_command("ember", "serve"),
        env={**os.environ, **environment, **own},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C is for the command, which may only mean to stop an answer
        preexec_fn=end_with_parent,
    )
    try:
        log = _Log(process)
        while not accepts(port):
            if process.poll() is not None:
                raise OwnServerError(log.last_line())
            time.sleep(_POLL_SECONDS)
        try:
            yield OwnServer(f"http://127.0.0.1:{port}", key, log)
        except Exception as error:
            if not log.has_ended():
                raise
            raise OwnServerError(log.last_line()) from error  # its reason, not that a request found no server
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port of this machine on which nothing listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def accepts(port: int) -> bool:
    """Whether something on this machine takes connections on the port."""
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


class _Log:
    """Reads the server's log in a thread, so that the server never waits for a reader, and keeps its end."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def has_ended(self) -> bool:
        """Whether the server ends: its log does first, while its process may still be there for a moment."""
        self._thread.join(_END_SECONDS)
        return not self._thread.is_alive()

    def last_line(self) -> str:
        """The last line that the server wrote, once it has ended."""
        self._thread.join(_STOP_SECONDS)
        return self._lines[-1] if self._lines else f"the server ended with status {self._process.returncode}"

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines.append(line.strip())
