"""The log: one line per record on stderr, as text or as JSON, with the request's id and without secrets.

Neither prompts nor answers are logged anywhere. That keys and tokens are not printed either is the business of the code
that has them; should one slip into a message all the same, it is replaced here.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ember.settings import Settings

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)  # of the request that is being answered

_SECRET_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "RUNPOD_AI_API_KEY", "API_KEY", "VLLM_API_KEY")
_SHORTEST_SECRET = 6  # what is shorter is found in ordinary words too
_HIDDEN = "(hidden)"


class Formatter(logging.Formatter):
    """Text lines, or with `as_json` one JSON object per line with the fields of a request's line at its top level."""

    def __init__(self, as_json: bool = False, secrets: Iterable[str] = ()) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._as_json = as_json
        self._secrets = sorted({secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        line = self._json(record) if self._as_json else super().format(record)
        for secret in self._secrets:
            line = line.replace(secret, _HIDDEN)
        return line

    def _json(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id = REQUEST_ID.get()
        if request_id is not None:
            document["request_id"] = request_id
        fields = getattr(record, "fields", None)
        if isinstance(fields, Mapping):
            document.update(fields)
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, ensure_ascii=False, default=str)


def set_up(settings: Settings) -> None:
    """Send the log to stderr as LOG_LEVEL and LOG_FORMAT say. A second call replaces what the first one did."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(settings.log_format == "json", secrets_of(settings)))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)


def secrets_of(settings: Settings, environ: Mapping[str, str] = os.environ) -> set[str]:
    """Everything that must not be printed: keys and tokens of the settings, and those the platform gives."""
    found = {key.get_secret_value() for key in settings.api_key}
    if settings.hf_token is not None:
        found.add(settings.hf_token.get_secret_value())
    for name in _SECRET_VARIABLES:
        value = environ.get(name, "")
        found.update(part.strip() for part in [value, *value.split(",")])
    return found - {""}
