"""Model files whatever: read, or refused in one line that says what to do. Damaged ones come with every download."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ember.engine.errors import ModelError
from ember.engine.loading.safetensors_header import ITEM_SIZES, read_header
from ember.front.text.tokenizer import Tokenizer, TokenizerError
from tests.api.fakes import make_tokenizer

FUZZ = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)

text = st.text(max_size=8)
scalar = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), text)
junk = st.recursive(scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))

# ------------------------------------------------------------------------------------------------------- safetensors

size = st.one_of(st.integers(0, 5), st.sampled_from([-1, 2**31, 2**63, 2**70, True]))
entry = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from([*ITEM_SIZES, "F4", "\n"]), junk),
        "shape": st.one_of(st.lists(size, max_size=3), junk),
        "data_offsets": st.one_of(st.tuples(size, size).map(list), junk),
        "more": junk,
    },
)
header = st.one_of(junk, st.dictionaries(st.one_of(text, st.just("__metadata__")), st.one_of(entry, junk), max_size=4))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model.safetensors"


def read(file: Path, content: bytes) -> dict[str, Any] | None:
    """The tensors, None for a file that was refused as it should be."""
    file.write_bytes(content)
    try:
        return dict(read_header(file))
    except ModelError as error:
        message = str(error)
        assert message and "\n" not in message and len(message) < 1000, message
        return None


@FUZZ
@given(st.binary(max_size=64))
@example(b"")
@example(struct.pack("<Q", 2**64 - 1))
@example(struct.pack("<Q", 1) + b"\xff")
def test_bytes_that_are_no_safetensors_file(file: Path, content: bytes) -> None:
    read(file, content)


def test_a_header_that_is_nested_too_deeply(file: Path) -> None:
    assert read(file, struct.pack("<Q", 200_000) + b"[" * 200_000) is None


@FUZZ
@given(header, st.integers(0, 64))
@example({"a": {"dtype": [], "shape": [], "data_offsets": [0, 0]}}, 0)
@example({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, 4)
@example({"a\nb": {}}, 0)
@example({"a" * 10_000: {}}, 0)
@example({"a": {"dtype": "x" * 10_000, "shape": [], "data_offsets": [0, 0]}}, 0)
def test_headers(file: Path, header: Any, data: int) -> None:
    """Whatever is accepted lies inside the file and has the size that its type and shape say."""
    encoded = json.dumps(header).encode()
    content = struct.pack("<Q", len(encoded)) + encoded + bytes(data)
    for tensor in (read(file, content) or {}).values():
        assert 8 + len(encoded) <= tensor.offset <= tensor.offset + tensor.nbytes <= len(content)
        assert tensor.nbytes == math.prod(tensor.shape) * ITEM_SIZES[tensor.dtype]


sound = st.dictionaries(
    st.text(alphabet="abc.", min_size=1, max_size=5),
    st.tuples(st.sampled_from(["F32", "BF16", "U8"]), st.lists(st.integers(0, 3), max_size=3)),
    max_size=4,
)


@FUZZ
@given(sound)
def test_sound_headers_are_read_as_the_library_reads_them(file: Path, tensors: dict[str, Any]) -> None:
    entries, position = {}, 0
    for name, (dtype, shape) in tensors.items():
        nbytes = math.prod(shape) * ITEM_SIZES[dtype]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + nbytes]}
        position += nbytes
    encoded = json.dumps(entries).encode()
    found = read(file, struct.pack("<Q", len(encoded)) + encoded + bytes(position))
    assert found is not None
    with safetensors.safe_open(file, framework="numpy") as theirs:
        assert set(theirs.keys()) == set(found)
        for name, tensor in found.items():
            assert list(tensor.shape) == theirs.get_slice(name).get_shape()
            assert tensor.dtype == theirs.get_slice(name).get_dtype()


# --------------------------------------------------------------------------------------------------------- tokenizers

token = st.one_of(text, st.fixed_dictionaries({"content": st.one_of(text, junk)}, optional={"special": junk}), junk)
config = st.fixed_dictionaries(
    {},
    optional={
        "bos_token": token,
        "eos_token": token,
        "image_token": token,
        "added_tokens_decoder": st.one_of(
            st.dictionaries(st.one_of(text, st.integers(-1, 400).map(str)), token, max_size=3), junk
        ),
        "additional_special_tokens": st.one_of(st.lists(token, max_size=3), junk),
        "extra_special_tokens": st.one_of(st.dictionaries(text, token, max_size=2), junk),
        "chat_template": st.one_of(text, st.lists(junk, max_size=2), st.dictionaries(text, junk, max_size=2)),
        "split_special_tokens": junk,
    },
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("whole")
    make_tokenizer(directory)
    parsed: dict[str, Any] = json.loads((directory / "tokenizer.json").read_text())
    return parsed


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizer")


def load(directory: Path, **files: Any) -> Tokenizer | None:
    """The tokenizer of these files, None for one that was refused as it should be."""
    for old in directory.glob("*"):
        old.unlink()
    for name, content in files.items():
        path = directory / f"{name}.json"
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(json.dumps(content))
    try:
        return Tokenizer.load(directory)
    except TokenizerError as error:
        message = str(error)
        assert message and "\n" not in message and len(message) < 2000, message
        return None


@FUZZ
@given(st.one_of(st.binary(max_size=64), junk))
def test_files_that_are_no_tokenizer(directory: Path, content: Any) -> None:
    assert load(directory, tokenizer=content) is None


@FUZZ
@given(st.data())
def test_a_tokenizer_file_with_one_part_replaced(directory: Path, whole: dict[str, Any], data: st.DataObject) -> None:
    part = data.draw(
        st.sampled_from(["added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model"])
    )
    replaced: Any = data.draw(junk)
    if isinstance(whole[part], dict) and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(whole[part])))
        replaced = {**whole[part], key: replaced}
    tokenizer = load(directory, tokenizer={**whole, part: replaced})
    if tokenizer is not None:
        tokenizer.decode(tokenizer.encode("hello world"))


@FUZZ
@given(config, st.one_of(config, junk), st.one_of(st.dictionaries(text, st.integers(-1, 400)), junk))
@example({"chat_template": "x"}, [], {})
@example({"added_tokens_decoder": {"x": "y"}}, {}, {})
@example({"bos_token": {"content": 5}}, {}, {})
def test_side_files(directory: Path, whole: dict[str, Any], config: Any, special: Any, added: Any) -> None:
    tokenizer = load(
        directory, tokenizer=whole, tokenizer_config=config, special_tokens_map=special, added_tokens=added
    )
    if tokenizer is not None:
        assert all(isinstance(content, str) for content in tokenizer.special_tokens.values())
        tokenizer.decode(tokenizer.encode("hello world<s>"))


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_config"])
def test_files_that_are_nested_too_deeply(directory: Path, whole: dict[str, Any], name: str) -> None:
    assert load(directory, **{"tokenizer": whole, name: b"[" * 200_000}) is None


@FUZZ
@given(st.binary(max_size=40))
@example(b"\xff")
def test_side_files_that_are_not_json(directory: Path, whole: dict[str, Any], content: bytes) -> None:
    load(directory, tokenizer=whole, tokenizer_config=content)
