from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers

from ember.front.text import tokenizer as tokenizer_module
from ember.front.text.panics import TokenizerPanic, without_panic_lines
from ember.front.text.tokenizer import Tokenizer, TokenizerError

KINDS = ["byte_level", "byte_level_bos", "byte_fallback", "word_piece", "unigram", "undecoded"]

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  leading and trailing  ",
    "<|im_start|>user\nHi<|im_end|>\n<tool_call>{}</tool_call>",
    "a <|strip|> b <two words> c é d <|image|><|vision|>",
    "<s>[INST] hi [/INST]</s><s>",
    "<|begin|>text<|eot|><note>more<|end|>",
    "Füchse 你好 🦊👨‍👩‍👧 \u0000 \u200b",
    "line\r\nline\n\n\n   x",
]


@pytest.fixture(scope="session")
def references(model_dirs: dict[str, Path]) -> dict[str, Any]:
    from transformers import AutoTokenizer

    return {name: AutoTokenizer.from_pretrained(str(path)) for name, path in model_dirs.items()}


@pytest.fixture(scope="session")
def loaded(model_dirs: dict[str, Path]) -> dict[str, Tokenizer]:
    return {name: Tokenizer.load(path) for name, path in model_dirs.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers(kind, text, loaded, references):
    for add_special_tokens in (True, False):
        ids = loaded[kind].encode(text, add_special_tokens=add_special_tokens)
        assert ids == references[kind].encode(text, add_special_tokens=add_special_tokens)
        for skip in (True, False):
            assert loaded[kind].decode(ids, skip) == references[kind].decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=st.text())
def test_ids_are_those_of_transformers_for_any_text(kind, text, loaded, references):
    assert loaded[kind].encode(text) == references[kind].encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_named_tokens_are_those_of_transformers(kind, loaded, references):
    ours, theirs = loaded[kind], references[kind]
    assert ours.special_tokens == dict(theirs.special_tokens_map)
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
    )
    assert ours.vocab_size == len(theirs)
    assert ours.special_token_ids == {i for i, token in theirs.added_tokens_decoder.items() if token.special}


def test_tokens_of_tokenizer_config_are_single_ids(loaded):
    tokenizer = loaded["byte_level"]
    for text in ("<|im_start|>", "<tool_call>", "<two words>", "<|vision|>", "<|image|>"):
        assert tokenizer.encode(text) == [tokenizer.token_id(text)]
    assert tokenizer.token_id("<tool_call>") not in tokenizer.special_token_ids
    assert tokenizer.token_id("<nothing>") is None


def test_bos_comes_from_the_post_processor(loaded):
    assert loaded["byte_level"].encode("a")[0] != loaded["byte_level"].bos_token_id
    with_bos = loaded["byte_level_bos"]
    assert with_bos.encode("a")[0] == with_bos.bos_token_id
    assert with_bos.encode("a", add_special_tokens=False)[0] != with_bos.bos_token_id


def test_truncation_and_padding_of_the_file_are_off(model_dirs, tmp_path):
    data = json.loads((model_dirs["byte_level"] / "tokenizer.json").read_text())
    data["truncation"] = {"max_length": 4, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
    data["padding"] = {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None}
    data["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode("one two three four")) == "one two three four"
    assert tokenizer.pad_token_id == 0


def test_long_text(loaded):
    text = "The quick brown fox. " * 20_000
    ids = loaded["byte_level"].encode(text)
    assert loaded["byte_level"].decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
def test_surrogates(kind, loaded):
    tokenizer = loaded[kind]
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")
    assert tokenizer.encode_with_offsets("a\ud800b") == tokenizer.encode_with_offsets("a\ufffdb")
    assert tokenizer.encode("\ud83e\udd8a") == tokenizer.encode("🦊")


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_with_their_places_are_those_of_the_text(kind, loaded):
    ids, offsets = loaded[kind].encode_with_offsets("Füchse 你好")
    assert ids == loaded[kind].encode("Füchse 你好") and len(offsets) == len(ids)
    assert max(end for _, end in offsets) == len("Füchse 你好")


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_token_bytes_join_to_the_text(kind, loaded):
    tokenizer = loaded[kind]
    text = "Füchse 你好 🦊 x\n  y"
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole = (" " if kind == "byte_fallback" else "") + text
    assert b"".join(tokenizer.token_bytes(token_id) for token_id in ids) == whole.encode()


def test_byte_level_table_is_the_decoder_s(loaded):
    """Every single byte, by the decoder's own account: the byte that decodes beside its partner bytes."""
    tokenizer = loaded["byte_level"]
    from tokenizers import pre_tokenizers

    seen = set()
    for character in pre_tokenizers.ByteLevel.alphabet():
        data = tokenizer.token_bytes(tokenizer.token_id(character))
        assert len(data) == 1
        seen.add(data)
    assert len(seen) == 256
    assert tokenizer.token_bytes(tokenizer.token_id("Ġ")) == b" "
    assert tokenizer.token_bytes(tokenizer.token_id("Ċ")) == b"\n"
    assert tokenizer.token_bytes(tokenizer.token_id("<two words>")) == b"<two words>"


def test_token_text(loaded):
    byte_level, fallback, words = loaded["byte_level"], loaded["byte_fallback"], loaded["word_piece"]
    assert byte_level.token_text(byte_level.token_id("Ġthe")) == " the"
    assert byte_level.token_text(byte_level.token_id("<|im_end|>")) == "<|im_end|>"
    assert fallback.token_text(fallback.token_id("▁the")) == " the"
    assert fallback.token_text(fallback.token_id("<0x0A>")) == "\n"
    assert fallback.token_bytes(fallback.token_id("<0xE2>")) == b"\xe2"
    assert fallback.token_text(fallback.token_id("<0xE2>")) == "\ufffd"
    assert fallback.token_text(fallback.token_id("</s>")) == "</s>"
    assert words.token_text(words.token_id("the")) == "the"
    assert words.token_bytes(words.token_id("the")) == b"the"
    for tokenizer in (byte_level, fallback, words):
        assert tokenizer.token_text(10**6) == ""
        assert tokenizer.token_bytes(10**6) == b""


def test_a_broken_byte_spoils_only_itself(loaded):
    tokenizer = loaded["byte_fallback"]
    ids = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in (*"€\n".encode(), 0xFF, *"é".encode())]
    assert tokenizer.decode(ids) == "€\n\ufffdé"


def _directory(model_dirs: dict[str, Path], target: Path, **files: str) -> Path:
    (target / "tokenizer.json").write_text((model_dirs["byte_level"] / "tokenizer.json").read_text())
    for name, text in files.items():
        path = target / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return target


def test_chat_templates(model_dirs, tmp_path):
    def load(**files: str) -> str | dict[str, str] | None:
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        directory.mkdir()
        return Tokenizer.load(_directory(model_dirs, directory, **files)).chat_template

    config = json.dumps({"chat_template": "config"})
    named = json.dumps({"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]})
    processor = json.dumps({"chat_template": "processor"})
    assert load() is None
    assert load(tokenizer_config_dot_json=config) == "config"
    assert load(tokenizer_config_dot_json=config, chat_template_dot_jinja="jinja") == "jinja"
    assert load(tokenizer_config_dot_json=config, chat_template_dot_json=processor) == "config"
    assert load(chat_template_dot_json=processor) == "processor"
    assert load(tokenizer_config_dot_json=named) == {"default": "d", "tool_use": "t"}
    assert load(chat_template_dot_jinja="jinja", additional_chat_templates__rag_dot_jinja="r") == {
        "default": "jinja",
        "rag": "r",
    }


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("tokenizer.model", "", "convert it once"),
        ("readme.md", "", "no tokenizer.json"),
        ("tokenizer.json", "{broken", "cannot be read"),
    ],
)
def test_errors_say_what_to_do(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(TokenizerError, match=says) as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_other_errors(model_dirs, tmp_path):
    with pytest.raises(TokenizerError, match="not a directory"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json cannot be read"):
        Tokenizer.load(_directory(model_dirs, tmp_path, tokenizer_config_dot_json="{"))
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(TokenizerError, match="not a JSON object"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"7": 3}}')
    with pytest.raises(TokenizerError, match="must be text"):
        Tokenizer.load(tmp_path)


def test_imports_stay_small():
    code = (
        "import sys, ember.front.text.tokenizer, ember.front.text.template, ember.front.text.detokenizer, "
        "ember.front.text.stop; print([m for m in ('torch', 'transformers', 'jinja2') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


END = {"content": "<|im_end|>", "lstrip": False, "normalized": False, "rstrip": False, "special": True}


@pytest.mark.parametrize(
    ("config", "special_tokens_map"),
    [
        ({"eos_token": "<|im_end|>"}, {"eos_token": "<|endoftext|>"}),
        ({"eos_token": END}, None),
        ({"eos_token": None}, {"eos_token": "<|im_end|>"}),
        ({"eos_token": "absent"}, {"eos_token": END}),
        ({"added_tokens_decoder": "absent"}, {"eos_token": None}),
        ({"added_tokens_decoder": "absent", "eos_token": None}, {"eos_token": END}),
    ],
)
def test_the_end_token_is_looked_for_in_both_files(model_dirs, tmp_path, config, special_tokens_map):
    directory = tmp_path / "model"
    shutil.copytree(model_dirs["byte_level"], directory)
    path = directory / "tokenizer_config.json"
    content = json.loads(path.read_text()) | config
    path.write_text(json.dumps({name: value for name, value in content.items() if value != "absent"}))
    if special_tokens_map is not None:
        (directory / "special_tokens_map.json").write_text(json.dumps(special_tokens_map))
    tokenizer = Tokenizer.load(directory)
    assert tokenizer.eos_token_id == tokenizer.token_id("<|im_end|>") is not None


def test_a_tokenizer_without_an_end_token(model_dirs):
    assert Tokenizer.load(model_dirs["undecoded"]).eos_token_id is None


def changed(model_dirs: dict[str, Path], tmp_path: Path, **parts: Any) -> Path:
    """A copy of a tokenizer with other parts in its tokenizer.json."""
    directory = tmp_path / "model"
    shutil.copytree(model_dirs["byte_level"], directory)
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))
    return directory


def split(pattern: str) -> dict[str, Any]:
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    rest = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [cut, rest]}


PANICS = {
    "normalizer": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "pattern": {"pre_tokenizer": split(r"(\w+\s?)*$")},
    "post-processor": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {},
        }
    },
}


@pytest.mark.parametrize("case", PANICS)
def test_a_panic_at_the_start_is_one_line_and_no_more(case, model_dirs, tmp_path, capfd):
    directory = changed(model_dirs, tmp_path, **PANICS[case])
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be (read|used)") as caught:
        Tokenizer.load(directory)
    assert "\n" not in str(caught.value)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_what_others_write_meanwhile_is_kept(capfd):
    with pytest.raises(ValueError), without_panic_lines():
        os.write(2, b"before\n")
        os.write(2, b"\nthread '<unnamed>' (7) panicked at src/lib.rs:1:2:\nOnig: over\nnote: run with it\n")
        os.write(2, b"behind\n")
        raise ValueError
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "before\nbehind\nlater\n"


def test_a_pattern_that_does_not_end_ends_the_boot(model_dirs, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "PROBE_SECONDS", 0.1)
    is_over = threading.Event()
    monkeypatch.setattr(Tokenizer, "encode", lambda *_: is_over.wait(30) and [])
    with pytest.raises(TokenizerError, match=r"not encoded within 0\.1 seconds.*backtrack without end"):
        Tokenizer.load(model_dirs["byte_level"])
    is_over.set()


def test_files_have_bounds(model_dirs, tmp_path, monkeypatch):
    directory = changed(model_dirs, tmp_path)
    for name in ("chat_template.jinja", "additional_chat_templates/rag.jinja"):
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            file.truncate(300 << 20)  # no disk is needed for it
        with pytest.raises(TokenizerError, match=rf"{path.name} cannot be read: it has 314,572,800 bytes"):
            Tokenizer.load(directory)
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(TokenizerError, match=rf"{path.name} cannot be read: it is not a regular file"):
            Tokenizer.load(directory)
        path.unlink()
    config = directory / "tokenizer_config.json"
    content = config.read_text()
    config.write_text(json.dumps(json.loads(content) | {"chat_template": "x" * (1 << 21)}))
    with pytest.raises(TokenizerError, match="'default' in .* has 2,097,152 characters; 1,048,576 are allowed"):
        Tokenizer.load(directory)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"):
        config.write_text(json.dumps({k: v for k, v in json.loads(content).items() if k != "added_tokens_decoder"}))
        path = directory / name
        kept = path.read_bytes() if path.exists() else b"{}"
        with path.open("wb") as file:
            file.truncate(300 << 20)
        with pytest.raises(TokenizerError, match=rf"{name} cannot be read \(it has 314,572,800 bytes"):
            Tokenizer.load(directory)
        path.write_bytes(kept)
    Tokenizer.load(directory)


def test_a_character_without_a_token_is_the_texts_fault(tmp_path):
    """A vocabulary may be small: that a text has no tokens in it shows when that text comes."""
    backend = tokenizers.Tokenizer(models.Unigram([("a", -1.0), ("w", -1.0), ("o", -1.0), ("r", -1.0), ("d", -1.0)]))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(tokenizers.Regex("[^a-z]"), "")]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert len(tokenizer.encode("A word.")) == 5
    with pytest.raises(TokenizerPanic):
        tokenizer.encode("fox")
