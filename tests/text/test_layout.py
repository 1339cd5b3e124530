"""Pairs of texts, truncation, and tokenizers of a vocab.txt, beside transformers and the tokenizers library."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from ember.front.text.layout import Layout, cut, layout_of, longest_first
from ember.front.text.tokenizer import Tokenizer, TokenizerError

_WORDS = "the quick brown fox ##es ##e jump ##ed over a lazy dog ##s , . 2 ! hello un ##aff ##able é 你 好"
WORDS = _WORDS.split(" ")
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
MPNET = ["<s>", "<pad>", "</s>", *WORDS, "[UNK]", "<mask>"]
TEXTS = ["The quick FOXES jumped, unaffable!", "", "Hello 你好 é zzz a", "a " * 7 + "dog"]


def saved(directory: Path, words: list[str], model_type: str, **config: Any) -> Tokenizer:
    (directory / "vocab.txt").write_text("\n".join(words) + "\n")
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    if config:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(directory)


@pytest.mark.parametrize(
    ("words", "model_type", "config"),
    [
        (BERT, "bert", {}),
        (BERT, "distilbert", {"do_lower_case": False, "tokenizer_class": "DistilBertTokenizer"}),
        (MPNET, "mpnet", {"tokenizer_class": "MPNetTokenizer"}),
    ],
)
def test_word_pieces_are_those_of_transformers(
    tmp_path: Path, words: list[str], model_type: str, config: dict[str, Any]
) -> None:
    import transformers

    tokenizer = saved(tmp_path, words, model_type, **config)
    reference = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert [tokenizer.encode(text) for text in TEXTS] == reference(TEXTS)["input_ids"]
    alone = tokenizer.encode_batch(TEXTS)
    layout = tokenizer.pair_layout
    for first, second in itertools.product(range(len(TEXTS)), repeat=2):
        if not TEXTS[second]:
            continue  # an empty second text is none for transformers
        pair = alone[first], alone[second]
        expected = reference(TEXTS[first], TEXTS[second], return_token_type_ids=True)
        assert layout.join(*pair) == expected["input_ids"]
        if model_type != "mpnet":
            assert layout.types(*pair) == expected["token_type_ids"]
        for length in (5, 8, 11):
            cut_ids = reference(TEXTS[first], TEXTS[second], truncation="longest_first", max_length=length)["input_ids"]
            kept = longest_first((len(pair[0]), len(pair[1])), length - layout.num_special)
            assert layout.join(*(cut(ids, count, "right") for ids, count in zip(pair, kept, strict=True))) == cut_ids


def test_a_vocab_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="has vocab.txt of wordy, which only loads for tokenizers of BERT's"):
        saved(tmp_path, BERT, "wordy")
    with pytest.raises(TokenizerError, match="has no token '\\[UNK\\]' for unknown words"):
        saved(tmp_path, WORDS, "bert")
    with pytest.raises(TokenizerError, match="tokenizer_config.json: cls_token is '', which is not in the vocabulary"):
        saved(tmp_path, BERT, "bert", cls_token="")
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"x")
    with pytest.raises(TokenizerError, match="has sentencepiece.bpe.model but no tokenizer.json: convert it once"):
        Tokenizer.load(tmp_path)


def test_layouts_of_other_post_processors(tmp_path: Path) -> None:
    backend = saved(tmp_path, BERT, "bert")._backend
    cls, sep = 2, 3
    backend.post_processor = processors.RobertaProcessing(("[SEP]", sep), ("[CLS]", cls))
    assert layout_of(backend, "a", "dog").special == ((cls,), (sep, sep), (sep,))
    tokens = [("[CLS]", cls), ("[SEP]", sep)]
    backend.post_processor = processors.TemplateProcessing("$A [SEP]", "$B:1 [CLS]:1 $A", tokens)
    turned = layout_of(backend, "a", "dog")
    assert turned.join([7], [8, 9]) == [8, 9, cls, 7] and turned.types([7], [8, 9]) == [1, 1, 1, 0]
    assert layout_of(backend, "", "dog") == Layout(((), (), ()), ((), (), ()), (0, 1), (0, 1))
