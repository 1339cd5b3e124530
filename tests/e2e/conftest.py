"""Real worker processes with the demo model: `handler.py` on the fake queue, `ember serve` on a free port."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fake_queue import FakeQueue
from tests.support.processes import Process, url_of

BOOT_SECONDS = 120.0


@pytest.fixture(scope="module")
def queue() -> Iterator[FakeQueue]:
    with FakeQueue() as queue:
        yield queue


@pytest.fixture(scope="module", params=["runpod", "direct"])
def worker(queue: FakeQueue, request: pytest.FixtureRequest) -> Iterator[Process]:
    """One `handler.py` for the module and each queue client; it has answered its first job."""
    env = {**queue.env(), "MODEL_NAME": "demo", "QUEUE_CLIENT": request.param}
    with Process("handler.py", env=env) as worker:
        queue.wait(queue.submit({"prompt": "Hello", "sampling_params": {"max_tokens": 1}}), BOOT_SECONDS)
        yield worker


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of one `ember serve demo` that is ready. Files in its working directory have the names of modules that
    its processes import."""
    directory = tmp_path_factory.mktemp("work")
    for name in ("queue", "json", "sitecustomize", "numpy"):
        (directory / f"{name}.py").write_text("raise SystemExit('a file of the working directory was imported')")
    command = ("-P", "-m", "ember", "serve", "demo", "--host", "127.0.0.1", "--port", "0")
    env = {"SERVER_DEV_MODE": "true", "ENABLE_SLEEP_MODE": "true"}
    with Process(*command, cwd=directory, env=env) as server:
        yield url_of(server, BOOT_SECONDS)
