"""The lines of a batch's input: one request each, as `{"custom_id", "method", "url", "body"}`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ember.front.api.body import shown
from ember.untrusted_json import UntrustedJsonError, loads_strict

MAX_LINE_BYTES = 32 * 2**20
MAX_FAULTS = 100  # that are listed of one file
MAX_REQUESTS = 50_000  # of a batch that a server runs: OpenAI's limit
MAX_MODELS = 16  # whose names are kept of one file
MAX_URLS = 64  # the same
MAX_ID_CHARS = 512
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request. `url` is the path of a route."""

    number: int  # of the line, from 1
    custom_id: str
    url: str
    body: Any

    @property
    def key(self) -> bytes:
        return key_of(self.custom_id)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a line is no request. A file with such a line is not run."""

    number: int
    code: str
    message: str
    param: str | None = None

    def body(self) -> dict[str, Any]:
        return {"code": self.code, "line": self.number, "message": self.message, "param": self.param}


@dataclass(slots=True)
class Checked:
    """The requests of a whole input, and the lines that are none."""

    places: dict[bytes, int] = field(default_factory=dict)  # from `key_of` each custom_id to its line
    faults: list[Fault] = field(default_factory=list)  # the first `MAX_FAULTS`
    num_faults: int = 0
    models: set[str] = field(default_factory=set)  # the first `MAX_MODELS` that the requests name
    urls: dict[str, int] = field(default_factory=dict)  # the first `MAX_URLS`, each with its first line


def key_of(custom_id: str) -> bytes:
    """A short name of an id: the ids of a file of any size stay in memory."""
    return hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def check_file(
    path: Path,
    endpoint: str | None = None,
    max_requests: int | None = None,
    refuse_url: Callable[[str], str | None] = lambda url: None,
) -> Checked:
    """Read all lines once. With an `endpoint` every line must be for this path; beyond `max_requests` the rest is not
    read. `refuse_url` says why a url cannot be used. Raises OSError."""
    checked = Checked()
    for line in read_lines(path):
        fault = line if isinstance(line, Fault) else None
        if isinstance(line, BatchLine):
            if (earlier := checked.places.setdefault(line.key, line.number)) != line.number:
                message = f"The custom_id {shown(line.custom_id)} is that of line {earlier} too; each must be unique."
                fault = Fault(line.number, "duplicate_custom_id", message, "custom_id")
            elif endpoint is not None and line.url != endpoint:
                message = f"The url is {shown(line.url)}, but the batch is for {endpoint!r}."
                fault = Fault(line.number, "mismatched_endpoint", message, "url")
            elif line.url not in checked.urls:
                if (reason := refuse_url(line.url)) is not None:
                    fault = Fault(line.number, "invalid_url", reason, "url")
                elif len(checked.urls) < MAX_URLS:
                    checked.urls[line.url] = line.number
            model = line.body.get("model")
            if isinstance(model, str) and model and len(checked.models) < MAX_MODELS:
                checked.models.add(model)
        if fault is not None:
            checked.num_faults += 1
            checked.faults += [fault] if checked.num_faults <= MAX_FAULTS else []
        if max_requests is not None and len(checked.places) > max_requests:
            message = f"A batch has at most {max_requests} requests; this file has more."
            checked.faults.insert(0, Fault(line.number, "too_many_requests", message))
            checked.num_faults += 1
            break
    if not checked.places and not checked.num_faults:
        checked.num_faults = 1
        checked.faults.append(Fault(1, "empty_file", "The file has no requests."))
    return checked


def read_lines(path: Path) -> Iterator[BatchLine | Fault]:
    """The lines that are not blank. Raises OSError."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES:
                yield Fault(number, "line_too_long", f"A line has at most {MAX_LINE_BYTES} bytes.")
                return
            text = (raw.removeprefix(_BOM) if number == 1 else raw).strip()
            if text:
                yield _read(number, text)


def _read(number: int, text: bytes) -> BatchLine | Fault:
    try:
        given = loads_strict(text)
    except UntrustedJsonError as error:
        return Fault(number, "invalid_json_line", f"This line is not JSON: {error}")
    if not isinstance(given, dict):
        return Fault(number, "invalid_json_line", f"A line must be an object, got {shown(given)}.")
    custom_id, method, url = given.get("custom_id"), given.get("method", "POST"), given.get("url")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_ID_CHARS:
        message = f"custom_id must be a text of 1 to {MAX_ID_CHARS} characters, got {shown(custom_id)}."
        return Fault(number, "invalid_custom_id", message, "custom_id")
    if method != "POST":
        return Fault(number, "invalid_method", f"method must be 'POST', got {shown(method)}.", "method")
    if not isinstance(url, str) or not url.startswith("/"):
        message = f"url must be the path of a route, such as '/v1/chat/completions', got {shown(url)}."
        return Fault(number, "invalid_url", message, "url")
    body = given.get("body")
    if not isinstance(body, dict):
        return Fault(number, "invalid_body", f"body must be an object, got {shown(body)}.", "body")
    if body.get("stream"):
        return Fault(number, "invalid_body", "An answer in a batch cannot be a stream; leave `stream` out.", "stream")
    return BatchLine(number, custom_id, url, body)
