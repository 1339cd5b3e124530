"""The scripts of benchmarks/ start, and the directory they lie in hides no module of Python's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text())
START = """
import runpy, sys
script = sys.argv[1]
sys.path[0], sys.argv = script.rpartition("/")[0], [script, "--help"]
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as end:
    assert not end.code, end
import queue
assert queue.SimpleQueue, queue.__file__
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_starts(script: Path) -> None:
    done = subprocess.run([sys.executable, "-c", START, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
