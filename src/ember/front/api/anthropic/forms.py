"""What Anthropic's routes have in common: the form of their errors and the framing of their streams."""

from __future__ import annotations

from typing import Any

from ember.front.api.framing import ServerSentEvents
from ember.front.api.route import ErrorForm
from ember.front.errors import ApiError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ThreadUnsupported(ApiError):
    """A 400 for a conversation that the server is to hold. Anthropic's SDKs then send the whole conversation."""

    def __init__(self) -> None:
        super().__init__(400, "`thread` is not supported: send all messages of the conversation.", param="thread")


def anthropic_error(error: ApiError) -> dict[str, Any]:
    """`{"type": "error", "error": {"type", "message"}}`, with `details` where a client reads them."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    body: dict[str, Any] = {"type": kind, "message": error.message}
    if isinstance(error, ThreadUnsupported):
        body["details"] = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    return {"type": "error", "error": body}


ANTHROPIC_ERRORS = ErrorForm(anthropic_error, "AnthropicError")
ANTHROPIC_ID_HEADER = "request-id"  # which its SDKs show with answers and errors
ANTHROPIC_EVENTS = ServerSentEvents(anthropic_error, error_name="error")
