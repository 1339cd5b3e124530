"""The engine process: a socket to the front, and a loop that runs steps while there is work and otherwise sleeps.

One thread reads the front's messages into a queue. The main thread runs the engine and writes. The process ends when
the front has ended, when it is told to, or after a fatal error, which it reports first.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import queue
import signal
import socket
import threading
from typing import TYPE_CHECKING

import msgspec

from ember import logs
from ember.boot import Timeline, now
from ember.engine.core.boot import Opened, open_model
from ember.engine.core.first_step import FirstStep
from ember.engine.core.watchdog import Watchdog
from ember.engine.errors import ModelError
from ember.engine.lean import lean_import, libraries
from ember.wire import (
    Abort,
    Configure,
    EndTokens,
    EngineMessage,
    Failed,
    FrontMessage,
    Generate,
    GetStats,
    Notice,
    Outputs,
    Pause,
    Pool,
    Ready,
    ResetPrefixCache,
    SequenceOutput,
    Shutdown,
    decode_front,
    encode_engine,
    recv_frame,
)

if TYPE_CHECKING:
    from ember.engine.core.engine import Engine

log = logging.getLogger(__name__)

STEPS_BEFORE_CHORES = 32  # steps of an engine that is never idle, after which chores run between steps


class Connection:
    """The engine's end of the socket. The reader thread calls `receive`, any thread `send`."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.Lock()

    def receive(self) -> list[FrontMessage] | None:
        """The next frame's messages; None if the front has closed the socket."""
        try:
            payload = recv_frame(self._socket)
        except OSError:
            return None
        return None if payload is None else decode_front(payload)

    def send(self, message: EngineMessage) -> None:
        with self._lock:
            self._socket.sendall(encode_engine(message))


def main(fd: int) -> int:
    """Run the engine on the inherited socket `fd`. Returns the exit status."""
    started = now()
    for number in (signal.SIGINT, signal.SIGTERM):  # the front handles them: it drains, then closes the socket
        signal.signal(number, signal.SIG_IGN)
    gc.disable()  # imports allocate many objects and free few
    connection = Connection(socket.socket(fileno=fd))
    opening = _Opening(connection)
    thread = threading.Thread(target=opening.run, name="locate", daemon=True)
    thread.start()
    loaded = libraries.wait()
    import_started = now()
    lean = lean_import.prepare(lambda line: connection.send(Notice(line)))
    import torch

    if lean is not None:
        lean.finish()
    import_ended = now()
    thread.join()
    assert opening.configure is not None and opening.opened is not None and opening.timeline is not None
    timeline = opening.timeline
    timeline.add("start", timeline.origin, started)
    if loaded is not None:
        timeline.add("load_libraries", *loaded)
    timeline.add("import_torch", import_started, import_ended, version=str(torch.__version__), lean=lean is not None)
    if lean is not None and not opening.configure.lean_torch:
        lean.complete("EMBER_LEAN_TORCH=false")
    try:
        with timeline.phase("import_engine"):
            from ember.engine.core.assemble import assemble  # it needs torch
        engine, ready = assemble(opening.configure, opening.opened, timeline)
        first_step = FirstStep(timeline, connection.send, opening.opened.kernels)
        ready = _warm_up(engine, ready, opening.configure.warmup, timeline)
    except ModelError as error:
        return _fail(connection, str(error), "boot")
    except Exception as error:
        log.exception("the engine could not start")
        return _fail(connection, f"the engine could not start: {type(error).__name__}: {error}", "boot")
    gc.freeze()  # without a collection before, since the boot leaves almost no garbage
    gc.enable()
    try:
        connection.send(ready)
        _serve(engine, connection, opening.configure.step_timeout, first_step)
    except (BrokenPipeError, ConnectionResetError):
        return 0  # the front has ended
    except Exception as error:
        log.exception("the engine failed")
        return _fail(connection, f"the engine failed: {type(error).__name__}: {_first_line(error)}", "run")
    return 0


class _Opening:
    """The work beside the import of torch: receive the configuration, find the model, start to read it.

    A failure ends the process at once, without waiting for the import.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.configure: Configure | None = None
        self.opened: Opened | None = None
        self.timeline: Timeline | None = None

    def run(self) -> None:
        try:
            messages = self.connection.receive()
            if messages is None:  # the front ended before it configured the engine
                os._exit(0)
            first = messages[0]
            if not isinstance(first, Configure):
                raise ModelError(f"the first message to the engine was {type(first).__name__}, not Configure")
            self.configure = first
            logs.set_up_engine(first)
            self.timeline = Timeline("engine", first.boot_origin)
            self.opened = open_model(first, self.timeline, self.connection.send)
        except ModelError as error:
            _fail(self.connection, str(error), "boot")
            os._exit(1)
        except Exception as error:
            log.exception("the engine could not start")
            _fail(self.connection, f"the engine could not start: {type(error).__name__}: {error}", "boot")
            os._exit(1)


def _warm_up(engine: Engine, ready: Ready, mode: str, timeline: Timeline) -> Ready:
    """Run the first steps before the first request if WARMUP says so. Returns `ready` with the phase added."""
    if mode == "none":
        return ready
    from ember.engine.core.warmup import warm_up

    with timeline.phase("warmup", mode=mode):
        warm_up(engine, mode)
    return msgspec.structs.replace(ready, boot_phases=timeline.report()["phases"])


def _serve(
    engine: Engine, connection: Connection, step_timeout: float = 0.0, first_step: FirstStep | None = None
) -> None:
    """Run steps while there is work; otherwise wait for messages. Returns when the front has ended or says so."""
    inbox: queue.SimpleQueue[list[FrontMessage] | BaseException | None] = queue.SimpleQueue()

    def read() -> None:
        try:
            while (messages := connection.receive()) is not None:
                inbox.put(messages)
            inbox.put(None)
        except BaseException as error:  # without its reader the engine must end
            inbox.put(error)

    threading.Thread(target=read, name="reader", daemon=True).start()
    watchdog = Watchdog(step_timeout, lambda: _hang(connection, step_timeout)) if step_timeout else None
    chores_left = True
    num_steps = 0
    while True:
        outputs: list[SequenceOutput] = []
        while True:  # read all messages that have arrived; wait for one if there is no work
            is_idle = not engine.has_work and not outputs
            has_chore = chores_left and num_steps > 0
            if is_idle and watchdog is not None:
                watchdog.rest()
            try:
                messages = inbox.get(block=is_idle and not has_chore)
            except queue.Empty:
                if not is_idle:
                    break
                chores_left = engine.do_chore()
                continue
            if isinstance(messages, BaseException):
                raise messages
            if messages is None:
                return
            for message in messages:
                match message:
                    case Generate():
                        outputs += engine.add(message)
                    case Pool():
                        outputs += engine.pool(message)
                    case Abort():
                        engine.abort(message.request_id, message.index)
                    case EndTokens():
                        engine.add_end_tokens(message.token_ids)
                    case GetStats():
                        connection.send(engine.stats())
                    case Pause():
                        engine.is_paused = message.is_paused
                    case ResetPrefixCache():
                        engine.scheduler.blocks.forget_prefixes()
                    case Shutdown():
                        return
                    case Configure():
                        log.error("the engine is already configured; the message was ignored")
        if engine.has_work:
            if watchdog is not None:
                watchdog.begin()
            started = now() if first_step is not None else 0.0
            outputs += engine.step()
            if watchdog is not None:
                watchdog.rest()  # sending blocks while the front is suspended
            num_steps += 1
            if first_step is not None and first_step.ended(started):
                first_step = None
        if outputs:
            connection.send(Outputs(outputs))
        if chores_left and num_steps >= STEPS_BEFORE_CHORES:
            chores_left = engine.do_chore()


def _hang(connection: Connection, step_timeout: float) -> None:
    """Report that the main thread hangs, and end the process: the device's state is lost."""
    message = f"the engine hangs: a step took longer than STEP_TIMEOUT={step_timeout:g} seconds"
    log.error("%s", message)
    faulthandler.dump_traceback(all_threads=True)
    _fail(connection, message, "run")
    os._exit(1)


def _fail(connection: Connection, message: str, during: str) -> int:
    try:
        connection.send(Failed(message, during))
    except OSError:
        log.error("%s", message)
    return 1


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
