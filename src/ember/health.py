"""`python -m ember.health`: the container's health check. Exit status 0 while the worker is well, else 1 and a line.

A server is asked over HTTP: ready, or still loading, is well. A worker on a queue listens nowhere; it is well while its
engine's process runs, for the worker itself ends when its engine is gone for good. Imports nothing of the worker.
"""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_TIMEOUT = 4.0


def main(proc: Path = Path("/proc")) -> int:
    processes = list(command_lines(proc))
    server = next((line for line in processes if Path(line[0]).name == "ember" and line[1] == "serve"), None)
    problem = _ask(_port(server)) if server else _look(processes)
    if problem:
        print(problem)
    return 1 if problem else 0


def command_lines(proc: Path) -> Iterator[list[str]]:
    """Of the processes that run, each without its interpreter: ["-m", "ember.engine", "5"] is ["ember.engine", "5"]."""
    for entry in sorted(proc.glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            words = (entry / "cmdline").read_text().rstrip("\0").split("\0")
        except (OSError, IndexError):
            continue  # it has ended meanwhile
        if state in "ZX":
            continue
        if words and Path(words[0]).name.startswith("python"):
            words = words[1:]
            words = words[1:] if words[:1] == ["-m"] else words
        if words and words[0]:
            yield [words[0], *words[1:], ""]


def _look(processes: list[list[str]]) -> str | None:
    if any(line[0] == "ember.engine" for line in processes):
        return None
    return "the engine's process does not run"


def _ask(port: int) -> str | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)
    try:
        connection.request("GET", "/ping")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"nothing answers on port {port}: {error}"
    finally:
        connection.close()
    return None if status in (200, 204) else f"/ping answers {status}"


def _port(server: list[str]) -> int:
    """Where `ember serve` listens: its flag, its variable, its default."""
    for word, following in zip(server, [*server[1:], ""], strict=True):
        if word == "--port":
            return int(following)
        if word.startswith("--port="):
            return int(word.partition("=")[2])
    return int(os.environ.get("PORT") or 8000)


if __name__ == "__main__":
    sys.exit(main())
