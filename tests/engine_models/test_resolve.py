"""From MODEL_NAME to a directory: paths, caches, downloads, and what is said when there is none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ember.engine.errors import ModelError
from ember.engine.loading import download, resolve
from ember.engine.loading.resolve import Places, find_snapshot, resolve_model, resolve_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any, **__: Any) -> Path:
        raise AssertionError("a download was asked for")

    monkeypatch.setattr(download, "download", refuse)
    monkeypatch.setattr(resolve, "BAKED", tmp_path / "no-baked")
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no-cache"))


def snapshot(hub: Path, repository: str, ref: str | None = "main", commit: str = COMMIT) -> Path:
    directory = hub / repository / "snapshots" / commit
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"")
    if ref:
        (hub / repository / "refs").mkdir(exist_ok=True)
        (hub / repository / "refs" / ref).write_text(commit + "\n")
    return directory


def test_a_directory_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "config.json").write_text("{}")
    assert resolve_model(f"{tmp_path}/org/name") == tmp_path / "org" / "name"
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org/name") == Path("org/name")


def test_demo_is_the_one_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "DEMO", tmp_path)
    with pytest.raises(ModelError, match="demo"):
        resolve_model("demo")
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model("demo") == tmp_path


@pytest.mark.parametrize("repository", ["models--Org--Name", "models--org--name", "models--ORG--name"])
def test_platform_cache_letter_case_aside(tmp_path: Path, repository: str) -> None:
    expected = snapshot(tmp_path / "huggingface-cache" / "hub", repository)
    assert resolve_model("Org/Name", None, Places(base_path=str(tmp_path))) == expected


def test_revisions_by_branch_and_by_commit(tmp_path: Path) -> None:
    main = snapshot(tmp_path, "models--org--name")
    other = snapshot(tmp_path, "models--org--name", "v2", "f" * 40)
    places = Places(download_dir=str(tmp_path))
    assert resolve_model("org/name", None, places) == main
    assert resolve_model("org/name", "v2", places) == other
    assert resolve_model("org/name", "f" * 40, places) == other


def test_cache_without_refs_serves_its_single_snapshot(tmp_path: Path) -> None:
    only = snapshot(tmp_path, "models--org--name", None)
    assert resolve_model("org/name", None, Places(download_dir=str(tmp_path))) == only


def test_a_ref_names_a_commit_and_nothing_else(tmp_path: Path) -> None:
    directory = snapshot(tmp_path, "models--org--name", ref=None)
    refs = tmp_path / "models--org--name" / "refs"
    refs.mkdir()
    other = directory.rename(directory.with_name("elsewhere")).name
    for content in (f"../snapshots/{other}", f"../../models--org--name/snapshots/{other}", "..", "x" * 5000):
        (refs / "main").write_text(content)
        assert find_snapshot(tmp_path, "org/name", "main") is None
    (refs / "main").write_text(f"{other}\n")
    assert find_snapshot(tmp_path, "org/name", "main") == directory.with_name("elsewhere")
    (refs / "main").unlink()
    os.mkfifo(refs / "main")
    assert find_snapshot(tmp_path, "org/name", "main") is None


def test_a_download_that_was_cut_off_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = snapshot(tmp_path, "models--org--name")
    (directory / "model.safetensors").rename(directory / "first.safetensors")
    index = '{"weight_map": {"a": "first.safetensors", "b": "absent.safetensors"}}'
    (directory / "model.safetensors.index.json").write_text(index)
    monkeypatch.setattr(download, "download", lambda repository, cache, **_: cache / "taken-up")
    assert find_snapshot(tmp_path, "org/name", None) is None
    assert resolve_model("org/name", None, Places(download_dir=str(tmp_path))) == tmp_path / "taken-up"


def test_the_first_place_that_has_it_whole_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "BAKED", tmp_path / "baked")
    monkeypatch.chdir(tmp_path)
    places = Places(base_path=str(tmp_path / "volume"), download_dir=str(tmp_path / "cache"))
    hubs = [tmp_path / "baked", tmp_path / "volume" / "huggingface-cache" / "hub", tmp_path / "cache"]
    found = [snapshot(hub, "models--org--name") for hub in hubs]
    local = Path("org/name")
    local.mkdir(parents=True)
    (local / "config.json").write_text("{}")
    for expected in (local, *found):
        assert resolve_model("org/name", None, places) == expected
        (expected / "config.json").unlink()
        if expected == local:
            local.rmdir()


def test_a_baked_model_of_another_revision_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "BAKED", tmp_path / "baked")
    baked = snapshot(tmp_path / "baked", "models--org--name", "v1")
    cached = snapshot(tmp_path / "cache", "models--org--name", "v2", "f" * 40)
    places = Places(download_dir=str(tmp_path / "cache"))
    assert resolve_model("Org/Name", "v1", places) == baked
    assert resolve_model("org/name", "v2", places) == cached


def test_a_shell_of_the_right_name_does_not_hide_the_lowercased_one(tmp_path: Path) -> None:
    (tmp_path / "models--Org--Name" / "snapshots" / COMMIT).mkdir(parents=True)
    whole = snapshot(tmp_path, "models--org--name")
    assert find_snapshot(tmp_path, "Org/Name", None) == whole


def test_user_cache_follows_the_usual_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = snapshot(tmp_path / "home" / "hub", "models--org--name")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert resolve_model("org/name") == expected
    other = snapshot(tmp_path / "elsewhere", "models--org--name")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert resolve_model("org/name") == other


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", ["MODEL_NAME"]),
        ("/nope", ["/nope does not exist", "an existing directory, a *.gguf file or a Hugging Face id"]),
        ("./nope/model", ["does not exist"]),
        ("a/b/c", ["does not exist and is no Hugging Face id"]),
        ("org/../name", ["does not exist and is no Hugging Face id"]),
    ],
)
def test_names_that_cannot_be(name: str, words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        resolve_model(name)
    assert all(word in str(caught.value) for word in words)


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "weights").write_bytes(b"")
    with pytest.raises(ModelError, match="is a file"):
        resolve_model(str(tmp_path / "weights"))
    (tmp_path / "modules.json").write_text(
        '[{"idx": 0, "path": "", "type": "sentence_transformers.x.StaticEmbedding"}]'
    )
    with pytest.raises(ModelError, match=r"modules.json has the module '.*StaticEmbedding', which is not supported"):
        resolve_model(str(tmp_path))


def test_offline_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        resolve_model("org/name")


def test_a_tokenizer_needs_no_model(tmp_path: Path) -> None:
    directory = tmp_path / "tokenizer"
    directory.mkdir()
    with pytest.raises(ModelError, match=r"has no tokenizer\.json: it is not a tokenizer directory"):
        resolve_tokenizer(str(directory))
    (directory / "tokenizer.json").write_text("{}")
    assert resolve_tokenizer(str(directory)) == directory
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").write_text("{}")
    assert resolve_tokenizer("org/name", None, Places(download_dir=str(tmp_path / "hub"))) == snapshot
