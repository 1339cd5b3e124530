"""The bodies and answers of these routes."""

from __future__ import annotations

from typing import Any, Literal

from ember.front.api.answers import AnswerModel
from ember.front.api.schemas import Items, OpenModel


class AbortRequest(OpenModel):
    """POST /abort_requests."""

    request_ids: Items[str] | None = None


class Aborted(AnswerModel):
    status: Literal["aborted"]
    aborted: int


class Sleeping(AnswerModel):
    is_sleeping: bool


class Paused(AnswerModel):
    is_paused: bool


class PauseStatus(AnswerModel):
    status: Literal["paused", "resumed"]
    is_sleeping: bool | None = None  # true where a sleep goes on


class WorldSize(AnswerModel):
    world_size: int


class ServerInfo(AnswerModel):
    vllm_config: str | dict[str, Any]
    vllm_env: dict[str, str]
    system_env: dict[str, Any]
