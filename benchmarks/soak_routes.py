"""A soak test of the routes: every kind of request at once over HTTP, after which nothing may be left behind.

    python benchmarks/soak_routes.py [--minutes 5] [--concurrency 24]

`ember serve demo` answers chats, completions, responses (stored, in the background), messages, TGI, tokens and batches,
whole and streamed, beside clients that leave, bodies that are wrong and routes of tasks that the model does not do. The
status of each answer is checked. The last lines compare the idle server at the end with the idle server after the
warm-up, and check running requests, pages and the bytes of stored responses. The exit status is 1 if an answer was
wrong or something was left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this directory: its queue.py is not the library's

import aiohttp  # noqa: E402

from benchmarks.soak import MEMORY_SLACK_MB, Picture, picture, size, text  # noqa: E402
from tests.support.processes import Process, url_of  # noqa: E402

WARM_SECONDS = 120.0  # caches and pools fill meanwhile
STORE_BYTES = 1_000_000
SETTLE_SECONDS = 60.0
GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")


class Load:
    """Asks for random routes until it is told to stop."""

    def __init__(self, client: aiohttp.ClientSession, seed: int) -> None:
        self.client = client
        self.rng = random.Random(seed)
        self.asked: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def ask(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        async with self.client.request(method, path, json=body) as answer:
            content = await answer.text()
            if answer.status != status or (status == 200 and '"error":{' in content):
                self.wrong.append(f"{method} {path}: {answer.status} {content[:200]} for {str(body)[:200]}")
            return json.loads(content) if answer.content_type == "application/json" and content else content

    def says(self) -> list[Any]:
        return [{"role": "user", "content": text(self.rng)}]

    def streams(self) -> bool:
        return self.rng.random() < 0.5

    async def chat(self) -> None:
        await self.ask(
            "POST",
            "/v1/chat/completions",
            {"messages": self.says(), "max_tokens": size(self.rng), "stream": self.streams()},
        )

    async def completion(self) -> None:
        body = {"prompt": text(self.rng), "max_tokens": size(self.rng), "stream": self.streams()}
        await self.ask("POST", "/v1/completions", body)

    async def stored_response(self) -> None:
        body: dict[str, Any] = {"input": self.says(), "max_output_tokens": size(self.rng), "stream": False}
        first = await self.ask("POST", "/v1/responses", body)
        await self.ask("POST", "/v1/responses", body | {"previous_response_id": first["id"], "stream": self.streams()})
        await self.ask("GET", f"/v1/responses/{first['id']}/input_items")
        if self.streams():
            await self.ask("DELETE", f"/v1/responses/{first['id']}")

    async def background_response(self) -> None:
        made = await self.ask("POST", "/v1/responses", {"input": self.says(), "background": True})
        if self.streams():
            await self.ask("POST", f"/v1/responses/{made['id']}/cancel")
        while made["status"] in ("queued", "in_progress"):
            await asyncio.sleep(0.2)
            made = await self.ask("GET", f"/v1/responses/{made['id']}")

    async def message(self) -> None:
        body: dict[str, Any] = {"model": "demo", "messages": self.says(), "max_tokens": size(self.rng)}
        await self.ask("POST", "/v1/messages", body | {"stream": self.streams()})
        await self.ask("POST", "/v1/messages/count_tokens", {"model": "demo", "messages": self.says()})

    async def tgi(self) -> None:
        path = "/generate_stream" if self.streams() else "/generate"
        await self.ask("POST", path, {"inputs": text(self.rng), "parameters": {"max_new_tokens": size(self.rng)}})

    async def tokens(self) -> None:
        found = await self.ask("POST", "/tokenize", {"prompt": text(self.rng)})
        await self.ask("POST", "/detokenize", {"tokens": found["tokens"]})
        scoring = {"query": text(self.rng), "items": ["yes", "no"], "label_token_ids": [10, 11]}
        await self.ask("POST", "/generative_scoring", scoring)

    async def refused(self) -> None:
        await self.ask("POST", "/v1/embeddings", {"input": "Paris"}, 400)
        for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/completions", "/tokenize"):
            await self.ask("POST", path, self.rng.choice([[], {}, {"stream": 7}, {"temperature": "hot"}]), 400)

    async def leaves(self) -> None:
        """A client that goes in the middle of a stream."""
        bodies: dict[str, dict[str, Any]] = {
            "/v1/chat/completions": {"messages": self.says()},
            "/v1/responses": {"input": self.says()},
            "/v1/messages": {"model": "demo", "messages": self.says(), "max_tokens": 900},
        }
        path, body = self.rng.choice(list(bodies.items()))
        async with self.client.post(path, json={**body, "stream": True, "ignore_eos": True}) as answer:
            await answer.content.read(self.rng.randrange(1, 2000))
            answer.close()

    async def batch(self) -> None:
        line = {"method": "POST", "url": "/v1/completions", "body": {"prompt": "A fox", "max_tokens": 8}}
        lines = "".join(json.dumps({"custom_id": str(number), **line}) + "\n" for number in range(5))
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", lines, filename="in.jsonl")
        async with self.client.post("/v1/files", data=form) as answer:
            file = await answer.json()
        body = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
        made = await self.ask("POST", "/v1/batches", body)
        while made["status"] not in ("completed", "failed", "expired"):
            await asyncio.sleep(0.5)
            made = await self.ask("GET", f"/v1/batches/{made['id']}")
        if made["request_counts"] != {"total": 5, "completed": 5, "failed": 0}:
            self.wrong.append(f"batch: {made}")
        for name in (file["id"], made["output_file_id"]):
            await self.ask("DELETE", f"/v1/files/{name}")

    async def run(self, seconds: float, concurrency: int) -> None:
        kinds: list[Callable[[], Awaitable[None]]] = [
            *(self.chat, self.completion, self.stored_response, self.background_response, self.message, self.tgi),
            *(self.tokens, self.refused, self.leaves, self.batch),
        ]
        until = time.monotonic() + seconds

        async def one() -> None:
            while time.monotonic() < until:
                kind = self.rng.choice(kinds)
                self.asked[kind.__name__] += 1  # type: ignore[attr-defined]
                try:
                    await kind()
                except Exception as error:
                    self.wrong.append(f"{kind.__name__}: {error!r}")  # type: ignore[attr-defined]

        await asyncio.gather(*(one() for _ in range(concurrency)))


async def gauges(client: aiohttp.ClientSession) -> dict[str, float]:
    """What runs, waits and holds pages, once nothing does or after a while."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        async with client.get("/metrics") as answer:
            lines = (await answer.text()).splitlines()
        found = {
            name: float(line.rpartition(" ")[2]) for line in lines for name in GAUGES if line.startswith(name + "{")
        }
        if not any(found.values()) or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.5)


def stored_bytes(file: Path) -> int:
    connection = sqlite3.connect(file)
    try:
        return int(connection.execute("SELECT COALESCE(SUM(size), 0) FROM responses").fetchone()[0])
    finally:
        connection.close()


async def soak(process: Process, store: Path, minutes: float, concurrency: int, seed: int) -> int:
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(url_of(process, 120), connector=connector, timeout=timeout) as client:
        load = Load(client, seed)

        async def idle() -> Picture:
            running = await gauges(client)
            print(f"{running}; stored responses: {stored_bytes(store)} of {STORE_BYTES} bytes")
            left.extend(f"{name} is {value}" for name, value in running.items() if value)
            left.extend([] if len(running) == len(GAUGES) else ["a gauge is missing"])
            left.extend(["stored responses are beyond the limit"] if stored_bytes(store) > STORE_BYTES else [])
            await asyncio.sleep(2)
            return picture(process.popen.pid)

        left: list[str] = []
        await load.run(WARM_SECONDS, concurrency)
        before = await idle()
        await load.run(minutes * 60, concurrency)
        after = await idle()
    print(f"idle after the warm-up: {before}\nidle at the end:        {after}")
    grown = {name: getattr(after, name) - getattr(before, name) for name in ("threads", "files", "sockets")}
    left += [f"{count} {name}" for name, count in grown.items() if count > 2]
    if after.memory_mb > before.memory_mb + MEMORY_SLACK_MB:
        left.append(f"{after.memory_mb - before.memory_mb:.0f} MB of memory")
    print(f"{sum(load.asked.values())} sessions: {dict(load.asked)}")
    for line in load.wrong[:20]:
        print("WRONG:", line)
    for line in left:
        print("LEFT BEHIND:", line)
    print(f"{len(load.wrong)} wrong answers, {len(left)} things left behind")
    return 1 if load.wrong or left else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--concurrency", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        store = Path(directory, "responses.db")
        env = {
            "BATCH_DIR": f"{directory}/batches",
            "RESPONSES_STORE": f"sqlite:{store}",
            "RESPONSES_STORE_BYTES": str(STORE_BYTES),
            "KV_CACHE_MEMORY_BYTES": "128M",
        }
        arguments = ("-m", "ember", "serve", "demo", "--host", "127.0.0.1", "--port", "0")
        with Process(*arguments, env=env, stdout=subprocess.DEVNULL) as process:
            return asyncio.run(soak(process, store, options.minutes, options.concurrency, options.seed))


if __name__ == "__main__":
    sys.exit(main())
