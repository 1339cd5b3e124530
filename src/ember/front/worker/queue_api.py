"""The platform's queue over HTTP, with aiohttp: take jobs, learn which to stop, send pieces and results, ping.

Addresses and key come from the environment variables with which the platform starts a worker (`contract.py`). The
requests are those of the platform's SDK: JSON text with a form's content type, the raw key as `Authorization`, and
`isStream` as the SDK sets it for a generator. A piece or a result that cannot be delivered is sent again, with growing
waits. Both carry their job's id as `X-Request-ID`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
from yarl import URL

from ember import __version__
from ember.front.worker.contract import platform_key, webhook, worker_id
from ember.front.worker.delivery import path_id, read_answer
from ember.front.worker.waits import Backoff
from ember.untrusted_json import UntrustedJsonError, loads

log = logging.getLogger(__name__)

PROTOCOL_VERSION = "1.12.0"  # of the SDK whose requests these are; each ping reports it
TAKE_SECONDS = 120.0  # of a long poll; the platform ends one without jobs after 90 s at most
_BODY_SECONDS = 30.0  # from an answer's headers to its end
_POST_SECONDS = 60.0
_POST_WAITS = (0.1, 5.0)
_TOO_MANY_SECONDS = 5.0
_PING_IDS_BYTES = 2**16  # of the job ids in a ping, as in the SDK; further ids are left out
_RETRIED = frozenset({408, 425, 429})  # beside every 5xx


class QueueError(Exception):
    """A request to the queue failed. The message is one line."""


class TooManyRequests(QueueError):
    """The queue asks for a pause (HTTP 429)."""


class Refused(QueueError):
    """The queue refuses this piece or result, and would refuse it again."""

    def __init__(self, status: int, detail: str) -> None:
        detail = " ".join(detail[:200].split())
        super().__init__(f"HTTP {status}" + (f": {detail}" if detail else ""))
        self.status = status


@dataclass(frozen=True)
class Addresses:
    """The addresses of the queue. `$ID` in `stream` and `done` stands for the job's id. `stop` and `ping` may be
    None."""

    take: str
    take_batch: str | None
    stop: str | None
    stream: str
    done: str
    ping: str | None
    ping_seconds: float
    key: str = field(repr=False)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Addresses:
        """Raises QueueError when an address is missing, or is not http(s)."""
        worker = worker_id(environ) or "ember"
        urls = {}
        for name in ("GET_JOB", "POST_OUTPUT", "POST_STREAM"):
            url = webhook(name, worker, environ)
            if not url.startswith(("http://", "https://")):
                raise QueueError(
                    f"RUNPOD_WEBHOOK_{name}={url[:100]}: it must be an http(s) address of the platform's queue"
                )
            urls[name] = url
        take = urls["GET_JOB"].replace("$ID", worker)
        has_channels = "/job-take/" in take
        ping = webhook("PING", worker, environ)
        try:
            interval = int(environ.get("RUNPOD_PING_INTERVAL") or 10_000) / 1000
        except ValueError:
            interval = 10.0
        return cls(
            take=take,
            take_batch=take.replace("/job-take/", "/job-take-batch/") if has_channels else None,
            stop=take.replace("/job-take/", "/job-stop/") if has_channels else None,
            stream=_with(urls["POST_STREAM"], isStream="false"),
            done=_with(urls["POST_OUTPUT"], isStream="true"),
            ping=ping if ping.startswith("http") and worker_id(environ) else None,
            ping_seconds=max(interval, 0.1),
            key=platform_key(environ),
        )


def _with(url: str, **parameters: Any) -> str:
    """The address with these parameters added to its query. The rest of it stays as it is."""
    added = "&".join(f"{name}={quote(str(value), safe=',')}" for name, value in parameters.items())
    return f"{url}{'&' if '?' in url else '?'}{added}"


def make_session(key: str) -> aiohttp.ClientSession:
    """A session for `QueueApi`. The caller closes it."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
        headers={"Authorization": key, "User-Agent": f"ember/{__version__}", "Accept-Encoding": "gzip, deflate"},
        timeout=aiohttp.ClientTimeout(total=_POST_SECONDS, sock_connect=10),
    )


class QueueApi:
    """One worker's requests to the queue. A piece or a result is sent again for at most `patience` seconds."""

    def __init__(self, addresses: Addresses, session: aiohttp.ClientSession, patience: float = 300.0) -> None:
        self._addresses = addresses
        self._session = session
        self._patience = patience

    @property
    def has_stop_channel(self) -> bool:
        return self._addresses.stop is not None

    async def ask_for_jobs(self, count: int, is_busy: bool) -> aiohttp.ClientResponse:
        """Take jobs with a long poll. Returns when the answer's headers have arrived. The answer may hold jobs from
        then on, so it must be read with `read_jobs`. Raises QueueError."""
        url = self._addresses.take
        if count > 1 and self._addresses.take_batch is not None:
            url = _with(self._addresses.take_batch, batch_size=count)
        return await self._poll(_with(url, job_in_progress=int(is_busy)))

    async def read_jobs(self, response: aiohttp.ClientResponse) -> list[Any]:
        """The jobs of an answer, each to be passed to `delivered`. An empty answer has none. Raises QueueError."""
        # 400: a worker that the platform has put to sleep
        content = await self._read_poll(response, none_at=(204, 400))
        try:
            return await read_answer(content) if content else []
        except UntrustedJsonError as error:
            raise _no_json(error) from None

    async def stopped_jobs(self) -> list[str]:
        """The ids of the jobs to stop, from a long poll. Raises QueueError."""
        assert self._addresses.stop is not None
        raw = await self._read_poll(await self._poll(self._addresses.stop), none_at=(204,))
        try:
            content = loads(raw) if raw else None
        except UntrustedJsonError as error:
            raise _no_json(error) from None
        ids = content.get("jobsToStop") if isinstance(content, dict) else None
        return [job_id for job_id in ids if isinstance(job_id, str)] if isinstance(ids, list) else []

    async def send_piece(self, job_id: str, output: Any) -> None:
        """Send one piece of a job's output. Raises Refused, or QueueError when it could not be delivered."""
        await self._post(self._addresses.stream, job_id, {"output": output})

    async def send_result(self, job_id: str, result: dict[str, Any]) -> None:
        """End a job, with `{"output": ...}` or `{"error": ...}`. Raises as `send_piece` does."""
        await self._post(self._addresses.done, job_id, result)

    async def ping(self, job_ids: list[str]) -> None:
        """Report that the worker is alive, and which jobs it runs. Raises QueueError."""
        assert self._addresses.ping is not None
        named = list(accumulate(job_ids, lambda size, job_id: size + len(path_id(job_id)) + 1, initial=0))
        job_ids = job_ids[: bisect_right(named, _PING_IDS_BYTES) - 1]
        running = {"job_id": ",".join(job_ids)} if job_ids else {}
        url = _with(self._addresses.ping, **running, runpod_version=PROTOCOL_VERSION)
        timeout = aiohttp.ClientTimeout(total=2 * self._addresses.ping_seconds)
        try:
            async with self._session.get(URL(url, encoded=True), timeout=timeout) as response:
                await response.read()
                if response.status >= 400:
                    raise QueueError(f"HTTP {response.status}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise QueueError(_describe(error)) from None

    async def _poll(self, url: str) -> aiohttp.ClientResponse:
        timeout = aiohttp.ClientTimeout(total=TAKE_SECONDS, sock_connect=10)
        try:
            return await self._session.get(URL(url, encoded=True), timeout=timeout)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise QueueError(_describe(error)) from None

    async def _read_poll(self, response: aiohttp.ClientResponse, none_at: tuple[int, ...]) -> bytes:
        """The JSON of a poll's answer, empty when the status is in `none_at`. Raises QueueError."""
        async with response:
            if response.status == 429:
                raise TooManyRequests("HTTP 429")
            try:
                async with asyncio.timeout(_BODY_SECONDS):
                    content = await response.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise QueueError(_describe(error)) from None
            if response.status in none_at:
                return b""
            if response.status >= 400:
                raise QueueError(f"HTTP {response.status}")
            return content if response.content_type == "application/json" else b""

    async def _post(self, url: str, job_id: str, document: dict[str, Any]) -> None:
        name = path_id(job_id)
        address = URL(url.replace("$ID", name), encoded=True)
        body = orjson.dumps(document)
        headers = {"Content-Type": "application/x-www-form-urlencoded", "charset": "utf-8", "X-Request-ID": name}
        backoff = Backoff(*_POST_WAITS)
        give_up_at = time.monotonic() + self._patience
        while True:
            wait = backoff.next()
            try:
                async with self._session.post(address, data=body, headers=headers) as response:
                    text = await response.text(errors="replace")
                    if response.status < 400:
                        return
                    if is_refusal(response.status):
                        raise Refused(response.status, text)
                    problem = f"HTTP {response.status}"
                    if response.status == 429:
                        wait = max(wait, _TOO_MANY_SECONDS)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                problem = _describe(error)
            if time.monotonic() + wait > give_up_at:
                raise QueueError(f"it was not delivered within {self._patience:.0f} s: {problem}")
            if backoff.failures == 1:
                log.warning("job %s: sending its output failed (%s); retrying", job_id, problem)
            await asyncio.sleep(wait)


def is_refusal(status: int) -> bool:
    """Whether this status refuses what was sent, so that sending it again is of no use."""
    return 400 <= status < 500 and status not in _RETRIED


def _no_json(error: UntrustedJsonError) -> QueueError:
    return QueueError(f"the answer is not JSON: {error}")


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
