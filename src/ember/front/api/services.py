"""The state that every route needs, built once at start-up."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ember import __version__
from ember.boot import Timeline
from ember.front.errors import ApiError, aborted
from ember.front.link.engine import Engine, EngineError
from ember.front.metrics import Metrics
from ember.front.text.reasoning import ReasoningFormat
from ember.front.text.sentence_files import SentenceFiles
from ember.front.text.template import ChatTemplate
from ember.front.text.tokenizer import Tokenizer
from ember.logs import REQUEST_ID
from ember.settings import Settings
from ember.wire import Ready

if TYPE_CHECKING:
    from ember.front.text.tools import ToolFormat


_ANSWER_PREFIXES = ("chatcmpl-", "cmpl-")  # of answers whose ids follow from the request's


class Running(Protocol):
    """A request that is being generated for."""

    names: frozenset[str]

    def abort(self) -> None: ...


@dataclass(eq=False, slots=True)
class _Waiting:
    """A request that waits for a paused, sleeping or restarting engine."""

    names: frozenset[str]
    work: asyncio.Future[Ready]

    def abort(self) -> None:
        self.work.cancel()


@dataclass
class Services:
    """The deployment as the routes see it. `generation_defaults` are the merged sampling defaults."""

    settings: Settings
    engine: Engine
    tokenizer: Tokenizer
    template: ChatTemplate | None
    model_dir: str
    generation_defaults: dict[str, Any]
    created: int  # seconds since the epoch, shown by /v1/models
    timeline: Timeline
    tokenizer_dir: str | None = None  # where it is not `model_dir`
    metrics: Metrics = field(default_factory=Metrics)
    reasoning_format: ReasoningFormat | None = None  # None: all output is content
    tool_format: ToolFormat | None = None  # None: tools cannot be called
    kept: dict[str, Any] = field(default_factory=dict)  # what routes keep from one request to the next, by their names
    closers: list[Callable[[], Awaitable[None]]] = field(default_factory=list)  # what is awaited at the worker's end
    tasks: set[asyncio.Task[None]] = field(default_factory=set)  # work that goes on after its request was answered
    running: set[Running] = field(default_factory=set)  # the requests that are being generated for, or wait for it
    sentences: SentenceFiles = field(default_factory=SentenceFiles)  # of a pooling model

    @property
    def model_name(self) -> str:
        """The model's name in answers."""
        return self.settings.served_names[0]

    def check_model(self, name: str | None) -> None:
        """Raises ApiError 404 for a name that is not served. A missing or empty name means the base model."""
        if name and not self.settings.serves(name):
            raise ApiError(404, f"The model `{name[:200]}` does not exist.", param="model")

    async def ready(self, names: frozenset[str] = frozenset()) -> Ready:
        """Wait until the engine can serve. A request that waits counts as one, and can be aborted, also by `names`.
        Raises ApiError 500, which is not to be retried, when the engine cannot start, and 503 when the request is
        aborted."""
        if self.engine.is_ready:
            return self.engine.info
        name = REQUEST_ID.get()
        if not name:  # what waits is no request, such as the taking of jobs
            return await self._serving()
        work = asyncio.ensure_future(self._serving())
        waiting = _Waiting(names.union((name, *(f"{prefix}{name}" for prefix in _ANSWER_PREFIXES))), work)
        self.running.add(waiting)
        self.metrics.waiting += 1
        try:
            await asyncio.wait((work,))
        finally:
            self.running.discard(waiting)
            self.metrics.waiting -= 1
            work.cancel()
        if work.cancelled():
            raise aborted()
        return work.result()

    async def pass_gate(self, names: frozenset[str]) -> None:
        """Wait for the end of a pause or a sleep, which may have begun since the request was read. Raises ApiError as
        `ready` does."""
        while not self.engine.gate.is_open:
            await self.ready(names)

    async def described(self) -> Ready:
        """The engine's description, for what needs no step of it: a paused or sleeping engine is not waited for. Raises
        ApiError as `ready` does."""
        return self.engine.info if self.engine.control.is_paused else await self.ready()

    async def _serving(self) -> Ready:
        try:
            return await self.engine.wait_ready()
        except EngineError as error:
            raise ApiError(500, str(error), headers={"x-should-retry": "false"}) from error

    async def ready_to_control(self) -> None:
        """Wait until the engine has booted, whether it is paused or asleep now or not. Raises ApiError 500."""
        if not (self.engine.control.is_paused or self.engine.is_ready):
            await self._serving()

    def fingerprint(self, info: Ready) -> str:
        """`ember-<version>-<8 hex>`: equal for equal builds of equal models on equal kinds of device."""
        parts = (__version__, self.model_name, self.model_dir, info.architecture, info.device, info.dtype, info.weights)
        return f"ember-{__version__}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:8]}"
