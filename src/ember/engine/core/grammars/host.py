"""The process that isolates grammars from the engine: `python -m ember.engine.core.grammars.host FD`.

The host loads llguidance's view of the tokenizer once and forks a worker for each grammar, which takes a few
milliseconds and shares that memory. A worker compiles its grammar, tracks all samples of it, and writes their masks to
memory shared with the engine. If a grammar exceeds its limits (a mask that takes hours, a stack overflow, unbounded
memory), the engine has its worker killed, and no other request is affected. The host and its workers end with the
engine.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import resource
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from ctypes import addressof, c_char
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ember.engine.core.grammars.grammar import compile_grammar, load_tokenizer
from ember.engine.core.grammars.messages import (
    NUM_QUICK,
    QUICK_SECONDS,
    Command,
    Fork,
    Hello,
    HostMessage,
    Kill,
    Mailbox,
    News,
    Order,
    Reply,
    Start,
    encode,
)
from ember.engine.errors import GrammarError
from ember.wire import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

WORKER_MEMORY_BYTES = 1 << 30  # of address space, in addition to the host's
_RECEIVE_BYTES = 1 << 16
_COMPILER_NICE = 10  # lower priority than the model's threads, higher than demoted threads
_MAX_FDS = 64  # in one message
_REPLY_AFTER_S = 0.001  # finished masks are reported together, at most this late


def mask_bytes(vocab_size: int) -> int:
    """The bytes that one mask takes: a bit for each token, in whole words of 32 bits."""
    return -(-vocab_size // 32) * 4


class Host:
    """Forks workers and kills them on the engine's orders."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._mailbox: Mailbox[HostMessage] = Mailbox(HostMessage)
        self._fds: deque[int] = deque()  # of the `Fork`s to come
        self._workers: dict[int, int] = {}  # process ids by worker id
        self._tokenizer: LLTokenizer | None = None
        self._memory: mmap | None = None
        self._row_bytes = 0

    def run(self) -> None:
        """Serve until the engine is gone."""
        ended = _wakes_when_a_child_ends()
        while True:
            readable, _, _ = select.select([self._socket, ended], [], [])
            if ended in readable:
                ended.recv(_RECEIVE_BYTES)
                self._reap()
            if self._socket not in readable:
                continue
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, _RECEIVE_BYTES, _MAX_FDS)
            except ConnectionResetError:
                break
            if not data:
                break
            self._fds.extend(fds)
            for message in self._mailbox.feed(data):
                match message:
                    case Start():
                        with contextlib.suppress(
                            BrokenPipeError, ConnectionResetError
                        ):  # the engine has gone meanwhile
                            self._start(message)
                    case Fork():
                        self._fork(message)
                    case Kill():
                        self._reap()
                        if message.worker_id in self._workers:
                            os.kill(self._workers[message.worker_id], signal.SIGKILL)
        for pid in self._workers.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _start(self, message: Start) -> None:
        try:
            tokenizer = load_tokenizer(Path(message.tokenizer_dir), message.vocab_size, message.eos_token_ids)
        except GrammarError as error:
            self._socket.sendall(encode(Hello(0, str(error))))
            return
        importlib.import_module("llguidance.gbnf_to_lark")  # imported before the forks, not in every worker
        self._tokenizer = tokenizer
        self._row_bytes = mask_bytes(tokenizer.vocab_size)
        fd = _shared_memory(self._row_bytes * message.num_slots)
        self._memory = mmap(fd, self._row_bytes * message.num_slots)
        gc.collect()
        gc.freeze()  # workers share these objects; a collection would write to them all
        socket.send_fds(self._socket, [encode(Hello(tokenizer.vocab_size))], [fd])
        os.close(fd)

    def _fork(self, message: Fork) -> None:
        """Fork a worker. If this fails, its socket is closed, which the engine notices."""
        fd = self._fds.popleft()
        self._reap()
        with contextlib.suppress(OSError):
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                self._socket.close()
                self._work(socket.socket(fileno=fd), Grammar(message.kind, message.text))
            self._workers[message.worker_id] = pid
        os.close(fd)

    def _work(self, sock: socket.socket, grammar: Grammar) -> NoReturn:
        """The main function of a forked worker."""
        status = 1
        try:
            _restrict()
            assert self._tokenizer is not None and self._memory is not None
            Worker(sock, self._memory, self._row_bytes).run(self._tokenizer, grammar)
            status = 0
        finally:
            os._exit(status)

    def _reap(self) -> None:
        """Reap ended workers, so that no later process with the same id is killed in their place."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, _ = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                self._workers = {key: value for key, value in self._workers.items() if value != pid}


def _wakes_when_a_child_ends() -> socket.socket:
    """A socket that becomes readable when a child process has ended. Without it an ended worker would stay a zombie
    until the next order."""
    readable, written = socket.socketpair()
    written.setblocking(False)
    signal.set_wakeup_fd(written.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)  # an ignored signal would not write to the socket
    return readable


class Worker:
    """The worker of one grammar: compiles it, then tracks its samples and computes their masks, one after the other.

    The engine lowers the priority of a thread that takes long. A lowered priority cannot be raised again, so the main
    thread only starts other threads: a new one takes over with the usual priority when the grammar is compiled, or when
    its masks are quick again.
    """

    def __init__(self, sock: socket.socket, memory: mmap, row_bytes: int) -> None:
        self._socket = sock
        self._memory = c_char.from_buffer(memory)  # keeps it mapped
        self._row_bytes = row_bytes
        self._mailbox: Mailbox[list[Command]] = Mailbox(list[Command])
        self._start: LLMatcher | None = None  # the matcher at the start of the grammar
        self._matchers: dict[int, LLMatcher] = {}
        self._wanted: deque[int] = deque()  # slots whose mask is to be computed
        self._replies: list[Reply] = []
        self._told = 0.0  # time of the last report of masks to the engine
        self._is_over = False
        self._num_quick = 0
        self._priority = os.getpriority(os.PRIO_PROCESS, 0)

    def run(self, tokenizer: LLTokenizer, grammar: Grammar) -> None:
        """Serve until the engine closes the socket."""
        self._tell(Reply(News.PROCESS, os.getpid()))
        while not self._is_over:
            thread = threading.Thread(target=self._serve, args=(tokenizer, grammar))
            thread.start()
            thread.join()

    def _serve(self, tokenizer: LLTokenizer, grammar: Grammar) -> None:
        """Work until the end, or until a thread with the usual priority should take over."""
        try:
            self._tell(Reply(News.THREAD, threading.get_native_id()))
            if self._start is None:
                os.setpriority(os.PRIO_PROCESS, 0, self._priority + _COMPILER_NICE)  # of this thread alone
                self._compile(tokenizer, grammar)
                self._num_quick = NUM_QUICK
            while not self._is_over:
                if self._num_quick >= NUM_QUICK:
                    self._num_quick = 0
                    if os.getpriority(os.PRIO_PROCESS, 0) > self._priority:
                        return
                self._work()
        except (BrokenPipeError, ConnectionResetError):
            self._is_over = True  # the engine has closed the socket

    def _compile(self, tokenizer: LLTokenizer, grammar: Grammar) -> None:
        try:
            self._start = compile_grammar(tokenizer, grammar)
        except GrammarError as error:
            self._tell(Reply(News.FAILED, text=str(error)))
            self._is_over = True
        except BaseException as error:  # a panic of the library is not an Exception
            self._tell(Reply(News.FAILED, text=f"{type(error).__name__}: {_first_line(str(error))}"))
            self._is_over = True
        else:
            self._tell(Reply(News.COMPILED))

    def _work(self) -> None:
        """Execute the commands that have arrived, and compute one requested mask."""
        commands = self._receive(wait=not self._wanted)
        if commands is None:
            self._is_over = True
            return
        for command in commands:
            self._obey(command)
        if commands:
            self._flush()
            os.sched_yield()  # the engine waits for every grammar's confirmation first, and for masks later
        if self._wanted:
            self._fill(self._wanted.popleft())
            now = time.monotonic()
            if not self._wanted or now - self._told > _REPLY_AFTER_S:
                self._flush()
                self._told = now

    def _receive(self, wait: bool) -> list[Command] | None:
        """The commands that have arrived; None if the engine is gone. They are read between masks, so that no mask is
        computed for a sample that has ended."""
        try:
            data = self._socket.recv(_RECEIVE_BYTES, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        if not data:
            return None
        return [command for commands in self._mailbox.feed(data) for command in commands]

    def _obey(self, command: Command) -> None:
        assert self._start is not None
        slot = command.slot
        match command.order:
            case Order.OPEN:
                self._matchers[slot] = self._start.deep_copy()
                self._wanted.append(slot)
            case Order.ADVANCE:
                self._advance(slot, command.token_ids)
            case Order.TRY:
                token_ids = list(command.token_ids)
                is_accepted = self._matchers[slot].validate_tokens(token_ids) == len(token_ids)
                news = News.ACCEPTED if is_accepted else News.REFUSED
                self._replies.append(Reply(news, slot, token_ids=token_ids))
            case Order.CLOSE:
                self._matchers.pop(slot, None)
                if slot in self._wanted:
                    self._wanted.remove(slot)
                self._replies.append(Reply(News.CLOSED, slot))

    def _advance(self, slot: int, token_ids: Sequence[int]) -> None:
        matcher = self._matchers[slot]
        started = time.thread_time()
        is_allowed = matcher.consume_tokens(list(token_ids))
        seconds = time.thread_time() - started
        self._num_quick = self._num_quick + 1 if seconds <= QUICK_SECONDS else 0
        if not is_allowed:
            self._replies.append(Reply(News.ERROR, slot, seconds, _first_line(matcher.get_error())))
        elif matcher.is_stopped():
            self._replies.append(Reply(News.COMPLETE, slot, seconds))
        else:
            self._replies.append(Reply(News.ADVANCED, slot, seconds))
            if slot not in self._wanted:
                self._wanted.append(slot)

    def _fill(self, slot: int) -> None:
        matcher = self._matchers[slot]
        started = time.thread_time()
        matcher.unsafe_compute_mask_ptr(addressof(self._memory) + slot * self._row_bytes, self._row_bytes)
        seconds = time.thread_time() - started
        self._num_quick = self._num_quick + 1 if seconds <= QUICK_SECONDS else 0
        if matcher.is_error():
            self._replies.append(Reply(News.ERROR, slot, seconds, _first_line(matcher.get_error())))
        else:
            self._replies.append(Reply(News.MASK, slot, seconds))

    def _tell(self, reply: Reply) -> None:
        self._replies.append(reply)
        self._flush()

    def _flush(self) -> None:
        if self._replies:
            self._socket.sendall(encode(self._replies))
            self._replies = []


def _shared_memory(size: int) -> int:
    """A file descriptor of anonymous shared memory. Pages that are never written use no memory."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("masks")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.truncate(fd, size)
    return fd


def _restrict() -> None:
    """Limit the resources of a grammar's process, and keep the library's panics out of the log."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + WORKER_MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)


def _first_line(error: str) -> str:
    return error.partition("\n")[0].replace("<non-verbose/>", "").strip()[:400]


def main(fd: int) -> None:
    """Run the host on the inherited socket `fd`."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the front handles these signals and drains first
        signal.signal(number, signal.SIG_IGN)
    Host(socket.socket(fileno=fd)).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
    os._exit(0)
