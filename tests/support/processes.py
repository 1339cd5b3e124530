"""Starts a worker as a subprocess for a test, and shows what it logged when the test fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
# What the tests' own environment may hold must not reach the worker.
_OURS = ("RUNPOD_", "MODEL", "VLLM_", "EMBER_", "API_KEY", "PORT", "HOST")


class Process:
    """`python <arguments>` in the repository's root, or in `cwd`. Killed when the block ends."""

    def __init__(
        self, *arguments: str, env: dict[str, str] | None = None, cwd: Path = ROOT, stdout: int = subprocess.PIPE
    ) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        inherited["PYTHONPATH"] = str(ROOT)
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed in __exit__)
        self.popen = subprocess.Popen(
            [sys.executable, *arguments],
            env={**inherited, **(env or {})},
            cwd=cwd,
            stdout=stdout,
            stderr=self._log,
            text=True,
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        out, _ = self.popen.communicate(timeout=30)
        if kind is not None:
            print(f"--- stdout of the worker\n{out}\n--- stderr of the worker\n{self.log()}")
        self._log.close()

    def log(self) -> str:
        """All of its stderr until now."""
        self._log.seek(0)
        return self._log.read()

    def wait_log(self, text: str, timeout: float = 30.0) -> None:
        """Wait until it has written `text` to stderr. Raises AssertionError."""
        deadline = time.monotonic() + timeout
        while text not in self.log():
            assert time.monotonic() < deadline and self.popen.poll() is None, f"it did not log {text!r}"
            time.sleep(0.02)

    def wait_children(self, timeout: float = 20.0) -> dict[int, str]:
        """Its child processes, once it has one."""
        deadline = time.monotonic() + timeout
        while not (found := children(self.popen.pid)):
            assert time.monotonic() < deadline and self.popen.poll() is None, "it has no child process"
            time.sleep(0.01)
        return found

    def terminate(self) -> None:
        self.popen.send_signal(signal.SIGTERM)

    def wait(self, timeout: float = 30.0) -> int:
        """The exit code. Raises subprocess.TimeoutExpired. Only for workers that print less than a pipe holds."""
        return self.popen.wait(timeout)

    def output(self, timeout: float = 60.0) -> str:
        """Its stdout, once it has ended."""
        out, _ = self.popen.communicate(timeout=timeout)
        return out


def url_of(server: Process, timeout: float = 20.0) -> str:
    """Where a server listens, from its log."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and server.popen.poll() is None:
        for line in server.log().splitlines():
            if "listening on http://" in line:
                return line.rpartition("listening on ")[2].strip()
        time.sleep(0.02)
    raise AssertionError("the server does not listen")


def children(pid: int) -> dict[int, str]:
    """The processes below `pid`, each with its command line."""
    found: dict[int, str] = {}
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
    wanted = {pid}
    for _ in range(8):
        wanted |= {child for child, parent in parents.items() if parent in wanted}
    for child in wanted - {pid}:
        try:
            found[child] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ").strip()
        except OSError:
            continue
    return found
