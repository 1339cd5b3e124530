"""Small tokenizers, built here with the `tokenizers` library: one model directory for each kind that matters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "the theory of the thing, then the other; over the hill, the end of the road, the rest of the story",
    "The quick brown fox jumps over the lazy dog. A model reads tokens, not words.",
    "def render(messages, tools=None):\n    return '\\n'.join(str(m) for m in messages)\n",
    "Füchse, größer als Mäuse; naïve café; Привет, мир! 你好，世界。こんにちは 🦊🚀👨‍👩‍👧",
    "1234567890 3.14159 -42  double  spaces\tand tabs\r\nand lines",
    '{"name": "get_weather", "arguments": {"city": "Zürich", "days": 3}}',
]


def _write(directory: Path, backend: Tokenizer, config: dict[str, Any] | None, **files: Any) -> Path:
    directory.mkdir()
    backend.save(str(directory / "tokenizer.json"))
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    for name, value in files.items():
        (directory / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return directory


def _token(content: str, special: bool, **flags: bool) -> dict[str, Any]:
    entry = {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return entry | {"special": special} | flags


def byte_level_backend() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=420, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
        ),
    )
    return backend


def byte_level(directory: Path) -> Path:
    """As Qwen: byte-level BPE with tokens that only tokenizer_config.json knows, some of them not special."""
    backend = byte_level_backend()
    size = backend.get_vocab_size()
    added = ["<|im_start|>", "<|im_end|>", "<tool_call>", "<two words>", "é", "<|strip|>"]
    special = {"<|im_start|>", "<|im_end|>"}
    entries = {str(size + i): _token(text, text in special, lstrip=text == "<|strip|>") for i, text in enumerate(added)}
    entries["0"] = _token("<|endoftext|>", True)
    return _write(
        directory,
        backend,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "added_tokens_decoder": entries,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": {"__type": "AddedToken", **_token("<|endoftext|>", True)},
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|vision|>"],
            "image_token": "<|image|>",
            "add_bos_token": True,
            "chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        },
    )


def byte_level_bos(directory: Path) -> Path:
    """As Llama 3: byte-level BPE whose post-processor puts BOS before a text; no added_tokens_decoder."""
    backend = byte_level_backend()
    backend.add_special_tokens(["<|begin|>", "<|end|>"])
    begin = backend.token_to_id("<|begin|>")
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]),
        ]
    )
    return _write(
        directory,
        backend,
        {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "eos_token": "<|end|>"},
        special_tokens_map={"bos_token": "<|begin|>", "eos_token": _token("<|eot|>", True), "pad_token": "<|end|>"},
        added_tokens={"<|eot|>": backend.get_vocab_size(), "<note>": backend.get_vocab_size() + 1},
    )


def byte_fallback(directory: Path) -> Path:
    """As Llama 2: sentencepiece-like BPE with byte fallback, a space put before the text and dropped again."""
    special = ["<unk>", "<s>", "</s>"]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    ascii_corpus = [text for text in CORPUS if text.isascii()]
    trained.train_from_iterator(ascii_corpus, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    entries = special + [f"<0x{byte:02X}>" for byte in range(256)] + list(model["vocab"])
    vocab = {entry: index for index, entry in enumerate(dict.fromkeys([*entries, "▁▁", "▁▁▁", "€", "世"]))}
    merges = [tuple(merge) for merge in model["merges"]] + [("▁", "▁"), ("▁▁", "▁")]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    return _write(
        directory,
        backend,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "added_tokens_decoder": {str(i): _token(text, True) for i, text in enumerate(special)},
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": None,
            "add_bos_token": True,
            "add_eos_token": False,
        },
    )


def word_piece(directory: Path) -> Path:
    """As BERT: a token's text depends on whether it is the first."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    tokens = ["[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=tokens, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return _write(directory, backend, {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"})


def unigram(directory: Path) -> Path:
    """As T5 and some Japanese models: Unigram with raw byte tokens, decoded by Metaspace."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=180, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    backend.add_tokens(["<0xE2>", "<0x82>", "<0xAC>", "<0x0A>", "<extra>", "<more>"])
    backend.add_special_tokens(["</s>"])
    return _write(directory, backend, {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"})


def undecoded(directory: Path) -> Path:
    """No decoder at all: the library joins tokens with spaces."""
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, "green": 2, "blue": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<s>", "<e>"])
    return _write(directory, backend, {"tokenizer_class": "PreTrainedTokenizerFast"})


BUILDERS = {
    build.__name__: build for build in (byte_level, byte_level_bos, byte_fallback, word_piece, unigram, undecoded)
}


@pytest.fixture(scope="session")
def model_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: build(root / name) for name, build in BUILDERS.items()}
