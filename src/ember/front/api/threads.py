"""The threads in which requests are rendered, tokenised and checked beside the event loop.

What a client can make slow has few threads for itself, so that slow requests are in the way of each other alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache, partial
from typing import Any, TypeVar

from pydantic import BaseModel

from ember.front.errors import ApiError
from ember.front.text.untrusted import ABANDONMENT, Abandonment

Result = TypeVar("Result")

MAX_UNTRUSTED = 2  # templates from requests that are rendered at the same time, each in a process
MAX_FORMS = 2  # requests whose schemas and tools are parsed at the same time

_FORM_FIELDS = (
    "response_format",
    "structured_outputs",
    "guided_decoding",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "tools",
    "functions",
)


async def in_thread(request: BaseModel, work: Callable[..., Result], *arguments: Any) -> Result:
    """Run the work that opens a request in a thread of the right pool. A chat template that the request brought is
    ended when the client leaves. Raises what `work` raises, and ApiError 503 when the process for such a template
    cannot be started."""
    loop, context = asyncio.get_running_loop(), copy_context()
    call = partial(context.run, work, *arguments)
    if getattr(request, "chat_template", None) is None:
        has_form = any(getattr(request, name, None) for name in _FORM_FIELDS)
        return await loop.run_in_executor(_form_threads() if has_form else None, call)
    abandonment = Abandonment()
    context.run(ABANDONMENT.set, abandonment)
    try:
        return await loop.run_in_executor(_untrusted_threads(), call)
    except asyncio.CancelledError:
        abandonment.set()
        raise
    except OSError as error:  # of the process to be started: no file descriptor, no memory
        reason = error.strerror or error
        raise ApiError(503, f"The chat template of the request cannot be rendered now: {reason}.") from None


@cache
def _untrusted_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MAX_UNTRUSTED, thread_name_prefix="untrusted-template")


@cache
def _form_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MAX_FORMS, thread_name_prefix="form")
