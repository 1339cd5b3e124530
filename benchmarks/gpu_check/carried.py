"""Starts gpu-check from a folder that was carried to a machine with a GPU: `python3 run.py first --out DIRECTORY`.

builder/gpu_folder.py makes the folder and puts this file into it as run.py.
Only Python's library is used here. Wheels of packages that the machine lacks are unpacked into a temporary folder; the
cache is unpacked where it was made, since Triton's files name each other by their whole paths.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    manifest = json.loads((HERE / "manifest.json").read_text())
    project, cache = HERE / "project", Path(manifest["cache"])
    cache.mkdir(parents=True, exist_ok=True)
    with tarfile.open(HERE / "triton.tar.gz") as archive:
        archive.extractall(cache, filter="data")
    with tempfile.TemporaryDirectory() as site:
        unpacked = [wheel.name for wheel in sorted((HERE / "wheels").glob("*.whl")) if unpack(wheel, Path(site))]
        print(f"unpacked for this run: {', '.join(unpacked) or 'nothing'}", flush=True)
        paths = [site, str(project / "src"), str(project / "kernels"), str(project), os.environ.get("PYTHONPATH", "")]
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_PTXAS_PATH"}
        environment |= {"PYTHONPATH": os.pathsep.join(paths), "TRITON_CACHE_DIR": str(cache)}
        environment |= {"TRITON_STORE_BINARY_ONLY": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "benchmarks.gpu_check", *sys.argv[1:]]
        return subprocess.run(command, cwd=project, env=environment, check=False).returncode


def unpack(wheel: Path, site: Path) -> bool:
    """Put a wheel's package into `site` unless the machine has it. Returns whether it was put there."""
    name = wheel.name.split("-")[0]
    try:
        importlib.metadata.version(name)
        return False
    except importlib.metadata.PackageNotFoundError:
        zipfile.ZipFile(wheel).extractall(site)
        return True


if __name__ == "__main__":
    sys.exit(main())
