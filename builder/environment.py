"""Create the virtual environment: `python builder/environment.py VENV runtime|dev TORCH_INDEX`.

The Makefile runs it with the machine's own Python and nothing installed. torch is installed first: its default wheel
has several GB of CUDA libraries, so a machine without an NVIDIA GPU gets the CPU build.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)


def _say(line: str) -> None:
    """Print a line to stderr, since the stdout of `make run` is only the worker's answer."""
    print(line, file=sys.stderr, flush=True)


def main(directory: str, kind: str, torch_index: str) -> int:
    if sys.version_info < OLDEST:
        return _fail(
            f"ember needs Python {OLDEST[0]}.{OLDEST[1]} or newer, this is {sys.version.split()[0]}; "
            "choose another with `make PYTHON=python3.12 ...`"
        )
    python = Path(directory) / "bin" / "python"
    if not _has_pip(python):
        problem = _make(Path(directory))
        if problem:
            return _fail(problem)
    constraints = ["-c", str(ROOT / "constraints.txt")]
    torch = next(line for line in (ROOT / "constraints.txt").read_text().split() if line.startswith("torch=="))
    installed = _version(python, "torch") or ""
    if installed.partition("+")[0] != torch.removeprefix("torch=="):  # 2.13.0+cpu is 2.13.0
        _say(f"installing {torch}")
        from_cpu_index = ["--index-url", torch_index, "--retries", "0", "--timeout", "20"]
        for_cpu = shutil.which("nvidia-smi") is None and _pip(python, torch, *from_cpu_index, quietly=True)
        if not for_cpu and not _pip(python, torch):
            return 1
    extra = "[dev]" if kind == "dev" else ""
    _say(f"installing ember{extra} and what it needs")
    if not _pip(python, "-e", f"{ROOT}{extra}", *constraints):
        return 1
    _compile(python)
    return 0


def _fail(message: str) -> int:
    _say(message)
    return 1


def _make(directory: Path) -> str | None:
    """Create the environment, replacing an incomplete one. Returns an error of one line, or None."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    advice = f"on Debian and Ubuntu: apt-get install {name}-venv; or choose another with `make PYTHON=python3.12 ...`"
    if any(importlib.util.find_spec(module) is None for module in ("venv", "ensurepip")):
        return f"{sys.executable} cannot make a virtual environment, it lacks ensurepip; {advice}"
    import venv

    is_half_made = (directory / "pyvenv.cfg").exists()  # other directories are not removed
    _say(f"creating {directory}" + (" again: there is no pip in it" if is_half_made else ""))
    try:
        venv.create(directory, with_pip=True, clear=is_half_made)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"{directory} could not be created: {error}; {advice}"
    return None


def _has_pip(python: Path) -> bool:
    """Whether the environment exists and is complete: pip is installed last."""
    if not python.exists():
        return False
    command = [str(python), "-c", "import pip"]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


def _version(python: Path, package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _pip(python: Path, *arguments: str, quietly: bool = False) -> bool:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, stderr=subprocess.DEVNULL if quietly else None, check=False).returncode == 0


def _compile(python: Path) -> None:
    """Compile bytecode, so that the first start is as fast as later ones, whatever PYTHONDONTWRITEBYTECODE says."""
    subprocess.run([python, "-m", "compileall", "-q", "src", "kernels", "handler.py"], cwd=ROOT, check=False)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
