"""The engine of `ember serve` is killed: what was in flight ends with an error, health says so, the next one serves.

tests/e2e/test_queue.py does the same over the queue.
"""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.conftest import BOOT_SECONDS
from tests.support.processes import Process, children, url_of

PATIENCE_S = 2.0  # of a client whose request was in flight: what the worker promises


def ask(url: str, **fields: Any) -> tuple[int, str, float]:
    """Status and text of a chat's answer, and when its end had come."""
    body = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0, **fields}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=BOOT_SECONDS) as response:
            return response.status, response.read().decode(), time.monotonic()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), time.monotonic()


def health(url: str, path: str) -> int:
    try:
        with urllib.request.urlopen(url + path, timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def kill_engine(server: Process) -> float:
    (engine,) = [pid for pid, command in children(server.popen.pid).items() if "ember.engine" in command]
    killed_at = time.monotonic()
    os.kill(engine, signal.SIGKILL)
    return killed_at


@pytest.mark.parametrize("restarts", [1, 0])
def test_a_killed_engine_of_a_server(restarts: int) -> None:
    flags = ("serve", "demo", "--host", "127.0.0.1", "--port", "0", "--engine-restarts", str(restarts))
    with Process("-m", "ember", *flags) as server, ThreadPoolExecutor(8) as pool:
        url = url_of(server, BOOT_SECONDS)
        while health(url, "/health") != 200:
            assert server.popen.poll() is None
            time.sleep(0.02)
        assert ask(url, max_tokens=2)[0] == 200  # 200 means that it answers
        long = {"max_tokens": 900, "ignore_eos": True}
        streams = [pool.submit(ask, url, stream=True, **long) for _ in range(4)]
        wholes = [pool.submit(ask, url, n=4, temperature=1, **long) for _ in range(4)]
        time.sleep(0.3)
        killed_at = kill_engine(server)
        for status, text, ended_at in [future.result() for future in streams]:
            assert status in (200, 500) and ended_at - killed_at < PATIENCE_S
            last = [line for line in text.split("\n") if line.startswith("data: {")][-1:] or [text]
            assert json.loads(last[0].removeprefix("data: "))["error"]["code"] == 500, text[-500:]
        for status, text, ended_at in [future.result() for future in wholes]:
            assert status == 500 and ended_at - killed_at < PATIENCE_S
            assert json.loads(text)["error"]["type"] == "InternalServerError"
        if not restarts:
            assert server.wait(20) != 0
            return
        statuses = health(url, "/health"), health(url, "/ping")
        if "the engine is ready again" not in server.log():  # those answers came when it was known to be gone
            assert statuses[0] == 503 and statuses[1] in (204, 503)
        deadline = time.monotonic() + BOOT_SECONDS
        while health(url, "/health") != 200:
            assert time.monotonic() < deadline
        assert ask(url, max_tokens=2)[0] == 200
        kill_engine(server)
        assert server.wait(20) != 0
        assert "Traceback" not in server.log()
