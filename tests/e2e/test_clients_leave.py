"""Clients of `ember serve` that leave: whatever they asked for, and whenever they go, the engine drops it."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.e2e.test_engine_killed import ask

LONG = {"max_tokens": 900, "ignore_eos": True}
CHAT = {"messages": [{"role": "user", "content": "hi"}], **LONG}
LETTERS = {"type": "object", "properties": {"a": {"type": "string", "minLength": 2000}}, "required": ["a"]}
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "stream": True}),
    ("/v1/chat/completions", {**CHAT, "n": 8}),
    ("/v1/chat/completions", {**CHAT, "n": 4, "stream": True}),
    ("/v1/chat/completions", {**CHAT, "structured_outputs": {"json": LETTERS}}),
    ("/v1/chat/completions/batch", {**CHAT, "messages": [CHAT["messages"]] * 4}),
    ("/v1/completions", {"prompt": ["a", "b", "c"], **LONG}),
    ("/v1/completions", {"prompt": "a", **LONG, "use_beam_search": True, "best_of": 4}),
]


async def leave(host: str, port: int, path: str, body: dict[str, Any], way: int) -> None:
    _, writer = await asyncio.open_connection(host, port)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode())
    if way == 0:
        await asyncio.sleep(0.05)
        writer.write(data)  # and gone in the same moment
    elif way == 1:
        writer.write(data[:-1])
        await asyncio.sleep(0.1)
    elif way == 2:
        writer.write(data)
        await asyncio.sleep(0.2)
        writer.write_eof()
        await asyncio.sleep(0.2)
    else:
        writer.write(data)
        await asyncio.sleep(0.3)
        linger = struct.pack("ii", 1, 0)  # closing resets the connection
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
    writer.close()


def figures(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url + "/metrics", timeout=60) as response:
        lines = [line for line in response.read().decode().splitlines() if not line.startswith("#")]
    return {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_nothing_is_computed_for_clients_that_left(server_url: str) -> None:
    host, _, port = server_url.removeprefix("http://").partition(":")
    assert ask(server_url, max_tokens=2)[0] == 200

    async def all_leave() -> None:
        kinds = [(path, body, way) for path, body in ASKED for way in range(4)] * 3
        await asyncio.gather(*(leave(host, int(port), *kind) for kind in kinds))

    asyncio.run(all_leave())
    deadline = time.monotonic() + 60
    while (now := figures(server_url))["vllm:num_requests_running"] + now["vllm:num_requests_waiting"] > 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert now["vllm:kv_cache_usage_perc"] == 0
    before = now["vllm:generation_tokens_total"]
    time.sleep(0.5)
    assert figures(server_url)["vllm:generation_tokens_total"] == before  # it rests
    assert before < 96 * 900 / 4  # of the 96 requests, some with several samples, next to nothing was computed
    assert ask(server_url, max_tokens=2)[0] == 200


def test_a_server_that_sleeps_and_wakes_up(server_url: str) -> None:
    """The operator's routes on a real engine: after each sleep the answer is that of before."""
    body = {**CHAT, "max_tokens": 9, "temperature": 0}
    long = {**body, "max_tokens": 1, "messages": [{"role": "user", "content": "one two three " * 20}]}

    def post(path: str, given: Any = None) -> Any:
        data = b"" if given is None else json.dumps(given).encode()
        request = urllib.request.Request(server_url + path, data, {"Content-Type": "application/json"}, method="POST")
        with urllib.request.urlopen(request, timeout=120) as response:
            text = response.read()
            return json.loads(text) if text else None

    said = post("/v1/chat/completions", body)["choices"][0]["message"]["content"]
    for level in (1, 2):
        post(f"/sleep?level={level}")
        assert figures(server_url)["ember_engine_up"] == 0
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(post, "/v1/chat/completions", body)
            post("/wake_up")
            assert waiting.result()["choices"][0]["message"]["content"] == said
    post("/v1/chat/completions", long)
    hits = figures(server_url)["vllm:prefix_cache_hits_total"]
    post("/v1/chat/completions", long)
    assert (found := figures(server_url)["vllm:prefix_cache_hits_total"]) > hits
    post("/reset_prefix_cache")
    post("/v1/chat/completions", long)
    assert figures(server_url)["vllm:prefix_cache_hits_total"] == found
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(post, "/v1/chat/completions", {**CHAT, "max_tokens": 300})
        while not figures(server_url)["vllm:num_requests_running"]:
            time.sleep(0.02)
        post("/pause?mode=keep")
        assert not running.done()
        post("/resume")
        assert running.result()["usage"]["completion_tokens"] == 300
