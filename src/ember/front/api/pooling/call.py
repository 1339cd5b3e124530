"""What all pooling routes have in common: ids and headers, the engine's work, measuring, usage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ember.front.api.body import ignored_fields
from ember.front.api.call import answer_headers, request_name, unread_priority
from ember.front.api.exchange import Request
from ember.front.api.meter import log_finished
from ember.front.api.pooling.schemas import ClassifyRequest, CohereEmbedRequest, PairRequest, PoolingRequest
from ember.front.api.scheduling import requested_cache_salt, requested_priority
from ember.front.api.services import Services
from ember.front.api.usage import usage_body
from ember.front.errors import ApiError, aborted, bad_request
from ember.front.link.pooling import PoolOptions, PoolText
from ember.wire import Pooled, Pooling, PoolingTask, Ready, SequenceOutput

Result = TypeVar("Result")

LARGE_ANSWER = 2**18  # bytes of vectors; larger answers are written in a thread


@dataclass(slots=True, eq=False)
class PoolingCall:
    """One accepted request of a pooling route. It can be aborted by its `names` while it runs."""

    services: Services
    info: Ready
    id: str
    names: frozenset[str]
    created: int
    headers: dict[str, str]
    priority: int
    cache_salt: str | None
    arrived: float  # reading of time.monotonic()
    prompt_tokens: int = 0  # of all texts
    cached_tokens: int = 0
    _has_run: bool = field(default=False, init=False)
    _is_aborted: bool = field(default=False, init=False)
    _work: asyncio.Task[list[SequenceOutput]] | None = field(default=None, init=False)

    @property
    def pooling(self) -> Pooling:
        assert self.info.pooling is not None, "an engine without pooling has no pooling tasks"
        return self.info.pooling

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Lets several `run`s be one request, which passes the gate once and can be aborted between them."""
        if self in self.services.running:
            yield
            return
        self.services.running.add(self)
        self.services.engine.gate.inside.add(self)
        try:
            yield
        finally:
            self.services.running.discard(self)
            self.services.engine.gate.inside.discard(self)

    def abort(self) -> None:
        """End the request, which raises ApiError 503 in its reader."""
        self._is_aborted = True
        if self._work is not None:
            self._work.cancel()

    async def run(
        self,
        texts: Sequence[PoolText],
        task: PoolingTask,
        *,
        dimensions: int | None = None,
        use_activation: bool | None = None,
    ) -> list[Pooled]:
        """What the model makes of each text. Raises ApiError."""
        options = PoolOptions(task, dimensions, use_activation, self.priority, self.cache_salt)
        metrics = self.services.metrics
        failure: BaseException | None = None
        outputs: list[SequenceOutput] = []
        if self not in self.services.running:
            await self.services.pass_gate(self.names)
        metrics.in_flight += 1
        try:
            with self.under_way():
                outputs = await self._pool(texts, options)
        except BaseException as error:
            failure = error
            raise
        finally:
            metrics.in_flight -= 1
            self._measure(texts, task, outputs, failure)
        self.prompt_tokens += sum(len(text.token_ids) for text in texts)
        self.cached_tokens += sum(output.num_cached_tokens for output in outputs)
        found = [output.pooled for output in outputs if output.pooled is not None]
        assert len(found) == len(texts), "the engine answered without values"
        return found

    async def _pool(self, texts: Sequence[PoolText], options: PoolOptions) -> list[SequenceOutput]:
        """Raises ApiError."""
        is_step, self._has_run = self._has_run, True
        self._check_not_aborted()
        self._work = asyncio.create_task(self.services.engine.pool_many(texts, options, is_step=is_step))
        try:
            return await self._work
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is None or not caller.cancelling():  # the client has not left
                self._check_not_aborted()
            raise
        finally:
            self._work = None

    def _check_not_aborted(self) -> None:
        if self._is_aborted:
            raise aborted()

    def usage(self) -> dict[str, Any]:
        cached = self.cached_tokens if self.services.settings.enable_prompt_tokens_details else None
        return usage_body(self.prompt_tokens, 0, cached)

    def _measure(
        self,
        texts: Sequence[PoolText],
        task: PoolingTask,
        outputs: Sequence[SequenceOutput],
        failure: BaseException | None,
    ) -> None:
        """Record the end of the work. A request that the engine refused is logged as refused, by the router."""
        if isinstance(failure, ApiError) and failure.status < 500:
            return
        metrics = self.services.metrics
        reason = "stop" if failure is None else "error" if isinstance(failure, Exception) else "abort"
        seconds = time.monotonic() - self.arrived
        for text in texts:
            metrics.prompt_tokens.observe(len(text.token_ids))
        for output in outputs:
            metrics.queue.observe(output.queue_seconds)
        metrics.whole.observe(seconds, len(texts))
        metrics.cached_tokens += sum(output.num_cached_tokens for output in outputs)
        metrics.finished[reason] += len(texts)
        if isinstance(failure, ApiError):
            failure.is_logged = True
        line = {
            "request_id": self.id,
            "task": task,
            "finish_reason": reason,
            "texts": len(texts),
            "prompt_tokens": sum(len(text.token_ids) for text in texts),
            "total_ms": round(seconds * 1000, 2),
        }
        log_finished(line, metrics)


def open_pooling_call(
    raw_request: Request,
    request: PoolingRequest | CohereEmbedRequest,
    services: Services,
    info: Ready,
    id_prefix: str,
    ignored: Sequence[str] = (),
) -> PoolingCall:
    """Check the fields that all routes share. `ignored` names fields of the body that have no effect. Raises ApiError
    400 and 404."""
    services.check_model(request.model)
    if "normalize" in (request.model_extra or {}):
        raise bad_request(
            "Parameter `normalize` was removed; use `use_activation` instead. (parameter=normalize)", "normalize"
        )
    name = request_name(raw_request, request.request_id)
    unread = [*ignored_fields(request), *ignored, *unread_priority(request.priority, services)]
    return PoolingCall(
        services=services,
        info=info,
        id=f"{id_prefix}-{name}",
        names=frozenset((name, f"{id_prefix}-{name}")),
        created=int(time.time()),
        headers=answer_headers(unread, services, name),
        priority=requested_priority(request, raw_request.headers.get("x-vllm-priority")),
        cache_salt=requested_cache_salt(request),
        arrived=raw_request.arrived,
    )


def activation_of(request: ClassifyRequest | PairRequest) -> bool | None:
    """Whether values are activated: `use_activation`, or the opposite of `raw_scores`, the name of Infinity and
    text-embeddings-inference."""
    if request.use_activation is None and request.raw_scores is not None:
        return not request.raw_scores
    return request.use_activation


async def written(pooled: Sequence[Pooled], write: Callable[[], Result]) -> Result:
    """Write the answer, in a thread if it is large. Raises what `write` raises."""
    if sum(len(each.data) for each in pooled) < LARGE_ANSWER:
        return write()
    return await asyncio.to_thread(write)


def prompt_of(name: str | None, services: Services, param: str = "prompt_name") -> str:
    """The text that the named prompt puts before each input. Raises ApiError 400 for a name that the model does not
    have."""
    sentences = services.sentences
    if name is not None and name not in sentences.prompts:
        known = ", ".join(sorted(sentences.prompts)) or "none"
        message = f"{param} {ascii(name)[:80]} is unknown. The prompts of {services.model_name}: {known}."
        raise bad_request(message, param)
    return sentences.prompt(name)
