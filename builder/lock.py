"""Write requirements.lock: the exact versions of all packages that the image installs, except torch. transformers is
among them, for the models that it runs.

    python -m builder.lock

The versions are those that pip would install for pyproject.toml's dependencies under constraints.txt. torch and the
packages of its build (triton, CUDA libraries) depend on the image's arguments and are left out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
_TORCHS_OWN = ("torch", "triton", "nvidia-", "cuda-")
_HEAD = "# Everything the image installs beside torch; made by `make lock`.\n"


def main() -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["transformers"]]
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        choices = ["--dry-run", "--ignore-installed", "--only-binary=:all:", "--target", directory, "--quiet"]
        command = [sys.executable, "-m", "pip", "install", *choices, "--report", str(report)]
        subprocess.run([*command, "-c", str(ROOT / "constraints.txt"), *wanted], check=True)
        packages = json.loads(report.read_text())["install"]
    LOCK.write_text(render({entry["metadata"]["name"]: entry["metadata"]["version"] for entry in packages}))
    return 0


def render(versions: dict[str, str]) -> str:
    """The content of the file, sorted by name."""
    kept = {name.lower().replace("_", "-"): version for name, version in versions.items()}
    lines = [f"{name}=={version}" for name, version in sorted(kept.items()) if not name.startswith(_TORCHS_OWN)]
    return _HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
