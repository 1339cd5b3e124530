"""All that needs a GPU: `make gpu-check`, or a call of the carried folder (docs/gpu-check.md).

    python -m benchmarks.gpu_check [first] [second] [--parts tests engine ...] [--models ...] [--kernels ...]
                                   [--engine-parts ...] [--out DIRECTORY] [--seconds N] [--dry [--fill]]

Imports and the cache's key are checked first. Each part is a process with a limit of its own, and one that fails does
not stop the others. Rows are printed, and added to rows.jsonl in the output folder, when they are known; everything
printed is in log.txt, the table in table.md. `--dry` runs all of it without a GPU: kernels are compiled or found in the
cache and not run, and the demo model stands for the others.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TextIO

from benchmarks.gpu_check import environment
from benchmarks.gpu_check.parts import BATCHES, CALLS, DRY_FACTOR, ENGINE_PARTS, MISSES, PARTS, Choice, Job, jobs
from benchmarks.gpu_check.table import table
from benchmarks.rows import RowFile

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT.parent / "manifest.json"  # of a carried folder


def main() -> int:
    options = _parser().parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    rows = RowFile(out.resolve() / "rows.jsonl")
    failed = []
    with (out / "log.txt").open("a") as log, tempfile.TemporaryDirectory() as scratch:
        if not _check(rows, log, options.dry):
            return 1
        for name in options.calls or list(CALLS):
            call = CALLS[name]
            models = tuple(options.models or call.models)
            choice = Choice(models, tuple(options.engine_parts), tuple(options.kernels), is_dry=options.dry)
            ends = time.monotonic() + (options.seconds or call.seconds * (DRY_FACTOR if options.dry else 1))
            for part in [part for part in call.parts if part in options.parts]:
                assert rows.path is not None
                of_part = jobs(part, choice, rows.path, Path(scratch))
                failed += [job.name for job in of_part if not _run(job, log, ends)]
        misses = _misses(out)
        made = table(rows.read())
        (out / "table.md").write_text(f"{made}\n")
        _say(log, f"\n{made}\n\nin {out}; failed: {', '.join(failed) or 'nothing'}")
        if options.dry:
            _say(log, f"{len(misses)} binaries were not in the cache")
    return 1 if failed or (misses and not options.fill) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("calls", nargs="*", metavar="CALL", choices=[[], *CALLS], help=f"{', '.join(CALLS)}; both")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--models", nargs="+", choices=list(BATCHES), help="instead of each call's own")
    parser.add_argument("--engine-parts", nargs="+", choices=ENGINE_PARTS, default=list(ENGINE_PARTS[:-1]))
    parser.add_argument("--kernels", nargs="+", default=[], help="of python -m benchmarks.kernels; all of them")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-check-results")
    parser.add_argument("--seconds", type=int, help="a limit for each call, instead of its own")
    parser.add_argument("--dry", action="store_true", help="without a GPU; fails if a binary is not in the cache")
    parser.add_argument("--fill", action="store_true", help="of a dry run: what is not in the cache is no failure")
    return parser


def _check(rows: RowFile, log: TextIO, is_dry: bool) -> bool:
    """Whether the parts can run here. A cache that does not fit costs time alone."""
    if lacking := environment.missing():
        _say(log, f"gpu-check cannot start: these modules are missing: {'; '.join(lacking)}")
        return False
    described = environment.describe()
    _say(log, "\n".join(f"{name:<12} {value}" for name, value in described.items()))
    rows.add({"part": "environment", "date": time.strftime("%Y-%m-%d"), **described})
    if described["gpu"] == "none" and not is_dry:
        _say(log, "gpu-check needs an NVIDIA GPU that torch can use, and found none")
        return False
    problems = environment.fits(described, MANIFEST)
    if not problems and MANIFEST.exists():
        problems = [f"not in the cache: {miss}" for miss in environment.probe()]
    for problem in problems:
        _say(log, f"the carried cache does not fit, and kernels are compiled: {problem}")
    return True


def _run(job: Job, log: TextIO, ends: float) -> bool:
    """Run one process to its end, its limit, or the end of the call. Returns whether it ended well."""
    limit = min(job.seconds, ends - time.monotonic())
    if limit <= 0:
        _say(log, f"--- {job.name}: no time is left")
        return False
    _say(log, f"--- {job.name}, {limit:.0f} s at most")
    start = time.monotonic()
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", **job.variables}
    process = subprocess.Popen(
        job.command,
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    timer = threading.Timer(limit, os.killpg, (process.pid, signal.SIGKILL))  # and with it what it has started
    timer.start()
    for line in process.stdout:
        _say(log, line.rstrip("\n"))
    status = process.wait()
    timer.cancel()
    seconds = time.monotonic() - start
    how = "ok" if status == 0 else "its time was over" if seconds >= limit else f"FAILED with status {status}"
    _say(log, f"--- {job.name}: {how}, {seconds:.0f} s")
    return status == 0


def _misses(out: Path) -> list[str]:
    file = out / MISSES
    return file.read_text().splitlines() if file.exists() else []


def _say(log: TextIO, text: str) -> None:
    print(text, flush=True)
    log.write(f"{text}\n")
    log.flush()


if __name__ == "__main__":
    sys.exit(main())
