"""The container's health check, `python -m ember.health`. The exit status is 0 if healthy, else 1 with one line.

A server is asked over HTTP: it is healthy if it is ready or still loading. A worker on a queue has no port. It is
healthy while its engine process runs, since the worker exits when its engine has failed for good. The check imports
nothing else of the worker.
"""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Iterator
from itertools import dropwhile
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
    """Command lines of running processes without the interpreter and its flags: ["python", "-P", "-m", "ember.engine",
    "5"] is ["ember.engine", "5"]."""
    for entry in sorted(proc.glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            words = (entry / "cmdline").read_text().rstrip("\0").split("\0")
        except (OSError, IndexError):
            continue  # the process has ended
        if state in "ZX":
            continue
        if words and Path(words[0]).name.startswith("python"):
            words = words[1:]
            words = list(dropwhile(("-P", "-m").__contains__, words))
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
    """The port of `ember serve`: from its flag, its environment variable, or the default."""
    for word, following in zip(server, [*server[1:], ""], strict=True):
        if word == "--port":
            return int(following)
        if word.startswith("--port="):
            return int(word.partition("=")[2])
    return int(os.environ.get("PORT") or 8000)


if __name__ == "__main__":
    sys.exit(main())
