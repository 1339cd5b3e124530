"""Encoders in GGUF files, and their tokenizers, compute what transformers' do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES
from torch import Tensor

from ember.engine.description.read_config import load_config
from ember.engine.loading.load import load_decoder
from ember.front.text.tokenizer import Tokenizer
from tests.engine_core.inline import make_engine
from tests.engine_core.test_pooling import pooled, unit
from tests.engine_models.test_encoders import assert_equal, texts_of
from tests.engine_models.tiny import make_tiny
from tests.engine_models.tiny_encoders import make_encoder
from tests.gguf_files.convert import Arrays, Case, Config, convert
from tests.gguf_files.files import write_gguf
from tests.gguf_files.test_families import gemma3

CPU = torch.device("cpu")
LENGTHS = (1, 2, 7, 7, 40, 100)


def without_pooler(tensors: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    return {name: each for name, each in tensors.items() if "pooler" not in name and "position_ids" not in name}


def roberta(tensors: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Without the positions up to that of padding."""
    name, first = "embeddings.position_embeddings.weight", config["pad_token_id"] + 1
    return without_pooler(tensors, config) | {name: tensors[name][first:]}


CASES = {
    "bert": Case(MODEL_ARCH.BERT, "bert", tensors=without_pooler),
    "roberta": Case(MODEL_ARCH.BERT, "roberta", tensors=roberta),
    "xlm_roberta": Case(MODEL_ARCH.BERT, "xlm_roberta", tensors=roberta),
    "nomic": Case(MODEL_ARCH.NOMIC_BERT, "nomic", tensors=without_pooler),
}


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("name", CASES)
def test_hidden_states_are_those_of_transformers(name: str, kind: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = make_encoder(case.variant, tmp_path)
    arch = MODEL_ARCH_NAMES[case.arch]
    metadata = {f"{arch}.attention.causal": False, f"{arch}.pooling_type": 1}
    kinds = {"position_embd.weight": "Q4_0", "token_types.weight": "F16"} if kind == "Q8_0" else {}
    file = convert(tmp_path, tmp_path / "model.gguf", case, lambda name, _: kinds.get(name, kind), extra=metadata)
    config = load_config(file)
    assert config.warnings == () and config.pooling is not None and config.pooling.types == ("mean",)
    decoder, texts = load_decoder(file, config, dtype=torch.float32, device=CPU).decoder, texts_of(LENGTHS)
    if kind == "F32":
        assert_equal(model, decoder, texts)
    found = pooled(make_engine(file), texts, "embed")
    with torch.inference_mode():
        states = [model(torch.tensor([text])).last_hidden_state[0].numpy() for text in texts]
    for vector, state in zip(found, states, strict=True):
        expected = unit(state.mean(0))
        assert float(vector @ expected) > (0.9999 if kind == "F32" else 0.98)


def test_a_reranker_has_the_head_of_the_file(tmp_path: Path) -> None:
    make_encoder("xlm_roberta", tmp_path)
    rng = np.random.default_rng(0)
    shapes = {"cls.weight": (64, 64), "cls.bias": (64,), "cls.output.weight": (1, 64), "cls.output.bias": (1,)}
    head = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

    def change(arrays: Arrays) -> dict[str, tuple[np.ndarray, str]]:
        return {name: (each, "F32") for name, each in (arrays | head).items()}

    metadata = {"bert.attention.causal": False, "bert.pooling_type": 4}
    file = convert(tmp_path, tmp_path / "model.gguf", CASES["xlm_roberta"], change=change, extra=metadata)
    model = transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    texts = texts_of(LENGTHS)
    for found, text in zip(pooled(make_engine(file), texts, "score"), texts, strict=True):
        with torch.inference_mode():
            state = model(torch.tensor([text])).last_hidden_state[0, 0].numpy()
        hidden = np.tanh(head["cls.weight"] @ state + head["cls.bias"])
        logit = head["cls.output.weight"] @ hidden + head["cls.output.bias"]
        np.testing.assert_allclose(found, 1 / (1 + np.exp(-logit)), atol=1e-4)


def test_embedding_gemma_sees_the_whole_text(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"num_hidden_layers": 6, "layer_types": None, "query_pre_attn_scalar": 32}
    checkpoint = make_tiny("gemma3", tmp_path / "checkpoint", **fields, use_bidirectional_attention=True)
    case = Case(MODEL_ARCH.GEMMA_EMBEDDING, "gemma3", norm_offset=1.0, metadata=gemma3)
    dense = {f"dense_{number}.weight": np.eye(64, dtype=np.float32)[::-1].copy() * number for number in (2, 3)}

    def change(arrays: Arrays) -> dict[str, tuple[np.ndarray, str]]:
        return {name: (each, "F32") for name, each in (arrays | dense).items()}

    file = convert(checkpoint, tmp_path / "model.gguf", case, change=change, extra={"gemma-embedding.pooling_type": 1})
    model = transformers.AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    texts = texts_of(LENGTHS)
    for found, text in zip(pooled(make_engine(file), texts, "embed"), texts, strict=True):
        with torch.inference_mode():
            state = model(torch.tensor([text])).last_hidden_state[0].numpy()
        np.testing.assert_allclose(found, unit(state.mean(0)), atol=1e-4)


WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *["the", "cat", "##s", "un", "##want", "##ed", ",", "你", "cafe"],
]
TEXTS = ["The cats, unwanted", "THE  café 你你", "dog", "", "[MASK] the"]


def test_word_pieces_are_those_of_transformers(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    theirs = transformers.BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=True)
    tokens = [word if word[0] == "[" else word[2:] if word.startswith("##") else "▁" + word for word in WORDS]
    metadata = {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if word[0] == "[" else 1 for word in WORDS],
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.mask_token_id": 4,
    }
    ours = Tokenizer.load(write_gguf(tmp_path / "model.gguf", metadata, {}, "bert"))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
    backend: Any = ours._backend
    pair = backend.encode("the", "cats")
    assert (pair.ids, pair.type_ids) == tuple(theirs("the", "cats")[key] for key in ("input_ids", "token_type_ids"))


def test_unigrams_are_those_of_a_tokenizer_json(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    theirs = Backend(models.Unigram())
    theirs.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Replace("  ", " ")])
    theirs.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    theirs.train_from_iterator(["the cat sat on the mat", "a cat and a hat", "that is that"] * 20, trainer)
    vocabulary = json.loads(theirs.to_str())["model"]["vocab"]
    metadata = {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": [token for token, _ in vocabulary],
        "tokenizer.ggml.scores": [float(score) for _, score in vocabulary],
        "tokenizer.ggml.token_type": [3, 3, 3, 2, *[1] * (len(vocabulary) - 4)],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.remove_extra_whitespaces": True,
    }
    ours = Tokenizer.load(write_gguf(tmp_path / "model.gguf", metadata, {}, "bert"))
    for text in ["the cat", " a  hat sat ", "that mat zz", ""]:
        assert ours.encode(text) == [0, *theirs.encode(text).ids, 2]
    backend: Any = ours._backend
    one, other = (theirs.encode(text).ids for text in ("the cat", "a hat"))
    assert backend.encode("the cat", "a hat").ids == [0, *one, 2, 2, *other, 2]
