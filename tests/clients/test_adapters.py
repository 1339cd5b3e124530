"""OpenAI's SDKs and the frameworks built on them against the demo model, over HTTP and through the queue.

They live in environments of their own, as they bring many packages and an older OpenAI SDK: `make test-clients` makes
them and runs this. docs/clients.md says what each session covers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import STDOUT
from urllib.request import urlopen

import pytest

from tests.support.processes import ROOT, Process, url_of

ENVIRONMENT = ROOT / ".venv-clients"
HERE = Path(__file__).parent
BOOT_SECONDS = 120.0
SCRIPT_SECONDS = 240.0
IDLE_SECONDS = 60.0
FACES = ["http", "queue"]

pytestmark = pytest.mark.skipif(
    not (ENVIRONMENT / ".made").exists(), reason="`make test-clients` makes the environment that this needs"
)
needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (ENVIRONMENT / "node/.made").exists(),
    reason="the clients for Node need node, and npm when `make test-clients` makes their environment",
)
PYTHON = ENVIRONMENT / "bin/python"
OLDER_ANTHROPIC = ENVIRONMENT / "anthropic-0"  # an older major version, which pydantic-ai needs
SESSIONS = [
    pytest.param("openai_python.py", PYTHON, id="openai-python"),
    pytest.param("openai_python.py", Path(sys.executable), id="openai-python-newest"),
    pytest.param("openai_responses.py", PYTHON, id="openai-responses"),
    pytest.param("anthropic_python.py", PYTHON, id="anthropic"),
    pytest.param("instructor_chat.py", PYTHON, id="instructor"),
    pytest.param("langchain_chat.py", PYTHON, id="langchain"),
    pytest.param("langchain_responses.py", PYTHON, id="langchain-responses"),
    pytest.param("litellm_chat.py", PYTHON, id="litellm"),
    pytest.param("litellm_agents.py", PYTHON, id="litellm-agents"),
    pytest.param("llama_index_chat.py", PYTHON, id="llama-index"),
    pytest.param("agents_sdk_chat.py", PYTHON, id="agents-sdk"),
    pytest.param("pydantic_ai_chat.py", PYTHON, id="pydantic-ai"),
    pytest.param("openai_node.mjs", None, id="openai-node", marks=needs_node),
    pytest.param("ai_sdk.mjs", None, id="ai-sdk", marks=needs_node),
]
IMPATIENT = [
    pytest.param("openai_retries.py", PYTHON, id="openai-python"),
    pytest.param("openai_retries.mjs", None, id="node", marks=needs_node),
]


@dataclass(frozen=True)
class Endpoint:
    """A running demo model. `load` is where it tells how much it has to do."""

    process: Process
    base_url: str
    load: str
    is_queue: bool

    def wait_idle(self) -> None:
        """Wait until nothing runs, also nothing that a script began and left. Raises AssertionError."""
        deadline = time.monotonic() + IDLE_SECONDS
        while self._num_running():
            assert time.monotonic() < deadline, "what the script began and left is still running"
            time.sleep(0.1)

    def _num_running(self) -> int:
        with urlopen(self.load, timeout=30) as answer:
            found = json.load(answer)
        return sum(found["jobs"][name] for name in ("inProgress", "inQueue")) if self.is_queue else found["server_load"]


def endpoint(face: str, env: dict[str, str] | None = None) -> Iterator[Endpoint]:
    arguments = ("platform", "demo") if face == "queue" else ("serve", "demo", "--host", "127.0.0.1")
    # The SDK's queue client prints lines for every job: a pipe that nobody reads would fill up and block the worker.
    with Process("-m", "ember", *arguments, "--port", "0", env=env, stdout=subprocess.DEVNULL) as process:
        url = url_of(process, BOOT_SECONDS)
        if face == "queue":
            yield Endpoint(process, url + "/v2/LOCAL/openai/v1", url + "/v2/LOCAL/health", is_queue=True)
        else:
            yield Endpoint(process, url + "/v1", url + "/load", is_queue=False)


@pytest.fixture(scope="module", params=FACES)
def server(request: pytest.FixtureRequest) -> Iterator[Endpoint]:
    yield from endpoint(request.param)


@pytest.fixture(scope="module", params=FACES)
def pooling_server(request: pytest.FixtureRequest) -> Iterator[Endpoint]:
    """The demo model as one for embeddings."""
    yield from endpoint(request.param, {"RUNNER": "pooling"})


@pytest.fixture(scope="module", params=FACES)
def busy_server(request: pytest.FixtureRequest) -> Iterator[Endpoint]:
    """It runs one request while another waits."""
    yield from endpoint(request.param, {"MAX_NUM_SEQS": "1", "MAX_NUM_QUEUED_REQS": "1"})


def run(script: str, interpreter: Path | None, server: Endpoint, packages: Path | None = None) -> str:
    """The last line that the script wrote. Without an interpreter it runs in node, beside the packages.

    `packages`: a directory of packages that come before those of the interpreter.
    """
    env = os.environ | ({"PYTHONPATH": str(packages)} if packages else {})
    if interpreter is not None:
        module = f"tests.clients.{script.removesuffix('.py')}"
        command, directory = [str(interpreter), "-m", module, server.base_url], ROOT
    else:
        # node looks for packages above the script, and above its working directory for one that comes on stdin.
        command, directory = ["node", "--input-type=module", "-", server.base_url], ENVIRONMENT / "node"
    with (HERE / script).open() as text, tempfile.TemporaryFile("w+") as output:
        try:
            done = subprocess.run(
                command, cwd=directory, env=env, stdin=text, stdout=output, stderr=STDOUT, timeout=SCRIPT_SECONDS
            ).returncode
        except subprocess.TimeoutExpired:
            done = None
        output.seek(0)
        said = output.read()
    assert done == 0, (
        f"it ended with {done} (None: it did not end): {said}\n--- the server's log\n{server.process.log()}"
    )
    return said.splitlines()[-1]


@pytest.mark.parametrize(("script", "interpreter"), SESSIONS)
def test_session(server: Endpoint, script: str, interpreter: Path | None) -> None:
    assert run(script, interpreter, server) == "ok"
    server.wait_idle()


@pytest.mark.parametrize("script", ["anthropic_python.py", "pydantic_ai_agents.py"])
def test_session_with_an_older_anthropic(server: Endpoint, script: str) -> None:
    assert run(script, PYTHON, server, OLDER_ANTHROPIC) == "ok"
    server.wait_idle()


def test_embeddings_and_rerank(pooling_server: Endpoint) -> None:
    assert run("pooling_python.py", PYTHON, pooling_server) == "ok"
    pooling_server.wait_idle()


@pytest.mark.parametrize(("script", "interpreter"), IMPATIENT)
def test_a_busy_worker_is_asked_again_until_it_serves(
    busy_server: Endpoint, script: str, interpreter: Path | None
) -> None:
    refused = int(run(script, interpreter, busy_server).removesuffix(" refused"))
    # On a queue the jobs wait at the platform: nobody hears of a worker that is busy.
    assert refused == 0 if busy_server.is_queue else refused > 0
    busy_server.wait_idle()
