"""The form of errors and the framing of streams of Text Generation Inference."""

from __future__ import annotations

from typing import Any

from ember.front.api.framing import ServerSentEvents
from ember.front.api.route import ErrorForm
from ember.front.errors import ApiError

_TYPES = {429: "overloaded", 503: "overloaded"}


def tgi_error(error: ApiError) -> dict[str, Any]:
    """`{"error", "error_type"}`."""
    kind = _TYPES.get(error.status, "validation" if error.status < 500 else "generation")
    return {"error": error.message, "error_type": kind}


TGI_ERRORS = ErrorForm(tgi_error, "TgiError")
TGI_EVENTS = ServerSentEvents(tgi_error)
