"""From the bytes of the queue's answer to jobs. Both queue clients use this.

A job that cannot be read does not affect the others of its answer. It is reported as failed if its id can be found. The
id becomes part of the addresses to which the job's output is sent, so it must be usable in a URL.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ember.front.errors import bad_request
from ember.front.worker.outputs import error_output
from ember.untrusted_json import QUEUE_DEPTH, Unreadable, loads_each

log = logging.getLogger(__name__)

_LARGE_BYTES = 2**16  # a larger answer is parsed in a thread
_MAX_ID_CHARS = 256


@dataclass(frozen=True)
class Delivery:
    """One job of an answer. A job that cannot be run has an `error`, which is its result, and an empty `job`."""

    id: str
    job: dict[str, Any]
    error: dict[str, str] | None = None

    @property
    def path_id(self) -> str:
        """The percent-encoded id, for the path of a URL and the value of a header."""
        return path_id(self.id)


async def read_answer(content: bytes) -> list[Any]:
    """The elements of a job-take's answer, each for `delivered`. Raises UntrustedJsonError where it has none at all."""
    if len(content) > _LARGE_BYTES:
        return await asyncio.to_thread(loads_each, content, QUEUE_DEPTH)
    return loads_each(content, QUEUE_DEPTH)


def delivered(element: Any) -> Delivery | None:
    """The job in an element of the answer. Without a usable id it is None, and the log says so."""
    if isinstance(element, Unreadable):
        job_id: Any = element.id
    else:
        job_id = element.get("id") if isinstance(element, dict) else None
    if not _is_usable(job_id):
        reason = f"; it cannot be read: {element.reason}" if isinstance(element, Unreadable) else ""
        shown = "" if job_id is None else f" (got {ascii(job_id)[:100]})"
        log.error("the queue delivered an element without a usable job id%s%s", shown, reason)
        return None
    if isinstance(element, Unreadable):
        log.error("job %s cannot be read and ends with an error: %s", job_id, element.reason)
        error = bad_request(f"The job cannot be read: {element.reason}", "input")
        return Delivery(job_id, {}, error_output(error))
    return Delivery(job_id, element)


def path_id(job_id: str) -> str:
    """The id, percent-encoded, so that it is one segment of a URL's path whatever it holds."""
    return quote(job_id, safe="")


def _is_usable(job_id: Any) -> bool:
    """Whether the id is text that can be a segment of a URL's path, and not `.` or `..`."""
    if not isinstance(job_id, str) or not 0 < len(job_id) <= _MAX_ID_CHARS or job_id in (".", ".."):
        return False
    try:
        job_id.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
