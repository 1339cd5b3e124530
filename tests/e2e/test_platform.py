"""`ember platform demo`: the OpenAI client streams through queue and worker; the SDK's test server has a stand-in."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.e2e.conftest import BOOT_SECONDS
from tests.support.processes import Process, url_of

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [
    {"role": "user", "content": "What is the capital of France?"}
]


@pytest.fixture(scope="module", params=["runpod", "direct"])
def platform(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of one `ember platform demo`, with each of the two queue clients behind it."""
    env = {"QUEUE_CLIENT": request.param}
    with Process("-m", "ember", "platform", "demo", "--port", "0", env=env) as process:
        yield url_of(process, BOOT_SECONDS)


def call(url: str, body: Any = None) -> Any:
    data = json.dumps(body).encode() if body is not None else None
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=BOOT_SECONDS) as response:
        return json.loads(response.read())


def test_the_openai_client_streams_through_the_queue(platform: str) -> None:
    base_url = f"{platform}/v2/LOCAL/openai/v1"
    client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=BOOT_SECONDS)
    assert [model.id for model in client.models.list()] == ["demo"]
    whole = client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0, max_tokens=16)
    stream = client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0, max_tokens=16, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text and text == whole.choices[0].message.content
    with pytest.raises(openai.APIError) as bad:
        list(client.chat.completions.create(model="demo", messages=MESSAGES, temperature=99, stream=True))
    assert "temperature" in str(bad.value)
    with pytest.raises(openai.InternalServerError) as worse:  # a queue has no other status
        client.chat.completions.create(model="demo", messages=MESSAGES, temperature=99)
    assert worse.value.param == "temperature"


def test_leaving_a_stream_stops_its_job(platform: str) -> None:
    client = openai.OpenAI(base_url=f"{platform}/v2/LOCAL/openai/v1", api_key="none", max_retries=0)
    stream = client.chat.completions.create(
        model="demo", messages=MESSAGES, max_tokens=500, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 20
    while call(f"{platform}/v2/x/health")["jobs"]["inProgress"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=4).choices


def test_metrics_by_job_input(platform: str) -> None:
    (page,) = call(f"{platform}/v2/x/runsync", {"input": {"openai_route": "/metrics"}})["output"]
    assert 'vllm:request_success_total{engine="0",finished_reason="stop",model_name="demo"}' in page
    assert "ember_boot_phase_seconds{" in page


def test_the_stand_in_for_the_sdks_test_server() -> None:
    """`--rp_serve_api` answers where the SDK's server does, with a real queue and a real worker behind it."""
    with Process("handler.py", "--rp_serve_api", "--rp_api_port", "0") as process:
        url = url_of(process, BOOT_SECONDS)
        job_input = {"messages": MESSAGES, "sampling_params": {"max_tokens": 4, "temperature": 0}}
        body = call(f"{url}/runsync", {"input": job_input})
        assert body["status"] == "COMPLETED"
        assert body["output"][0]["choices"][0]["message"]["content"]
        job_id = call(f"{url}/run", {"input": {**job_input, "stream": True}})["id"]
        pieces: list[str] = []
        while True:
            streamed = call(f"{url}/stream/{job_id}", {})
            pieces += [each["output"] for each in streamed["stream"]]
            if streamed["status"] == "COMPLETED" and not streamed["stream"]:
                break
        assert "".join(pieces).endswith("data: [DONE]\n\n")
        process.terminate()
        assert process.wait(20) == 0
        assert "Traceback" not in process.log()
