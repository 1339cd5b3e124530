"""An `ember serve` of a command's own: on a free port of this machine, gone when the command is."""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

_LISTENING = re.compile(r"listening on (http://\S+)")
_PR_SET_PDEATHSIG = 1  # prctl(2)
_STOP_SECONDS = 15.0
_KEPT_LINES = 20


class OwnServerError(Exception):
    """The server did not start. The message is what it said last."""


@contextmanager
def own_server(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """Start a server and stop it at the end. `arguments`: those of `ember serve`. Yields its URL and an API key, which
    nobody else knows. The server listens at once, and requests wait while the model loads. Raises OwnServerError."""
    key = secrets.token_hex(16)
    command = [sys.executable, "-P", "-m", "ember", "serve", *arguments, "--host", "127.0.0.1", "--port", "0"]
    libc = ctypes.CDLL(None)

    def end_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    process = subprocess.Popen(
        command,
        env={**os.environ, "API_KEY": key},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C is for the command, which may only mean to stop an answer
        preexec_fn=end_with_parent,
    )
    try:
        log = _Log(process)
        yield log.url(), key
        if process.poll() is not None:
            raise OwnServerError(log.last_words())
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Log:
    """Reads the server's log in a thread, so that the server never waits for a reader."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._found: str | None = None
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def url(self) -> str:
        self._listening.wait()
        if self._found is None:
            raise OwnServerError(self.last_words())
        return self._found

    def last_words(self) -> str:
        """The last line that the server wrote, once it has ended."""
        self._thread.join(_STOP_SECONDS)
        return self._lines[-1] if self._lines else f"the server ended with status {self._process.returncode}"

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines.append(line.strip())
            if self._found is None and (match := _LISTENING.search(line)):
                self._found = match[1]
                self._listening.set()
        self._listening.set()
