"""Servers for the page's tests, in a thread of the test's process: a chat whose answers are scripted by what the user
says, pooling models, and a platform. Each can be stopped and started again on its port."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web

from ember import wire
from ember.front.api.routes import ROUTER
from ember.front.errors import ApiError
from ember.front.http.app import make_app
from ember.front.http.connection import watch
from ember.platform.server import Platform
from ember.platform.store import MemoryStore
from tests.api.fakes import Deployment, Step, say
from tests.api.talking import CALL_ADD, talking

MARKDOWN = """# A heading

Some *emphasis*, **strong words**, ~~old ones~~, `code` and [a link](https://example.com/a_b_(c)).

- one
- two
  1. inner
  2. more
- three

> A quote, and 2 * 3 * 4.

| planet | moons |
|:-------|------:|
| Mars   | 2     |
| Saturn | 274   |

```python
def area(radius):
    return 3.14159 * radius ** 2  # <b>not markup</b>
```

The end."""
HOSTILE = """<script>document.title = "broken"</script>

<img src="https://evil.example/a.png" onerror="document.title = 'broken'">

![a picture](https://evil.example/b.png) [click](javascript:document.title='broken') [local](/v1/models)

<https://evil.example/c> & <style>body { display: none }</style>"""
RIGHT_TO_LEFT = "שלום! זוהי תשובה בעברית.\n\n- פריט ראשון\n- פריט שני\n\nAnd an English line.\n\n```js\nlet x = 1;\n```"
LONG = "\n\n".join(
    f"## Part {n}\n\nParagraph {n} has **words** and `code`, and goes on for a line or two so that it wraps.\n\n"
    f"```python\nvalue_{n} = {n}\n```\n\n- item {n}.1\n- item {n}.2"
    for n in range(400)
)
SLOW = " ".join(f"word{n}" for n in range(2000))
ANSWERS = {
    "think": "<think>\nThe user asks for the answer. It is known.\n</think>\n\nThe answer is **42**.",
    "tool": CALL_ADD,
    "json": '{"name": "Ember", "parts": [1, 2, 3], "ok": true}',
    "markdown": MARKDOWN,
    "hostile": HOSTILE,
    "hebrew": RIGHT_TO_LEFT,
    "long": LONG,
    "slow": SLOW,
    "fail": "This begins well and then",
}


def chat(**settings: Any) -> Deployment:
    """A deployment that answers by the first known word of the user's last message."""
    deployment = talking(served_model_name="tiny-ember", **settings)
    engine = deployment.engine

    def script(prompt: list[int], sampling: wire.SamplingParams) -> Sequence[Step]:
        text = deployment.tokenizer.decode(prompt, skip_special_tokens=False)
        asked = text.rpartition("<|user|>")[2]
        word = next((word for word in ANSWERS if word in asked.partition("<|assistant|>")[0]), None)
        engine.delay = 0.02 if word in ("slow", "fail") else 0.0
        answer = "The sum is 3." if "<|tool|>" in asked else ANSWERS.get(word or "", "Hello from the tiny model.")
        steps = list(say(deployment.tokenizer, answer, per_step=64 if word == "long" else 5)(prompt, sampling))
        if word == "fail":
            steps = [*steps[:3], ApiError(500, "The engine stopped: out of pages", type="EngineDeadError")]
        return steps

    tokens = 0

    async def stats() -> wire.Stats:
        nonlocal tokens
        tokens += 40
        return wire.Stats(
            num_running=sum(bool(each.unfinished) for each in engine.generations),
            num_waiting=0,
            num_blocks=8192,
            num_free_blocks=7000,
            prompt_tokens=tokens * 2,
            generation_tokens=tokens,
            prefix_cache_queries=100,
            prefix_cache_hits=40,
            num_preemptions=0,
            num_steps=tokens,
        )

    engine.script = script
    engine.stats = stats  # type: ignore[method-assign]
    engine._info = msgspec.structs.replace(engine.info, max_model_len=200_000)
    deployment.services.timeline.extend(_PHASES)
    deployment.services.timeline.marks = {"ready": 1.42, "first_token": 1.61}
    return deployment


def pooler(*tasks: Any) -> Deployment:
    deployment = Deployment(talking().tokenizer, served_model_name="tiny-embed")
    deployment.pools(*tasks)
    return deployment


class Server:
    """`ember serve` over a deployment, or a platform without a worker where there is none."""

    def __init__(self, deployment: Deployment | None = None, keys: Sequence[str] = ()) -> None:
        self.deployment = deployment
        self.keys = keys
        self.port = 0
        self.platform: Platform | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), daemon=True)
        self._thread.start()
        assert self._started.wait(20)
        return self

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(20)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def _run(self) -> None:
        if self.deployment is None:
            self.platform = Platform(MemoryStore(), self.keys)
            await self.platform.start("127.0.0.1", self.port)
            self.port = int(self.platform.url.rpartition(":")[2])
            self._started.set()
            await self._stopping.wait()
            await self.platform.close()
            return
        deployment = self.deployment

        server = make_app(deployment.services.settings, deployment, ROUTER)
        watching = asyncio.create_task(watch(server))
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        assert site._server is not None
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        self._started.set()
        await self._stopping.wait()
        watching.cancel()
        await runner.cleanup()


def _phase(name: str, process: str, start: float, end: float, **detail: Any) -> dict[str, Any]:
    return {"name": name, "process": process, "start": start, "end": end, "detail": detail}


_PHASES = [
    _phase("python", "front", 0.0, 0.05),
    _phase("spawn", "front", 0.05, 0.09),
    _phase("python", "engine", 0.1, 0.16),
    _phase("imports", "front", 0.09, 0.62, modules=412),
    _phase("locate", "engine", 0.16, 0.19, source="demo"),
    _phase("torch", "engine", 0.17, 0.88),
    _phase("tokenizer", "front", 0.62, 0.71, tokens=4096),
    _phase("template", "front", 0.71, 0.74),
    _phase("read", "engine", 0.2, 0.9, bytes=1_234_567_890),
    _phase("model", "engine", 0.9, 1.21, operators="native", layers=28),
    _phase("cache", "engine", 1.21, 1.38, pages=8192),
    _phase("pack", "engine", 2.0, 5.4, matrices=196),
]
