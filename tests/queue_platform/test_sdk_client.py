"""The SDK's own client for endpoints against the platform, with the SDK's worker behind it."""

from __future__ import annotations

import json

import pytest

from tests.queue_platform.test_workers import chat, running
from tests.support.processes import Process

CODE = """
import json, os, runpod
chat = json.loads(%r)
runpod.api_key = os.environ["CLIENT_KEY"]
endpoint = runpod.Endpoint("any-id")
seen = {"sync": endpoint.run_sync({"input": chat["whole"]}, timeout=60)}
job = endpoint.run({"input": chat["stream"]})
seen["stream"] = list(job.stream())
seen["status"], seen["output"] = job.status(), job.output(timeout=20)
failing = endpoint.run({"input": chat["failing"]})
while failing.status() not in ("FAILED", "COMPLETED"):
    pass
seen["failed"] = failing.status()
long = endpoint.run({"input": chat["long"]})
seen["cancelled"] = long.cancel()["status"]
seen["health"] = endpoint.health()
seen["purged"] = endpoint.purge_queue()
print("SEEN" + json.dumps(seen))
"""


@pytest.mark.parametrize("key", [None, "the-key"])
def test_the_sdks_client(key: str | None) -> None:
    inputs = {
        "whole": chat(words=1),
        "stream": chat(stream=True, words=20, pace=0.1),
        "failing": chat(fail="bad"),
        "long": chat(stream=True, words=10_000, pace=0.01),
    }
    with running("runpod", key=key) as url:
        env = {"RUNPOD_ENDPOINT_BASE_URL": url.removesuffix("/test"), "CLIENT_KEY": key or "any"}
        with Process("-c", CODE % json.dumps(inputs), env=env) as client:
            out = client.output(120)
            assert client.wait() == 0
    seen = json.loads(out.partition("SEEN")[2])
    assert seen["sync"][0]["object"] == "chat.completion"
    text = "".join(seen["stream"])
    assert len(seen["stream"]) > 1 and text.endswith("data: [DONE]\n\n")
    assert seen["status"] == "COMPLETED" and "".join(seen["output"]) == text
    assert seen["failed"] == "FAILED"
    assert seen["cancelled"] == "CANCELLED"
    assert seen["health"]["jobs"]["completed"] == 2 and seen["health"]["workers"]["ready"] == 1
    assert seen["purged"] == {"removed": 0, "status": "completed"}
