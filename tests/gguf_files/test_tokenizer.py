"""Tokenizers in GGUF files: byte-level BPE with its kinds of splitting, SentencePiece, what surrounds a text."""

from __future__ import annotations

import random
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import transformers
from gguf import GGUFWriter
from tokenizers.models import BPE

from ember.engine.core.grammars.grammar import load_tokenizer as load_for_grammars
from ember.front.text.prepared_tokenizer import NotPreparedError, place_in, prepare
from ember.front.text.tokenizer import Tokenizer, TokenizerError, check_files
from ember.front.text.tokenizer_files import read_chat_template
from ember.gguf import tokenizer as gguf_tokenizer
from ember.gguf.header import GgufError, read_header
from ember.gguf.pretokenizers import PRE_TOKENIZERS
from ember.gguf.vocabulary import end_token_ids
from ember_cpu import vocabulary
from tests.gguf_files.files import write_gguf
from tests.gguf_files.vocabularies import of_tokenizer

DEMO = Path(__file__).parents[2] / "src" / "ember" / "demo"
TEXTS = [
    "Hello world, it's 12345 o'clock; we'LL go!!  \n\n  next\tline  \r\n x=3.14;foo_bar(baz)[0]//c",
    "Größe ß; Привет МИР 你好，世界。日本語 한국어 🦊 naïve café CamelCaseWord HTTPServer don't I'M",
    "<|im_start|>user\nhi<|im_end|>\n<tool_call>{}</tool_call>",
    " leading and trailing   ",
    "",
]


def byte_level(directory: Path, pre: str = "smollm", **more: Any) -> Path:
    return write_gguf(directory / "model.gguf", of_tokenizer(DEMO, pre, **more), {})


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_prepared_one_is_the_same_and_of_these_metadata_alone(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_tokenizer, "MIN_PREPARED_BYTES", 100)

    def file(**more: Any) -> Path:
        return byte_level(tmp_path, **more) if kind == "gpt2" else sentencepiece(tmp_path, **more)

    caches = [tmp_path / "cache"]
    plain = Tokenizer.load(file(), caches)
    prepare(file(), place_in(caches, file()))
    prepared = Tokenizer.load(file(), caches)
    assert (plain.is_prepared, prepared.is_prepared) == (False, True)
    assert prepared._backend.to_str() == plain._backend.to_str()
    assert prepared.special_tokens == plain.special_tokens
    for text in TEXTS:
        assert prepared.encode(text) == plain.encode(text)
    assert Tokenizer.load(file(**{"ggml.add_bos_token": kind == "gpt2"}), caches).is_prepared is False
    monkeypatch.setattr(gguf_tokenizer, "MIN_PREPARED_BYTES", 1 << 30)
    assert Tokenizer.load(file(), caches).is_prepared is None
    with pytest.raises(NotPreparedError, match="too small"):
        prepare(file(), caches[0] / "other")


def test_a_tokenizer_is_that_of_the_checkpoint(tmp_path):
    """The demo model's, whose expression splits ordinary text as that of SmolLM does."""
    check_files(byte_level(tmp_path))
    ours, theirs = Tokenizer.load(byte_level(tmp_path)), Tokenizer.load(DEMO)
    for text in [
        "The capital of France is Paris.",
        "7 plus 12 is 19!",
        "<|im_start|>user\nhi<|im_end|>",
        "größer 你好 🦊",
    ]:
        assert ours.encode(text) == theirs.encode(text)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.special_token_ids == theirs.special_token_ids
    assert ours.added_token_ids == theirs.added_token_ids


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_kind_of_splitting_returns_its_texts(pre, tmp_path):
    if not PRE_TOKENIZERS[pre].is_bytes:
        pytest.skip("its tokens are characters")
    tokenizer = Tokenizer.load(byte_level(tmp_path, pre, **{"ggml.add_bos_token": False}))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("llama-bpe", "I'LL 12345  go\n", ["I", "'LL", "Ġ", "123", "45", "Ġ", "Ġgo", "Ċ"]),
        ("qwen2", "I'LL 123 go\n", ["I", "'LL", "Ġ", "1", "2", "3", "Ġgo", "Ċ"]),
        ("gpt-2", "I'LL 12345 go\n", ["I", "'", "LL", "Ġ12345", "Ġgo", "Ċ"]),
        ("starcoder", "a 12 b", ["a", "Ġ", "1", "2", "Ġb"]),
        ("falcon", "a.b 1234", ["a", ".", "b", "Ġ", "123", "4"]),
        ("gpt-4o", "fooBarBAZ's 12345", ["foo", "Bar", "BAZ's", "Ġ", "123", "45"]),
        ("tekken", "fooBar 12", ["foo", "Bar", "Ġ", "1", "2"]),
        ("deepseek-v3", "a1234, b!", ["a", "123", "4", ",", "Ġb", "!"]),
        ("default", "a.b 12345", ["a", ".", "b", "Ġ", "123", "45"]),
        ("bloom", "a, b", ["a", ",", "Ġb"]),
        ("kimi-k2", "abc你好 1234", ["abc", "ä½łå¥½", "Ġ", "123", "4"]),
        ("exaone-moe", "a b 12", ["aĠb", "Ġ", "1", "2"]),
        ("tiny_aya", "fooBar's 12345", ["foo", "Bar's", "Ġ", "12", "345"]),
        ("minicpm5", "I'LL 12345 go", ["I", "'LL", "Ġ", "123", "45", "Ġgo"]),
        ("roberta-bpe", "I'LL 12345 go", ["I", "'", "LL", "Ġ12345", "Ġgo"]),
        ("youtu", "fooBar's 12", ["foo", "Bar's", "Ġ", "1", "2"]),
    ],
)
def test_texts_are_split_as_the_kind_says(pre, text, pieces, tmp_path):
    """The pieces before the merges, of which the published expressions are the source."""
    file = byte_level(tmp_path, pre)
    backend: Any = Tokenizer.load(file)._backend
    assert [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)] == pieces


@pytest.mark.parametrize(
    ("pre", "more", "around"),
    [
        ("qwen2", {}, ([], [])),
        ("llama-bpe", {}, ([1], [])),
        ("llama-bpe", {"ggml.add_bos_token": False}, ([], [])),
        ("qwen2", {"ggml.add_bos_token": True}, ([1], [])),
        ("qwen2", {"ggml.add_bos_token": True, "ggml.add_eos_token": True}, ([1], [2])),
        ("qwen2", {"ggml.add_bos_token": True, "ggml.bos_token_id": 99_999}, ([], [])),
    ],
)
def test_what_is_put_around_a_text(pre, more, around, tmp_path):
    ends = {"ggml.bos_token_id": 1, "ggml.eos_token_id": 2}
    tokenizer = Tokenizer.load(byte_level(tmp_path, pre, **ends | more))
    inner = tokenizer.encode("hello", add_special_tokens=False)
    assert tokenizer.encode("hello") == [*around[0], *inner, *around[1]]
    assert tokenizer.eos_token_id == 2


def test_named_tokens_and_templates(tmp_path):
    more = {
        "ggml.eos_token_id": 2,
        "ggml.padding_token_id": 0,
        "chat_template": "{{ messages }}",
        "chat_template.tool_use": "{{ tools }}",
        "chat_templates": ["tool_use"],
    }
    tokenizer = Tokenizer.load(byte_level(tmp_path, **more))
    assert tokenizer.special_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert tokenizer.chat_template == {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    assert read_chat_template(byte_level(tmp_path, **more)) == tokenizer.chat_template


@pytest.mark.parametrize(
    ("more", "ends"),
    [
        ({"ggml.eos_token_id": 2}, [2, 0]),  # <|endoftext|> ends a text without a role too
        ({"ggml.eos_token_id": 0, "ggml.eot_token_id": 2, "ggml.eom_token_id": 1}, [0, 2, 1]),
        ({}, [0, 2]),
    ],
)
def test_the_tokens_that_end_an_answer(more, ends, tmp_path):
    assert end_token_ids(read_header(byte_level(tmp_path, **more)).metadata) == ends


@pytest.mark.parametrize("kinds", ["user-defined", None])
def test_an_end_is_one_whatever_kind_the_file_gives_it(kinds, tmp_path):
    """Tokens that end answers are control tokens, whatever kind the file gives them, as in llama.cpp."""
    given = of_tokenizer(DEMO, "smollm")["tokenizer.ggml.token_type"]
    changed = None if kinds is None else [4 if kind == 3 else kind for kind in given]
    file = byte_level(tmp_path, **{"ggml.eos_token_id": 1, "ggml.token_type": changed})
    assert end_token_ids(read_header(file).metadata) == [1, 0, 2]
    tokenizer = Tokenizer.load(file)
    assert tokenizer.encode("a<|im_end|>")[-1] == 2
    assert tokenizer.decode([2], skip_special_tokens=True) == ""


SCORED = {"<unk>": 2, "<s>": 3, "</s>": 3, "<|user|>": 4} | {f"<0x{byte:02X}>": 6 for byte in range(256)}
PIECES = ["▁", "a", "b", "c", "t", "h", "e", "ab", "▁a", "th", "he", "▁th", "▁the", "▁ab", "bc", "abc", "\n", "▁▁"]


def sentencepiece(directory: Path, **more: Any) -> Path:
    kinds = SCORED | dict.fromkeys(PIECES, 1)
    scores = [0.0] * len(SCORED) + [-float(rank) for rank in range(len(PIECES))]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(kinds),
        "tokenizer.ggml.token_type": list(kinds.values()),
        "tokenizer.ggml.scores": scores,
        **{f"tokenizer.{key}": value for key, value in more.items()},
    }
    return write_gguf(directory / "model.gguf", metadata, {})


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("the", ["▁the"]),  # ▁th has a higher score than he
        ("abc", ["▁ab", "c"]),  # ab, then ▁ab, which has a higher score than abc
        ("a  a", ["▁a", "▁", "▁a"]),
        ("é", ["▁", "<0xC3>", "<0xA9>"]),
        ("a<|user|>a</s>b", ["▁a", "<|user|>", "▁a", "</s>", "▁", "b"]),
        ("a\nb", ["▁a", "\n", "b"]),
        ("", []),
    ],
)
def test_sentencepiece_merges_the_highest_score_first(text, pieces, tmp_path):
    tokenizer = Tokenizer.load(sentencepiece(tmp_path))
    ids = tokenizer.encode(text)
    assert tokenizer.vocab_entry(ids[0]) == "<s>"
    assert [tokenizer.vocab_entry(token_id) for token_id in ids[1:]] == pieces
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def all_splits(tokens: list[str], order: list[int]) -> list[tuple[str, str]]:
    """Every pair of tokens that together are one of the tokens `order`."""
    known = {*tokens}
    splits = [(token[:at], token[at:]) for token in map(tokens.__getitem__, order) for at in range(1, len(token))]
    return [pair for pair in splits if known.issuperset(pair)]


@pytest.mark.parametrize("letters", ["ab", "abé▁好🦊"])
def test_the_merges_that_are_left_out_change_no_text(letters):
    """Scores in any order: a token may come before the parts that it is made of."""
    if vocabulary.fault_of(vocabulary.library_file(), vocabulary.build()) is not None:
        pytest.skip("the library is not compiled")
    generator = random.Random(len(letters))
    texts = {"".join(generator.choices(letters, k=generator.randint(1, 7))) for _ in range(400)}
    tokens = ["?", *letters, *sorted(texts - {*letters}), ""]
    order = generator.sample(range(1, len(tokens)), len(tokens) - 4)
    every, found = all_splits(tokens, order), vocabulary.merges_of(tokens, order)
    assert found is not None and {*found} < {*every}
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    one, other = (BPE(ids, merges, unk_token="?") for merges in (every, found))
    applied = set()
    for _ in range(2000):
        text = "".join(generator.choices(letters, k=generator.randint(1, 30)))
        pieces = [token.value for token in one.tokenize(text)]
        assert [token.value for token in other.tokenize(text)] == pieces
        applied.update(pieces)
    assert {token for token in applied if len(token) > 1} <= {left + right for left, right in found}
    assert vocabulary.merges_of([*tokens, "a\0b"], order) == found  # a NUL is a character as the others


def test_tokens_cannot_be_chosen_to_have_one_hash(monkeypatch):
    """With a known base, a table of such tokens would need hours. Here it is 1: texts of the same letters collide."""
    if vocabulary.fault_of(vocabulary.library_file(), vocabulary.build()) is not None:
        pytest.skip("the library is not compiled")
    tokens = ["".join(letters) for letters in permutations("abcdefg")]
    assert vocabulary.merges_of(tokens, [0]) == []
    monkeypatch.setattr(vocabulary, "_hash_base", lambda: 1)
    assert vocabulary.merges_of(tokens, [0]) is None
    assert vocabulary.merges_of(["a", "b", "ab", "ba"], [2]) == [("a", "b")]


def test_merges_are_counted(tmp_path, monkeypatch):
    """Those that are listed, and those that are made of the scores where the library does not do it."""
    monkeypatch.setattr("ember.gguf.tokenizer.MAX_MERGES", 3)
    with pytest.raises(
        GgufError, match=r"tokenizer\.ggml\.merges must be an array of at most 3 strings, not an array of 4"
    ):
        gguf_tokenizer.load_tokenizer(byte_level(tmp_path, **{"ggml.merges": ["a b", "b a", "a a", "b b"]}))
    monkeypatch.setattr(vocabulary, "_library", lambda: None)
    with pytest.raises(GgufError, match="more than 3 merges"):
        gguf_tokenizer.load_tokenizer(sentencepiece(tmp_path))


def test_a_vocabulary_is_the_same_without_the_library(tmp_path, monkeypatch):
    file = sentencepiece(tmp_path)
    found = Tokenizer.load(file)
    monkeypatch.setattr(vocabulary, "_library", lambda: None)
    plain = Tokenizer.load(file)
    assert (plain.vocab_size, plain.special_token_ids) == (found.vocab_size, found.special_token_ids)
    for text in [*TEXTS, "the abc ab  a\nthe"]:
        assert plain.encode(text) == found.encode(text)


def test_sentencepiece_without_a_blank_in_front(tmp_path):
    tokenizer = Tokenizer.load(sentencepiece(tmp_path, **{"ggml.add_space_prefix": False, "ggml.add_bos_token": False}))
    assert [tokenizer.vocab_entry(token_id) for token_id in tokenizer.encode("the a")] == ["th", "e", "▁a"]
    assert tokenizer.decode(tokenizer.encode("  the a")) == "  the a"


def test_the_tokens_are_those_of_transformers(tmp_path):
    """Its own reading of the same file, for the kind that both know."""
    file = write_gguf(
        tmp_path / "model.gguf",
        of_tokenizer(DEMO, "qwen2", **{"ggml.eos_token_id": 2, "ggml.add_bos_token": False})
        | {"qwen2.block_count": 1, "qwen2.embedding_length": 8, "qwen2.attention.head_count": 1},
        {},
        "qwen2",
    )
    ours, theirs = Tokenizer.load(file), transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in TEXTS[:2]:
        assert ours.encode(text) == theirs(text).input_ids


def test_grammars_get_the_same_tokens(tmp_path):
    file = byte_level(tmp_path)
    masks = load_for_grammars(file, 4096, [2])
    tokenizer = Tokenizer.load(file)
    for token_id in (5, 100, 2000, 4000):
        assert masks.decode_bytes([token_id]) == tokenizer.token_bytes(token_id)
    assert masks.eos_token == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"ggml.model": "rwkv"},
            "a tokenizer of the kind rwkv; gpt2, llama, gemma4, bert, t5 are supported: set TOKENIZER_NAME",
        ),
        ({"ggml.pre": "afmoe"}, "tokenizer.ggml.pre is 'afmoe', which is unknown"),
        ({"ggml.merges": ["ab"]}, "tokenizer.ggml.merges has 'ab', which is not two tokens"),
        ({"ggml.merges": ["q zzz"]}, "its tokenizer cannot be used"),
        ({"ggml.merges": [1, 2]}, "tokenizer.ggml.merges must be an array of strings"),
        ({"ggml.token_type": [1, 2]}, "tokenizer.ggml.token_type must be as long as tokenizer.ggml.tokens, 4096"),
        ({"ggml.tokens": "a"}, "tokenizer.ggml.tokens must be an array of strings, not 'a'"),
        ({"ggml.eos_token_id": "a"}, "eos_token_id must be an integer, not 'a'"),
        ({"ggml.add_bos_token": 1}, "add_bos_token must be true or false, not 1"),
        ({"chat_template": "{" * (2 << 20)}, "the chat template 'default'"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_one_line(more, message, tmp_path):
    with pytest.raises(TokenizerError) as raised:
        Tokenizer.load(byte_level(tmp_path, **more))
    assert message in str(raised.value) and "\n" not in str(raised.value)
    if "chat_template" in more:  # `ember inspect` reads it without the tokenizer
        with pytest.raises(TokenizerError, match="the chat template 'default'"):
            read_chat_template(tmp_path / "model.gguf")


@pytest.mark.parametrize("more", [{"ggml.model": "rwkv"}, {"ggml.pre": "afmoe"}, {"ggml.tokens": "a"}])
def test_an_unsupported_one_is_found_without_making_it(more, tmp_path):
    file = byte_level(tmp_path, **more)
    with pytest.raises(TokenizerError) as quick:
        check_files(file)
    with pytest.raises(TokenizerError) as whole:
        Tokenizer.load(file)
    assert str(quick.value) == str(whole.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ggml.scores": [1.0]}, "tokenizer.ggml.scores must be as long as tokenizer.ggml.tokens"),
        ({"ggml.tokens": ["x" * 30_000] * 278}, "too long for a SentencePiece tokenizer"),
    ],
)
def test_scores_that_do_not_fit(change, message, tmp_path):
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(sentencepiece(tmp_path, **change))


def test_equal_tokens_keep_their_ids(tmp_path):
    """Padding of a vocabulary may repeat a text."""
    kinds = SCORED | dict.fromkeys(PIECES, 1)
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*kinds, "", "", "abc"],
        "tokenizer.ggml.token_type": [*kinds.values(), 5, 5, 5],
        "tokenizer.ggml.scores": [0.0] * (len(kinds) + 3),
    }
    tokenizer = Tokenizer.load(write_gguf(tmp_path / "model.gguf", metadata, {}))
    assert tokenizer.vocab_size == len(kinds) + 3
    assert tokenizer.token_id("abc") == list(kinds).index("abc")


def test_a_file_without_a_tokenizer(tmp_path):
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(TokenizerError, match="has no tokenizer.ggml.tokens: set TOKENIZER_NAME"):
        Tokenizer.load(tmp_path / "model.gguf")
