"""`serve` as a process, with a fake engine: signals, failures, the port."""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import socket
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.processes import ROOT, Process, url_of

SCRIPT = str(ROOT / "tests/faces/face_process.py")


def start(settings: dict[str, Any] | None = None, **options: Any) -> Process:
    options = {"face": "http", "settings": {"host": "127.0.0.1", "port": 0, **(settings or {})}, **options}
    return Process(SCRIPT, json.dumps(options))


def post(url: str, body: dict[str, Any]) -> str:
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as response:
        text: str = response.read().decode()
        return text


def test_sigterm_lets_requests_finish() -> None:
    with start() as server, ThreadPoolExecutor() as pool:
        url = url_of(server) + "/v1/chat/completions"
        assert json.loads(post(url, {}))["object"] == "chat.completion"
        stream = pool.submit(post, url, {"stream": True, "words": 50, "pace": 0.02})
        whole = pool.submit(post, url, {"words": 10, "pace": 0.1})
        time.sleep(0.3)
        server.terminate()
        assert stream.result().endswith("data: [DONE]\n\n")
        assert json.loads(whole.result())["object"] == "chat.completion"
        assert server.wait(10) == 0


def test_sigterm_closes_open_connections_to_new_requests() -> None:
    with start() as server, ThreadPoolExecutor() as pool:
        url = url_of(server)
        kept = [http.client.HTTPConnection(url.removeprefix("http://"), timeout=20) for _ in range(2)]
        for connection in kept:
            connection.request("GET", "/health")
            assert connection.getresponse().read() == b""
        stream = pool.submit(post, url + "/v1/chat/completions", {"stream": True, "words": 50, "pace": 0.04})
        time.sleep(0.3)
        server.terminate()
        server.wait_log("stopping:")
        for connection, path in zip(kept, ("/v1/models", "/health"), strict=True):
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == 503 and answer.headers["Connection"] == "close"
            assert "shutting down" in json.loads(answer.read())["error"]["message"]
        with pytest.raises(urllib.error.URLError, match="refused"):
            urllib.request.urlopen(url + "/health", timeout=20)
        assert stream.result().endswith("data: [DONE]\n\n")
        assert server.wait(10) == 0


def test_boot_failure_is_one_line() -> None:
    with start(boot=0.3, boot_error="no such model") as server:
        assert server.wait(20) == 1
        (line,) = [line for line in server.log().splitlines() if "ERROR" in line]
        assert "no such model" in line
        assert "Traceback" not in server.log()


def test_dead_engine_ends_the_server() -> None:
    with start() as server:
        with contextlib.suppress(http.client.IncompleteRead):  # what a client reads then is the api's, not the face's
            post(url_of(server) + "/v1/chat/completions", {"stream": True, "words": 10, "pace": 0.01, "die": True})
        assert server.wait(10) == 1


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, start({"port": taken.getsockname()[1]}) as server:
        assert server.wait(20) == 1
        assert "cannot listen on 127.0.0.1" in server.log()
        assert "Traceback" not in server.log()


def test_a_second_signal_ends_what_is_in_flight() -> None:
    with start(close=0.5) as server, ThreadPoolExecutor() as pool:
        url = url_of(server) + "/v1/chat/completions"
        request = pool.submit(post, url, {"words": 1000, "pace": 0.1})
        time.sleep(0.5)
        server.terminate()
        time.sleep(0.3)
        server.terminate()
        assert server.wait(20) == 0
        with contextlib.suppress(http.client.HTTPException, urllib.error.URLError, ConnectionError):
            request.result(5)


def test_a_request_line_without_end_leaves_no_traceback() -> None:
    with start() as server:
        address = url_of(server).removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=10)
        connection.request("GET", "/v1/models?" + "a" * 20_000)
        assert connection.getresponse().status == 414
        assert "Traceback" not in server.log()


def test_a_worker_without_file_descriptors_goes_on() -> None:
    with start() as server, contextlib.ExitStack() as stack:
        url = url_of(server)
        resource.prlimit(server.popen.pid, resource.RLIMIT_NOFILE, (40, 40))
        host, _, port = url.removeprefix("http://").partition(":")
        busy = http.client.HTTPConnection(host, int(port), timeout=30)
        body = {"stream": True, "words": 100, "pace": 0.03}
        busy.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        for _ in range(120):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
        assert json.loads(post(url + "/v1/chat/completions", {}))["object"] == "chat.completion"
        assert busy.getresponse().read().endswith(b"data: [DONE]\n\n")
        server.wait_log("a connection waits: Too many open files")
        assert server.log().count("a connection waits") == 1
        assert "Traceback" not in server.log()
