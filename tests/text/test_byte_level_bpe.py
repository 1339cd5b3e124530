"""Tokenizers of vocab.json and merges.txt: the ids are those of transformers' class for the same files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.engine.core.grammars.grammar import load_tokenizer
from ember.engine.loading.resolve import resolve_tokenizer
from ember.front.text.tokenizer import Tokenizer, TokenizerError
from tests.text.conftest import CORPUS, byte_level_backend

QWEN = ["<|im_start|>", "<|im_end|>", "<tool_call>"]
QWEN_LISTED = {"content": "", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
TEXTS = [
    *CORPUS,
    "",
    " leading",
    "I'll DON'T we've 'S",
    "12345 1 22 333",
    "a<|endoftext|>b",
    "<|im_start|>user\nHi<|im_end|> <tool_call>",
    "<s>x</s> <pad><mask> <unk>",
    "e\u0301 \u00e9 \u1e9b\u0323",
    "tabs\t\t\n\n  \r\n x",
]


def write(directory: Path, names: list[str], **files: Any) -> Path:
    """vocab.json and merges.txt of a small vocabulary that has `names` as well, and JSON files beside them."""
    directory.mkdir()
    model = json.loads(byte_level_backend().to_str())["model"]
    vocab = {token: token_id for token_id, token in enumerate([*names, *(t for t in model["vocab"] if t not in names)])}
    (directory / "vocab.json").write_text(json.dumps(vocab))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    for name, value in files.items():
        (directory / f"{name}.json").write_text(json.dumps(value))
    return directory


def size_of(directory: Path) -> int:
    return len(json.loads((directory / "vocab.json").read_text()))


def gpt2(directory: Path) -> Path:
    return write(directory, ["<|endoftext|>"], tokenizer_config={"tokenizer_class": "GPT2Tokenizer"})


def gpt2_by_type(directory: Path) -> Path:
    return write(directory, ["<|endoftext|>"], config={"model_type": "gpt2"}, tokenizer_config={"model_max_length": 9})


def opt(directory: Path) -> Path:
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    special = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    config = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "add_prefix_space": False, **special}
    return write(directory, names, tokenizer_config=config, special_tokens_map=special)


def qwen2(directory: Path) -> Path:
    write(directory, [])
    size = size_of(directory)
    listed = ["<|endoftext|>", *QWEN]
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            str(size + i): {**QWEN_LISTED, "content": text, "special": text != "<tool_call>"}
            for i, text in enumerate(listed)
        },
        "additional_special_tokens": QWEN[:2],
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def roberta(directory: Path) -> Path:
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    return write(directory, names, tokenizer_config={"tokenizer_class": "RobertaTokenizerFast"})


def both_ends(directory: Path) -> Path:
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_bos_token": True,
        "add_eos_token": True,
        "add_prefix_space": True,
    }
    return write(directory, ["<|endoftext|>"], tokenizer_config=config)


BUILDERS: dict[str, Callable[[Path], Path]] = {
    build.__name__: build for build in (gpt2, gpt2_by_type, opt, qwen2, roberta, both_ends)
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vocabularies")
    return {name: build(root / name) for name, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def references(directories: dict[str, Path]) -> dict[str, Any]:
    from transformers import AutoTokenizer

    return {name: AutoTokenizer.from_pretrained(str(path)) for name, path in directories.items()}


@pytest.fixture(scope="module")
def loaded(directories: dict[str, Path]) -> dict[str, Tokenizer]:
    return {name: Tokenizer.load(path) for name, path in directories.items()}


@pytest.mark.parametrize("kind", BUILDERS)
def test_ids_are_those_of_transformers(kind: str, loaded: dict[str, Tokenizer], references: dict[str, Any]) -> None:
    for text in TEXTS:
        for add_special_tokens in (True, False):
            ids = loaded[kind].encode(text, add_special_tokens)
            assert ids == references[kind].encode(text, add_special_tokens=add_special_tokens), text
            for skip in (True, False):
                assert loaded[kind].decode(ids, skip) == references[kind].decode(ids, skip_special_tokens=skip), text


@pytest.mark.parametrize("kind", BUILDERS)
@settings(max_examples=40, deadline=None)
@given(text=st.text())
def test_ids_are_those_of_transformers_for_any_text(
    kind: str, text: str, loaded: dict[str, Tokenizer], references: dict[str, Any]
) -> None:
    assert loaded[kind].encode(text) == references[kind].encode(text)


@pytest.mark.parametrize("kind", BUILDERS)
def test_named_tokens(kind: str, loaded: dict[str, Tokenizer], references: dict[str, Any]) -> None:
    ours, theirs = loaded[kind], references[kind]
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id, ours.vocab_size) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
        len(theirs),
    )


def test_grammars_see_the_same_tokens(directories: dict[str, Path], loaded: dict[str, Tokenizer]) -> None:
    for kind, tokenizer in loaded.items():
        view = load_tokenizer(directories[kind], tokenizer.vocab_size, [0])
        assert view.vocab_size == tokenizer.vocab_size
        ids = tokenizer.encode("a model reads tokens", add_special_tokens=False)
        assert view.decode_str(ids).lstrip() == "a model reads tokens"


def test_a_tokenizer_of_its_own_may_be_such_a_one(directories: dict[str, Path]) -> None:
    assert resolve_tokenizer(str(directories["gpt2"])) == directories["gpt2"]


def test_a_tokenizer_json_is_taken_before_the_two_files(directories: dict[str, Path], tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(directories["gpt2"], directory)
    byte_level_backend().save(str(directory / "tokenizer.json"))
    (directory / "merges.txt").write_text("broken")
    assert Tokenizer.load(directory).encode("the theory") == byte_level_backend().encode("the theory").ids


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("merges.txt", b"a b c\n", "merges.txt, line 1, is not two tokens"),
        ("merges.txt", b"zz yy\n", "do not fit each other"),
        ("merges.txt", b"\xff", "not UTF-8"),
        ("merges.txt", None, "neither tokenizer.json nor merges.txt"),
        ("vocab.json", None, "neither tokenizer.json nor vocab.json"),
        ("vocab.json", b"{", "vocab.json cannot be read"),
        ("vocab.json", b"[]", "not a JSON object"),
        ("vocab.json", b"{}", "each token to its id"),
        ("vocab.json", b'{"a": "0"}', "each token to its id"),
        ("vocab.json", b'{"a": -1}', "each token to its id"),
        ("vocab.json", b'{"a":' * 1000, "nested more than"),
        ("tokenizer_config.json", b'{"tokenizer_class": "CLIPTokenizer"}', "CLIPTokenizer, of which only GPT2Tok"),
        ("tokenizer_config.json", b'{"tokenizer_class": 5}', "of 5, of which only"),
        (
            "tokenizer_config.json",
            b'{"tokenizer_class": "GPT2Tokenizer", "add_bos_token": true, "bos_token": ""}',
            "bos_token is '', which is not in the vocabulary",
        ),
        ("tokenizer_config.json", b"{}", "a model of the type None, of which only"),
    ],
)
def test_what_is_wrong_is_one_line(
    name: str, content: bytes | None, says: str, directories: dict[str, Path], tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(directories["gpt2"], directory)
    (directory / name).unlink()
    if content is not None:
        (directory / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=says) as caught:
        Tokenizer.load(directory)
    assert "\n" not in str(caught.value) and str(directory) in str(caught.value)


def test_a_fifo_is_not_waited_for(directories: dict[str, Path], tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(directories["gpt2"], directory)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "tokenizer.json"):
        kept = (directory / name).read_bytes() if (directory / name).exists() else None
        (directory / name).unlink(missing_ok=True)
        os.mkfifo(directory / name)
        with pytest.raises(TokenizerError):
            Tokenizer.load(directory)
        (directory / name).unlink()
        if kept is not None:
            (directory / name).write_bytes(kept)


@pytest.mark.parametrize("name", ["tokenizer.model", "tekken.json", "tiktoken.model", "vocab.txt"])
def test_other_forms_say_what_to_run(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(TokenizerError, match=r"AutoTokenizer.*save_pretrained") as caught:
        Tokenizer.load(resolve_tokenizer(str(tmp_path)))
    assert name in str(caught.value) and "\n" not in str(caught.value)
