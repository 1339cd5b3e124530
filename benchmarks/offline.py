"""`LLM.generate` beside `ember serve` under full load: the same prompts on the same model, in turns in one run.

    python benchmarks/offline.py [--model demo] [--prompts N] [--max-tokens N] [--rounds N]

The load on the server is as many connections as the offline window has prompts, with one prompt each at a time. The
figures are prompts per second, and the growth of this process's memory during the offline calls without their results,
of N prompts and of four times as many.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this directory: its queue.py is not the library's

import aiohttp  # noqa: E402

from ember import LLM, SamplingParams  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    prompts = [f"Tell me a story about number {number}." for number in range(options.prompts)]
    offline: list[float] = []
    served: list[float] = []
    growth: dict[int, float] = {}
    for number in range(options.rounds):
        with LLM(options.model) as llm:
            params = SamplingParams(max_tokens=options.max_tokens, ignore_eos=True)
            window = llm._session.window
            llm.generate(prompts[:window], params, use_tqdm=False)
            offline.append(len(prompts) / _seconds(llm, prompts, params))
            if number == 0:
                for times in (1, 4):
                    growth[times * len(prompts)] = _peak_growth(llm, prompts * times, params)
        served.append(asyncio.run(_served(options.model, prompts, options.max_tokens, window)))
        print(json.dumps({"offline": round(offline[-1], 1), "served": round(served[-1], 1)}), file=sys.stderr)
    report = {
        "model": options.model,
        "window": window,
        "offline_prompts_per_s": round(statistics.median(offline), 1),
        "served_prompts_per_s": round(statistics.median(served), 1),
        "ratio": round(statistics.median(offline) / statistics.median(served), 2),
        "peak_growth_mib": growth,
    }
    print(json.dumps(report, indent=1))
    return 0


def _seconds(llm: LLM, prompts: list[str], params: SamplingParams) -> float:
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    assert len(outputs) == len(prompts)
    return seconds


def _peak_growth(llm: LLM, prompts: list[str], params: SamplingParams) -> float:
    """How many MiB this process had more at most during the call than before it, without the results: they are counted
    as what it has more behind the call."""
    before, peak = _resident(), 0
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.02):
            peak = max(peak, _resident())

    thread = threading.Thread(target=watch)
    thread.start()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    over.set()
    thread.join()
    results = max(0, _resident() - before)
    assert len(outputs) == len(prompts)
    return round(max(0, peak - before - results) / 2**20, 1)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def _served(model: str, prompts: list[str], max_tokens: int, connections: int) -> float:
    """Prompts per second of a server of its own."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "ember", "serve", model, "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen([*command, "--seed", "0"], stderr=subprocess.DEVNULL)
    try:
        connector = aiohttp.TCPConnector(limit=connections)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector) as client:
            await _ready(client)
            await _load(client, prompts[:connections], max_tokens, connections)
            started = time.perf_counter()
            await _load(client, prompts, max_tokens, connections)
            return len(prompts) / (time.perf_counter() - started)
    finally:
        server.terminate()
        server.wait(60)


async def _ready(client: aiohttp.ClientSession) -> None:
    for _ in range(600):
        try:
            async with client.get("/health") as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.2)
    raise RuntimeError("the server does not become ready")


async def _load(client: aiohttp.ClientSession, prompts: list[str], max_tokens: int, connections: int) -> None:
    waiting = iter(prompts)

    async def run() -> None:
        for prompt in waiting:
            body: dict[str, Any] = {"prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True}
            async with client.post("/v1/completions", json=body) as answer:
                assert answer.status == 200, await answer.text()
                await answer.json()

    await asyncio.gather(*[run() for _ in range(connections)])


if __name__ == "__main__":
    sys.exit(main())
