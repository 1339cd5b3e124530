"""The engine's view of one grammar's process, and of each sample that it tracks."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Collection, Iterable
from collections.abc import Sequence as Items
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ember.engine.core.grammars.messages import NUM_QUICK, QUICK_SECONDS, Command, Mailbox, Order, Reply
from ember.wire import Grammar

_NICE = 19
DEMOTE_AFTER_S = 0.01  # CPU time of a task after which its thread gets the lowest priority
COUNTED_SECONDS = 0.05  # CPU time; masks that take longer count towards a grammar's total
NUM_SLOW = 4  # slow masks after which the thread gets the lowest priority

Words = NDArray[np.int32]  # [words], or [slots, words]; bit i of word w stands for token 32 w + i


class State(Enum):
    """The stage of a worker."""

    QUEUED = "there is no process yet"
    COMPILING = "its grammar is being compiled"
    READY = "it follows samples"
    ENDED = "it has an error, and its process is gone or about to go"


class Pool(Protocol):
    """The part of `GrammarWorkers` that matchers and callers that wait for masks use."""

    masks: Words  # [slots, words]

    def open(self, matcher: Matcher) -> None: ...
    def command(self, matcher: Matcher, order: Order, token_ids: Items[int] = ()) -> None: ...
    def close(self, matcher: Matcher) -> None: ...
    def flush(self) -> None: ...
    def receive(self, seconds: float, workers: Collection[GrammarWorker] | None = None) -> None: ...
    def give_up(self, workers: Iterable[GrammarWorker]) -> None: ...
    def check(self) -> None: ...


class Matcher:
    """One sample's position in its grammar, and the mask of the next token. The worker computes both; `has_mask` and
    `is_settled` tell how far it is. `close` must be called at the end."""

    def __init__(self, pool: Pool, worker: GrammarWorker) -> None:
        self.pool = pool
        self.worker = worker
        self.slot = -1
        self.has_mask = False
        self.is_settled = True  # the worker has confirmed the last token
        self.is_complete = False  # no token can follow
        self.accepted: dict[tuple[int, ...], bool] = {}  # requested beginnings whose answer has arrived
        self.error: str | None = worker.error
        self._tried: set[tuple[int, ...]] = set()  # requested beginnings
        self.is_closed = False
        worker.leases += 1

    def prepare(self, beginnings: Items[Items[int]] = ()) -> None:
        """Request the first mask, unless this was done before, and whether the grammar can begin with some tokens."""
        if self.slot < 0 and self.error is None:
            self.pool.open(self)
        if self.slot >= 0 and len(self._tried) < len(beginnings):
            for token_ids in beginnings:
                if tuple(token_ids) not in self._tried:
                    self._tried.add(tuple(token_ids))
                    self.pool.command(self, Order.TRY, token_ids)

    def advance(self, token_ids: Items[int]) -> None:
        """Send the sample's next tokens. `GrammarWorkers.settle` waits for the confirmation."""
        self.prepare()
        if self.error is None:
            self.has_mask = self.is_settled = False
            self.pool.command(self, Order.ADVANCE, token_ids)

    @property
    def mask(self) -> Words:
        """The mask, if `has_mask`. It is valid until the next `advance`."""
        return self.pool.masks[self.slot]

    def allows(self, token_id: int) -> bool:
        """Whether the mask has a token."""
        return bool(int(self.mask[token_id >> 5]) >> (token_id & 31) & 1)

    def close(self) -> None:
        """The sample is over."""
        if not self.is_closed:
            self.is_closed = True
            self.pool.close(self)


class GrammarWorker:
    """The engine's view of one grammar's process."""

    def __init__(self, worker_id: int, grammar: Grammar) -> None:
        self.worker_id = worker_id
        self.grammar = grammar
        self.state = State.QUEUED
        self.error: str | None = None
        self.is_slow = False  # whether steps do not wait for it
        self.leases = 0  # requests that need it
        self.matchers: dict[int, Matcher] = {}  # by slot
        self.outbox: list[Command] = []
        self.socket: socket.socket | None = None
        self.mailbox: Mailbox[list[Reply]] = Mailbox(list[Reply])
        self.awaited: set[Matcher] = set()  # matchers with an unanswered command
        self.pid: int | None = None
        self.thread_id: int | None = None  # of the working thread
        self.since = 0.0  # start of its current task
        self.processor_at: float | None = None  # its CPU time shortly after that start
        self.is_demoted = False
        self.slow_seconds = 0.0
        self.num_slow = 0  # slow masks since several in a row were quick
        self.num_quick = 0  # quick masks in a row

    @property
    def key(self) -> tuple[str, str]:
        return self.grammar.kind, self.grammar.text

    @property
    def is_busy(self) -> bool:
        return self.state is State.COMPILING or (self.state is State.READY and bool(self.awaited))

    def begin(self) -> None:
        """Note the start of its next task."""
        self.since = time.monotonic()
        self.processor_at = None

    def demote(self) -> None:
        """Give its current thread the lowest priority."""
        if self.thread_id is not None and not self.is_demoted:
            self.is_demoted = True
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self.thread_id, _NICE)
                if hasattr(os, "SCHED_IDLE"):  # other threads preempt it at once, not at the next tick
                    os.sched_setscheduler(self.thread_id, os.SCHED_IDLE, os.sched_param(0))

    def observe(self, seconds: float) -> None:
        """Count one finished task, which took `seconds` of CPU time."""
        if seconds > QUICK_SECONDS:
            self.is_slow, self.num_quick = True, 0
            self.num_slow += 1
            self.slow_seconds += seconds if seconds > COUNTED_SECONDS else 0.0
        else:
            self.num_quick += 1
            if self.num_quick >= NUM_QUICK:
                self.is_slow, self.num_slow = False, 0
