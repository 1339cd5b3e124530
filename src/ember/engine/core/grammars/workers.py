"""The engine's side of its grammars: a worker process for each grammar, a matcher for each sample, and time limits.

Every wait has a limit given by the caller. A grammar that exceeds a limit loses its process: its samples end with an
error, and no others do. The limits are CPU time, since on a busy machine a good grammar is late too.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable
from collections.abc import Sequence as Items
from pathlib import Path
from threading import RLock

import numpy as np
from numpy.typing import NDArray

from ember.engine.core.grammars.grammar import size_error
from ember.engine.core.grammars.host_process import HostProcess
from ember.engine.core.grammars.messages import (
    Command,
    Fork,
    Kill,
    News,
    Order,
    Reply,
    Start,
    encode,
)
from ember.engine.core.grammars.worker import COUNTED_SECONDS, DEMOTE_AFTER_S, NUM_SLOW, GrammarWorker, Matcher, State
from ember.wire import Grammar

MAX_WORKERS = 128  # processes
NUM_IDLE = 32  # idle processes that are kept for the next request with their grammar
NUM_REFUSED = 256  # remembered grammars that exceeded a limit, which are refused at once
COMPILE_SECONDS = 5.0  # CPU time
MASK_SECONDS = 1.0  # CPU time of one mask or one token
TOTAL_SLOW_SECONDS = 10.0  # CPU time of all slow masks of a grammar
WALL_FACTOR = 20.0  # the limits of elapsed time are this many times those of CPU time
LOAD_SECONDS = 120.0  # elapsed time, for the tokenizer
NUM_SLOTS = 1024  # masks in shared memory
_CHECK_AFTER_S = 0.005
_RECEIVE_BYTES = 1 << 16


class GrammarWorkers:
    """Starts workers for grammars, exchanges messages with them, and kills those that exceed a limit.

    The engine's thread calls it, and the thread of `MaskFiller` while the engine's thread is in the forward pass.
    """

    def __init__(
        self, tokenizer_dir: Path, vocab_size: int, eos_token_ids: Items[int], num_slots: int = NUM_SLOTS
    ) -> None:
        self._tokenizer_dir = tokenizer_dir
        self._vocab_size = vocab_size  # columns of the logits
        self._eos_token_ids = eos_token_ids  # the engine's list, to which the tokenizer's end token may be added
        self._num_slots = num_slots
        self._lock = RLock()
        self._host: HostProcess | None = None
        self.masks: NDArray[np.int32] = np.empty((0, 0), dtype=np.int32)  # [slots, words]
        self._free_slots: list[int] = []
        self._num_workers = 0
        self._workers: OrderedDict[tuple[str, str], GrammarWorker] = OrderedDict()  # most recently used last
        self._queue: deque[GrammarWorker] = deque()  # workers without a process
        self._running: dict[int, GrammarWorker] = {}  # by file descriptor, including those being killed
        self._refused: OrderedDict[tuple[str, str], str] = OrderedDict()

    @property
    def num_words(self) -> int:
        """The 32-bit words of one mask: a bit for each column of the logits, or token of the tokenizer if these are
        more."""
        return self.masks.shape[1] or -(-self._vocab_size // 32)

    def submit(self, grammar: Grammar) -> GrammarWorker:
        """A worker for the grammar, with one lease, which `release` returns. Does not block."""
        with self._lock:
            key = (grammar.kind, grammar.text)
            worker = self._workers.get(key)
            if worker is None:
                self._num_workers += 1
                worker = GrammarWorker(self._num_workers, grammar)
                worker.error = self._refused.get(key) or size_error(grammar)
                if worker.error is not None:
                    worker.state = State.ENDED
                else:
                    self._workers[key] = worker
                    self._queue.append(worker)
            else:
                self._workers.move_to_end(key)
            worker.leases += 1
            self._start_queued()
            return worker

    @property
    def has_unwanted(self) -> bool:
        """Whether `check` has to be called although no request waits for a grammar."""
        return any(not worker.leases and worker.is_busy for worker in self._running.values())

    def release(self, worker: GrammarWorker) -> None:
        """Return one lease of the worker. Without leases a busy worker has little time left, and an idle one is kept
        for the next request with its grammar."""
        with self._lock:
            worker.leases -= 1
            if worker.leases:
                return
            worker.slow_seconds = 0.0
            if worker.state is State.QUEUED:
                self._queue.remove(worker)
                self._end(worker, _UNWANTED)
            else:
                self._drop_idle(NUM_IDLE)

    def open(self, matcher: Matcher) -> None:
        """Give a matcher a slot if one is free. Otherwise it has to call this again."""
        with self._lock:
            if self._free_slots:
                matcher.slot = self._free_slots.pop()
                matcher.worker.matchers[matcher.slot] = matcher
                self.command(matcher, Order.OPEN)

    def command(self, matcher: Matcher, order: Order, token_ids: Items[int] = ()) -> None:
        """Queue a command for the next `flush`."""
        with self._lock:
            worker = matcher.worker
            if not worker.awaited:
                worker.begin()
            worker.awaited.add(matcher)
            worker.outbox.append(Command(order, matcher.slot, token_ids))

    def close(self, matcher: Matcher) -> None:
        """Release a matcher's slot. It becomes free when the worker has confirmed it or has ended."""
        with self._lock:
            worker = matcher.worker
            if matcher.slot >= 0 and worker.state is State.READY:
                self.command(matcher, Order.CLOSE)
                self._send(worker)
            self.release(worker)

    def flush(self) -> None:
        """Send the queued commands."""
        with self._lock:
            for worker in list(self._running.values()):
                if worker.outbox:
                    self._send(worker)

    def settle(self, matchers: Items[Matcher], seconds: float) -> None:
        """Wait at most `seconds` until the workers have confirmed the last tokens. Slow grammars are not waited for."""
        self.flush()
        until = time.monotonic() + seconds
        while True:
            waiting = {m.worker for m in matchers if not (m.is_settled or m.error or m.worker.is_slow)}
            left = until - time.monotonic()
            if not waiting:
                return
            if left <= 0:
                self.give_up(waiting)
                return
            self.receive(left, waiting)

    def give_up(self, workers: Iterable[GrammarWorker]) -> None:
        """Mark grammars that were late as slow, so that the next steps do not wait for them."""
        for worker in workers:
            worker.is_slow, worker.num_quick = True, 0

    def receive(self, seconds: float, workers: Collection[GrammarWorker] | None = None) -> None:
        """Handle messages, waiting at most `seconds` for one of these workers, or of any worker."""
        with self._lock:
            poll = select.poll()
            if self._host is not None:
                poll.register(self._host.fileno(), select.POLLIN)
            for fd, worker in self._running.items():
                if workers is None or worker in workers:
                    poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll(max(seconds, 0.0) * 1000):
                if self._host is not None and fd == self._host.fileno():
                    self._hear_host()
                elif fd in self._running:
                    self._hear(self._running[fd])

    def check(self) -> None:
        """Handle the messages that have arrived, and kill workers that exceed a limit. Called before every step."""
        with self._lock:
            if not (self._running or self._queue):
                return
            self.receive(0.0)
            now = time.monotonic()
            host = self._host
            if host is not None and not host.is_loaded and now - host.started > LOAD_SECONDS:
                self._lose_host(f"this model's tokenizer was not loaded within {LOAD_SECONDS:g} seconds")
            for worker in list(self._running.values()):
                if worker.is_busy and now - worker.since > _CHECK_AFTER_S:
                    self._check_time(worker, now)

    def _check_time(self, worker: GrammarWorker, now: float) -> None:
        is_compiling = worker.state is State.COMPILING
        limit = COMPILE_SECONDS if is_compiling else MASK_SECONDS
        used = 0.0
        if worker.pid is not None:
            processor = _processor_seconds(worker.pid)
            if processor is None:  # the clock or the process does not exist
                used = now - worker.since
            else:
                if worker.processor_at is None:
                    worker.processor_at = processor
                used = processor - worker.processor_at
            if used > DEMOTE_AFTER_S:
                worker.demote()
        if not worker.leases and (used > DEMOTE_AFTER_S or now - worker.since > limit):
            self._kill(worker, _UNWANTED)
        elif used > limit or (not is_compiling and worker.slow_seconds + used > TOTAL_SLOW_SECONDS):
            what = f"it was not compiled within {COMPILE_SECONDS:g} seconds" if is_compiling else _TOO_SLOW
            self._refuse(worker, f"{what}; make it smaller or less ambiguous")
        elif now - worker.since > limit * WALL_FACTOR:
            self._kill(worker, "it takes too long on this machine now; make it smaller or less ambiguous")

    def _refuse(self, worker: GrammarWorker, error: str) -> None:
        """Kill a worker, and refuse its grammar from now on."""
        self._refused[worker.key] = error
        if len(self._refused) > NUM_REFUSED:
            self._refused.popitem(last=False)
        self._kill(worker, error)

    def _kill(self, worker: GrammarWorker, error: str) -> None:
        """Kill a worker's process. Its slots become free when its socket is closed."""
        self._end(worker, error)
        if self._host is not None:
            self._host.send(Kill(worker.worker_id))
        elif worker.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)

    def _end(self, worker: GrammarWorker, error: str) -> None:
        """Fail a worker's samples: no more replies are expected."""
        worker.state = State.ENDED
        worker.error = worker.error or error
        for matcher in worker.matchers.values():
            matcher.error = matcher.error or error
        worker.outbox.clear()
        worker.awaited.clear()
        if self._workers.get(worker.key) is worker:
            del self._workers[worker.key]

    def _drop_idle(self, count: int) -> None:
        """End idle workers, least recently used first, until at most `count` are left."""
        idle = [worker for worker in self._workers.values() if worker.leases == 0 and worker.socket is not None]
        for worker in idle[: max(len(idle) - count, 0)]:
            self._end(worker, _UNWANTED)
            assert worker.socket is not None
            worker.socket.shutdown(socket.SHUT_WR)  # it then ends by itself

    def _start_queued(self) -> None:
        """Start processes for queued grammars, up to the limit."""
        if not self._queue:
            return
        if self._host is None:
            start = Start(str(self._tokenizer_dir), self._vocab_size, list(self._eos_token_ids), self._num_slots)
            self._host = HostProcess(start)
        while self._queue and self._host is not None and self._host.is_loaded:
            if len(self._running) >= MAX_WORKERS:
                self._drop_idle(0)
                return
            worker = self._queue.popleft()
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            with theirs:
                fork = Fork(worker.worker_id, worker.grammar.kind, worker.grammar.text)
                self._host.send(fork, theirs.fileno())
            worker.socket, worker.state = ours, State.COMPILING
            worker.begin()
            self._running[ours.fileno()] = worker

    def _hear_host(self) -> None:
        assert self._host is not None
        arrived = self._host.receive()
        if arrived is None:
            self._lose_host("the process that compiles grammars ended")
            return
        for hello in arrived:
            if hello.error is not None:
                self._lose_host(hello.error)
                return
            self.masks = self._host.map_masks(hello.vocab_size)
            self._free_slots = list(range(self._num_slots - 1, -1, -1))
        self._start_queued()

    def _lose_host(self, error: str) -> None:
        """Fail all workers of a host that has ended. The next grammar starts a new host."""
        assert self._host is not None
        host, self._host = self._host, None
        host.disconnect()
        for worker in list(self._running.values()):  # the host killed them, if it could
            self._kill(worker, error)
            self._bury(worker)
        host.kill()
        while self._queue:
            self._end(self._queue.popleft(), error)

    def _send(self, worker: GrammarWorker) -> None:
        if worker.state is not State.READY or worker.socket is None:
            return
        data = encode(worker.outbox)
        worker.outbox = []
        try:
            sent = worker.socket.send(data)
        except (BrokenPipeError, ConnectionResetError):
            return  # its end is heard of soon
        except BlockingIOError:
            sent = 0
        if sent < len(data):  # far less is under way at a time than fits
            self._kill(worker, _TOO_SLOW)

    def _hear(self, worker: GrammarWorker) -> None:
        assert worker.socket is not None
        try:
            data = worker.socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._bury(worker)
            return
        for replies in worker.mailbox.feed(data):
            for reply in replies:
                self._take(worker, reply)
        worker.begin()

    def _take(self, worker: GrammarWorker, reply: Reply) -> None:
        match reply.news:
            case News.PROCESS:
                worker.pid = reply.slot
            case News.THREAD:
                worker.thread_id, worker.is_demoted = reply.slot, False
            case News.COMPILED:
                if worker.state is State.COMPILING:
                    worker.state = State.READY
            case News.FAILED:
                self._end(worker, reply.text)
            case News.CLOSED:
                worker.awaited.discard(worker.matchers.pop(reply.slot))
                self._free_slots.append(reply.slot)
            case _:
                self._answer(worker, worker.matchers[reply.slot], reply)

    def _answer(self, worker: GrammarWorker, matcher: Matcher, reply: Reply) -> None:
        """Handle a reply about a sample. A mask that arrives before the last token's confirmation is outdated."""
        worker.observe(reply.seconds)
        if reply.seconds > COUNTED_SECONDS or worker.num_slow >= NUM_SLOW:
            worker.demote()
        match reply.news:
            case News.MASK:
                matcher.has_mask = matcher.is_settled
            case News.ADVANCED:
                matcher.is_settled = True
                return
            case News.ACCEPTED | News.REFUSED:
                matcher.accepted[tuple(reply.token_ids)] = reply.news is News.ACCEPTED
                return
            case News.COMPLETE:
                matcher.is_settled = matcher.is_complete = True
            case News.ERROR:
                matcher.error = reply.text
        if not matcher.is_closed and (matcher.has_mask or matcher.is_complete or matcher.error is not None):
            worker.awaited.discard(matcher)

    def _bury(self, worker: GrammarWorker) -> None:
        """Free the slots of a worker whose process has ended."""
        assert worker.socket is not None
        if worker.state is not State.ENDED:
            self._end(worker, _ENDED_ITSELF)
        del self._running[worker.socket.fileno()]
        worker.socket.close()
        worker.socket = None
        self._free_slots += worker.matchers
        worker.matchers.clear()
        self._start_queued()


_UNWANTED = "no request uses it any more"
_ENDED_ITSELF = "its process ended, for want of memory or because it is nested too deeply; make it smaller"
_TOO_SLOW = f"what may follow took more than {MASK_SECONDS:g} second to find out"


def _processor_seconds(pid: int) -> float | None:
    """The CPU time of a process; None if it is unknown. The clock id is computed as in Linux."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except (OSError, OverflowError):
        return None
