"""`ember bench`: what its options ask for."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shlex
from pathlib import Path
from typing import Any

from ember.cli.api_client import ApiClient, ServerError, connect
from ember.cli.bench import prompts, report, startup
from ember.cli.bench.load import Load, LoadTest, Run
from ember.cli.own_server import OwnServerError, own_server
from ember.interpreter import module_command


class BenchError(Exception):
    """The options cannot be followed, or the server does not serve. The message is for the person who started it."""


def run(flags: argparse.Namespace, model: str | None, environment: dict[str, str], key: str | None) -> int:
    """Run what the flags ask for and print it. `model`: the name in requests to --url; `environment`: the settings of
    a server without --url. Returns the exit status: 1 where requests failed. Raises BenchError."""
    if flags.extra_body.get("stream", True) is not True:
        raise BenchError("--extra-body: stream cannot be turned off, as times are those of streamed tokens")
    try:
        if flags.startup is not None:
            return _startups(flags, model, environment, key)
        if flags.url is not None:
            return asyncio.run(_load(flags, flags.url, model, key))
        with own_server(environment) as server:
            return asyncio.run(_load(flags, server.url, None, server.key))
    except (ServerError, OwnServerError, startup.StartupError, prompts.PromptError) as error:
        raise BenchError(str(error)) from None


def _startups(flags: argparse.Namespace, model: str | None, environment: dict[str, str], key: str | None) -> int:
    own = shlex.join(module_command("ember", "serve", "--host", "127.0.0.1", "--port")) + f" {startup.PLACEHOLDER}"
    found = [startup.Startups(command) if command else startup.Startups(own, environment) for command in flags.startup]
    name = model if any(flags.startup) else None
    asyncio.run(startup.time_startups(found, flags.runs, flags.endpoint, name, key, flags.timeout))
    print(startup.as_text(found))
    if flags.json_file:
        _write(flags.json_file, json.dumps(startup.as_document(found), indent=1) + "\n")
    return 0


async def _load(flags: argparse.Namespace, url: str, model: str | None, key: str | None) -> int:
    rng = random.Random(getattr(flags, "seed", "0"))
    load = Load(flags.rate, flags.burstiness, flags.concurrency)
    async with connect(url, key) as client:
        name = await client.model(model)
        found = await _prompts(flags, client, name, rng)
        test = LoadTest(client, flags.endpoint, name, flags.ignore_eos, flags.extra_body)
        if flags.warm_up:
            warm = await test.run((found * flags.warm_up)[: flags.warm_up], Load(), rng)
            if all(outcome.error for outcome in warm.outcomes):
                raise ServerError(str(warm.outcomes[0].error))
        result = await _shown(test, found, load, rng)
    title = f"{name} at {url}: {_described(flags)}"
    figures = report.summary(result, flags.goodput, flags.percentiles)
    print(report.as_text(figures, title))
    if flags.json_file:
        document = {"title": title, "model": name, "url": url, **figures, "rows": report.rows(result)}
        _write(flags.json_file, json.dumps(document, indent=1) + "\n")
    if flags.svg:
        _write(flags.svg, report.as_svg(result, title))
    return 1 if figures["failed"] else 0


async def _prompts(
    flags: argparse.Namespace, client: ApiClient, model: str, rng: random.Random
) -> list[prompts.Prompt]:
    if flags.dataset is not None:
        found = prompts.read(Path(flags.dataset), flags.endpoint, flags.num_prompts, rng)
        for prompt in found:
            prompt.max_tokens = prompt.max_tokens or flags.output_tokens
        return found
    mean = (flags.input_tokens, flags.output_tokens)
    wanted = prompts.lengths(flags.lengths, flags.num_prompts, mean, flags.spread, rng)
    costs = await prompts.WordCosts.measured(client, flags.endpoint, model, rng)
    return prompts.made(flags.endpoint, wanted, costs, rng)


async def _shown(test: LoadTest, found: list[prompts.Prompt], load: Load, rng: random.Random) -> Run:
    """Run the test with its progress on a terminal."""
    from tqdm import tqdm

    with contextlib.closing(tqdm(total=len(found), desc="Requests", dynamic_ncols=True, disable=None)) as bar:
        return await test.run(found, load, rng, lambda: bar.update() and None)


def _write(name: str, text: str) -> None:
    try:
        Path(name).write_text(text)
    except OSError as error:
        raise BenchError(f"{name}: {error.strerror}") from None


def _described(flags: argparse.Namespace) -> str:
    rate = "all at once" if flags.rate is None else f"{flags.rate:g} requests a second"
    most = "" if flags.concurrency is None else f", at most {flags.concurrency} at a time"
    source: Any = flags.dataset or (
        "lengths as ShareGPT's"
        if flags.lengths == "sharegpt"
        else f"{flags.input_tokens} tokens in, {flags.output_tokens} out"
    )
    return f"{source}, {rate}{most}"
