"""Planted secrets do not come out: not in the log, not in argv, errors, /metrics or boot reports. Nor do prompts."""

from __future__ import annotations

import http.client
import json
from pathlib import Path

import pytest

from tests.e2e.conftest import BOOT_SECONDS
from tests.support.fake_queue import FakeQueue
from tests.support.processes import ROOT, Process, children, url_of

KEY, OTHER_KEY, FILE_KEY = "sk-planted-one", "sk-planted-two", "sk-planted-three"
HF_TOKEN, PLATFORM_KEY, GUESS = "hf_planted_token", "rp-planted-key", "sk-planted-guess"
SECRETS = (KEY, OTHER_KEY, FILE_KEY, HF_TOKEN, PLATFORM_KEY, GUESS, "planted")
PROMPT = "the prompt is nobody else's business"
CHAT = "/v1/chat/completions"


def body(**fields: object) -> str:
    return json.dumps({"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4, **fields})


def command_lines(process: Process) -> str:
    own = Path(f"/proc/{process.popen.pid}/cmdline").read_text()
    return own + "\n".join(children(process.popen.pid).values())


def check(name: str, text: str, *more: str) -> None:
    for secret in (*SECRETS, *more):
        assert secret not in text, f"{name} shows {secret}"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_server_keeps_its_secrets(tmp_path: Path, log_format: str) -> None:
    (tmp_path / "keys").write_text(FILE_KEY + "\n")
    report = tmp_path / "boot.json"
    env = {
        "API_KEY": f"{KEY},{OTHER_KEY}",
        "API_KEY_FILE": str(tmp_path / "keys"),
        "HF_TOKEN": HF_TOKEN,
        "RUNPOD_AI_API_KEY": PLATFORM_KEY,
        "LOG_LEVEL": "debug",
        "LOG_FORMAT": log_format,
        "EMBER_BOOT_REPORT": str(report),
        "DEFAULT_MIN_BATCH_SIZE": "1",
        "TENSOR_PARALLEL_SIZE": "2",
    }
    arguments = ("-m", "ember", "serve", "demo", "--host", "127.0.0.1", "--port", "0")
    with Process(*arguments, env=env) as server:
        address = url_of(server, BOOT_SECONDS).removeprefix("http://").partition('"')[0]

        def ask(method: str, path: str, sent: str | None, key: str, status: int) -> None:
            connection = http.client.HTTPConnection(address, timeout=BOOT_SECONDS)
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            connection.request(method, path, sent, headers)
            response = connection.getresponse()
            text = response.read().decode()
            assert response.status == status, text
            check(f"the answer to {method} {path}", text + str(response.getheaders()))

        for key in (KEY, OTHER_KEY, FILE_KEY):
            ask("POST", CHAT, body(), key, 200)
        ask("POST", CHAT, body(stream=True), KEY, 200)
        for path in (CHAT, "/metrics", "/boot", "/v1/models", "/nowhere"):
            ask("GET", path, None, GUESS, 401)
        ask("POST", CHAT, body(temperature=99), KEY, 400)
        ask("POST", CHAT, "{", KEY, 400)
        ask("POST", CHAT, body(model="another"), KEY, 404)
        ask("GET", "/nowhere", None, KEY, 404)
        for path in ("/metrics", "/boot", "/v1/models", "/version", "/health"):
            ask("GET", path, None, KEY, 200)
        check("argv", command_lines(server))
        server.terminate()
        server.wait(30)
        log = server.log()
        check("the log", log, PROMPT)
        assert "finished" in log and "refused" in log  # it is the log of these requests
        if log_format == "json":
            lines = [json.loads(line) for line in log.splitlines()]
            assert {"debug", "info"} <= {line["level"] for line in lines}
            finished = [line for line in lines if "ttft_ms" in line]
            assert len(finished) == 4 and all(line["request_id"].startswith("chatcmpl-") for line in finished)
        check("the boot report", report.read_text())


@pytest.mark.parametrize("client", ["runpod", "direct"])
def test_a_worker_keeps_its_secrets(tmp_path: Path, client: str) -> None:
    report = tmp_path / "boot.json"
    with FakeQueue() as queue:
        env = {
            **queue.env(),
            "MODEL_NAME": "demo",
            "QUEUE_CLIENT": client,
            "HF_TOKEN": HF_TOKEN,
            "API_KEY": KEY,
            "RUNPOD_AI_API_KEY": PLATFORM_KEY,
            "EMBER_BOOT_REPORT": str(report),
        }
        with Process("handler.py", env=env) as worker:
            jobs = [queue.submit({"openai_route": CHAT, "openai_input": json.loads(body(stream=stream))})
                    for stream in (False, True)]  # fmt: skip
            jobs.append(queue.submit({"openai_route": CHAT, "openai_input": json.loads(body(temperature=99))}))
            jobs += [queue.submit({"openai_route": route}) for route in ("/metrics", "/boot", "/nowhere")]
            for job in jobs:
                record = queue.wait(job, BOOT_SECONDS)
                check(
                    f"the answer to {record.input}",
                    json.dumps([record.output, record.error, [piece for _, piece in record.pieces]]),
                )
            check("argv", command_lines(worker))
            worker.terminate()
            worker.wait(30)
            check("the log", worker.log(), PROMPT)
            check("stdout", worker.output(), PROMPT)
            check("the boot report", report.read_text())


@pytest.mark.parametrize(
    "env",
    [
        {"MODEL_NAME": "org/private-model", "HF_ENDPOINT": "http://127.0.0.1:9"},
        {"MODEL_NAME": "demo", "PORT": "x"},
        {"MODEL_NAME": "demo", "API_KEY_FILE": str(ROOT / "pyproject.toml") + "/no"},
        {"MODEL_NAME": "demo", "API_KEY": ","},
    ],
)
def test_a_failed_boot_keeps_its_secrets(env: dict[str, str], tmp_path: Path) -> None:
    secrets = {"API_KEY": KEY, "HF_TOKEN": HF_TOKEN, "RUNPOD_AI_API_KEY": PLATFORM_KEY, "HF_HOME": str(tmp_path)}
    with Process("-m", "ember", "serve", env={**secrets, **env}) as server:
        assert server.wait(120) == 1
        assert server.log()
        check("the log", server.log() + server.output())
