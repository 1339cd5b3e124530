"""Which GGUF file is meant: paths, directories, quantizations of repositories, split files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from ember.engine.core.prediction import predict
from ember.engine.errors import ModelError
from ember.engine.loading import download as downloading
from ember.engine.loading import resolve
from ember.engine.loading.files import weight_files
from ember.engine.loading.plan import read_headers
from ember.engine.loading.resolve import Places, resolve_model
from ember.front.start import local_tokenizer
from ember.gguf.files import Choice, choose_files, contradiction, read_model, split_name
from ember.gguf.header import GgufError
from ember.settings import load_settings
from ember.wire import Configure
from tests.engine_models.test_download import point_at
from tests.support.fake_hub import FakeHub

PARTS = [f"BF16/model-BF16-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
FILES = ["README.md", "model-Q4_K_M.gguf", "model-Q4_K_S.gguf", "model-Q8_0.gguf", "model-IQ4_XS.gguf", *PARTS]
FILES += [
    "model-UD-Q8_0.gguf",
    "model-UD-Q2_K_XL.gguf",
    "mmproj-F16.gguf",
    "imatrix_unsloth.gguf",
    "model.mmproj-Q8_0.gguf",
    "model-imatrix.gguf",
    "model-Q4_K_M.gguf.part",
]


@pytest.mark.parametrize(
    ("choice", "chosen"),
    [
        (Choice("Q8_0"), ["model-Q8_0.gguf"]),
        (Choice("q4_k_s"), ["model-Q4_K_S.gguf"]),
        (Choice("BF16"), PARTS),
        (Choice(), ["model-Q4_K_M.gguf"]),
        (Choice(None, "model-IQ4_XS.gguf"), ["model-IQ4_XS.gguf"]),
        (Choice(None, PARTS[0]), PARTS),
        (Choice(None, PARTS[1].rpartition("/")[2]), PARTS),
        (Choice("Q8_0", "model-Q4_K_S.gguf"), ["model-Q4_K_S.gguf"]),
        (Choice("Q2_K_XL"), ["model-UD-Q2_K_XL.gguf"]),
        (Choice("UD-Q8_0"), ["model-UD-Q8_0.gguf"]),
    ],
)
def test_a_file_of_several(choice, chosen):
    assert choose_files("repo", FILES, choice) == chosen


@pytest.mark.parametrize(
    ("names", "choice", "message"),
    [
        (
            FILES,
            Choice("Q3_K_M"),
            "repo has no file of the quantization Q3_K_M; it has BF16/model-BF16.gguf, model-IQ4_XS",
        ),
        (FILES, Choice("K_M"), "no file of the quantization K_M"),
        (FILES, Choice(None, "x.gguf"), "no file x.gguf; it has"),
        (["a-Q8_0.gguf", "b-Q8_0.gguf"], Choice("Q8_0"), "several files of the quantization Q8_0"),
        (["a-Q8_0.gguf", "a-Q6_K.gguf"], Choice(), "several models, of which one has to be chosen"),
        (["mmproj-F16.gguf", "model.safetensors"], Choice(), "no *.gguf files of a language model"),
        (PARTS[:2], Choice(), "2 of the 3 parts of BF16/model-BF16.gguf"),
        (PARTS[1:], Choice(), "2 of the 3 parts"),
    ],
)
def test_what_there_is_is_listed(names, choice, message):
    with pytest.raises(GgufError) as raised:
        choose_files("repo", names, choice)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("org/name", ("org/name", Choice())),
        ("org/name:Q4_K_M", ("org/name", Choice("Q4_K_M"))),
        ("org/name:name-Q8_0.gguf", ("org/name", Choice(None, "name-Q8_0.gguf"))),
        ("/models/a:Q8_0", ("/models/a", Choice("Q8_0"))),
        ("org/name:", ("org/name:", Choice())),
        ("org/name:a b", ("org/name:a b", Choice())),
    ],
)
def test_a_name_with_a_quantization(name, split):
    assert split_name(name) == split


def test_a_path_is_a_file_or_a_directory_with_one(tmp_path):
    for name in ("model-Q8_0.gguf", "model-Q4_K_M.gguf", "mmproj-BF16.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    assert resolve_model(str(tmp_path / "model-Q8_0.gguf")) == tmp_path / "model-Q8_0.gguf"
    assert resolve_model(str(tmp_path)) == tmp_path / "model-Q4_K_M.gguf"
    assert resolve_model(f"{tmp_path}:Q8_0") == tmp_path / "model-Q8_0.gguf"
    assert resolve_model(str(tmp_path), choice=Choice(None, "model-Q8_0.gguf")) == tmp_path / "model-Q8_0.gguf"
    with pytest.raises(ModelError, match="no file of the quantization Q2_K; it has model-Q4_K_M.gguf, model-Q8_0.gguf"):
        resolve_model(f"{tmp_path}:Q2_K")


@pytest.mark.parametrize(
    ("name", "choice", "load_format", "message"),
    [
        (
            "org/m:Q4_K_M",
            Choice("Q8_0"),
            "auto",
            "ending says Q4_K_M, and HF_QUANTIZATION says Q8_0: unset one of them",
        ),
        ("org/m:Q4_K_M", Choice(None, "m-Q8_0.gguf"), "auto", "ending says Q4_K_M, and HF_MODEL_FILE says m-Q8_0.gguf"),
        ("org/m", Choice("Q4_K_M", "m-Q8_0.gguf"), "auto", "HF_MODEL_FILE says m-Q8_0.gguf, and HF_QUANTIZATION says"),
        ("m-Q8_0.gguf", Choice("Q4_K_M"), "auto", "MODEL_NAME=m-Q8_0.gguf says m-Q8_0.gguf, and HF_QUANTIZATION says"),
        ("m-Q8_0.gguf", Choice(None, "other.gguf"), "auto", "and HF_MODEL_FILE says other.gguf"),
        ("m-Q8_0.gguf", Choice(), "safetensors", "LOAD_FORMAT=safetensors, but a GGUF file is asked for (MODEL_NAME="),
        ("org/m:Q8_0", Choice(), "pt", "LOAD_FORMAT=pt, but a GGUF file is asked for (MODEL_NAME=org/m:Q8_0): set"),
        ("org/m", Choice("Q8_0"), "pt", "is asked for (HF_QUANTIZATION=Q8_0): set LOAD_FORMAT to gguf or auto"),
        ("org/m", Choice(None, "a.gguf"), "safetensors", "is asked for (HF_MODEL_FILE=a.gguf)"),
        ("empty", Choice(), "gguf", "empty has no *.gguf files of a language model, and LOAD_FORMAT=gguf asks for one"),
        ("files", Choice(), "safetensors", "LOAD_FORMAT=safetensors, but the weights of files are GGUF files: set"),
        ("empty", Choice("Q8_0"), "auto", "and MODEL_NAME or HF_QUANTIZATION asks for Q8_0"),
    ],
)
def test_settings_that_contradict_each_other(name, choice, load_format, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "m.gguf").touch()
    (tmp_path / "m-Q8_0.gguf").write_bytes(b"GGUF")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(ModelError) as raised:
        resolve_model(name, None, Places(may_download=False), load_format=load_format, choice=choice)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "own", "choice"),
    [
        ("org/m", Choice("q8_0"), Choice("Q8_0")),
        ("org/m", Choice(), Choice("UD-Q4_K_XL", "x/m-UD-Q4_K_XL-00001-of-00002.gguf")),
        ("m.gguf", Choice(), Choice("Q8_0")),
        ("m-00002-of-00002.gguf", Choice(), Choice("Q8_0", "m-00001-of-00002.gguf")),
        ("Q8_0.gguf", Choice(), Choice("Q8_0")),
    ],
)
def test_settings_that_agree(name, own, choice):
    assert contradiction(name, own, choice) is None


def test_other_weights_beside_it_have_precedence_unless_gguf_is_asked_for(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "model-Q8_0.gguf").write_bytes(b"GGUF")
    assert resolve_model(str(tmp_path)) == tmp_path
    assert resolve_model(str(tmp_path), load_format="gguf") == tmp_path / "model-Q8_0.gguf"
    assert resolve_model(f"{tmp_path}:Q8_0") == tmp_path / "model-Q8_0.gguf"
    (tmp_path / "model.safetensors").unlink()
    assert resolve_model(str(tmp_path)) == tmp_path / "model-Q8_0.gguf"  # its config.json is that of the original


def split_model(directory: Path, counts: list[int]) -> list[Path]:
    """A model whose tensors are in several files, as llama-gguf-split makes them."""
    files, number = [], 0
    for part, count in enumerate(counts):
        files.append(directory / f"model-{part + 1:05}-of-{len(counts):05}.gguf")
        writer = GGUFWriter(files[-1], "llama")
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", len(counts))
        writer.add_int32("split.tensors.count", sum(counts))
        if part == 0:
            writer.add_block_count(7)
        for _ in range(count):
            writer.add_tensor(f"tensor.{number}", np.full((2, 3), number, dtype=np.float32))
            number += 1
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return files


def test_a_split_model_is_read_whole(tmp_path):
    files = split_model(tmp_path, [0, 2, 1])
    assert resolve_model(str(files[2])) == files[0]
    assert resolve_model(str(tmp_path)) == files[0]
    assert weight_files(files[0]) == files
    assert read_model(files[0]).metadata.integer("llama.block_count") == 7
    capitals = [file.rename(file.with_suffix(".GGUF")) for file in files]
    assert resolve_model(str(tmp_path)) == resolve_model(str(capitals[2])) == capitals[0]
    assert weight_files(capitals[0]) == capitals
    files = [file.rename(file.with_suffix(".gguf")) for file in capitals]
    entries = read_headers(files[0])
    assert {name: entry.file for name, entry in entries.items()} == {
        "tensor.0": files[1],
        "tensor.1": files[1],
        "tensor.2": files[2],
    }


def test_parts_that_are_missing_or_of_another_model(tmp_path):
    files = split_model(tmp_path, [1, 1])
    files[1].rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="lacks model-00002-of-00002.gguf"):
        read_headers(files[0])
    files[0].rename(tmp_path / "alone.gguf")
    with pytest.raises(ModelError, match="is one of 2 parts by its metadata"):
        read_headers(tmp_path / "alone.gguf")
    (tmp_path / "twice").mkdir()
    files = split_model(tmp_path / "twice", [1, 1])
    files[1].write_bytes(files[0].read_bytes())
    with pytest.raises(ModelError, match="has the tensor 'tensor.0', which another part"):
        read_headers(files[0])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with FakeHub() as hub:
        point_at(monkeypatch, hub.url)
        for name in (*resolve._HOME, "HF_HUB_OFFLINE", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(downloading, "PAUSE", 0.0)
        yield hub


def test_one_quantization_of_a_repository_is_downloaded(hub, tmp_path):
    contents = {name: f"GGUF of {name}".encode() for name in FILES} | {"config.json": b"{}"}
    hub.add("org/name-GGUF", contents)
    places = Places(download_dir=str(tmp_path / "cache"))
    file = resolve_model("org/name-GGUF:Q8_0", None, places)
    assert hub.fetched() == {"model-Q8_0.gguf"}
    assert file.name == "model-Q8_0.gguf" and file.read_bytes() == contents["model-Q8_0.gguf"]
    parts = resolve_model("org/name-GGUF", None, places, choice=Choice("bf16"))
    assert hub.fetched() == {"model-Q8_0.gguf", *PARTS}
    assert parts.name == PARTS[0].rpartition("/")[2]
    assert resolve_model("org/name-GGUF", None, places).name == "model-Q4_K_M.gguf"
    assert hub.fetched() == {"model-Q8_0.gguf", "model-Q4_K_M.gguf", *PARTS}
    asked = len(hub.requests)
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        assert resolve_model("org/name-GGUF:Q8_0", None, places) == file
        with pytest.raises(ModelError, match="not cached"):
            resolve_model("org/name-GGUF:Q4_K_S", None, places)
    finally:
        del os.environ["HF_HUB_OFFLINE"]
    assert len(hub.requests) == asked


def test_a_quantization_that_a_repository_lacks(hub, tmp_path):
    hub.add("org/name-GGUF", dict.fromkeys(FILES, b"GGUF"))
    with pytest.raises(ModelError, match="org/name-GGUF has no file of the quantization Q2_K; it has BF16/model-BF16"):
        resolve_model("org/name-GGUF:Q2_K", None, Places(download_dir=str(tmp_path)))
    assert hub.fetched() == set()


def test_a_file_on_the_hub_is_described_when_it_is_here(hub, tmp_path):
    hub.add("org/name-GGUF", dict.fromkeys(FILES, b"GGUF"))
    for name, says in (("org/name-GGUF:Q8_0", "described when it is downloaded"), ("org/name-GGUF", "but GGUF files")):
        with pytest.raises(ModelError, match=says):
            predict(Configure(model=name, download_dir=str(tmp_path / "cache")))
    assert not hub.fetched()


def test_another_quantization_in_the_cache_is_not_taken_for_the_usual_one(hub, tmp_path, monkeypatch):
    hub.add("org/name-GGUF", dict.fromkeys(FILES, b"GGUF"))
    places = Places(download_dir=str(tmp_path / "cache"))
    resolve_model("org/name-GGUF:Q8_0", None, places)
    assert resolve_model("org/name-GGUF", None, places).name == "model-Q4_K_M.gguf"
    hub.add("org/single-GGUF", {"model-Q8_0.gguf": b"GGUF"})
    for _ in range(2):
        assert resolve_model("org/single-GGUF", None, places).name == "model-Q8_0.gguf"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve_model("org/single-GGUF", None, places).name == "model-Q8_0.gguf"


def test_the_front_knows_a_local_tokenizer_before_the_engine_says_where_it_is(tmp_path):
    file, part = tmp_path / "m.gguf", tmp_path / "m-00002-of-00002.gguf"
    for each in (file, part, tmp_path / "tokenizer.json"):
        each.touch()
    expected = {
        str(file): str(file),
        str(part): str(tmp_path / "m-00001-of-00002.gguf"),
        str(tmp_path): str(tmp_path),
        str(tmp_path / "none.gguf"): None,
        f"{tmp_path}:Q4_0": None,
        "org/model": None,
        "demo": None,
    }
    assert {name: local_tokenizer(load_settings({"model_name": name})) for name in expected} == expected
    other = {"model_name": str(file), "tokenizer_name": str(tmp_path)}
    assert local_tokenizer(load_settings(other)) == str(tmp_path)
    assert local_tokenizer(load_settings(other | {"tokenizer_name": "org/model"})) is None
