"""Makes the virtual environment: `python builder/environment.py VENV runtime|dev TORCH_INDEX`.

Run by the Makefile with the machine's own Python and nothing installed. torch comes first and by itself: the default
wheel carries several GB of CUDA libraries, so a machine without an NVIDIA GPU takes the CPU build.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)


def main(directory: str, kind: str, torch_index: str) -> int:
    if sys.version_info < OLDEST:
        print(
            f"ember needs Python {OLDEST[0]}.{OLDEST[1]} or newer, this is {sys.version.split()[0]}; "
            "choose another with `make PYTHON=python3.12 ...`",
            file=sys.stderr,
        )
        return 1
    python = Path(directory) / "bin" / "python"
    if not python.exists():
        print(f"creating {directory}")
        venv.create(directory, with_pip=True)
    constraints = ["-c", str(ROOT / "constraints.txt")]
    if not _has(python, "torch"):
        torch = next(line for line in (ROOT / "constraints.txt").read_text().split() if line.startswith("torch=="))
        print(f"installing {torch}")
        from_cpu_index = ["--index-url", torch_index, "--retries", "0", "--timeout", "20"]
        for_cpu = shutil.which("nvidia-smi") is None and _pip(python, torch, *from_cpu_index, quietly=True)
        if not for_cpu and not _pip(python, torch):
            return 1
    extra = "[dev]" if kind == "dev" else ""
    print(f"installing ember{extra} and what it needs")
    if not _pip(python, "-e", f"{ROOT}{extra}", *constraints):
        return 1
    # The first start should not be slower than the others, whatever the environment says about bytecode.
    subprocess.run([python, "-m", "compileall", "-q", "src", "kernels", "handler.py"], cwd=ROOT, check=False)
    return 0


def _has(python: Path, module: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([python, "-c", code], check=False).returncode == 0


def _pip(python: Path, *arguments: str, quietly: bool = False) -> bool:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, stderr=subprocess.DEVNULL if quietly else None, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
