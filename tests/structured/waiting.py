"""Grammars in their own processes, for tests that wait for them as an engine does between its steps."""

from __future__ import annotations

import time
from collections.abc import Callable

from ember.engine.core.grammars.constraint import Constraint
from ember.engine.core.grammars.worker import GrammarWorker, Matcher, Pool, State
from ember.engine.core.grammars.workers import GrammarWorkers
from ember.wire import Grammar

DEADLINE_S = 60.0


def wait_until(workers: Pool, is_so: Callable[[], bool]) -> None:
    """Let the workers do what is asked of them until the condition holds."""
    until = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < until, "it did not come to an end"
        workers.flush()
        workers.receive(0.01)
        workers.check()


def compiled(workers: GrammarWorkers, grammar: Grammar) -> GrammarWorker:
    """The grammar's worker when it is ready, or has an error. It keeps its lease."""
    worker = workers.submit(grammar)
    wait_until(workers, lambda: worker.state in (State.READY, State.ENDED))
    return worker


def matcher_of(workers: GrammarWorkers, grammar: Grammar) -> Matcher:
    """A sample's place at the beginning of a grammar, with its mask."""
    worker = compiled(workers, grammar)
    assert worker.error is None
    matcher = Matcher(workers, worker)
    workers.release(worker)
    matcher.prepare()
    wait_until(workers, lambda: matcher.has_mask or matcher.error is not None)
    return matcher


def catch_up(workers: Pool, constraint: Constraint) -> None:
    """Wait until the tokens are taken in and the mask is there. Raises GrammarError as `Constraint.is_settled` does."""
    constraint.prepare()
    wait_until(workers, lambda: constraint.is_settled and (constraint.is_complete or constraint.is_ready))
