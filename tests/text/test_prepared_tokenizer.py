"""The prepared form of a tokenizer: the same ids as the original, and used for nothing but that original."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.boot import Timeline
from ember.front import start
from ember.front.text import prepared_tokenizer
from ember.front.text.prepared_tokenizer import BESIDE, NotPreparedError, cache_directories, load, place_in, prepare
from ember.front.text.tokenizer import Tokenizer
from ember.settings import load_settings

BPE = ["byte_level", "byte_level_bos", "byte_fallback"]


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(prepared_tokenizer, "MIN_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def pairs(model_dirs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """The original and what is made of its prepared form."""
    made = {}
    for kind in BPE:
        directory = tmp_path_factory.mktemp(kind)
        shutil.copy(model_dirs[kind] / "tokenizer.json", directory)
        prepare(directory / "tokenizer.json", directory / BESIDE)
        made[kind] = (
            tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json")),
            load(directory / "tokenizer.json"),
        )
    return made


@pytest.fixture
def source(model_dirs: dict[str, Path], tmp_path: Path) -> Path:
    shutil.copytree(model_dirs["byte_level"], tmp_path / "model")
    return tmp_path / "model" / "tokenizer.json"


@pytest.mark.parametrize("kind", BPE)
def test_it_is_the_same_tokenizer(kind, pairs):
    original, prepared = pairs[kind]
    assert prepared.to_str() == original.to_str()
    assert prepared.get_vocab() == original.get_vocab()
    decoder = original.get_added_tokens_decoder()
    assert {i: str(token) for i, token in prepared.get_added_tokens_decoder().items()} == {
        i: str(token) for i, token in decoder.items()
    }


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=300) | st.text("abcdefth \n\t.,<|>é你🦊", max_size=300))
def test_the_ids_of_any_text_are_the_same(pairs, text):
    for original, prepared in pairs.values():
        assert prepared.encode(text).ids == original.encode(text).ids


@pytest.mark.parametrize("kind", BPE)
def test_the_ids_of_a_long_text_are_the_same(kind, pairs):
    original, prepared = pairs[kind]
    words = random.Random(7).choices([*original.get_vocab(), "the", " over", "\n", "Zürich", "<|endoftext|>"], k=20_000)
    ids = original.encode("".join(words)).ids
    assert len(ids) > 10_000
    assert prepared.encode("".join(words)).ids == ids
    assert prepared.decode(ids) == original.decode(ids)


def test_the_options_of_the_model_are_kept(tmp_path):
    source = tmp_path / "tokenizer.json"
    vocab = {token: i for i, token in enumerate(["a", "b", "##b", "##c", "ab", "abc", "\n", "<u>", "b</w>"])}
    merges = [("a", "##b"), ("ab", "##c")]
    model = tokenizers.models.BPE(
        vocab, merges, unk_token="<u>", continuing_subword_prefix="##", fuse_unk=True, ignore_merges=True
    )
    backend = tokenizers.Tokenizer(model)
    backend.enable_padding(pad_id=3, pad_token="##c", length=7)
    backend.enable_truncation(5, stride=1)
    backend.save(str(source))
    prepare(source, tmp_path / BESIDE)
    prepared = load(source)
    assert prepared is not None and prepared.to_str() == backend.to_str()
    for text in ("abcab", "xxaby", "ab\nabc", ""):
        assert prepared.encode(text).ids == backend.encode(text).ids


@pytest.mark.parametrize("kind", ["word_piece", "unigram", "undecoded"])
def test_other_models_have_none(kind, model_dirs, tmp_path):
    with pytest.raises(NotPreparedError, match="not BPE"):
        prepare(model_dirs[kind] / "tokenizer.json", tmp_path / BESIDE)
    assert not list(tmp_path.iterdir())
    assert Tokenizer.load(model_dirs[kind]).is_prepared is None


def test_a_vocabulary_with_gaps_has_none(source):
    content = json.loads(source.read_text())
    last = max(content["model"]["vocab"], key=content["model"]["vocab"].get)
    content["model"]["vocab"][last] += 1
    source.write_text(json.dumps(content))
    with pytest.raises(NotPreparedError, match="ids"):
        prepare(source, source.with_name(BESIDE))


def test_it_is_used_for_no_other_file_and_no_other_version(source, monkeypatch):
    prepare(source, source.with_name(BESIDE))
    assert Tokenizer.load(source.parent).is_prepared is True
    with monkeypatch.context() as patch:
        patch.setattr(tokenizers, "__version__", "0.0.1")
        assert load(source) is None
    source.write_text(source.read_text() + " ")
    assert load(source) is None
    tokenizer = Tokenizer.load(source.parent)
    assert tokenizer.is_prepared is False and tokenizer.encode("the end")


def test_a_damaged_one_is_not_used(source):
    prepare(source, source.with_name(BESIDE))
    whole = source.with_name(BESIDE).read_bytes()
    places = {0, 20, 40, 60, len(whole) // 2, len(whole) - 1}
    damaged = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in places]
    for content in [*damaged, b"", whole[:10], whole[:70], whole[:-1], whole + b"\0"]:
        source.with_name(BESIDE).write_bytes(content)
        assert load(source) is None
        assert Tokenizer.load(source.parent).is_prepared is False


def test_it_is_looked_for_in_cache_directories(source, tmp_path):
    volume = tmp_path / "volume"
    caches = cache_directories(str(volume))
    assert place_in(caches, source) == tmp_path / "home" / "ember" / "tokenizers" / place_in(caches, source).name
    volume.mkdir()
    caches = cache_directories(str(volume))
    place = place_in(caches, source)
    assert place.is_relative_to(volume)
    prepare(source, place)
    assert Tokenizer.load(source.parent).is_prepared is False
    assert Tokenizer.load(source.parent, caches).is_prepared is True
    place.write_bytes(b"damaged")
    prepare(source, place_in(caches[1:], source))
    assert Tokenizer.load(source.parent, caches).is_prepared is True
    if os.geteuid() != 0:
        volume.chmod(0o500)
        assert not place_in(caches, source).is_relative_to(volume)


def test_a_worker_prepares_it_in_an_idle_moment(source, tmp_path, monkeypatch):
    """While a request runs it waits; the next boot finds it."""
    monkeypatch.setattr(start, "PREPARE_AFTER_S", 0.01)
    busy = iter([True, True, False])

    class Engine:
        is_busy = property(lambda self: next(busy))

    async def scenario() -> None:
        engine: Any = Engine()
        worker = start.Worker(load_settings({"base_path": str(tmp_path / "none")}), engine, Timeline("front"))
        await asyncio.wait_for(worker._prepare_tokenizer(str(source.parent)), 60)

    asyncio.run(scenario())
    assert next(busy, None) is None
    assert Tokenizer.load(source.parent, cache_directories(None)).is_prepared is True


def test_the_command_says_why_there_is_none(model_dirs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "nice", lambda by: by)
    assert prepared_tokenizer.main([str(model_dirs["unigram"] / "tokenizer.json"), str(tmp_path / "x")]) == 1
    assert "not BPE" in capsys.readouterr().err
    assert prepared_tokenizer.main([str(tmp_path / "none.json"), str(tmp_path / "x")]) == 1
    assert prepared_tokenizer.main([str(model_dirs["byte_level"] / "tokenizer.json"), str(tmp_path / "x")]) == 0
    assert (tmp_path / "x").exists()
