"""A plugin for pytest: each test that fails is written and printed when it has failed, and the counts at the end.
Counts so far are printed after every `_OFTEN` tests.

A time limit then costs only the tests that had not run. EMBER_TEST_ROWS names the file of rows.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.rows import RowFile

_counts: Counter[str] = Counter()
_TEXT = 3000  # characters of a failure that are kept
_OFTEN = 50


def _file() -> RowFile:
    name = os.environ.get("EMBER_TEST_ROWS")
    return RowFile(Path(name) if name else None)


def _is_worker() -> bool:
    return "PYTEST_XDIST_WORKER" in os.environ


def pytest_runtest_logreport(report: Any) -> None:
    if _is_worker() or (report.when != "call" and report.passed):
        return
    _counts[report.outcome] += 1
    if report.failed:
        text = str(report.longrepr)[-_TEXT:]
        print(f"\nFAILED {report.nodeid}\n{text}", flush=True)
        _file().add({"part": "test", "name": report.nodeid, "outcome": report.outcome, "text": text})
    if _counts.total() % _OFTEN == 0:
        print(f"\n{', '.join(f'{count} {outcome}' for outcome, count in sorted(_counts.items()))}", flush=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not _is_worker():
        _file().add({"part": "tests", **{name: _counts[name] for name in ("passed", "failed", "skipped")}})
