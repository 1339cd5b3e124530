"""`ember platform` as a process: it survives its own death with a store, and leaves in order on SIGTERM."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from ember.platform.server import worker_environment
from tests.queue_platform.test_workers import SCRIPT, call, chat, until_final
from tests.support.processes import Process, url_of


def platform(*flags: str, port: str = "0") -> Process:
    return Process("-m", "ember", "platform", "--port", port, *flags)


@pytest.mark.parametrize("client", ["runpod", "direct"])
def test_a_platform_that_was_killed_goes_on(client: str, tmp_path: Path) -> None:
    store = ("--store", f"sqlite:{tmp_path}/jobs.db")
    with platform(*store) as first:
        url = url_of(first)
        done = call(f"{url}/v2/x/run", {"input": chat(words=1)})["id"]
        env = worker_environment(url, "w", None)
        options = json.dumps({"settings": {"queue_client": client}})
        with Process(SCRIPT, options, env=env) as worker:
            assert until_final(f"{url}/v2/x", done)["status"] == "COMPLETED"
            worker.popen.send_signal(signal.SIGKILL)
        waiting = call(f"{url}/v2/x/run", {"input": chat(words=2)})["id"]
        first.popen.send_signal(signal.SIGKILL)
        first.wait()
    with platform(*store, port=url.rpartition(":")[2]) as second:
        assert url_of(second) == url
        assert call(f"{url}/v2/x/status/{done}")["output"][0]["object"] == "chat.completion"
        assert call(f"{url}/v2/x/status/{waiting}")["status"] in ("IN_QUEUE", "IN_PROGRESS")
        with Process(SCRIPT, options, env={**env, "RUNPOD_POD_ID": "w2"}):
            whole = call(f"{url}/v2/x/runsync", {"input": chat(words=1)})
            assert whole["status"] == "COMPLETED"
            assert call(f"{url}/v2/x/status/{waiting}")["status"] == "COMPLETED"
        second.terminate()
        assert second.wait(20) == 0
        assert "Traceback" not in second.log()


def test_a_port_that_is_taken_is_one_line() -> None:
    with platform() as first:
        with platform(port=url_of(first).rpartition(":")[2]) as second:
            assert second.wait(20) == 1
            assert "cannot listen on 127.0.0.1" in second.log() and "Traceback" not in second.log()
        first.terminate()
        assert first.wait(20) == 0
