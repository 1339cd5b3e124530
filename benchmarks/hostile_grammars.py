"""The gaps between the tokens of a chat beside clients with expensive grammars.

    python benchmarks/hostile_grammars.py [--seconds 20] [--samples 128] [--clients 1] [--endless] [--only WORDS]

It starts `ember serve` with the demo model and STEP_TIMEOUT=20. A chat is streamed repeatedly: alone, beside clients
that each repeat one kind of grammar (`tests/structured/hostile.py`: ambiguous rules, chains that overflow a stack, wide
anyOf, counted repetitions, ...), and beside the same requests without grammars. There are `--clients` clients for each
kind. Grammars that cannot be served have `--samples` samples, the others one; `--endless` leaves the latter out, and
`--only` selects kinds by words in their names. Every request has a different grammar, since a refused grammar would be
refused at once the next time.

The figures are the gaps between the events of the chat's stream, and the seconds that `/metrics` and `/health` take.
Exit status 1 when the mean or median gap beside the grammars is more than three times that of the chat alone, when one
of the two pages takes a second or more beside them, when the engine's process is another one at the end, or when a
hostile request ended otherwise than with an answer, a 400 or a 503.
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

MAX_RATIO = 3.0  # of the gaps beside the grammars to those of the chat alone
MAX_PAGE_SECONDS = 1.0
ALONE, GRAMMARS, WITHOUT = "alone", "beside the grammars", "beside the same requests without"
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 200}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each of the two parts")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--clients", type=int, default=1, help="of each kind of grammar")
    parser.add_argument("--endless", action="store_true", help="only grammars that cannot be served")
    parser.add_argument("--only", default="", metavar="WORDS", help="only kinds of grammars with these words in a name")
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "ember", "serve", "demo", "--host", "127.0.0.1", "--port", str(port)]
        environment = {**os.environ, "STEP_TIMEOUT": "20", "PYTHONPATH": str(ROOT / "src")}
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            is_good = asyncio.run(_measure(f"http://127.0.0.1:{port}", server.pid, options))
        finally:
            server.terminate()
            server.wait()
    sys.exit(0 if is_good else 1)


async def _measure(url: str, server_pid: int, options: argparse.Namespace) -> bool:
    limits = aiohttp.ClientTimeout(total=None)
    kinds = {
        name: g for name, g in (ENDLESS if options.endless else {**ENDLESS, **LARGE}).items() if options.only in name
    }
    gaps: dict[str, list[float]] = {}
    pages: dict[str, list[float]] = {}
    ends: Counter[str] = Counter()
    async with aiohttp.ClientSession(url, timeout=limits, connector=aiohttp.TCPConnector(limit=0)) as session:
        await _boot(session)
        for _ in range(3):
            await _chat(session)
        engine_pids = _engine_pids(server_pid)
        for part in (ALONE, GRAMMARS, WITHOUT):
            tasks = [] if part == ALONE else _attackers(session, kinds, part == GRAMMARS, ends, options)
            tasks.append(asyncio.create_task(_scrape(session, pages.setdefault(part, []))))
            await asyncio.sleep(1.0)
            gaps[part] = await _chats(session, options.seconds)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(3.0)
        lasting = engine_pids & _engine_pids(server_pid)
    print(f"{options.clients * len(kinds)} clients, {options.samples} samples; ms between the events of a chat")
    print("| chat | gaps | mean | median | 95 % | longest | pages: median | longest |")
    print("|---|---|---|---|---|---|---|---|")
    for part, found in gaps.items():
        figures = (
            *(statistics.mean(found), statistics.median(found), _quantile(found, 0.95), max(found)),
            *(statistics.median(pages[part]), max(pages[part])),
        )
        print(f"| {part} | {len(found)} | " + " | ".join(f"{value * 1e3:.1f}" for value in figures) + " |")
    print("ends of the requests with grammars: " + ", ".join(f"{end}: {count}" for end, count in sorted(ends.items())))
    checks = {
        f"{name} gap beside the grammars <= {MAX_RATIO:g} times that of the chat {part}": (
            typical(gaps[GRAMMARS]) <= MAX_RATIO * typical(gaps[part]),
            f"{typical(gaps[GRAMMARS]) / typical(gaps[part]):.1f} times",
        )
        for part in (ALONE, WITHOUT)
        for name, typical in (("mean", statistics.mean), ("median", statistics.median))
    }
    required = [name for name in checks if name.endswith(ALONE)]  # the others tell what the load itself costs
    more = {
        f"/metrics and /health answer within {MAX_PAGE_SECONDS:g} s beside them": (
            max(pages[GRAMMARS]) < MAX_PAGE_SECONDS,
            f"{max(pages[GRAMMARS]):.2f} s",
        ),
        "the engine was never started again": (
            bool(engine_pids) and lasting == engine_pids,
            f"{len(lasting)} of {len(engine_pids)} processes are left",
        ),
        "every hostile request ended with an answer, a 400 or a 503": (
            bool(ends) and set(ends) <= {"200", "400", "503"},
            f"{ends.total()} requests",
        ),
    }
    for check, (holds, seen) in {**checks, **more}.items():
        print(f"{'holds' if holds else 'DOES NOT HOLD'}: {check} ({seen})")
    return all(checks[name][0] for name in required) and all(holds for holds, _ in more.values())


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]


def _engine_pids(server_pid: int) -> set[int]:
    """The processes of the engine that the server started."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return {int(row[0]) for row in rows if int(row[1]) == server_pid and "ember.engine" in row[2]}


def _attackers(
    session: aiohttp.ClientSession,
    kinds: dict[str, Grammar],
    has_grammar: bool,
    ends: Counter[str],
    options: argparse.Namespace,
) -> list[asyncio.Task[None]]:
    """Clients of each kind."""
    return [
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


async def _scrape(session: aiohttp.ClientSession, seconds: list[float]) -> None:
    """Note how long `/metrics` and `/health` take, by turns."""
    for path in itertools.cycle(("/metrics", "/health")):
        started = time.perf_counter()
        async with session.get(path) as response:
            assert response.status == 200
            await response.read()
        seconds.append(time.perf_counter() - started)
        await asyncio.sleep(0.2)


if __name__ == "__main__":
    main()
