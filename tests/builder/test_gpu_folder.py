"""The folder that is carried to a machine with a GPU: what it holds, and how it starts there."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from benchmarks.gpu_check import environment, parts
from builder import gpu_folder

ROOT = Path(__file__).resolve().parents[2]


def _wheel(wheels: Path, name: str) -> None:
    with zipfile.ZipFile(wheels / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "VALUE = 'carried'")
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")


def test_the_folder_starts_with_its_own_project_cache_and_missing_packages(tmp_path: Path) -> None:
    folder, cache = tmp_path / "folder", tmp_path / "cache"
    package = folder / "project" / "benchmarks" / "gpu_check"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text(
        "import json, os, sys, pytest, carried_package\n"
        "says = sys.argv[1:], os.environ['TRITON_CACHE_DIR'], 'TRITON_PTXAS_PATH' in os.environ\n"
        "print(json.dumps([*says, carried_package.VALUE, hasattr(pytest, 'VALUE'), os.getcwd()]))\n"
        "sys.exit(7)\n"
    )
    (folder / "wheels").mkdir()
    _wheel(folder / "wheels", "carried_package")
    _wheel(folder / "wheels", "pytest")  # the machine has it, and keeps its own
    (tmp_path / "binary").write_text("compiled")
    with tarfile.open(folder / "triton.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "binary", "./key/binary")
    (folder / "manifest.json").write_text(json.dumps({"cache": str(cache)}))
    (folder / "run.py").write_text((ROOT / "benchmarks/gpu_check/carried.py").read_text())
    command = [sys.executable, str(folder / "run.py"), "first", "--dry"]
    environment = {**os.environ, "TRITON_PTXAS_PATH": "/elsewhere/ptxas"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == [["first", "--dry"], str(cache), False, "carried", False, str(folder / "project")]
    assert (cache / "key" / "binary").read_text() == "compiled"


def test_the_project_in_the_folder_is_what_is_under_version_control(tmp_path: Path) -> None:
    gpu_folder._copy_project(tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"pyproject.toml", "src/ember/demo/model.safetensors", "benchmarks/gpu_check/__main__.py"} <= names
    assert not [name for name in names if name.startswith((".venv", "build/", ".git/")) or name.endswith(".so")]


def test_every_carried_package_has_a_version() -> None:
    assert set(gpu_folder.PACKAGES) <= set(gpu_folder.versions())


def _imported(file: Path, seen: dict[Path, set[str]]) -> None:
    """Fill `seen` with the packages that a test's file imports, and those that do so whom it imports."""
    if file in seen or not file.exists():
        return
    packages = seen[file] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Expr) and "importorskip" in ast.unparse(node):
            (wanted,) = re.findall(r"'(\w+)'", ast.unparse(node))
            if wanted not in CHECKED:  # the rest is skipped on such a machine
                return
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            packages.add(name.partition(".")[0])
            _imported((ROOT / name.replace(".", "/")).with_suffix(".py"), seen)


CHECKED = {"torch", "triton", *environment.MODULES}


def test_tests_for_a_gpu_import_what_is_looked_for_there_before_they_start() -> None:
    seen: dict[Path, set[str]] = {}
    for folder in parts.TESTS:
        for file in (ROOT / folder).glob("*.py"):
            _imported(file, seen)
    own = {"ember", "ember_kernels", "ember_cpu", "tests", "benchmarks", "builder", *sys.stdlib_module_names}
    needed = {name: file.name for file, names in seen.items() for name in names - own}
    assert {"torch", "gguf", "tokenizers"} <= needed.keys()
    assert not {name: file for name, file in needed.items() if name not in CHECKED}
