"""A server whose model says what a script says, turn by turn, whatever it is asked: python scripted_server.py FILE.

FILE is a JSON list of texts. The model reasons in <think> and calls tools as Hermes does, and its context is long, so
that the prompts of coding agents fit. The server's address is printed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from aiohttp import web

from ember import wire
from ember.front.api.routes import ROUTER
from ember.front.http.app import make_app
from ember.front.http.connection import watch
from tests.api.fakes import Deployment, Step, say
from tests.api.talking import talking

CONTEXT = 1_000_000


def scripted(texts: Sequence[str]) -> Deployment:
    """A deployment that says the texts one after the other, and the last one from then on, to requests with tools.
    Others are for the conversation's title."""
    deployment = talking(model_aliases="*")
    deployment.engine._info = msgspec.structs.replace(deployment.engine.info, max_model_len=CONTEXT)
    left = list(texts)

    def script(prompt: list[int], sampling: wire.SamplingParams) -> Sequence[Step]:
        if "<tools>" not in deployment.tokenizer.decode(prompt, skip_special_tokens=False):
            return say(deployment.tokenizer, "A title", per_step=7)(prompt, sampling)
        text = left.pop(0) if len(left) > 1 else left[0]
        return say(deployment.tokenizer, text, per_step=7)(prompt, sampling)

    deployment.engine.script = script
    return deployment


async def serve(deployment: Deployment) -> None:
    server = make_app(deployment.services.settings, deployment, ROUTER)
    watching = asyncio.create_task(watch(server))
    runner = web.ServerRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    print(f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}", flush=True)  # type: ignore[attr-defined]
    await watching


if __name__ == "__main__":
    asyncio.run(serve(scripted(json.loads(Path(sys.argv[1]).read_text()))))
