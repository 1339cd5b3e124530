"""docs/api.md: reads its commands, sends them, and writes the page again with the answers that came.

A command is a block of `curl`, the answer is the block after it. What is different in every run is masked, and long
lists, texts and streams are cut; the page says how.
"""

from __future__ import annotations

import json
import re
import shlex
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ember import __version__

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
COLUMNS = 96
MAX_ITEMS, MAX_TEXT, MAX_EVENTS = 6, 78, 2

_COMMAND = re.compile(r"```sh\n(curl .*?)\n```\n(?:\n```(?:json|text)\n.*?\n```\n)?", re.DOTALL)
_FILE = re.compile(r"`([\w.]+)`:\n\n```json\n(.*?\n)```", re.DOTALL)
_ID = re.compile(r"\b([a-z]+(?:[-_][a-z]+)*[-_])?[0-9a-f]{24,}\b")
_TIME = range(1_600_000_000, 4_000_000_000)
_FINGERPRINT = re.compile(r"(ember-<version>-)[0-9a-f]{8}\b")
_LATEST = {"$RESPONSE": "resp_", "$FILE": "file-", "$BATCH": "batch_"}


@dataclass(frozen=True)
class Command:
    """What a line of curl says."""

    method: str
    path: str
    body: bytes | None
    content_type: str | None
    lines: str | None  # what the lines of the answer must contain, as `| grep` says
    fields: list[str] | None  # the fields of the answer that are shown, as `| jq -c '{id, status}'` says
    keys: bool  # the names of its fields are shown, as `| jq -c keys` says


def commands(text: str) -> Iterator[re.Match[str]]:
    yield from _COMMAND.finditer(text)


def parse(command: str, page: str) -> Command:
    """Reads `--json`, `-X`, `-F`, `| grep` and `| jq -c`. Raises ValueError at other options."""
    call, _, filters = command.replace("\\\n", " ").partition(" | ")
    words = iter(shlex.split(call)[1:])
    method, path, body, content_type = None, "", None, None
    form: list[str] = []
    for word in words:
        if word == "-X":
            method = next(words)
        elif word == "--json":
            body, content_type = next(words).encode(), "application/json"
        elif word == "-F":
            form.append(next(words))
        elif word.startswith("$URL"):
            path = word.removeprefix("$URL") or "/"
        else:
            raise ValueError(f"{word!r} in {command!r} is not read")
    if form:
        body, content_type = _form(form, dict(_FILE.findall(page)))
    options = shlex.split(filters)
    lines = options[1] if options[:1] == ["grep"] else None
    chosen = options[2] if options[:2] == ["jq", "-c"] else None
    fields = chosen.strip("{}").split(", ") if chosen and chosen != "keys" else None
    method = method or ("POST" if body is not None else "GET")
    return Command(method, path, body, content_type, lines, fields, keys=chosen == "keys")


def _form(fields: list[str], files: dict[str, str]) -> tuple[bytes, str]:
    parts = []
    for field in fields:
        name, _, value = field.partition("=")
        head, content = f'name="{name}"', value
        if value.startswith("@"):
            head, content = f'{head}; filename="{value[1:]}"', files[value[1:]]
        parts.append(f"--x\r\nContent-Disposition: form-data; {head}\r\n\r\n{content}\r\n")
    return ("".join(parts) + "--x--\r\n").encode(), "multipart/form-data; boundary=x"


class Client:
    """Sends commands, with the ids of earlier answers in the place of `$RESPONSE`, `$FILE` and `$BATCH`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.ids: dict[str, str] = {}

    def answer(self, command: Command) -> str:
        """The block of the answer, with the status where it is not 200."""
        path, body = command.path, command.body
        for variable, value in self.ids.items():
            path = path.replace(variable, value)
            body = body and body.replace(variable.encode(), value.encode())
        headers = {"Content-Type": command.content_type} if command.content_type else {}
        request = urllib.request.Request(self.url + path, body, headers, method=command.method)
        try:
            with urllib.request.urlopen(request, timeout=120) as got:
                status, content, kind = got.status, got.read().decode(), got.headers.get_content_type()
        except urllib.error.HTTPError as error:
            status, content, kind = error.code, error.read().decode(), error.headers.get_content_type()
        for variable, prefix in _LATEST.items():
            if found := re.search(rf'"id": ?"({prefix}\w+)"', content):
                self.ids[variable] = found[1]
        if not content:
            return f"HTTP {status}"
        head = "" if status == 200 else f"HTTP {status}\n"
        if command.lines is not None:
            return head + mask_text("\n".join(line for line in content.splitlines() if command.lines in line))
        if kind == "text/event-stream":
            return head + events(content)
        if kind == "application/json":
            told: Any = json.loads(content)
            if command.keys:
                told = sorted(told)
            elif command.fields is not None:
                told = {name: told.get(name) for name in command.fields}
            return head + layout(shown(told))
        return head + mask_text(content.strip())


def mask_text(text: str) -> str:
    text = _ID.sub(lambda found: f"{found[1] or ''}<id>", text).replace(__version__, "<version>")
    return _FINGERPRINT.sub(r"\1<id>", text)


def shown(value: Any) -> Any:
    """The value with masks for what changes, and cut where it is long."""
    if isinstance(value, dict):
        return {mask_text(key): shown(each) for key, each in value.items()}
    if isinstance(value, list):
        items = [shown(each) for each in value]
        return items if len(items) <= MAX_ITEMS else [*items[:3], f"<{len(items) - 3} more>"]
    if isinstance(value, str):
        text = mask_text(value)
        return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 20]}<{len(text) - MAX_TEXT + 20} more>"
    if isinstance(value, float):
        return "<number>" if value % 1 else value
    return "<time>" if isinstance(value, int) and value in _TIME else value


def events(text: str) -> str:
    """The first events of a stream with their data and the last; of named ones the names."""
    names = re.findall(r"^event: ?(.*)$", text, re.MULTILINE)
    if names:
        return "\n".join(f"event: {name}" for i, name in enumerate(names) if i == 0 or names[i - 1] != name)
    data = re.findall(r"^data: ?(.*)$", text, re.MULTILINE)
    lines = [f"data: {one if one == '[DONE]' else layout(shown(json.loads(one)))}" for one in data]
    if len(lines) > MAX_EVENTS + 1:
        lines[MAX_EVENTS:-1] = [f"<{len(lines) - MAX_EVENTS - 1} more>"]
    return "\n".join(lines)


def layout(value: Any, indent: int = 0, taken: int = 0) -> str:
    """JSON on one line where it fits in the page's columns."""
    line = json.dumps(value, ensure_ascii=False)
    if indent + taken + len(line) <= COLUMNS or not isinstance(value, dict | list) or not value:
        return line
    deep = indent + 2
    if isinstance(value, dict):
        inner = [f"{json.dumps(key)}: {layout(each, deep, len(key) + 5)}" for key, each in value.items()]
    else:
        inner = [layout(each, deep, 1) for each in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    body = ""
    for each in inner:  # as many on a line as fit
        last = body.rpartition("\n")[2]
        if body and "\n" not in each and last.startswith(" " * deep) and len(last) + len(each) + 2 <= COLUMNS:
            body += f", {each}"
        else:
            body += f"{',' if body else ''}\n{' ' * deep}{each}"
    return f"{opening}{body}\n{' ' * indent}{closing}"
