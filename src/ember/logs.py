"""The log: one line per record on stderr, as text or as JSON, with the request's id and without secrets.

Prompts and answers are not logged anywhere. Code that has keys and tokens must not log them; if one is in a message
all the same (of a library, for example), it is replaced here. Line breaks and terminal controls are escaped here too,
since values from outside may contain them (a worker's name, a path, a model's file).
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
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from ember.settings import Settings
    from ember.wire import Configure

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)  # of the current request

_SECRET_VARIABLES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "RUNPOD_AI_API_KEY",
    "API_KEY",
    "VLLM_API_KEY",
    "ADMIN_API_KEY",
)
_SHORTEST_SECRET = 6  # characters; a shorter secret would match inside ordinary words
_HIDDEN = "(hidden)"
# Line breaks of every kind, terminal controls, marks that change the reading direction, unpaired surrogates.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Formatter(logging.Formatter):
    """Formats records as text, or with `as_json` as JSON objects that have the fields of a request at the top level."""

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
        """The message as one line. The lines of a traceback follow, indented, so that none looks like a record."""
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
        return _CONTROLS.sub(lambda found: f"\\u{ord(found.group()):04x}", line)  # all of them are inside strings


def printable(text: str) -> str:
    """The text in one line, with line breaks and controls replaced by Python's escapes."""
    return _CONTROLS.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def set_up(settings: Settings) -> None:
    """Configure logging to stderr with LOG_LEVEL and LOG_FORMAT. A second call replaces the first configuration."""
    _write(settings.log_level, settings.log_format, secrets_of(settings))


def set_up_engine(configure: Configure) -> None:
    """Configure the engine's log like the front's. Libraries log there from warnings on, as they did before."""
    secrets = _secrets_of_environment(os.environ)
    if configure.hf_token is not None:
        secrets.add(configure.hf_token)
    level = logging.getLevelNamesMapping()[configure.log_level.upper()]
    _write(max(level, logging.WARNING), configure.log_format, secrets)
    logging.getLogger("ember").setLevel(level)


def _write(level: int | str, form: str, secrets: Iterable[str]) -> None:
    handler = logging.StreamHandler(_standard_error())
    handler.setFormatter(Formatter(form == "json", secrets))
    logging.basicConfig(level=level.upper() if isinstance(level, str) else level, handlers=[handler], force=True)


def _standard_error() -> TextIO:
    """Standard error by a descriptor of its own. During the boot the one that libraries write to leads elsewhere at
    times (`front.text.panics`), and a line that says why the boot failed must not wait for its return."""
    try:
        descriptor = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # replaced by a stream in memory, or closed
        return sys.stderr
    return open(os.dup(descriptor), "w", encoding=sys.stderr.encoding, errors="backslashreplace")


def secrets_of(settings: Settings, environ: Mapping[str, str] = os.environ) -> set[str]:
    """All keys and tokens that must not be printed: those of the settings and those of the platform's variables."""
    found = {key.get_secret_value() for key in (*settings.api_key, *settings.admin_api_key)}
    if settings.hf_token is not None:
        found.add(settings.hf_token.get_secret_value())
    return found | _secrets_of_environment(environ)


def _secrets_of_environment(environ: Mapping[str, str]) -> set[str]:
    values = [environ.get(name, "") for name in _SECRET_VARIABLES]
    return {part.strip() for value in values for part in [value, *value.split(",")]} - {""}
