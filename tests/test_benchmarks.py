"""The scripts of benchmarks/ start, and the directory they lie in hides no module of Python's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import _vocab_size
from ember.gguf import header
from tests.gguf_files.files import write_gguf

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


def test_the_vocabulary_of_a_gguf_file_is_counted_whatever_its_size(tmp_path):
    tokens = [f"token {number}" for number in range(header.MAX_ENTRIES + 1)]
    file = write_gguf(
        tmp_path / "model.gguf", {"tokenizer.ggml.tokens": tokens}, {"x": (np.ones(4, np.float32), "F32")}
    )
    assert _vocab_size(file) == len(tokens)
