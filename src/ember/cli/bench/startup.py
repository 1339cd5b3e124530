"""Starts of servers: from the spawn of a command to its first answer, several commands in turns."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ember.cli.api_client import ApiClient, ServerError, connect
from ember.cli.bench.prompts import PATHS, Endpoint, fields
from ember.cli.own_server import accepts, free_port

Result = TypeVar("Result")

POLL_SECONDS = 0.005
STOP_SECONDS = 15.0
PLACEHOLDER = "{port}"


class StartupError(Exception):
    """A command cannot be timed. The message says which, and what it said last."""


@dataclass
class Startups:
    """The starts of one command. Times are in seconds since its spawn."""

    command: str
    environment: dict[str, str] = field(default_factory=dict)  # beside that of this process
    listening: list[float] = field(default_factory=list)  # the port took a connection
    listed: list[float] = field(default_factory=list)  # /v1/models answered
    answered: list[float] = field(default_factory=list)  # a request for one token was answered with 200


def check(commands: list[str]) -> None:
    """Raise StartupError for a command that cannot be split into words or has no place for its port."""
    for command in commands:
        try:
            parts = shlex.split(command)
        except ValueError as error:
            raise StartupError(f"{command!r}: {error}") from None
        if not parts or PLACEHOLDER not in command:
            raise StartupError(f"{command!r} has no {PLACEHOLDER}: the port on which the server is to listen")


async def time_startups(
    found: list[Startups], num_runs: int, endpoint: Endpoint, model: str | None, key: str | None, timeout: float
) -> None:
    """Start each command `num_runs` times, in turns, and stop it after its first answer. Raises StartupError."""
    check([startups.command for startups in found])
    for i in range(num_runs):
        order = found if i % 2 == 0 else found[::-1]  # so that none always comes after the same one
        for startups in order:
            await _start(startups, endpoint, model, key, timeout)


async def _start(startups: Startups, endpoint: Endpoint, model: str | None, key: str | None, timeout: float) -> None:
    port = free_port()
    words = [word.replace(PLACEHOLDER, str(port)) for word in shlex.split(startups.command)]
    with tempfile.TemporaryFile() as log:
        began = time.perf_counter()
        try:
            process = subprocess.Popen(
                words,
                env={**os.environ, **startups.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise StartupError(f"{words[0]}: {error.strerror}") from None
        try:
            async with asyncio.timeout(timeout), connect(f"http://127.0.0.1:{port}", key) as client:
                await _until_answered(startups, client, port, process, began, endpoint, model)
        except TimeoutError:
            raise StartupError(f"{startups.command}: no answer in {timeout:g} s. {_last_line(log)}") from None
        except ServerError as error:
            raise StartupError(f"{startups.command}: {error}. {_last_line(log)}") from None
        finally:
            _stop(process)


async def _until_answered(
    startups: Startups,
    client: ApiClient,
    port: int,
    process: subprocess.Popen[bytes],
    began: float,
    endpoint: Endpoint,
    model: str | None,
) -> None:
    async def until(ask: Callable[[], Awaitable[Result | None]]) -> Result:
        """Ask until there is an answer. Raises ServerError when the process has ended."""
        while (found := await ask()) is None:
            if process.poll() is not None:
                raise ServerError(f"it ended with status {process.returncode} before it answered")
            await asyncio.sleep(POLL_SECONDS)
        return found

    async def connection() -> bool | None:
        return accepts(port) or None

    await until(connection)
    startups.listening.append(time.perf_counter() - began)
    name = await until(lambda: _unless_loading(client.model(model)))
    startups.listed.append(time.perf_counter() - began)
    body = {"model": name, "max_tokens": 1, **fields(endpoint, "Hello")}

    async def post() -> bool:
        await client.post(PATHS[endpoint], body)
        return True

    await until(lambda: _unless_loading(post()))
    startups.answered.append(time.perf_counter() - began)


async def _unless_loading(asked: Awaitable[Result]) -> Result | None:
    """The answer, or None of a server that loads: it is not there yet, or answers 5xx, 404 or 429. Raises ServerError
    for other refusals."""
    try:
        return await asked
    except ServerError as error:
        if error.status is not None and error.status < 500 and error.status not in (404, 429):
            raise
        return None


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _last_line(log: Any) -> str:
    log.seek(0)
    lines = log.read().decode("utf-8", "replace").strip().splitlines()
    return f"It said last: {lines[-1]}" if lines else "It said nothing."


def as_document(found: list[Startups]) -> list[dict[str, Any]]:
    """The times of each command, in seconds."""
    return [
        {"command": s.command, "listening_s": s.listening, "models_s": s.listed, "first_answer_s": s.answered}
        for s in found
    ]


def as_text(found: list[Startups]) -> str:
    """Medians and ranges of each command, and how they compare with the first one."""
    lines = [f"from the spawn, in seconds: median of {len(found[0].answered)} (least, most)"]
    for startups in found:
        lines += ["", startups.command]
        for name, values in (
            ("it listens", startups.listening),
            ("/v1/models answers", startups.listed),
            ("a request is answered", startups.answered),
        ):
            lines.append(f"  {name:<24}{statistics.median(values):>8.3f}  ({min(values):.3f}, {max(values):.3f})")
        if startups is not found[0]:
            ratio = statistics.median(startups.answered) / statistics.median(found[0].answered)
            lines.append(f"  {'beside the first one':<24}{ratio:>8.2f}x")
    return "\n".join(lines)
