"""What the api and the faces know of the engine: its handle's interface, and the error that it cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ember import wire
from ember.front.link.control import Control
from ember.front.link.gate import Gate
from ember.front.link.generation import Generation
from ember.front.link.pooling import PoolOptions, PoolText


class EngineError(Exception):
    """The engine cannot be used. The message is one line for the operator."""


class Engine(Protocol):
    """What the api and the faces need from the engine."""

    @property
    def info(self) -> wire.Ready: ...
    @property
    def is_ready(self) -> bool: ...
    @property
    def is_dead(self) -> bool: ...
    @property
    def tasks(self) -> Sequence[str]: ...
    @property
    def gate(self) -> Gate: ...
    async def wait_ready(self) -> wire.Ready: ...
    def generate(
        self,
        prompt_token_ids: list[int],
        sampling: wire.SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        adapter: str | None = None,
        is_step: bool = False,
    ) -> Generation: ...
    async def pool_many(
        self, texts: Sequence[PoolText], options: PoolOptions, *, is_step: bool = False
    ) -> list[wire.SequenceOutput]: ...
    async def stats(self) -> wire.Stats: ...
    async def reset_prefix_cache(self) -> None: ...
    @property
    def control(self) -> Control: ...
