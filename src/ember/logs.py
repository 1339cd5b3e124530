"""The log: one line per record on stderr, as text or as JSON, with the request's id and without secrets.

Neither prompts nor answers are logged anywhere. That keys and tokens are not printed either is the business of the code
that has them; should one slip into a message all the same, it is replaced here. So is whatever could make one record
look like two, or steer a terminal: values from outside may hold it (a worker's name, a path, a model's file).
"""

from __future__ import annotations

import json
import logging
import os
import re
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
# Line ends of every kind, terminal controls, marks that turn the reading direction, halves of surrogate pairs.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Formatter(logging.Formatter):
    """Text lines, or with `as_json` one JSON object per line with the fields of a request's line at its top level."""

    def __init__(self, as_json: bool = False, secrets: Iterable[str] = ()) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._as_json = as_json
        self._secrets = sorted({secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        line = self._json(record) if self._as_json else self._text(record)
        for secret in self._secrets:
            line = line.replace(secret, _HIDDEN)
        return line

    def _text(self, record: logging.LogRecord) -> str:
        """The message is one line; a traceback's lines follow, indented, so that none can pass for a record."""
        record.message = printable(record.getMessage())
        record.asctime = self.formatTime(record)
        lines = [self.formatMessage(record)]
        if record.exc_info:
            lines += self.formatException(record.exc_info).split("\n")
        if record.stack_info:
            lines += self.formatStack(record.stack_info).split("\n")
        return "\n  ".join([lines[0], *map(printable, lines[1:])])

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
        line = json.dumps(document, ensure_ascii=False, default=str)
        return _CONTROLS.sub(lambda found: f"\\u{ord(found.group()):04x}", line)  # all of them are inside of strings


def printable(text: str) -> str:
    """The text in one line: Python's escapes stand for what must not be printed."""
    return _CONTROLS.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


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
