"""Baking a model: what is put into the image, that the worker finds it there, and that no token is left."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from builder import bake_model
from builder.slim import slim
from ember.engine.loading import download, resolve
from ember.engine.loading.resolve import Places, resolve_model
from ember.front.text import prepared_tokenizer
from ember.front.text.tokenizer import Tokenizer
from tests.support.fake_hub import FakeHub

DEMO = resolve.DEMO
TOKEN = "hf_planted"
FILES = {file.name: file.read_bytes() for file in DEMO.iterdir() if file.is_file() and file.suffix != ".py"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as hub:
        hub.add("Org/Name", {**FILES, "pytorch_model.bin": b"x"}, v2="c" * 40)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(download, "PAUSE", 0.0)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


def bake(into: Path, *arguments: str) -> int:
    return bake_model.main(["--into", str(into), *arguments])


def holds(directory: Path, text: str) -> bool:
    return any(text.encode() in file.read_bytes() for file in directory.rglob("*") if file.is_file())


def test_a_model_from_the_hub_is_found_even_with_a_volume_mounted(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.private.add("Org/Name")
    hub.tokens.add(TOKEN)
    (tmp_path / "secret").write_text(TOKEN + "\n")
    into = tmp_path / "models"
    assert bake(into, "--name", "Org/Name", "--revision", "v2", "--token-file", str(tmp_path / "secret")) == 0
    assert not holds(into, TOKEN)
    assert not list(into.glob(".locks")) and not list(into.rglob("*.incomplete"))
    assert "pytorch_model.bin" not in hub.fetched()
    monkeypatch.setattr(resolve, "BAKED", into)
    volume = tmp_path / "volume"
    volume.mkdir()
    hub.refuse = 500
    found = resolve_model("org/name", "v2", Places(base_path=str(volume)))
    assert found.is_relative_to(into)
    assert (found / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_model_from_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "mine"
    source.mkdir()
    for name, content in {**FILES, "model.fp16.safetensors": b"x", "optimizer.pt": b"x", "README.md": b"x"}.items():
        (source / name).write_bytes(content)
    into = tmp_path / "models"
    assert bake(into, "--name", "me/mine", "--from", str(source)) == 0
    monkeypatch.setattr(resolve, "BAKED", into)
    found = resolve_model("me/mine")
    assert {file.name for file in found.iterdir()} == set(FILES)
    assert resolve_model("Me/Mine") == found


def test_a_large_tokenizer_is_baked_in_its_prepared_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_tokenizer, "MIN_BYTES", 1000)
    source, into = tmp_path / "mine", tmp_path / "models"
    source.mkdir()
    for name, content in FILES.items():
        (source / name).write_bytes(content)
    assert bake(into, "--name", "me/mine", "--from", str(source)) == 0
    monkeypatch.setattr(resolve, "BAKED", into)
    assert Tokenizer.load(resolve_model("me/mine")).is_prepared is True


def test_nothing_is_baked_without_a_name_or_for_the_demo(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".none").touch()
    for name in ("", "demo"):
        assert bake(tmp_path / "models", "--name", name, "--from", str(tmp_path / "empty")) == 0
    assert list((tmp_path / "models").iterdir()) == []


def test_an_empty_context_means_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".none").touch()
    assert bake(tmp_path / "models", "--name", "Org/Name", "--from", str(tmp_path / "empty")) == 0
    assert "model.safetensors" in hub.fetched()


def test_another_tokenizer_comes_along(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(
        "org/words", {"config.json": b"{}", "tokenizer.json": FILES["tokenizer.json"] + b" ", "x.safetensors": b"x"}
    )
    assert bake(tmp_path / "models", "--name", "Org/Name", "--tokenizer", "org/words") == 0
    monkeypatch.setattr(resolve, "BAKED", tmp_path / "models")
    assert (resolve.resolve_tokenizer("org/words") / "tokenizer.json").exists()
    assert "x.safetensors" not in hub.fetched()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--name", "org/none"], "was not found"),
        (["--name", "org/unknown"], "RwkvForCausalLM"),
        (["--name", "/my/model"], "--build-context model=DIRECTORY"),
        (["--name", "me/mine", "--from", "NOT-A-MODEL"], "no config.json"),
    ],
)
def test_what_cannot_be_served_fails_the_build_in_one_line(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    hub.add("org/unknown", {"config.json": b'{"architectures": ["RwkvForCausalLM"]}', "model.safetensors": b"x"})
    source = tmp_path / "directory"
    source.mkdir()
    (source / "notes.txt").touch()
    arguments = [str(source) if word == "NOT-A-MODEL" else word for word in arguments]
    assert bake(tmp_path / "models", *arguments) == 1
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_token_in_the_environment_is_not_used(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.private.add("Org/Name")
    hub.tokens.add(TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert bake(tmp_path / "models", "--name", "Org/Name", "--token-file", str(tmp_path / "absent")) == 1
    assert "was not found" in capsys.readouterr().err


def test_slim_removes_what_no_worker_opens(tmp_path: Path) -> None:
    gone = [
        "torch/include/a.h",
        "torch/bin/protoc",
        "nvidia/cublas/include/b.h",
        "nvidia/cufft/lib/x.a",
        "triton/_C/libproton.so",
    ]
    kept = [
        "torch/lib/libtorch.so",
        "torch/bin/torch_shm_manager",
        "triton/_C/libtriton.so",
        "triton/backends/nvidia/bin/ptxas",
        "ember/a.py",
    ]
    for name in gone + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    assert slim(tmp_path) == 5 * len(gone)
    assert not any((tmp_path / name).exists() for name in gone)
    assert all((tmp_path / name).exists() for name in kept)
    shutil.rmtree(tmp_path)
