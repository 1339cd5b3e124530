"""Downloads from a Hub on this machine: what is fetched, how a broken one goes on, and what is said when it fails."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from ember.engine.core.prediction import Prediction, Target, predict
from ember.engine.errors import ModelError
from ember.engine.loading import download as downloading
from ember.engine.loading import resolve
from ember.engine.loading.files import weight_files
from ember.engine.loading.resolve import Places, resolve_model, resolve_tokenizer
from ember.wire import Configure
from tests.engine_models.tiny import make_tiny
from tests.support.fake_hub import FakeHub

WEIGHTS = os.urandom(3 << 20)
# Each other than the rest: files of the same content are fetched once.
SMALL = {"config.json": b"{}", "tokenizer.json": b"{ }", "tokenizer_config.json": b"{  }", "merges.txt": b"a b"}
SHARDS = {f"model-{i}-of-4.safetensors": bytes([i]) * 200_000 for i in range(1, 5)}
INDEX = json.dumps({"weight_map": {f"w{i}": name for i, name in enumerate(SHARDS)}}).encode()

OUTSIDE = b'{"weight_map": {"a": "../../x.safetensors"}}'


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with FakeHub() as hub:
        point_at(monkeypatch, hub.url)
        for name in (*resolve._HOME, "HF_HUB_OFFLINE", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
        monkeypatch.setattr(downloading, "PAUSE", 0.0)
        yield hub


def point_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def places(tmp_path: Path, **more: Any) -> Places:
    return Places(download_dir=str(tmp_path / "cache"), **more)


def fails(tmp_path: Path, name: str = "org/name", revision: str | None = None, **more: Any) -> str:
    with pytest.raises(ModelError) as caught:
        resolve_model(name, revision, places(tmp_path, **more))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_one_form_of_the_weights_is_fetched(hub: FakeHub, tmp_path: Path) -> None:
    unwanted = {
        "pytorch_model.bin": b"x",
        "pytorch_model.bin.index.json": b"{}",
        "model.fp16.safetensors": b"x",
        "consolidated.safetensors": b"x",
        "name-Q4_K_M.gguf": b"x",
        "onnx/model.onnx": b"x",
        "onnx/config.json": b"{}",
        "original/params.json": b"{}",
        "README.md": b"x",
        ".gitattributes": b"x",
    }
    hub.add("org/name", {**unwanted, **SMALL, **SHARDS, "model.safetensors.index.json": INDEX})
    directory = resolve_model("org/name", None, places(tmp_path))
    assert hub.fetched() == {*SMALL, *SHARDS, "model.safetensors.index.json"}
    for name, content in SHARDS.items():
        assert (directory / name).read_bytes() == content


def test_code_is_fetched_if_it_may_run(hub: FakeHub, tmp_path: Path) -> None:
    code = {"modeling_own.py": b"pass", "inference/modeling_other.py": b"pass "}
    hub.add("org/own", {**SMALL, **code, "model.safetensors": WEIGHTS})
    for place, with_code in ((tmp_path / "without", False), (tmp_path / "with", True)):
        found = resolve_model("org/own", None, places(place, with_code=with_code))
        assert (found / "modeling_own.py").exists() == with_code and not (found / "inference").exists()


def test_a_whole_file_is_fetched_whatever_an_index_says(hub: FakeHub, tmp_path: Path) -> None:
    hub.add("org/name", {**SMALL, **SHARDS, "model.safetensors": WEIGHTS, "model.safetensors.index.json": INDEX})
    directory = resolve_model("org/name", None, places(tmp_path))
    assert hub.fetched() == {*SMALL, "model.safetensors", "model.safetensors.index.json"}
    assert weight_files(directory) == [directory / "model.safetensors"]


@pytest.mark.timeout(30)
def test_files_are_fetched_side_by_side(hub: FakeHub, tmp_path: Path) -> None:
    hub.together = len(SHARDS)  # one after the other would wait for ever
    hub.add("org/name", {**SMALL, **SHARDS, "model.safetensors.index.json": INDEX})
    resolve_model("org/name", None, places(tmp_path))
    assert hub.fetched() >= set(SHARDS)


def test_what_was_fetched_is_found_without_the_hub(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/name", {**SMALL, "model.safetensors": WEIGHTS}, v1="c" * 40)
    first = resolve_model("org/name", None, places(tmp_path))
    tagged = resolve_model("org/name", "v1", places(tmp_path))
    assert first == tagged
    hub.refuse = 500
    asked = len(hub.requests)
    assert resolve_model("org/name", None, places(tmp_path)) == first
    assert resolve_model("ORG/name", "v1", places(tmp_path)) == first
    assert len(hub.requests) == asked


def test_a_connection_that_breaks_goes_on_where_it_stopped(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 18)  # what is written at a time, 10 MB without this
    hub.add("org/name", {**SMALL, "model.safetensors": WEIGHTS})
    hub.cut = [1 << 20, 1 << 20]
    directory = resolve_model("org/name", None, places(tmp_path))
    assert (directory / "model.safetensors").read_bytes() == WEIGHTS
    assert len(hub.ranges) == 2 and 0 < hub.ranges[0] < hub.ranges[1] <= 2 << 20


def test_a_download_goes_on_with_the_files_that_are_missing(hub: FakeHub, tmp_path: Path) -> None:
    hub.add("org/name", {**SMALL, **SHARDS, "model.safetensors.index.json": INDEX})
    directory = resolve_model("org/name", None, places(tmp_path))
    (directory / "model-3-of-4.safetensors").resolve().unlink()
    (directory / "model-3-of-4.safetensors").unlink()
    hub.requests.clear()
    assert resolve_model("org/name", None, places(tmp_path)) == directory
    assert hub.fetched() == {"model-3-of-4.safetensors"}


def test_weights_of_modules_of_sentence_transformers_are_fetched_too(hub: FakeHub, tmp_path: Path) -> None:
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in
               (("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))]  # fmt: skip
    files = {
        "modules.json": json.dumps(modules).encode(),
        "1_Pooling/config.json": b'{"pooling_mode_cls_token": true}',
        "2_Dense/config.json": b'{"in_features": 1, "out_features": 1}',
        "2_Dense/model.safetensors": WEIGHTS[:1000],
        "2_Dense/pytorch_model.bin": b"pickled",
        "onnx/model.safetensors": b"of another program",
    }
    hub.add("org/name", {**SMALL, "model.safetensors": WEIGHTS, **files})
    directory = resolve_model("org/name", None, places(tmp_path))
    assert hub.fetched() == {*SMALL, "model.safetensors", *files} - {
        "2_Dense/pytorch_model.bin",
        "onnx/model.safetensors",
    }
    (directory / "2_Dense/model.safetensors").resolve().unlink()
    (directory / "2_Dense/model.safetensors").unlink()
    hub.requests.clear()
    assert resolve_model("org/name", None, places(tmp_path)) == directory
    assert hub.fetched() == {"2_Dense/model.safetensors"}


def test_a_model_that_cannot_be_served_is_refused_before_its_weights(hub: FakeHub, tmp_path: Path) -> None:
    hub.add("org/name", {**SMALL, "model.safetensors": WEIGHTS})

    def check(directory: Path) -> None:
        assert (directory / "config.json").exists() and (directory / "tokenizer.json").exists()
        raise ModelError("not this one")

    with pytest.raises(ModelError, match="not this one"):
        resolve_model("org/name", None, places(tmp_path), check)
    assert hub.fetched() == set(SMALL)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"config.json": b"{}", "model.onnx": b"x"}, "weights are .onnx"),
        ({"config.json": b"{}", "name.onnx": b"x", "flax_model.msgpack": b"x"}, "weights are .msgpack, .onnx"),
        ({"config.json": b"{}", "mmproj-F16.gguf": b"x"}, "no *.gguf files of a language model"),
        ({"config.json": b"{}", "adapter_model.safetensors": b"x"}, "LoRA adapter"),
        ({"config.json": b"{}"}, "has no weights"),
        ({"model.safetensors": b"x"}, "has no config.json"),
        ({"config.json": b"{}", "model.safetensors.index.json": b"{}"}, "no weight_map"),
        ({"config.json": b"{}", "model.safetensors.index.json": INDEX}, "lacks model-1-of-4.safetensors"),
        ({"config.json": b"{}", "a.safetensors": b"x", "model.safetensors.index.json": INDEX}, "the index is stale"),
        ({"config.json": b"{}", "model.safetensors.index.json": OUTSIDE}, "'../../x.safetensors', which is no file"),
    ],
)
def test_repositories_without_usable_weights(hub: FakeHub, tmp_path: Path, files: dict[str, bytes], says: str) -> None:
    hub.add("org/name", files)
    message = fails(tmp_path)
    assert says in message and "org/name" in message


def test_a_tokenizer_comes_without_weights(hub: FakeHub, tmp_path: Path) -> None:
    hub.add("org/name", {**SMALL, "model.safetensors": WEIGHTS})
    directory = resolve_tokenizer("org/name", None, places(tmp_path))
    assert (directory / "tokenizer.json").exists()
    assert hub.fetched() == set(SMALL)


def test_progress_is_a_line_now_and_then(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "REPORT_SECONDS", 0.05)
    monkeypatch.setattr("sys.stderr", io.StringIO())  # no terminal
    hub.add("org/name", {**SMALL, "model.safetensors": WEIGHTS})
    hub.delay = 0.01
    lines: list[str] = []
    resolve_model("org/name", None, places(tmp_path, say=lines.append))
    assert lines[0].startswith("downloading org/name: 1 weight file, 3.1 MB, to ")
    assert lines[-1].startswith("downloaded org/name: 3.1 MB in ")
    assert all(" of 3.1 MB (" in line for line in lines[1:-1])
    assert len(lines) > 2  # how a rate is told: test_progress.py (the library writes pieces larger than this file)


# ------------------------------------------------------------------ where it goes


def test_a_mounted_volume_keeps_the_download(hub: FakeHub, tmp_path: Path) -> None:
    hub.add("org/name", {**SMALL, "model.safetensors": WEIGHTS})
    volume = tmp_path / "volume"
    volume.mkdir()
    directory = resolve_model("org/name", None, Places(base_path=str(volume)))
    assert directory.is_relative_to(volume / "huggingface-cache" / "hub")


def test_without_a_volume_the_users_cache_takes_it(hub: FakeHub, tmp_path: Path) -> None:
    hub.add("org/name", {**SMALL, "model.safetensors": WEIGHTS})
    directory = resolve_model("org/name", None, Places(base_path=str(tmp_path / "not-mounted")))
    assert directory.is_relative_to(tmp_path / "user" / "huggingface" / "hub")


def test_the_users_own_choice_beats_the_volume(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/name", {**SMALL, "model.safetensors": WEIGHTS})
    (tmp_path / "volume").mkdir()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    directory = resolve_model("org/name", None, Places(base_path=str(tmp_path / "volume")))
    assert directory.is_relative_to(tmp_path / "home" / "hub")


# ------------------------------------------------------------------ what is said


def test_not_found(hub: FakeHub, tmp_path: Path) -> None:
    message = fails(tmp_path)
    assert (
        "org/name was not found" in message and "MODEL_NAME" in message and "set HF_TOKEN if it is private" in message
    )
    assert "an HF_TOKEN that may read it" in fails(tmp_path, token="hf_valid")


def test_revision_not_found(hub: FakeHub, tmp_path: Path) -> None:
    hub.add("org/name", {**SMALL, "model.safetensors": WEIGHTS})
    message = fails(tmp_path, revision="v9")
    assert "no revision 'v9'" in message and "MODEL_REVISION" in message


def test_gated(hub: FakeHub, tmp_path: Path) -> None:
    hub.add("org/name", {**SMALL, "model.safetensors": WEIGHTS})
    hub.gated.add("org/name")
    message = fails(tmp_path)
    assert "is gated" in message and "set HF_TOKEN" in message
    assert "HF_TOKEN's account has no access" in fails(tmp_path, token="hf_valid")


def test_a_wrong_token(hub: FakeHub, tmp_path: Path) -> None:
    hub.add("org/name", {**SMALL, "model.safetensors": WEIGHTS})
    message = fails(tmp_path, token="hf_planted")
    assert "refuses HF_TOKEN" in message and "hf_planted" not in message


def test_a_private_model_with_its_token(hub: FakeHub, tmp_path: Path) -> None:
    hub.add("org/name", {**SMALL, "model.safetensors": WEIGHTS})
    hub.private.add("org/name")
    assert "was not found" in fails(tmp_path)
    assert (resolve_model("org/name", None, places(tmp_path, token="hf_valid")) / "config.json").exists()


def test_a_hub_that_fails(hub: FakeHub, tmp_path: Path) -> None:
    hub.refuse = 503
    assert "the Hub fails (503)" in fails(tmp_path)
    assert len(hub.requests) == downloading.TRIES
    hub.refuse = 429
    assert "too many requests" in fails(tmp_path)


def test_a_hub_that_is_away(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    point_at(monkeypatch, f"http://127.0.0.1:{port}")
    message = fails(tmp_path)
    assert "cannot be reached" in message and "check the network" in message


def test_a_disk_that_is_too_small_is_seen_before_the_download(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/name", {**SMALL, "model.safetensors": WEIGHTS})
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    message = fails(tmp_path)
    assert "3.1 MB to download, 1.0 MB free" in message and "DOWNLOAD_DIR" in message
    assert "model.safetensors" not in hub.fetched()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    hub.add("org/name", {**SMALL, "model.safetensors": WEIGHTS})
    get = huggingface_hub.hf_hub_download
    tries: list[str] = []

    def download(name: str, file: str, **arguments: Any) -> str:
        if file == "model.safetensors":
            tries.append(file)
            raise RuntimeError("writing failed") from OSError(number, os.strerror(number))
        return str(get(name, file, **arguments))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert "no space left" in fails(tmp_path)
    assert len(tries) == 1  # trying again would not help


def test_a_real_disk_that_fills_up(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(cache)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)  # so that nothing is seen before
        hub.add("org/name", {**SMALL, "model.safetensors": WEIGHTS})
        assert "no space left" in fails(tmp_path)
    finally:
        subprocess.run(["umount", str(cache)], check=True)


def test_a_place_that_cannot_be_written(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/name", {**SMALL, "model.safetensors": WEIGHTS})

    def download(*_: Any, **__: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert "cannot be written: set DOWNLOAD_DIR" in fails(tmp_path)


def anywhere(predicted: Prediction) -> Prediction:
    return replace(predicted, model_dir="", tokenizer_dir="")


def described(tmp_path: Path, name: str, **settings: Any) -> Prediction:
    cpu = Target("here", "cpu", 1 << 33, 1 << 33)
    return predict(Configure(model=name, download_dir=str(tmp_path / "cache"), **settings), [cpu])


@pytest.mark.parametrize("shard", ["5GB", "200KB"])
def test_the_headers_of_weights_on_the_hub_describe_a_model(hub: FakeHub, tmp_path: Path, shard: str) -> None:
    """No weights are downloaded, and the description is that of the directory."""
    directory = make_tiny("llama", tmp_path / "model", max_shard_size=shard, vocab_size=20_000)
    files = {file.name: file.read_bytes() for file in directory.iterdir()}
    assert (len([name for name in files if name.endswith(".safetensors")]) > 1) == (shard == "200KB")
    hub.add("org/name", {**files, "onnx/model.onnx": b"x", "pytorch_model.bin": b"x"})
    remote, local = described(tmp_path, "org/name"), described(tmp_path, str(directory))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert hub.sent < sum(map(len, files.values())) / 3
    assert remote.model_dir != local.model_dir
    assert anywhere(remote) == anywhere(local) and not remote.is_estimate
    resolve_model("org/name", None, places(tmp_path))
    hub.refuse = 500
    assert described(tmp_path, "org/name") == remote, "from the cache alone"


def test_other_files_on_the_hub_are_described_by_config_json(hub: FakeHub, tmp_path: Path) -> None:
    directory = make_tiny("llama", tmp_path / "model")
    config = (directory / "config.json").read_bytes()
    hub.add("org/name", {"config.json": config, "pytorch_model.bin": b"x" * 12345})
    remote, local = described(tmp_path, "org/name"), described(tmp_path, str(directory))
    assert remote.is_estimate and remote.file_bytes == 12345
    assert (remote.parameters, remote.devices) == (local.parameters, local.devices)


def test_what_the_hub_refuses_is_one_line_with_the_words_of_the_boot(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = (make_tiny("llama", tmp_path / "model") / "config.json").read_bytes()
    hub.add("org/name", {"config.json": config, "model.safetensors": b"\x10"})
    hub.add("org/none", {"config.json": config, "README.md": b"x"})
    for name in ("org/missing", "org/none"):
        with pytest.raises(ModelError) as caught:
            described(tmp_path, name)
        assert str(caught.value) == fails(tmp_path, name)
    with pytest.raises(ModelError, match=r"org/name could not be downloaded: SafetensorsParsingError: "):
        described(tmp_path, "org/name")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="org/name is not cached here and HF_HUB_OFFLINE forbids a download"):
        described(tmp_path, "org/name")
