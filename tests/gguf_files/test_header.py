"""The header of GGUF files: what the `gguf` package wrote is read, and what is damaged or hostile is an error."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from ember.gguf import header
from ember.gguf.header import Array, GgufError, read_header
from ember_cpu import vocabulary
from tests.gguf_files.files import write_gguf

METADATA = {
    "general.alignment": 64,
    "llama.block_count": 3,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "flag": True,
    "name": "Ümläut 模型",
    "tokens": ["a", "", "▁the", "x" * 300],
    "scores": [0.5, -1.0, -2.0],
    "counts": [1, 2, 3],
    "flags": [True, False],
}


def a_file(directory: Path) -> Path:
    matrix = np.arange(8 * 64, dtype=np.float32).reshape(8, 64)
    tensors = {
        "token_embd.weight": (matrix, "Q8_0"),
        "output_norm.weight": (np.ones(64, dtype=np.float32), "F32"),
        "blk.0.ffn_down_exps.weight": (np.stack([matrix] * 3), "Q4_0"),
    }
    return write_gguf(directory / "model.gguf", METADATA, tensors)


@pytest.mark.parametrize(("stretch", "has_library"), [(20, True), (20, False), (1 << 20, True)])
def test_metadata_and_tensors_are_what_the_package_wrote(stretch, has_library, tmp_path, monkeypatch):
    monkeypatch.setattr(header, "_STRETCH", stretch)  # bytes read at a time
    if not has_library:
        monkeypatch.setattr(vocabulary, "_library", lambda: None)
    found = read_header(a_file(tmp_path))
    metadata = found.metadata
    assert metadata.text("general.architecture") == "llama"
    assert metadata.integer("llama.block_count") == 3
    assert metadata.flag("flag") is True
    assert metadata.text("name") == METADATA["name"]
    assert metadata.texts("tokens") == METADATA["tokens"]
    assert metadata.numbers("scores") == METADATA["scores"]
    assert metadata.numbers("counts") == METADATA["counts"]
    assert metadata.numbers("flags") == METADATA["flags"]
    assert metadata.texts("absent") is None and metadata.integer("absent") is None
    tokens = metadata.values["tokens"]
    assert isinstance(tokens, Array) and tokens.texts_at([3, 1]) == {1: "", 3: "x" * 300}
    assert {name: (each.type.name, each.shape, each.nbytes) for name, each in found.tensors.items()} == {
        "token_embd.weight": ("Q8_0", (8, 64), 8 * 2 * 34),
        "output_norm.weight": ("F32", (64,), 256),
        "blk.0.ffn_down_exps.weight": ("Q4_0", (3, 8, 64), 3 * 8 * 2 * 18),
    }
    norm = found.tensors["output_norm.weight"]
    assert norm.offset % 64 == 0
    data = (tmp_path / "model.gguf").read_bytes()[norm.offset : norm.offset + norm.nbytes]
    assert np.array_equal(np.frombuffer(data, dtype=np.float32), np.ones(64))


@pytest.mark.parametrize(
    ("read", "key", "message"),
    [
        ("integer", "name", "the metadata's name must be an integer, not '\\xdcml"),
        ("integer", "flag", "the metadata's flag must be an integer, not True"),
        ("text", "llama.block_count", "must be text, not 3"),
        ("flag", "llama.block_count", "must be true or false, not 3"),
        ("texts", "scores", "must be an array of strings, not an array of 3"),
        ("numbers", "tokens", "must be an array of numbers, not an array of 4"),
    ],
)
def test_a_value_of_another_type_is_named(read, key, message, tmp_path):
    metadata = read_header(a_file(tmp_path)).metadata
    with pytest.raises(GgufError) as raised:
        getattr(metadata, read)(key)
    assert message in str(raised.value)


def patched(path: Path, *changes: tuple[int, bytes]) -> Path:
    data = bytearray(path.read_bytes())
    for at, replacement in changes:
        data[at : at + len(replacement)] = replacement
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("at", "replacement", "message"),
    [
        (0, b"GGML", "does not begin with GGUF"),
        (4, struct.pack("<I", 1), "version 1 of the format, and only 2 and 3 are read: convert it again$"),
        (4, struct.pack(">I", 3), "big-endian, which is not supported: convert it again$"),
        (8, struct.pack("<Q", 2**60), f"says that it has {2**60} tensors"),
        (16, struct.pack("<Q", 2**60), "entries of metadata, more than fit"),
        (24, struct.pack("<Q", 2**63), "a key of the metadata"),
    ],
)
def test_the_first_numbers_of_a_damaged_file(at, replacement, message, tmp_path):
    with pytest.raises(GgufError, match=message):
        read_header(patched(a_file(tmp_path), (at, replacement)))


def raw(*entries: bytes, tensors: tuple[bytes, ...] = (), tail: bytes = bytes(4096)) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries + tensors) + tail


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def tensor(name: str, shape: tuple[int, ...], number: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, number, offset)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (raw(text("k") + struct.pack("<IIQ", 9, 4, 2**61)), "elements in k"),
        (raw(text("k") + struct.pack("<IIQ", 9, 8, 2**40)), "strings in k"),
        (raw(text("k") + struct.pack("<IIQQ", 9, 8, 1, 2**62)), "a string of 4611686018427387904 bytes in k"),
        (raw(text("k") + struct.pack("<IIQ", 9, 9, 1)), "an array of arrays"),
        (raw(text("k") + struct.pack("<IIQ", 9, 77, 1)), "the unknown type 77"),
        (raw(text("k") + struct.pack("<I", 13)), "k with the unknown type 13"),
        (raw(text("k") + struct.pack("<IQ", 8, 2**50)), "bytes as the metadata's k"),
        (raw(*[text("k") + struct.pack("<II", 4, 1)] * 2), "the key k twice"),
        (raw(text("general.alignment") + struct.pack("<II", 4, 0)), "must be a multiple of 8"),
        (raw(text("general.alignment") + struct.pack("<II", 4, 12)), "must be a multiple of 8"),
        (raw(tensors=(tensor("t", (4,) * 5),)), "t, of 5 dimensions"),
        (raw(tensors=(tensor("t", (2**40, 2**40)),)), "impossible shape"),
        (raw(tensors=(tensor("t", (2**20, 64)),)), "reaches byte"),
        (raw(tensors=(tensor("t", (33,), 2),)), "rows of 33 elements, no multiple of the 32 of Q4_0"),
        (raw(tensors=(tensor("t", (256,), 16),)), "the type IQ2_XXS, which is not supported; supported are F32"),
        (raw(tensors=(tensor("t", (256,), 99),)), "the type number 99"),
        (raw(tensors=(tensor("t", (8,), 0, 5),)), "at 5, which is no multiple of 32"),
        (raw(tensors=(tensor("t", (8,)), tensor("t", (8,), 0, 64))), "the tensor t twice"),
        (raw(tensors=(tensor("t", (64,)), tensor("u", (8,), 0, 64))), "overlap: t and u"),
        (raw(text("k") + struct.pack("<IQ", 8, 90), tail=b"short"), "within its header"),
        (b"GGUF", "within its header"),
        (b"", "within its header"),
    ],
)
def test_an_impossible_header_is_one_line(data, message, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(GgufError) as raised:
        read_header(path)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_header_larger_than_the_limit_is_refused(tmp_path, monkeypatch):
    path = a_file(tmp_path)
    monkeypatch.setattr(header, "MAX_HEADER", 400)
    with pytest.raises(GgufError, match="the limit"):
        read_header(path)


def test_no_damage_makes_anything_but_an_error(tmp_path):
    """Bytes of the header replaced at random, and the file cut off anywhere."""
    whole = a_file(tmp_path).read_bytes()
    end = read_header(tmp_path / "model.gguf").tensors["token_embd.weight"].offset
    chance, path = random.Random(5), tmp_path / "damaged.gguf"
    refused = 0
    for number in range(600):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 1, 4])):
            data[chance.randrange(end)] = chance.choice([0, 1, 0x7F, 0xFF, chance.randrange(256)])
        path.write_bytes(data if number % 3 else data[: chance.randrange(len(data))])
        try:
            read = read_header(path)
            for key in read.metadata.values:
                value = read.metadata.values[key]
                if isinstance(value, Array):
                    _ = value.texts() if value.is_texts else value.numbers()
        except GgufError:
            refused += 1
    assert refused > 200


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path / "none", "missing"),
        (tmp_path, "read"),
    ):
        with pytest.raises(GgufError, match=message):
            read_header(path)
