"""The engine's connection to the host: the process that loads the tokenizer and forks a worker for each grammar."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from mmap import PROT_READ, mmap

import numpy as np
from numpy.typing import NDArray

from ember.engine.core.grammars.host import mask_bytes
from ember.engine.core.grammars.messages import Fork, Hello, Kill, Mailbox, Start, encode
from ember.interpreter import module_command

_RECEIVE_BYTES = 1 << 16


class HostProcess:
    """A host that was started. It says `Hello` once it has loaded the tokenizer."""

    def __init__(self, start: Start) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                module_command("ember.engine.core.grammars.host", str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},  # and no secrets
                stdin=subprocess.DEVNULL,
                stdout=2,
            )
        self.started = time.monotonic()
        self.is_loaded = False
        self._num_slots = start.num_slots
        self._socket = ours
        self._mailbox: Mailbox[Hello] = Mailbox(Hello)
        self._fds: list[int] = []
        self.send(start)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Start | Fork | Kill, fd: int | None = None) -> None:
        """Send a message, with a file descriptor for the host. Does nothing when the host has ended."""
        data = encode(message)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `receive` reports the end
            sent = 0 if fd is None else socket.send_fds(self._socket, [data], [fd])
            self._socket.sendall(data[sent:])

    def receive(self) -> list[Hello] | None:
        """The messages that have arrived; None when the host has ended."""
        data, fds, _, _ = socket.recv_fds(self._socket, _RECEIVE_BYTES, 1)
        self._fds += fds
        return list(self._mailbox.feed(data)) if data else None

    def map_masks(self, vocab_size: int) -> NDArray[np.int32]:
        """The shared memory that workers write masks to: [slots, words]. To be called after `Hello`."""
        size, fd = mask_bytes(vocab_size), self._fds.pop()
        memory = mmap(fd, size * self._num_slots, prot=PROT_READ)
        os.close(fd)
        self.is_loaded = True
        return np.frombuffer(memory, dtype=np.int32).reshape(self._num_slots, size // 4)

    def disconnect(self) -> None:
        """Close the socket. The host then kills its workers and ends, if it can."""
        self._socket.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
