"""Attacks by how a client behaves: it leaves, reads nothing, sends slowly, or takes all descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import resource
import socket
import struct
import time
from typing import Any

from tests.attack.report import Report, chat, time_left
from tests.attack.requests import ambiguous_grammar
from tests.attack.server import CHAT, KEY, QUESTION, Server


def _request_bytes(body: bytes, split: str = "") -> tuple[bytes, bytes]:
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{split}\r\n"
    )
    return head.encode(), body


async def vanishing(server: Server, rng: random.Random, seconds: float) -> Report:
    """Clients that leave at every stage: in the head, before and in the body, before and in the answer, with or without
    a reset."""
    report = Report()
    began = time.monotonic()

    async def one() -> None:
        fields: dict[str, Any] = {
            "max_tokens": 3000,
            "ignore_eos": True,
            "stream": rng.random() < 0.5,
            "n": rng.choice([1, 1, 4]),
        }
        if rng.random() < 0.1:
            fields = {"structured_outputs": {"grammar": ambiguous_grammar(rng)}}
        head, body = _request_bytes(json.dumps(chat(**fields)).encode())
        stage = rng.choice(
            ["in the head", "before the body", "in the body", "at once", "soon", "late", "in the answer"]
        )
        reader, writer = await server.connect()
        report.count(stage)
        with contextlib.suppress(OSError):
            writer.write(head[: rng.randrange(len(head))] if stage == "in the head" else head)
            await writer.drain()
            if stage not in ("in the head", "before the body"):
                if rng.random() < 0.5:
                    await asyncio.sleep(rng.uniform(0, 0.02))  # head first, body later
                writer.write(body[: rng.randrange(len(body))] if stage == "in the body" else body)
                await writer.drain()
            if stage in ("soon", "late"):
                await asyncio.sleep(0.01 if stage == "soon" else 0.3)
            if stage == "in the answer":
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await reader.read(100)
        if rng.random() < 0.3:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()

    while time_left(began, seconds):
        await asyncio.gather(*(one() for _ in range(10)))
    return report


async def slow_readers(server: Server, rng: random.Random, seconds: float, count: int = 60) -> Report:
    """Clients that ask for long streams and read nothing, while others are served."""
    report = Report()
    held = []
    body = json.dumps(chat(stream=True, max_tokens=2000, ignore_eos=True)).encode()
    for _ in range(count):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, server.address)
        await asyncio.get_running_loop().sock_sendall(sock, b"".join(_request_bytes(body)))
        held.append(sock)
        report.count("held")
    began = time.monotonic()
    while time_left(began, seconds):
        await server.ask(QUESTION)
        report.outcomes["answers beside"] += 1
    for sock in held:
        sock.close()
    return report


async def slow_heads(server: Server, rng: random.Random, seconds: float, count: int = 100) -> Report:
    """Connections, fresh ones and kept-alive ones, that send one byte now and then while others are served."""
    report = Report()
    writers = []
    for _ in range(count):
        reader, writer = await server.connect()
        if rng.random() < 0.5:
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
        writer.write(b"GET /health HTTP/1.1\r\nX-Slow: ")
        writers.append(writer)
        report.count("held")
    began = time.monotonic()
    while time_left(began, seconds):
        for writer in rng.sample(writers, 10):
            with contextlib.suppress(OSError):
                writer.write(b"a")
        await server.ask(QUESTION)
        report.outcomes["answers beside"] += 1
    for writer in writers:
        writer.close()
    return report


async def descriptors(server: Server, rng: random.Random, seconds: float) -> Report:
    """As many connections as the server may have files, and more; afterwards it serves again."""
    report = Report()
    pid = server.process.popen.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (server.held().files + 30, before[1]))
    held = []
    try:
        for _ in range(120):
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1):
                    held.append((await server.connect())[1])
                    report.count("connected")
        await asyncio.sleep(min(seconds, 2))
    finally:
        for writer in held:
            writer.close()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    return report
