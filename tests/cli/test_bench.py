"""`ember bench`: what it asks, what it counts, and how its figures follow from what came."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from ember.cli import main
from ember.cli.api_client import ServerError, connect
from ember.cli.bench import load, prompts, report
from ember.cli.bench.load import Load, LoadTest, Outcome, Run, arrivals
from tests.support.processes import ROOT, Process, url_of

KEY = {"Authorization": "Bearer k"}
SERVE = ("-P", "-m", "ember", "serve", "demo", "--host", "127.0.0.1", "--port", "0")


def outcome(start: float, *tokens: float, **fields: Any) -> Outcome:
    """A request whose tokens came at these times."""
    gaps = [later - earlier for earlier, later in itertools.pairwise(tokens)]
    return Outcome(start, tokens[0], tokens[-1], gaps, 10, len(tokens), **fields)


def test_figures_follow_from_the_times_of_tokens():
    outcomes = [outcome(0.0, 0.1, 0.2, 0.4), outcome(1.0, 1.3, 1.35), Outcome(1.0, end=1.1, error="503: full")]
    found = report.summary(Run(outcomes, 2.0, 0.5, 2), {"ttft": 200.0, "tpot": 200.0})
    assert found["requests"] == 3 and found["failed"] == 1 and found["errors"] == {"503: full": 1}
    assert found["output_tokens"] == 5 and found["output_tokens_per_s"] == 2.5 and found["total_tokens_per_s"] == 12.5
    assert found["ttft_ms"]["mean"] == pytest.approx(200) and found["ttft_ms"]["max"] == pytest.approx(300)
    assert found["itl_ms"]["p50"] == pytest.approx(100) and found["tpot_ms"]["p50"] == pytest.approx(100)
    assert found["e2e_ms"]["p50"] == pytest.approx(375) and found["client_cpu"] == 0.25
    assert found["goodput_per_s"] == 0.5  # the second one's first token came late


def test_counts_that_the_server_does_not_send_are_unknown():
    found = report.summary(Run([Outcome(0.0, 0.1, 0.2, [0.1], None, 2, is_counted=False)], 1.0, 0.0, 1), {})
    text = report.as_text(found, "title")
    assert found["input_tokens"] is None and "unknown" in text and "2 chunks" in text


def test_percentiles_are_numpys():
    values = sorted(random.Random(3).expovariate(1) for _ in range(101))
    for percent in (0, 12.5, 50, 99, 99.9, 100):
        assert report.percentile(values, percent) == pytest.approx(np.percentile(values, percent))


def test_times_of_requests_have_the_rate_and_burstiness_asked_for():
    for burstiness in (0.5, 1.0, 4.0):
        times = list(arrivals(Load(20.0, burstiness), 20_000, random.Random(1)))
        gaps = np.diff(times)
        assert times[0] == 0 and gaps.mean() == pytest.approx(1 / 20, rel=0.05)
        assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.05)
    assert set(arrivals(Load(), 5, random.Random(1))) == {0.0}


def test_lengths_are_spread_as_asked():
    rng = random.Random(2)
    assert set(prompts.lengths("random", 9, (100, 20), 0.0, rng)) == {(100, 20)}
    spread = prompts.lengths("random", 2000, (100, 20), 0.5, rng)
    assert {min(pair[0] for pair in spread), max(pair[0] for pair in spread)} == {50, 150}
    chats = prompts.lengths("sharegpt", 2000, (100, 20), 0.0, rng)
    assert all(
        4 <= num_input <= 1024 and num_output > 0 and num_input + num_output <= 2048 for num_input, num_output in chats
    )
    assert len({asked for asked, _ in chats}) > 300


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}]', "Hi"),
        ('{"messages": [{"role": "user", "content": "Hi"}]}\n\n{"prompt": "Hi"}\n', "Hi"),
        ('{"custom_id": "a", "body": {"prompt": "Hi", "max_tokens": 5}}', "Hi"),
    ],
)
def test_prompts_are_read_from_each_kind_of_file(tmp_path: Path, text: str, expected: str):
    (tmp_path / "file").write_text(text)
    for endpoint in ("chat", "completions"):
        found = prompts.read(tmp_path / "file", endpoint, 4, random.Random(1))
        assert len(found) == 4
        for prompt in found:
            assert prompt.fields in ({"prompt": expected}, {"messages": [{"role": "user", "content": expected}]})
        assert all(prompt.max_tokens == (5 if "max_tokens" in text else None) for prompt in found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, {}]", "none of its 2 rows"),
        ('{"prompt": "a"}\n{', "line 2 is no JSON"),
        ("", "none of"),
        ("[" * 9999, "no JSON"),
    ],
)
def test_a_file_without_prompts_is_named(tmp_path: Path, text: str, message: str):
    (tmp_path / "file").write_text(text)
    with pytest.raises(prompts.PromptError, match=message):
        prompts.read(tmp_path / "file", "chat", 4, random.Random(1))


FAULTS = {
    "cut": (b'data: {"choices": []}\n\n', "ended before its last event"),
    "event": (b'data: {"error": {"message": "the engine failed"}}\n\n', "the engine failed"),
    "no json": (b"data: {\n\ndata: [DONE]\n\n", "is no JSON"),
    "usage": (b'data: {"usage": 5}\n\ndata: [DONE]\n\n', "another form"),
    "empty": (b'data: {"usage": {"prompt_tokens": 3, "completion_tokens": 0}}\n\ndata: [DONE]\n\n', "has no tokens"),
    "nothing": (b"data: [DONE]\n\n", "has no tokens"),
    "late": (
        b'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: {"error": {"message": "it failed"}}\n\n',
        "it failed",
    ),
    "list": (b"data: [1]\n\ndata: [DONE]\n\n", "is no object"),
}


def test_each_kind_of_failed_request_is_an_outcome():
    """The others of the test go on; events that arrive in pieces, and with carriage returns, are read."""

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        kind = body["messages"][0]["content"]
        if kind == "refused":
            return web.json_response({"error": {"message": "busy"}}, status=503)
        response = web.StreamResponse()
        await response.prepare(request)
        text = FAULTS[kind][0] if kind in FAULTS else GOOD.rstrip() if kind == "unended" else GOOD
        for i in range(0, len(text), 7):
            await response.write(text[i : i + 7])
        return response

    delta = {"choices": [{"delta": {"content": "a"}}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    events = [json.dumps(event) for event in ({"choices": [{"delta": {"role": "assistant"}}]}, delta, delta, usage)]
    GOOD = "".join(f"data: {event}\r\n\r\n" for event in [*events, "[DONE]"]).encode()

    async def run() -> Run:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        async with TestServer(app) as server, connect(str(server.make_url("/v1/")), None) as client:
            asked = [
                prompts.Prompt(prompts.fields("chat", kind), None, 2)
                for kind in ("good", "unended", "refused", *FAULTS)
            ]
            return await LoadTest(client, "chat", "m", True, {"top_k": 1}).run(asked, Load(), random.Random(1))

    good, unended, refused, *faults = asyncio.run(run()).outcomes
    assert unended.error is None and unended.num_output == 2  # the last event lacks the line behind it
    assert good.error is None and (good.num_input, good.num_output, len(good.gaps)) == (3, 2, 1)
    assert good.first is not None and good.start <= good.first <= good.end
    assert refused.error == "503: busy"
    for fault, (_, message) in zip(faults, FAULTS.values(), strict=True):
        assert message in str(fault.error)


def test_an_answer_ends_with_its_last_token(monkeypatch: pytest.MonkeyPatch):
    """And not with the events behind it, which say the usage: the time after the first token is that between tokens."""
    ticks = itertools.count()
    monkeypatch.setattr(load, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks)), process_time=float))
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}

    class Client:
        async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[list[dict[str, Any]]]:
            for _ in range(4):
                yield [{"choices": [{"text": "a"}]}]
            for _ in range(3):
                yield [usage]

    client: Any = Client()
    asked = [prompts.Prompt({"prompt": "A"}, None, 4)]
    result = asyncio.run(LoadTest(client, "completions", "m", True, {}).run(asked, Load(), random.Random(1)))
    (found,) = result.outcomes
    assert found.ttft == 1 and found.gaps == [1, 1, 1] and found.tpot == 1 and found.e2e == 4
    assert found.num_output == 4 and found.error is None


def test_a_load_test_counts_what_the_server_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Tokens against the server's own counters, over both routes; a model's name, a key and goals."""
    with Process(*SERVE, env={"API_KEY": "k"}) as server:
        url = url_of(server, 120.0)
        common = ["bench", "--url", f"{url}/v1", "--api-key", "k", "--num-prompts", "12", "--warm-up", "0"]
        before = counters(url)
        target = ["--json", str(tmp_path / "chat.json"), "--svg", str(tmp_path / "chat.svg"), "--goodput", "e2e:60000"]
        assert main([*common, *target, "--input-tokens", "60", "--output-tokens", "7", "--concurrency", "3"]) == 0
        middle, found = counters(url), json.loads((tmp_path / "chat.json").read_text())
        assert found["requests"] == 12 and found["output_tokens"] == 84 and found["peak_concurrency"] == 3
        assert middle["generation"] - before["generation"] == 84 + 2  # and one token for each count of words
        sent = found["input_tokens"]
        assert found["goodput_per_s"] == found["requests_per_s"]
        assert abs(sent / 12 - 60) < 6
        assert ElementTree.parse(tmp_path / "chat.svg").getroot().tag.endswith("svg")
        (tmp_path / "file").write_text('{"prompt": "A fox", "max_tokens": 3}\n')
        assert main([*common, "--endpoint", "completions", "--dataset", str(tmp_path / "file"), "--rate", "200"]) == 0
        after = counters(url)
        assert after["generation"] - middle["generation"] == 12 * 3
        out = capsys.readouterr().out
        assert f"{sent:,} tokens" in out and "36 tokens" in out and "(0 failed)" in out
        assert main([*common, "--model", "other"]) == 1
        assert "The model `other` does not exist" in capsys.readouterr().err
        assert main([*common[:3], "--num-prompts", "2"]) == 1  # no key


def counters(url: str) -> dict[str, float]:
    async def text() -> str:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics", headers=KEY) as answer:
            return await answer.text()

    page = asyncio.run(text())
    return {
        kind: sum(float(value) for value in re.findall(rf"^vllm:{kind}_tokens_total\S* (\S+)$", page, re.MULTILINE))
        for kind in ("prompt", "generation")
    }


def test_starts_of_two_commands_are_timed_in_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Two small servers: one is ready at once, the other refuses its first requests."""
    (tmp_path / "server.py").write_text(SMALL_SERVER)
    command = f"{sys.executable} {tmp_path / 'server.py'} {{port}}"
    target = ["--json", str(tmp_path / "times.json")]
    assert main(["bench", "--startup", f"{command} 0", "--startup", f"{command} 3", "--runs", "2", *target]) == 0
    first, second = json.loads((tmp_path / "times.json").read_text())
    for times in (first, second):
        assert len(times["first_answer_s"]) == 2
        for listening, models, answer in zip(*(times[name] for name in NAMES), strict=True):
            assert 0 < listening <= models <= answer
    assert "beside the first one" in capsys.readouterr().out
    for bad, message in (("sleep 1", "has no {port}"), (f"{sys.executable} -c 0 {{port}}", "ended with status 0")):
        assert main(["bench", "--startup", bad]) == 1
        assert message in capsys.readouterr().err


NAMES = ("listening_s", "models_s", "first_answer_s")
SMALL_SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
left = int(sys.argv[2])
class Handler(BaseHTTPRequestHandler):
    def answer(self):
        global left
        self.rfile.read(int(self.headers.get("content-length") or 0))
        body = b'{"data": [{"id": "m"}]}'
        left -= self.command == "POST"
        self.send_response(503 if left >= 0 and self.command == "POST" else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_GET = do_POST = answer
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_the_examples_of_the_page_run(tmp_path: Path):
    page = (ROOT / "docs" / "cli.md").read_text()
    examples = re.findall(r"^```sh\n((?:echo .*|ember bench .*)\n)^```$", page, re.MULTILINE)
    assert len(examples) == 3
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = "set -e\n" + "".join(examples).replace("--runs 2", "--runs 1")  # a second start takes as long
    shell = ["bash", "-c", script]
    done = subprocess.run(shell, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The capital of France is Paris") and "beside the first one" in done.stdout
    assert json.loads((tmp_path / "bench.json").read_text())["requests"] == 20 and (tmp_path / "bench.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--goodput", "itl:5"], "'itl:5' is no goal"),
        (["--goodput", "ttft:0"], "must be above 0"),
        (["--rate", "0"], "it must be above 0, not 0"),
        (["--spread", "2"], "between 0 and 1"),
        (["--extra-body", "[1]"], "must be a JSON object"),
        (["--percentiles", "50,101"], "between 0 and 100"),
        (["--num-prompts", "0"], "at least 1"),
        (["--concurrency", "x"], "a whole number, not 'x'"),
        (["--url", "localhost:8000"], "must begin with http"),
        (["--warm-up", "-1"], "at least 0"),
    ],
)
def test_bad_options_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "demo", *arguments])
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_a_load_test_is_of_streams(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "--url", "http://127.0.0.1:1", "--extra-body", '{"stream": false}']) == 1
    assert "--extra-body: stream cannot be turned off" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "--url", "http://127.0.0.1:1"]) == 1
    assert capsys.readouterr().err.count("\n") == 1

    async def gone() -> None:
        async with connect("http://127.0.0.1:1", None) as client:
            await client.models()

    with pytest.raises(ServerError) as raised:
        asyncio.run(gone())
    assert raised.value.status is None
