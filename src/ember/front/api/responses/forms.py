"""The framing of the streams of /v1/responses: named events without a last `[DONE]`."""

from __future__ import annotations

from typing import Any

from ember.front.api.framing import ServerSentEvents
from ember.front.errors import ApiError


def error_event(error: ApiError) -> dict[str, Any]:
    """An error before the first event of a response. A later one is `response.failed`, which the route itself tells."""
    return {
        "type": "error",
        "sequence_number": 0,
        "code": str(error.code),
        "message": error.message,
        "param": error.param,
    }


RESPONSES_EVENTS = ServerSentEvents(error_event, error_name="error")
