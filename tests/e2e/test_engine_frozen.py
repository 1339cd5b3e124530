"""The engine of `ember serve` is frozen as a whole: given up after STEP_TIMEOUT, and only then."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.e2e.conftest import BOOT_SECONDS
from tests.e2e.test_engine_killed import ask, health
from tests.support.processes import ROOT, Process, children, url_of

# In the engine's process: a call that lets no other thread run, on SIGUSR1.
HOLDS_THE_INTERPRETER = """
import ctypes, signal, sys
if "ember.engine" in " ".join(sys.orig_argv):
    signal.signal(signal.SIGUSR1, lambda *_: ctypes.PyDLL(None).sleep(600))
"""
LONG = {"max_tokens": 400, "ignore_eos": True}


def until_healthy(url: str) -> None:
    deadline = time.monotonic() + BOOT_SECONDS
    while health(url, "/health") != 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def engine_of(server: Process) -> int:
    (engine,) = [pid for pid, command in children(server.popen.pid).items() if "ember.engine" in command]
    return engine


def test_a_frozen_engine_of_a_server(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HOLDS_THE_INTERPRETER)
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    flags = ("serve", "demo", "--host", "127.0.0.1", "--port", "0", "--step-timeout", "1", "--engine-restarts", "2")
    with Process("-m", "ember", *flags, env=env) as server, ThreadPoolExecutor(8) as pool:
        url = url_of(server, BOOT_SECONDS)
        until_healthy(url)
        assert ask(url, **LONG)[0] == 200
        frozen = engine_of(server), server.popen.pid
        for stopped, seconds in ((frozen[:1], 1.0), (frozen[1:], 5.0), (frozen, 5.0)):
            whole = pool.submit(ask, url, **LONG)
            stream = pool.submit(ask, url, stream=True, **LONG)
            time.sleep(0.2)
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds / 2)
            if server.popen.pid not in stopped:
                assert health(url, "/health") == 503 and health(url, "/ping") == 204
            time.sleep(seconds / 2)
            for pid in reversed(stopped):
                os.kill(pid, signal.SIGCONT)
            assert whole.result()[0] == stream.result()[0] == 200
            assert stream.result()[1].endswith("data: [DONE]\n\n") and "error" not in stream.result()[1]
        assert "hangs" not in server.log()

        for how in (signal.SIGSTOP, signal.SIGUSR1):
            engine = engine_of(server)
            os.kill(engine, how)
            lost = [pool.submit(ask, url, stream=stream, **LONG) for stream in (True, False)]
            for status, text, _ in [future.result() for future in lost]:
                assert status in (200, 500) and "engine hangs" in text and "STEP_TIMEOUT=1 " in text
            until_healthy(url)
            assert ask(url, max_tokens=2)[0] == 200
            assert engine_of(server) != engine and engine not in children(server.popen.pid)
        assert "Traceback" not in server.log()
