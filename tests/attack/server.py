"""The server under attack: how it is started and asked, and what must be true of it after every block."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from tests.support.processes import Process, children, url_of

KEY, HF_TOKEN, FILE_KEY = "sk-planted-key", "hf_planted_token", "sk-planted-file"
PROMPT_MARK = "planted prompt"  # in prompts; must be in no log line
SECRETS = (KEY, HF_TOKEN, FILE_KEY)
HEADERS = {"Authorization": f"Bearer {KEY}"}
CHAT = "/v1/chat/completions"
ENDPOINT = "/v2/LOCAL"
QUESTION = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
BOOT_SECONDS = 120.0
SETTLE_SECONDS = 60.0  # a slow machine may need long to end what was abandoned
MEMORY_SLACK_MB = 96.0
MAX_GRAMMARS = 34  # processes that are kept: one for each of the latest grammars, and the one they are forked from
FILES_SLACK = 4
_GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")


@dataclass
class Held:
    """What the server's processes hold."""

    memory_mb: float = 0.0
    files: int = 0
    threads: int = 0
    zombies: int = 0
    grammars: int = 0


@dataclass
class Server:
    """`ember serve demo` with planted secrets. Use as a context; `client` asks it with the key.

    With `command="platform"` it is `ember platform demo`: a queue with a worker behind it, in one process.
    """

    command: str = "serve"
    env: Mapping[str, str] = field(default_factory=dict)
    process: Process = field(init=False)
    base: str = field(init=False)

    async def __aenter__(self) -> Self:
        env = {
            "API_KEY": KEY,
            "HF_TOKEN": HF_TOKEN,
            "LOG_LEVEL": "debug",
            "KV_CACHE_MEMORY_BYTES": "32M",
            "TRUST_REQUEST_CHAT_TEMPLATE": "true",
            "CHAT_TEMPLATE_RENDER_TIMEOUT": "2",
            "ENGINE_RESTARTS": "1000",
            "STEP_TIMEOUT": "20",
            **self.env,
        }
        arguments = ("-m", "ember", self.command, "demo", "--host", "127.0.0.1", "--port", "0")
        self.process = Process(
            *arguments, env=env, stdout=subprocess.DEVNULL
        )  # the SDK prints: a full pipe holds it up
        self.base = await asyncio.to_thread(url_of, self.process, BOOT_SECONDS)
        self.base = self.base.partition('"')[0]
        self.client = aiohttp.ClientSession(
            self.base,
            headers=HEADERS,
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(300),
        )
        await asyncio.gather(*(self.ask(QUESTION) for _ in range(16)))  # pools of connections and threads fill
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.client.close()
        await asyncio.to_thread(self.process.__exit__, kind, error, trace)

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.base.removeprefix("http://").partition(":")
        return host, int(port)

    @property
    def engine_pid(self) -> int:
        """The engine's process: the one child that runs Ember's engine."""
        found = [pid for pid, line in children(self.process.popen.pid).items() if "ember.engine" in line]
        assert found, f"no engine among {children(self.process.popen.pid)}"
        return found[0]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.address)

    async def ask(self, body: Mapping[str, Any], path: str = CHAT) -> dict[str, Any]:
        """The answer to a request that must succeed."""
        if self.command == "platform":
            path = f"{ENDPOINT}/openai{path}"
        async with self.client.post(path, json=dict(body)) as response:
            text = await response.text()
            assert response.status == 200, (response.status, text[:500])
            return json.loads(text)

    async def post(
        self, data: bytes | str, path: str = CHAT, headers: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """Status and text of the answer to any body."""
        sent = {"Content-Type": "application/json", **(headers or {})}
        async with self.client.post(path, data=data, headers=sent) as response:
            return response.status, (await response.read()).decode("utf-8", "replace")

    async def job(self, given: Any) -> dict[str, Any]:
        """The record of a job that was run to its end on the platform."""
        async with self.client.post(f"{ENDPOINT}/runsync?wait=60000", json={"input": given}) as response:
            record = await response.json()
        assert record.get("status") == "COMPLETED", record
        return record

    async def metrics(self) -> str:
        if self.command == "platform":
            return str((await self.job({"openai_route": "/metrics"}))["output"])
        async with self.client.get("/metrics") as response:
            return await response.text()

    async def gauges(self) -> dict[str, float]:
        text = (await self.metrics()).replace("\\n", "\n")
        found = re.findall(rf"^({'|'.join(_GAUGES)})\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in found}

    def held(self) -> Held:
        """Anonymous memory, open files, threads and zombies of the server and of all below it. Of the processes that
        compile grammars, some are kept for the next request: they are counted only."""
        held = Held()
        for pid, command in {self.process.popen.pid: "", **children(self.process.popen.pid)}.items():
            if "grammars.host" in command:
                held.grammars += 1
                continue
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                fields = dict(line.split(":", 1) for line in status.splitlines())
                held.zombies += fields["State"].split()[0] == "Z"
                held.memory_mb += int(fields["RssAnon"].split()[0]) / 1024 if "RssAnon" in fields else 0.0
                held.threads += int(fields["Threads"])
                held.files += len(os.listdir(f"/proc/{pid}/fd"))
            except OSError:
                continue
        return held

    async def settle(self, before: Held) -> list[str]:
        """Wait until everything is back to where it was. Returns what is not, in words."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            wrong = await self._wrong(before)
            if not wrong or time.monotonic() > deadline:
                return wrong
            await asyncio.sleep(0.2)

    async def _wrong(self, before: Held) -> list[str]:
        wrong = []
        if self.process.popen.poll() is not None:
            return [f"the server ended with {self.process.popen.returncode}"]
        try:
            async with self.client.get(f"{ENDPOINT}/health" if self.command == "platform" else "/health") as response:
                if response.status != 200:
                    return [f"/health is {response.status}"]
                if self.command == "platform":
                    jobs = (await response.json())["jobs"]
                    wrong += [f"jobs {name}: {jobs[name]}" for name in ("inQueue", "inProgress") if jobs[name]]
            answer = await self.ask(QUESTION)
            gauges = await self.gauges()
        except (aiohttp.ClientError, OSError, AssertionError, TimeoutError) as error:
            return [f"it does not answer: {error!r}"[:500]]
        content = answer["choices"][0]["message"]["content"]
        if content != "The capital of France is Paris.":
            wrong.append(f"a wrong answer: {content!r}")
        wrong += [f"{name} is {value}" for name, value in gauges.items() if value != 0.0]
        wrong += [f"{name} is missing" for name in _GAUGES if name not in gauges]
        now = self.held()
        if now.zombies:
            wrong.append(f"{now.zombies} zombies")
        if now.grammars > MAX_GRAMMARS:
            wrong.append(f"{now.grammars} processes for grammars")
        if now.memory_mb > before.memory_mb + MEMORY_SLACK_MB:
            wrong.append(f"{now.memory_mb - before.memory_mb:.0f} MB of memory")
        if now.files > before.files + FILES_SLACK + 2 * now.grammars:  # the engine's ends of what connects it to them
            wrong.append(f"{now.files - before.files} open files")
        return wrong

    def log_faults(self) -> list[str]:
        """What must be in no log: secrets, prompts, tracebacks."""
        log = self.process.log()
        found = [f"the log shows {secret}" for secret in (*SECRETS, PROMPT_MARK) if secret in log]
        marks = ("Traceback (most recent call last)", "panicked at", "never awaited", "never retrieved")
        return found + [f"the log has {mark!r}: {log[log.index(mark) :][:1500]}" for mark in marks if mark in log]
