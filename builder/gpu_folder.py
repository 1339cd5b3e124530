"""Make the folder that is carried to a machine with a GPU: `python -m builder.gpu_folder FOLDER` (docs/gpu-check.md).

It holds the project, wheels of what such a machine lacks, and a Triton cache with every binary that gpu-check needs,
compiled here without a GPU. Triton's own files are part of the cache's keys, so this runs in a Python like that
machine's (benchmarks/gpu_check/machine.txt). Binaries of an earlier build are used again where their keys are the
same; `--fresh` compiles all of them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path("/tmp/ember-gpu-check/triton")  # the same there as here
MAX_BYTES = 62 << 20  # of the folder and a checkout that is carried with it, which fit an upload of 64 MiB
# What machines with torch and transformers often lack. Versions are those of requirements.lock, and of constraints.txt
# for what tests alone import.
PACKAGES: tuple[str, ...] = (
    "msgspec",
    "llguidance",
    "orjson",
    "pydantic",
    "pydantic-core",
    "pydantic-settings",
    "annotated-types",
)
PACKAGES += ("typing-inspection", "python-dotenv", "prometheus-client", "gguf")
PLATFORMS = ("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_28_x86_64", "manylinux_2_31_x86_64")
CAPABILITY = "90"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fresh", action="store_true", help="without the binaries of an earlier build")
    options = parser.parse_args()
    folder = options.folder.resolve()
    if options.fresh:
        shutil.rmtree(CACHE, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "wheels").mkdir(parents=True)
    _copy_project(folder / "project")
    _download(folder / "wheels")
    shutil.copy(ROOT / "benchmarks/gpu_check/carried.py", folder / "run.py")
    variables = _variables(folder / "project")
    _describe(folder / "manifest.json", variables)
    is_filled = _bake(folder, variables)
    size, checkout = _size(folder), _size(folder / "project")
    count = len(list(CACHE.rglob("*.cubin")))
    print(f"{folder}: {size / 2**20:.1f} MiB, {count} binaries in the cache; the checkout: {checkout / 2**20:.1f} MiB")
    is_small = size + checkout <= MAX_BYTES
    if not is_small:
        limit = f"{MAX_BYTES >> 20} MiB"
        print(f"folder and checkout have more than {limit}; --fresh leaves old binaries out", file=sys.stderr)
    if not is_filled:
        print("a part failed while the cache was filled: binaries may be missing in it", file=sys.stderr)
    return 0 if is_filled and is_small else 1


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _copy_project(project: Path) -> None:
    """The files under version control, and those that would be."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in names:
        if name and (ROOT / name).is_file():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, project / name)


def _download(wheels: Path) -> None:
    pins = [f"{name}=={versions()[name]}" for name in PACKAGES]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.12", "--implementation", "cp"]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    subprocess.run([*command, "--dest", str(wheels), *pins], check=True)


def versions() -> dict[str, str]:
    """The pinned version of each package."""
    pins = [(ROOT / name).read_text().split() for name in ("constraints.txt", "requirements.lock")]
    pairs = [pin.partition("==") for pin in chain(*pins)]
    return {name: version for name, _, version in pairs if version}


def _variables(project: Path) -> dict[str, str]:
    paths = [str(project / name) for name in ("kernels", "src", "")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TRITON_CACHE_DIR": str(CACHE)}
    variables.pop("TRITON_PTXAS_PATH", None)
    return variables | {"TRITON_STORE_BINARY_ONLY": "1"}


def _describe(manifest: Path, variables: dict[str, str]) -> None:
    """Write what the keys depend on, and where the cache has to lie."""
    command = "import json; from benchmarks.gpu_check.environment import describe; print(json.dumps(describe()))"
    run = [sys.executable, "-c", command]
    manifest.write_text(subprocess.run(run, env=variables, check=True, capture_output=True, text=True).stdout)


def _bake(folder: Path, variables: dict[str, str]) -> bool:
    """Fill the cache: all that typical models launch, then all that tests and benchmarks ask for, which is the first
    part of a dry run. Returns whether everything in it passed."""
    command = [sys.executable, "-m", "ember_kernels.compile", "--capabilities", CAPABILITY, "--typical", "--launchers"]
    subprocess.run(command, env=variables, check=True)
    _pack(folder / "triton.tar.gz")
    out = folder.with_name(f"{folder.name}-bake")
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, str(folder / "run.py"), "--dry", "--fill", "--out", str(out)]
    done = subprocess.run([*command, "--parts", "tests", "sweep", "kernels"], check=False)
    _pack(folder / "triton.tar.gz")
    return done.returncode == 0


def _pack(archive: Path) -> None:
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(CACHE, ".")


if __name__ == "__main__":
    sys.exit(main())
