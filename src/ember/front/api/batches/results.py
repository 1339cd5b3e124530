"""The files of a batch's results, and what of them is there from an earlier run.

Each result is one line that is appended in one write. A run that was killed may have left part of a line at the end: it
is cut off, and its request runs again. A file is locked while a run writes it, by a lock that ends with its process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ember.front.api.batches.lines import key_of

_CHUNK = 2**16


class ResultsError(Exception):
    """The results cannot be written to this file. The message is one line for the person who named it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one request, or why there is none (`error`: its code and message)."""

    status: int
    request_id: str
    body: Any
    error: Mapping[str, str] | None = None

    @property
    def is_failure(self) -> bool:
        return self.error is not None or not 200 <= self.status < 300

    def line(self, custom_id: str) -> bytes:
        """The line of the result. Raises TypeError for a body that is not JSON."""
        response = None
        if self.error is None:
            response = {"status_code": self.status, "request_id": self.request_id, "body": self.body}
        result = {
            "id": f"batch_req_{uuid.uuid4().hex}",
            "custom_id": custom_id,
            "response": response,
            "error": None if self.error is None else dict(self.error),
        }
        return orjson.dumps(result, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE)


class ResultFile:
    """One file of results, open for appending."""

    def __init__(self, path: Path) -> None:
        """Open or create the file, lock it, and repair its end. Raises ResultsError."""
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ResultsError(f"{path} cannot be written: {error.strerror}") from None
        try:
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _cut_torn_line(self._descriptor)
        except BlockingIOError:
            self.close()
            raise ResultsError(f"{path} is being written by another run") from None
        except OSError as error:
            self.close()
            raise ResultsError(f"{path} cannot hold results: {error.strerror}") from None

    def results(self, places: Mapping[bytes, int]) -> dict[bytes, bool]:
        """The requests that have results in the file, each with whether it failed. `places` are the keys of the
        requests that may be there. Raises ResultsError for a line that is no result of them."""
        found: dict[bytes, bool] = {}
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                key, is_failure = _read_result(raw)
                if key is None or key not in places:
                    reason = "is no result" if key is None else "has a custom_id that the input lacks"
                    raise ResultsError(f"{self.path}: line {number} {reason}; name another file for the results")
                found[key] = is_failure
        return found

    def append(self, line: bytes) -> None:
        """Raises ResultsError, as for a full disk, where the line is not in the file then."""
        size = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._descriptor, size)
            raise ResultsError(f"{self.path} cannot be written: {error.strerror}") from None

    def flush(self) -> None:
        """Write the file from the page cache to the disk."""
        with suppress(OSError):  # of a pipe or a device
            os.fsync(self._descriptor)

    def remove_empty(self) -> None:
        """Remove the file if it has no results."""
        if not os.fstat(self._descriptor).st_size:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Flush the file, and end the lock."""
        if self._descriptor >= 0:
            self.flush()
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


def _read_result(raw: bytes) -> tuple[bytes | None, bool]:
    """The key of a result's request, None if the line is no result, and whether it failed."""
    try:
        given = orjson.loads(raw)
        response = given["response"]
        is_failure = response is None or not 200 <= response["status_code"] < 300
        return key_of(given["custom_id"]), is_failure
    except (ValueError, KeyError, TypeError, AttributeError):
        return None, True


def _cut_torn_line(descriptor: int) -> None:
    """Cut off what follows the last end of a line. Raises OSError."""
    end = size = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - _CHUNK)
        place = os.pread(descriptor, end - start, start).rfind(b"\n")
        if place >= 0:
            end = start + place + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)
