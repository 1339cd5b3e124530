"""Boot on a GPU: from the start of `ember serve` to the answer of one token, several times from the page cache.

    python benchmarks/gpu_boot.py --model llama-3.1-8b|DIRECTORY [--runs 3] [--checkpoints DIRECTORY] [--rows FILE]

The seconds of every phase are those of the worker's own report (`EMBER_BOOT_REPORT`). `--dry` starts the demo model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this directory: its queue.py is not the library's

from benchmarks.boot import prepare_tokenizer, read_all, served  # noqa: E402
from benchmarks.rows import RowFile  # noqa: E402
from benchmarks.shapes import SHAPES, make_checkpoint  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="llama-3.1-8b", help=f"{', '.join(SHAPES)} or a directory")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--checkpoints", type=Path, default=None, help="where checkpoints are kept; else they are not")
    parser.add_argument("--rows", type=Path, default=None, metavar="FILE")
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    file = RowFile(options.rows)
    with tempfile.TemporaryDirectory() as scratch:
        files, model = ROOT / "src/ember/demo", "demo"
        if not options.dry:
            files = Path(options.model)
            if options.model in SHAPES:
                files = make_checkpoint(options.model, options.checkpoints or Path(scratch))
            model = str(files)
            prepare_tokenizer(files, is_plain=False)
        read_all(files)
        tokens = []
        for run in range(options.runs):
            report = Path(scratch) / f"report-{run}.json"
            command = [sys.executable, "-m", "ember", "serve", model, "--max-model-len", "2048"]
            answer = served(command, {"EMBER_BOOT_REPORT": str(report)})
            row = {"part": "boot", "model": options.model, "run": run, "answer": answer, **_marks(report)}
            tokens.append(row.get("first_token", answer))
            print(json.dumps(row), flush=True)
            file.add(row)
    print(f"process start to first token, median of {options.runs}: {statistics.median(tokens):.3f} s")


def _marks(report: Path) -> dict[str, Any]:
    """The moments and the phases of a boot, in seconds."""
    content = json.loads(report.read_text())
    phases = {f"{phase['process']} {phase['name']}": phase["end"] - phase["start"] for phase in content["phases"]}
    return {**content["marks"], "phases": {name: round(seconds, 3) for name, seconds in phases.items()}}


if __name__ == "__main__":
    main()
