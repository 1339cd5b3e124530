"""What the queue delivers: from the bytes of an answer to jobs that are run, or refused by name. Both clients use this.

One job that cannot be read costs no other of the same answer: it is reported as failed where its id can be found. An id
goes into the addresses of a job's reports, so it has to be one that an address can carry.
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

_LARGE_BYTES = 2**16  # an answer that is larger is read beside the event loop
_MAX_ID_CHARS = 256


@dataclass(frozen=True)
class Delivery:
    """One job of an answer. `error` is the result of one that cannot be run; `job` then is empty."""

    id: str
    job: dict[str, Any]
    error: dict[str, str] | None = None

    @property
    def path_id(self) -> str:
        """The id as a part of an address's path, and as the value of a header."""
        return path_id(self.id)


async def read_answer(content: bytes) -> list[Any]:
    """The elements of a job-take's answer, each for `delivered`. Raises UntrustedJsonError where it has none at all."""
    if len(content) > _LARGE_BYTES:
        return await asyncio.to_thread(loads_each, content, QUEUE_DEPTH)
    return loads_each(content, QUEUE_DEPTH)


def delivered(element: Any) -> Delivery | None:
    """The job that an element is; None, and a line in the log, where nothing can be run and nobody can be told."""
    if isinstance(element, Unreadable):
        job_id: Any = element.id
    else:
        job_id = element.get("id") if isinstance(element, dict) else None
    if not _is_usable(job_id):
        reason = f"; it cannot be read: {element.reason}" if isinstance(element, Unreadable) else ""
        shown = "" if job_id is None else f" but {ascii(job_id)[:100]}"
        log.error("the queue sent something that is not a job with a usable id%s%s", shown, reason)
        return None
    if isinstance(element, Unreadable):
        log.error("job %s cannot be read and fails: %s", job_id, element.reason)
        error = bad_request(f"the job cannot be read: {element.reason}", "input")
        return Delivery(job_id, {}, error_output(error))
    return Delivery(job_id, element)


def path_id(job_id: str) -> str:
    """A job's id as a part of an address's path: whatever it holds, it stays one part."""
    return quote(job_id, safe="")


def _is_usable(job_id: Any) -> bool:
    """Whether an address can carry it: it must be text, and no step of a path (`..`)."""
    if not isinstance(job_id, str) or not 0 < len(job_id) <= _MAX_ID_CHARS or job_id in (".", ".."):
        return False
    try:
        job_id.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
