"""LangChain's and LiteLLM's OpenAI adapters against the demo model, over HTTP and through the queue.

They live in an environment of their own, as they bring many packages and an older OpenAI SDK: `make test-clients` makes
it and runs this. Without it the tests are skipped.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import ROOT, Process, url_of

ENVIRONMENT = ROOT / ".venv-clients"
HERE = Path(__file__).parent
BOOT_SECONDS = 120.0

pytestmark = pytest.mark.skipif(
    not (ENVIRONMENT / ".made").exists(), reason="`make test-clients` makes the environment that this needs"
)


@pytest.fixture(scope="module", params=["http", "queue"])
def base_url(request: pytest.FixtureRequest) -> Iterator[str]:
    is_queue = request.param == "queue"
    arguments = ("platform", "demo") if is_queue else ("serve", "demo", "--host", "127.0.0.1")
    with Process("-m", "ember", *arguments, "--port", "0") as process:
        yield url_of(process, BOOT_SECONDS) + ("/v2/LOCAL/openai/v1" if is_queue else "/v1")


@pytest.mark.parametrize("script", ["langchain_chat.py", "litellm_chat.py"])
def test_adapter(base_url: str, script: str) -> None:
    run = subprocess.run(
        [ENVIRONMENT / "bin/python", HERE / script, base_url], capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.endswith("ok\n")
