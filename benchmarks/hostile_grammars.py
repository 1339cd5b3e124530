"""A chat beside clients whose grammars are made to cost much: how much longer are its gaps between tokens?

    python benchmarks/hostile_grammars.py [--seconds 20] [--samples 128] [--clients 1] [--endless]

Starts `ember serve` with the demo model and STEP_TIMEOUT=20. A chat is streamed again and again: alone, beside clients
that each send one kind of grammar for ever (`tests/structured/hostile.py`: ambiguous rules, chains that overflow a
stack, wide anyOf, counted repetitions, ...), and beside the same requests without their grammars. `--clients` for each
kind; those that cannot be served ask for `--samples` samples, those that can for one, and `--endless` leaves these out.
Every request has another grammar, so that none is refused for what the last one did. The figures are gaps between the
events of the chat's stream. Exit status 1 when the engine was started again, when a hostile request ended otherwise
than with an answer, a 400 or a 503, or when the median gap beside the grammars is more than three times that of the
chat alone and that of the chat beside the same requests without them.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each of the two parts")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--clients", type=int, default=1, help="of each kind of grammar")
    parser.add_argument("--endless", action="store_true", help="only grammars that cannot be served")
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "ember", "serve", "demo", "--host", "127.0.0.1", "--port", str(port)]
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
        parts = {"alone": alone}
        for name, has_grammar in (("beside the grammars", True), ("beside the same requests without", False)):
            kinds = ENDLESS if options.endless else {**ENDLESS, **LARGE}
            tasks = [
                asyncio.create_task(
                    _attack(
                        session,
                        grammar if has_grammar else None,
                        options.samples if kind in ENDLESS else 1,
                        ends if has_grammar else Counter(),
                        number,
                    )
                )
                for number in range(options.clients)
                for kind, grammar in kinds.items()
            ]
            if has_grammar:
                tasks.append(asyncio.create_task(_scrape(session)))
            await asyncio.sleep(1.0)
            parts[name] = await _chats(session, options.seconds)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(3.0)
        async with session.get("/metrics") as response:
            metrics = await response.text()
    print(f"{options.clients * len(kinds)} clients, {options.samples} samples; ms between the events of a chat")
    print("| chat | gaps | mean | median | 95 % | longest |\n|---|---|---|---|---|---|")
    medians = {}
    for name, gaps in parts.items():
        ordered = sorted(gaps)
        medians[name] = statistics.median(gaps)
        figures = (statistics.mean(gaps), medians[name], ordered[int(len(gaps) * 0.95)], ordered[-1])
        print(f"| {name} | {len(gaps)} | " + " | ".join(f"{value * 1e3:.1f}" for value in figures) + " |")
    print("ends of their requests: " + ", ".join(f"{name}: {count}" for name, count in sorted(ends.items())))
    restarts = [line for line in metrics.splitlines() if "restart" in line and not line.startswith("#")]
    print("\n".join(restarts))
    is_alive = all(line.endswith((" 0", " 0.0")) for line in restarts)
    limit = 3 * max(medians["alone"], medians["beside the same requests without"])
    return is_alive and set(ends) <= {"200", "400", "503"} and medians["beside the grammars"] < limit


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
    session: aiohttp.ClientSession, grammar: Grammar | None, samples: int, ends: Counter[str], number: int
) -> None:
    """Send one kind of request for ever, each time with another grammar."""
    count = 0
    while True:
        count += 1
        body: dict[str, Any] = {
            "model": "demo",
            "prompt": "Once upon a time",
            "max_tokens": 64,
            "n": samples,
            "temperature": 1.0,
        }
        if grammar is not None:
            body["structured_outputs"] = _demand(grammar, f"{number}x{count}")
        async with session.post("/v1/completions", json=body) as response:
            text = await response.text()
            ends[str(response.status)] += 1
            if response.status not in (200, 400, 503):
                print(f"{response.status} {text[:300]}", flush=True)
        await asyncio.sleep(0.05)


def _demand(grammar: Grammar, mark: str) -> dict[str, Any]:
    match grammar.kind:
        case "lark":
            return {"grammar": f"{grammar.text}\n// {mark}\n"}
        case "regex":
            return {"regex": f"{grammar.text}|{mark}"}
        case _:
            return {"json": {**json.loads(grammar.text), "description": mark}}


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
