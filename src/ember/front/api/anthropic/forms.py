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


def anthropic_error(error: ApiError) -> dict[str, Any]:
    """`{"type": "error", "error": {"type", "message"}}`."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


ANTHROPIC_ERRORS = ErrorForm(anthropic_error, "AnthropicError")
ANTHROPIC_ID_HEADER = "request-id"  # which its SDKs show with answers and errors
ANTHROPIC_EVENTS = ServerSentEvents(anthropic_error, error_name="error")
