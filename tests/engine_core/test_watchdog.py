"""A step that never returns ends the engine's process; slow and idle engines are left alone."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ember import wire
from ember.engine.core.watchdog import Watchdog
from tests.engine_core.inline import greedy
from tests.engine_models.tiny import make_tiny

HANGS = """
import socket, sys, time
from pathlib import Path
from ember.engine.core.process import Connection, _serve
from tests.engine_core.inline import make_engine
engine = make_engine(Path(sys.argv[2]))
steps, run = 0, engine.runner.run
def slower(step):
    global steps
    steps += 1
    while steps > 3:
        time.sleep(1)
    return run(step)
engine.runner.run = slower
_serve(engine, Connection(socket.socket(fileno=int(sys.argv[1]))), step_timeout=1.5)
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("qwen3", tmp_path_factory.mktemp("qwen3"))


def test_a_step_that_hangs_is_reported_and_ends_the_process(directory: Path) -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    with theirs:
        command = [sys.executable, "-c", HANGS, str(theirs.fileno()), str(directory)]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True)
    request = wire.Generate(1, [5, 6, 7], greedy(20))
    ours.sendall(wire.frame_front([wire.encode_front(request)]))
    messages = []
    while payload := wire.recv_frame(ours):
        messages.append(wire.decode_engine(payload))
    _, log = process.communicate(timeout=30)
    assert isinstance(messages[-1], wire.Failed) and messages[-1].during == "run"
    assert "STEP_TIMEOUT=1.5" in messages[-1].message
    assert all(isinstance(message, wire.Outputs) for message in messages[:-1]) and len(messages) == 4
    assert process.returncode == 1
    assert "slower" in log, "the log shows where it hangs"


def test_each_step_has_the_whole_time() -> None:
    barked = threading.Event()
    watchdog = Watchdog(0.5, barked.set)
    for _ in range(4):
        watchdog.begin()
        time.sleep(0.25)
    watchdog.rest()
    assert not barked.wait(1.0), "neither many short steps nor rest are a hang"
    watchdog.begin()
    assert barked.wait(5.0)


@pytest.mark.parametrize("timeout", [float("inf"), 1e300])
def test_a_time_that_no_clock_can_hold_is_waited_for_all_the_same(timeout: float) -> None:
    before = set(threading.enumerate())
    watchdog = Watchdog(timeout, lambda: None)
    (thread,) = set(threading.enumerate()) - before
    watchdog.begin()
    thread.join(0.5)
    assert thread.is_alive(), "a watchdog that fails is none"
    watchdog.rest()


WATCHED = """
import sys, time
from ember.engine.core.watchdog import Watchdog
watchdog = Watchdog(1.0, lambda: print("barked", flush=True))
watchdog.begin()
print("begun", flush=True)
sys.stdin.readline()
watchdog.rest()
print("rests", flush=True)
"""


def test_time_in_which_the_process_is_stopped_does_not_count() -> None:
    command = [sys.executable, "-c", WATCHED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(3.0)
        process.stdin.write("\n")  # it has ended the step by the time it looks
        process.stdin.flush()
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == "rests\n"
