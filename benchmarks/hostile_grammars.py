"""A chat beside clients whose grammars are made to cost much: how much longer are its gaps between tokens?

    python benchmarks/hostile_grammars.py [--seconds 20] [--samples 128] [--clients 1]

Starts `ember serve` with the demo model and STEP_TIMEOUT=20. A chat is streamed again and again, first alone, then
beside clients that each send one kind of grammar for ever (`tests/structured/hostile.py`: ambiguous rules, chains that
overflow a stack, wide anyOf, counted repetitions, ...), `--clients` for each kind, with `--samples` samples a request.
Every request has another grammar, so that none is refused for what the last one did. The figures are gaps between the
events of the chat's stream. Exit status 1 when the engine was started again, when a hostile request ended otherwise
than with an answer, a 400 or a 503, or when the mean gap is more than three times that of the chat alone.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this directory, where a module has the name of one of Python's

import aiohttp  # noqa: E402

from ember.wire import Grammar  # noqa: E402
from tests.structured.hostile import ENDLESS, LARGE  # noqa: E402

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 200}
FIELDS = {"lark": "grammar", "regex": "regex", "json_schema": "json"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each of the two parts")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--clients", type=int, default=1, help="of each kind of grammar")
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "ember.cli", "serve", "demo", "--host", "127.0.0.1", "--port", str(port)]
        environment = {**os.environ, "STEP_TIMEOUT": "20", "PYTHONPATH": str(ROOT / "src")}
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            is_good = asyncio.run(_measure(f"http://127.0.0.1:{port}", options))
        finally:
            server.terminate()
            server.wait()
    sys.exit(0 if is_good else 1)


async def _measure(url: str, options: argparse.Namespace) -> bool:
    limits = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(url, timeout=limits, connector=aiohttp.TCPConnector(limit=0)) as session:
        await _boot(session)
        for _ in range(3):
            await _chat(session)
        alone = await _chats(session, options.seconds)
        ends: Counter[str] = Counter()
        grammars = {**ENDLESS, **LARGE}
        attacks = [
            asyncio.create_task(_attack(session, name, grammar, options.samples, ends, number))
            for number in range(options.clients)
            for name, grammar in grammars.items()
        ]
        await asyncio.sleep(1.0)
        scrapes = asyncio.create_task(_scrape(session))
        beside = await _chats(session, options.seconds)
        scrapes.cancel()
        for attack in attacks:
            attack.cancel()
        await asyncio.sleep(2.0)
        async with session.get("/metrics") as response:
            metrics = await response.text()
    print(f"{len(attacks)} clients with {options.samples} samples a request; ms between the events of a chat")
    print("| chat | gaps | mean | median | 95 % | longest |\n|---|---|---|---|---|---|")
    for name, gaps in (("alone", alone), ("beside them", beside)):
        ordered = sorted(gaps)
        figures = (statistics.mean(gaps), statistics.median(gaps), ordered[int(len(gaps) * 0.95)], ordered[-1])
        print(f"| {name} | {len(gaps)} | " + " | ".join(f"{value * 1e3:.1f}" for value in figures) + " |")
    print("ends of their requests: " + ", ".join(f"{name}: {count}" for name, count in sorted(ends.items())))
    restarts = [line for line in metrics.splitlines() if "restart" in line and not line.startswith("#")]
    print("\n".join(restarts))
    good = {"200", "400", "503"}
    is_alive = all(line.endswith((" 0", " 0.0")) for line in restarts)
    return is_alive and set(ends) <= good and statistics.mean(beside) < 3 * statistics.mean(alone)


async def _boot(session: aiohttp.ClientSession) -> None:
    until = time.monotonic() + 120.0
    while time.monotonic() < until:
        try:
            async with session.get("/health") as response:
                if response.status == 200:
                    return
        except aiohttp.ClientConnectionError:
            pass
        await asyncio.sleep(0.1)
    raise SystemExit("the server did not start")


async def _chats(session: aiohttp.ClientSession, seconds: float) -> list[float]:
    until = time.monotonic() + seconds
    gaps: list[float] = []
    while time.monotonic() < until:
        gaps += await _chat(session)
    return gaps


async def _chat(session: aiohttp.ClientSession) -> list[float]:
    """Seconds between the events of one streamed answer."""
    async with session.post("/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        assert response.status == 200, await response.text()
        times = [time.perf_counter() async for line in response.content if line.startswith(b"data:")]
    return [after - before for before, after in itertools.pairwise(times)]


async def _attack(
    session: aiohttp.ClientSession, name: str, grammar: Grammar, samples: int, ends: Counter[str], number: int
) -> None:
    """Send one kind of grammar for ever, each time another one."""
    count = 0
    while True:
        count += 1
        mark = f"{number}x{count}"
        async with session.post("/v1/completions", json=_body(grammar, samples, mark)) as response:
            text = await response.text()
            status = str(response.status)
            ends[status] += 1
            if status not in ("200", "400", "503"):
                print(f"{name}: {status} {text[:300]}", flush=True)
        await asyncio.sleep(0.05)


def _body(grammar: Grammar, samples: int, mark: str) -> dict[str, Any]:
    field = FIELDS[grammar.kind]
    demand: Any = grammar.text
    match grammar.kind:
        case "lark":
            demand = f"{grammar.text}\n// {mark}\n"
        case "regex":
            demand = f"{grammar.text}|{mark}"
        case "json_schema":
            demand = {**json.loads(grammar.text), "description": mark}
    return {
        "model": "demo",
        "prompt": "Once upon a time",
        "max_tokens": 64,
        "n": samples,
        "temperature": 1.0,
        "structured_outputs": {field: demand},
    }


async def _scrape(session: aiohttp.ClientSession) -> None:
    """`/metrics` and `/health` answer meanwhile."""
    while True:
        for path in ("/metrics", "/health"):
            started = time.perf_counter()
            async with session.get(path) as response:
                assert response.status == 200
                await response.read()
            took = time.perf_counter() - started
            if took > 1.0:
                print(f"{path} took {took:.1f} s", flush=True)
        await asyncio.sleep(0.5)


if __name__ == "__main__":
    main()
