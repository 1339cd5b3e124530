"""Chat templates of clients, rendered in a process of their own with limits of time and memory.

Jinja's sandbox isolates a template, but a few characters of it can loop for ever or fill the memory. So each such
template gets a fresh process that is killed when its time is over. Only its request is refused then. The process has no
environment variables, and so no secrets.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import cached_property
from types import TracebackType
from typing import Any, Literal, Self

from ember.front.text.call_history import HistoryForm, IdForm
from ember.front.text.template_error import TemplateError
from ember.interpreter import module_command

MEMORY_BYTES = 512 * 2**20  # of the whole process, Python itself included
MAX_ANSWER_BYTES = 128 * 2**20


class Abandonment:
    """Cancels the rendering of a request, which runs in a thread, when its client has left. `set` may be called at any
    time and from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_set = False
        self._end: Callable[[], None] | None = None

    def set(self) -> None:
        with self._lock:
            self._is_set = True
            if self._end is not None:
                self._end()

    def on_set(self, end: Callable[[], None]) -> None:
        """Call `end` when this is set, at once if it already is."""
        with self._lock:
            self._end = end
            if self._is_set:
                end()


ABANDONMENT: ContextVar[Abandonment | None] = ContextVar("abandonment", default=None)  # of the request's thread


class UntrustedTemplate:
    """Has the interface of a `ChatTemplate` inside a `with` block, which starts and ends its process. For one
    thread."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], timeout: float) -> None:
        """`timeout` in seconds, for everything between the beginning and the end of the `with` block."""
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._timeout = timeout
        self._is_late = False

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            module_command("ember.front.text.untrusted_child", str(MEMORY_BYTES), str(self._timeout)),
            env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        abandonment = ABANDONMENT.get()
        if abandonment is not None:
            abandonment.on_set(self._process.kill)
        self._clock = threading.Timer(self._timeout, self._give_up)
        self._clock.daemon = True
        self._clock.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clock.cancel()
        self._process.kill()
        self._process.communicate()

    @property
    def content_format(self) -> Literal["string", "openai"]:
        """See `ChatTemplate.content_format`. Raises TemplateError."""
        return self._facts["content_format"]

    @property
    def variables(self) -> frozenset[str]:
        """See `ChatTemplate.variables`. Raises TemplateError."""
        return frozenset(self._facts["variables"])

    @cached_property
    def history_form(self) -> HistoryForm:
        """See `ChatTemplate.history_form`. Raises TemplateError."""
        _ = self._facts
        found = self._ask({"history_form": True})["history_form"]
        return HistoryForm(**{**found, "ids": IdForm(**found["ids"]) if found["ids"] else None})

    def render(self, messages: list[dict[str, Any]], **arguments: Any) -> str:
        """See `ChatTemplate.render`. Raises TemplateError, also if a limit is reached."""
        _ = self._facts
        return self._ask({"messages": messages, **arguments})["text"]

    @cached_property
    def _facts(self) -> dict[str, Any]:
        return self._ask({"source": self.source, "special_tokens": self._special_tokens})

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Send one line of JSON to the process and read one line as its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline(MAX_ANSWER_BYTES)
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise TemplateError(self._death(len(line)))
        answer = json.loads(line)
        if "error" in answer:
            raise TemplateError(answer["error"])
        return answer

    def _death(self, num_bytes: int) -> str:
        if num_bytes >= MAX_ANSWER_BYTES:
            return f"the chat template of the request made more than {MAX_ANSWER_BYTES // 2**20} MiB of text"
        if self._is_late:
            return f"the chat template of the request was not rendered within {self._timeout:g} seconds"
        return "the chat template of the request ended the process that rendered it; it is too large or too deep"

    def _give_up(self) -> None:
        self._is_late = True
        self._process.kill()
