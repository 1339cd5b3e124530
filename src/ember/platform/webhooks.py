"""Webhooks: the result of a job is POSTed to the URL that its client named, with retries."""

from __future__ import annotations

import asyncio
import json
import logging

import aiohttp

from ember.platform.jobs import Job, webhook_host

log = logging.getLogger(__name__)

ATTEMPTS = 3
WAIT_SECONDS = 10.0
_POST_SECONDS = 10.0


class Webhooks:
    """Sends webhooks in the background. Only a 200 counts as delivered. Redirects are not followed."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, job: Job) -> None:
        """Start to send the job's webhook, if it has one. Returns at once."""
        if job.webhook is not None:
            task = asyncio.get_running_loop().create_task(self._deliver(job.webhook, json.dumps(job.body()), job.id))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._session is not None:
            await self._session.close()

    async def _deliver(self, url: str, body: str, job_id: str) -> None:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_POST_SECONDS))
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(WAIT_SECONDS)
            try:
                headers = {"Content-Type": "application/json"}
                async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                    if response.status == 200:
                        return
                    reason = f"it answered {response.status}"
            except Exception as error:
                reason = _reason(error)
        log.warning("the webhook of job %s, at %s, was not delivered: %s", job_id, webhook_host(url), reason)


def _reason(error: Exception) -> str:
    """A description of an error without its text, which may contain the URL."""
    cause = getattr(error, "os_error", error)
    detail = cause.strerror if isinstance(cause, OSError) else None
    return f"{type(error).__name__}: {detail}" if detail else type(error).__name__
