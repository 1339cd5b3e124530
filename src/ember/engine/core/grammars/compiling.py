"""The requests whose grammar is being compiled. The engine's steps go on meanwhile."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ember.engine.core.grammars.workers import GrammarWorker, GrammarWorkers, State
from ember.wire import Grammar

if TYPE_CHECKING:
    from ember.engine.core.sequence import Sequence

COMPILE_TIMEOUT_S = 20.0  # elapsed time from the start of the grammar's process


@dataclass(slots=True)
class Compiled:
    """The samples of one request, with the worker of their grammar or the reason why there is none. The worker is
    leased until `CompilingRequests.take` is called again."""

    sequences: list[Sequence]
    worker: GrammarWorker
    error: str | None


@dataclass(slots=True)
class _Waiting:
    sequences: list[Sequence]
    worker: GrammarWorker
    deadline: float | None = None  # None: the grammar has no process yet


class CompilingRequests:
    """Requests that wait for their grammar. The scheduler does not have them yet."""

    def __init__(self, workers: GrammarWorkers, timeout_s: float = COMPILE_TIMEOUT_S) -> None:
        self._workers = workers
        self._timeout_s = timeout_s
        self._waiting: list[_Waiting] = []
        self._taken: list[Compiled] = []

    def __len__(self) -> int:
        """The number of waiting sequences."""
        return sum(not sequence.is_finished for waiting in self._waiting for sequence in waiting.sequences)

    def __bool__(self) -> bool:
        return bool(self._waiting or self._taken)

    def add(self, sequences: list[Sequence], grammar: Grammar) -> None:
        self._waiting.append(_Waiting(sequences, self._workers.submit(grammar)))

    def take(self) -> list[Compiled]:
        """Remove and return the requests whose wait is over, without samples that were aborted."""
        for compiled in self._taken:
            self._workers.release(compiled.worker)
        self._taken = []
        still = []
        now = time.monotonic()
        for waiting in self._waiting:
            worker = waiting.worker
            waiting.sequences = [sequence for sequence in waiting.sequences if not sequence.is_finished]
            if not waiting.sequences:
                self._workers.release(worker)
            elif worker.state in (State.READY, State.ENDED):
                self._taken.append(Compiled(waiting.sequences, worker, worker.error))
            elif waiting.deadline is None and worker.state is State.COMPILING:
                waiting.deadline = now + self._timeout_s
                still.append(waiting)
            elif waiting.deadline is not None and now > waiting.deadline:
                error = f"it was not compiled within {self._timeout_s:g} seconds; make it smaller"
                self._taken.append(Compiled(waiting.sequences, worker, error))
            else:
                still.append(waiting)
        self._waiting = still
        return self._taken
