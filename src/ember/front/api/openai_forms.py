"""What OpenAI's routes have in common: the form of their errors and the framing of their streams."""

from __future__ import annotations

from typing import Any

from ember.front.api.framing import ServerSentEvents
from ember.front.errors import ApiError


def openai_error(error: ApiError) -> dict[str, Any]:
    """`{"error": {"message", "type", "param", "code"}}`, and vLLM's short body where the key is missing or wrong."""
    if error.status == 401:
        return {"error": "Unauthorized"}
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


OPENAI_EVENTS = ServerSentEvents(openai_error, last_data="[DONE]")
