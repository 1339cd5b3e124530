from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.front.text.detokenizer import Detokenizer
from ember.front.text.tokenizer import Tokenizer

KINDS = ["byte_level", "byte_level_bos", "byte_fallback", "word_piece", "unigram", "undecoded"]
EXACT = ["byte_level", "byte_level_bos", "word_piece", "unigram", "undecoded"]  # always the library's own decoding


@pytest.fixture(scope="session")
def loaded(model_dirs: dict[str, Path]) -> dict[str, Tokenizer]:
    return {name: Tokenizer.load(path) for name, path in model_dirs.items()}


@pytest.fixture(scope="session")
def library(model_dirs):
    """The `tokenizers` objects with transformers' additions, to decode with."""
    from transformers import AutoTokenizer

    return {name: AutoTokenizer.from_pretrained(str(path)).backend_tokenizer for name, path in model_dirs.items()}


def pushes(data: st.DataObject, ids: list[int]) -> list[list[int]]:
    """The ids, cut at random places (empty pushes included)."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6))) if data.draw(st.booleans()) else []
    if not cuts and data.draw(st.booleans()):
        return [[token_id] for token_id in ids]
    edges = [0, *cuts, len(ids)]
    return [ids[begin:end] for begin, end in pairwise(edges)]


def run(detokenizer: Detokenizer, parts: list[list[int]]) -> tuple[list[str], str]:
    return [detokenizer.push(part) for part in parts], detokenizer.flush()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_random_ids_in_any_cuts_give_the_whole_text(kind, data, loaded, library):
    tokenizer = loaded[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=40))
    skip = data.draw(st.booleans())
    texts, rest = run(Detokenizer(tokenizer, skip_special_tokens=skip), pushes(data, ids))
    whole = "".join(texts) + rest
    assert whole == tokenizer.decode(ids, skip_special_tokens=skip)
    decoded = library[kind].decode(ids, skip_special_tokens=skip)
    if kind in EXACT or "\ufffd" not in decoded:
        assert whole == decoded


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "unigram"])
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_random_bytes(kind, data, loaded, library):
    """Runs of raw bytes: whole characters, parts of them, and bytes that are none."""
    tokenizer = loaded[kind]
    if kind == "unigram":
        singles = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in (0xE2, 0x82, 0xAC, 0x0A)]
        singles.append(tokenizer.token_id("▁"))
    else:
        singles = [i for i in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(i)) == 1]
        singles = [i for i in singles if tokenizer.token_bytes(i) in b"\xe2\x82\xac\xf0\x9f\xa6\x8a\xc3\xff\n "]
    ids = data.draw(st.lists(st.sampled_from(singles), max_size=30))
    texts, rest = run(Detokenizer(tokenizer), pushes(data, ids))
    assert "".join(texts) + rest == tokenizer.decode(ids)
    decoded = library[kind].decode(ids)
    if kind in EXACT or "\ufffd" not in decoded:
        assert "".join(texts) + rest == decoded


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="ab the 你é🦊👩‍\n.", max_size=30), data=st.data())
def test_true_text_is_never_shown_broken(kind, text, data, loaded):
    tokenizer = loaded[kind]
    ids = tokenizer.encode(text, add_special_tokens=False)
    if kind == "byte_level":  # its added token "é" is the lone byte E9 to the decoder, broken by itself
        ids = [token_id for token_id in ids if token_id != tokenizer.token_id("é")]
    texts, rest = run(Detokenizer(tokenizer), [[token_id] for token_id in ids])
    if kind == "unigram":
        assert "".join(texts) + rest == tokenizer.decode(ids)
    assert not any("\ufffd" in part for part in texts)
    assert "\ufffd" not in rest


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_text_continues_the_prompt(kind, data, loaded):
    """decode(prompt) + text == decode(prompt + ids), wherever the prompt ends in a whole character."""
    tokenizer = loaded[kind]
    prompt = tokenizer.encode(data.draw(st.sampled_from(["", " ", "the", "  the", "[INST] the 你 [/INST]", "the \n"])))
    ids = tokenizer.encode(data.draw(st.sampled_from(["the end", " the", "\n", "你", "red green", "  "])))
    detokenizer = Detokenizer(tokenizer, prompt)
    texts, rest = run(detokenizer, pushes(data, ids))
    assert tokenizer.decode(prompt) + "".join(texts) + rest == tokenizer.decode(prompt + ids)


def test_leading_space(loaded):
    tokenizer = loaded["byte_fallback"]
    the, bos = tokenizer.token_id("▁the"), tokenizer.token_id("<s>")
    inst = tokenizer.encode("[/INST]", add_special_tokens=False)
    assert Detokenizer(tokenizer).push([the, the]) == "the the"
    assert Detokenizer(tokenizer, [bos]).push([the]) == "the"
    assert Detokenizer(tokenizer, [bos], skip_special_tokens=False).push([the]) == " the"
    assert Detokenizer(tokenizer, inst).push([the]) == " the"
    spaces = Detokenizer(tokenizer)
    assert [spaces.push([tokenizer.token_id("▁")]), spaces.push([the])] == ["", " the"]


def test_a_character_is_shown_with_its_last_byte(loaded):
    tokenizer = loaded["byte_fallback"]
    ids = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in "🦊\n".encode()]
    assert [Detokenizer(tokenizer).push(ids[:4]), Detokenizer(tokenizer).push(ids[4:])] == ["🦊", "\n"]
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push([token_id]) for token_id in ids] == ["", "", "", "🦊", "\n"]
    assert detokenizer.flush() == ""
    cut = Detokenizer(tokenizer)
    assert cut.push(ids[:2]) == ""
    assert cut.flush() == "\ufffd"


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_a_prompt_that_ends_inside_a_character(kind, loaded):
    tokenizer = loaded[kind]
    single = {tokenizer.token_bytes(i): i for i in reversed(range(tokenizer.vocab_size))}
    ids = [single[bytes([byte])] for byte in "é🦊".encode()]
    for cut in range(2, 6):
        assert Detokenizer(tokenizer, ids[:cut]).push(ids[cut:]) == "🦊"


def test_special_tokens(loaded):
    tokenizer = loaded["byte_level"]
    ids = tokenizer.encode("a<|im_end|><tool_call>b<|im_end|>")
    assert Detokenizer(tokenizer).push(ids) == "a<tool_call>b"
    assert Detokenizer(tokenizer, skip_special_tokens=False).push(ids) == "a<|im_end|><tool_call>b<|im_end|>"


def test_spaces_between_special_tokens(loaded):
    tokenizer = loaded["undecoded"]
    ids = tokenizer.encode("red <s><e> blue <s>")
    joined = {}
    for spaces in (True, False):
        detokenizer = Detokenizer(tokenizer, skip_special_tokens=False, spaces_between_special_tokens=spaces)
        joined[spaces] = "".join(detokenizer.push([token_id]) for token_id in ids)
    assert joined == {True: "red <s> <e> blue <s>", False: "red <s><e> blue <s>"}


def test_window_stays_small(loaded, monkeypatch):
    """A long text through the neighbour-dependent path: each push decodes a window, not everything so far."""
    tokenizer = loaded["word_piece"]
    ids = tokenizer.encode("the quick brown fox " * 300)
    lengths: list[int] = []
    decode = tokenizer.decode_exact

    def counted(window: list[int]) -> str:
        lengths.append(len(window))
        return decode(window)

    monkeypatch.setattr(tokenizer, "decode_exact", counted)
    detokenizer = Detokenizer(tokenizer)
    assert "".join([detokenizer.push([token_id]) for token_id in ids]) == tokenizer.decode(ids)
    assert len(lengths) >= len(ids)
    assert max(lengths) < 70
