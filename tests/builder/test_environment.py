"""What `make` does first: the virtual environment, also where one half exists or something is missing."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import venv
from pathlib import Path
from typing import Any

import pytest

from builder import environment

INDEX = "https://example.invalid/cpu"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Nothing is installed; each call of pip is noted."""
    calls: list[list[str]] = []

    def pip(python: Path, *arguments: str, quietly: bool = False) -> bool:
        calls.append(list(arguments))
        return True

    monkeypatch.setattr(environment, "_pip", pip)
    monkeypatch.setattr(environment, "_compile", lambda python: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)  # no nvidia-smi
    return calls


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment that needs no making."""
    monkeypatch.setattr(environment, "_has_pip", lambda python: True)
    monkeypatch.setattr(venv, "create", None)
    return tmp_path / "venv"


def test_without_ensurepip_one_line_says_what_to_install(
    tmp_path: Path, installed: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else find(name))
    assert environment.main(str(tmp_path / "venv"), "runtime", INDEX) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "-venv" in err and "PYTHON=" in err
    assert not (tmp_path / "venv").exists()
    assert not installed


def test_ensurepip_that_fails_is_one_line(
    tmp_path: Path, installed: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def create(*_: Any, **__: Any) -> None:
        raise subprocess.CalledProcessError(1, ["python", "-m", "ensurepip"], b"no\nwheels")

    monkeypatch.setattr(venv, "create", create)
    assert environment.main(str(tmp_path / "venv"), "runtime", INDEX) == 1
    creating, problem = capsys.readouterr().err.splitlines()
    assert creating.startswith("creating ") and "python3" in problem


def test_a_half_made_environment_is_made_again(tmp_path: Path, installed: list[Any]) -> None:
    directory = tmp_path / "venv"
    venv.create(directory, with_pip=False)
    (directory / "left-over").touch()
    assert (directory / "bin" / "python").exists()
    assert environment.main(str(directory), "runtime", INDEX) == 0
    assert environment._has_pip(directory / "bin" / "python")
    assert not (directory / "left-over").exists()
    assert installed


def test_a_directory_that_is_no_environment_keeps_its_files(
    tmp_path: Path, installed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(environment, "_version", lambda python, package: None)
    monkeypatch.setattr(venv, "create", lambda directory, **options: seen.update(options))
    (tmp_path / "thesis.tex").touch()
    assert environment.main(str(tmp_path), "runtime", INDEX) == 0
    assert not seen["clear"]


@pytest.mark.parametrize(
    ("version", "again"), [("2.0.0", True), (None, True), ("PINNED", False), ("PINNED+cpu", False)]
)
def test_torch_is_installed_when_its_pin_changes(
    whole: Path, installed: list[list[str]], monkeypatch: pytest.MonkeyPatch, version: str | None, again: bool
) -> None:
    pin = next(
        line for line in (environment.ROOT / "constraints.txt").read_text().split() if line.startswith("torch==")
    )
    version = version and version.replace("PINNED", pin.removeprefix("torch=="))
    monkeypatch.setattr(environment, "_version", lambda python, package: version)
    assert environment.main(str(whole), "runtime", INDEX) == 0
    calls = [call for call in installed if call[0].startswith("torch==")]
    assert [call[:3] for call in calls] == ([[pin, "--index-url", INDEX]] if again else [])


def test_the_version_of_what_is_installed() -> None:
    import sys

    python = Path(sys.executable)
    assert environment._version(python, "pytest") == pytest.__version__
    assert environment._version(python, "no-such-package") is None
    assert environment._has_pip(Path("/no/such/python")) is False
