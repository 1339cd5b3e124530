"""Encoders through the engine: whole texts of different lengths in one step, pooled, and classified by their heads."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from ember.engine.errors import ModelError
from ember.wire import Pool
from tests.engine_core.inline import make_engine
from tests.engine_core.test_pooling import answers, check, unit, values
from tests.engine_models.tiny_encoders import VOCAB_SIZE, encoder_classes, make_encoder, randomised

LENGTHS = (3, 30, 3, 9, 70, 1, 30)
HEADS = {
    "BertForSequenceClassification": "bert",
    "BertForTokenClassification": "bert",
    "RobertaForSequenceClassification": "roberta",
    "XLMRobertaForSequenceClassification": "xlm_roberta",
    "DistilBertForSequenceClassification": "distilbert",
    "MPNetForSequenceClassification": "mpnet",
    "ElectraForSequenceClassification": "electra",
    "DebertaV2ForSequenceClassification": "deberta",
    "AlbertForSequenceClassification": "albert",
    "AlbertForTokenClassification": "albert",
    "GteForSequenceClassification": "gte",
    "NomicBertForSequenceClassification": "nomic",
    "RobertaForTokenClassification": "roberta",
    "ModernBertForSequenceClassification": "modernbert",
    "ModernBertForTokenClassification": "modernbert_biases",
    "EuroBertForSequenceClassification": "eurobert",
}


def texts_of(seed: str) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(5, VOCAB_SIZE) for _ in range(length)] for length in LENGTHS]


@torch.inference_mode()
def run(model: Any, text: list[int], types: list[int] | None = None) -> np.ndarray:
    """The first output of transformers: hidden states [tokens, hidden], or logits."""
    named = {} if types is None else {"token_type_ids": torch.tensor([types])}
    found: np.ndarray = model(torch.tensor([text]), **named)[0][0].numpy()
    return found


def test_embeddings_are_those_of_the_first_token(tmp_path: Path) -> None:
    model, texts = make_encoder("bert", tmp_path), texts_of("bert")
    expected = [unit(run(model, text)[0]) for text in texts]
    for budget in (2048, 40):  # a text of 70 tokens is a step of its own
        engine = make_engine(tmp_path, max_num_batched_tokens=budget)
        check(engine, texts, "embed", expected)
        assert engine.stats().prefix_cache_hits == 0


def test_segments_of_pairs_reach_the_model(tmp_path: Path) -> None:
    """Beside texts without segments in the same step."""
    model, texts = make_encoder("bert", tmp_path), texts_of("pairs")
    types = [[] if number % 2 else [place % 3 for place in range(len(text))] for number, text in enumerate(texts)]
    engine = make_engine(tmp_path)
    pools = [Pool(i, text, "embed", token_type_ids=own) for i, (text, own) in enumerate(zip(texts, types, strict=True))]
    for output, text, own in zip(answers(engine, pools), texts, types, strict=True):
        assert output.pooled is not None
        np.testing.assert_allclose(values(output.pooled), unit(run(model, text, own or [0] * len(text))[0]), atol=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_heads_are_those_of_transformers(head: str, tmp_path: Path) -> None:
    _, config = encoder_classes(HEADS[head])
    config.num_labels = 3
    if hasattr(config, "classifier_pooling"):
        config.classifier_pooling = "mean"
    model = randomised(getattr(transformers, head)(config))
    model.save_pretrained(tmp_path)
    engine, texts = make_engine(tmp_path), texts_of(head)
    expected = [run(model, text) for text in texts]
    task = "token_classify" if "Token" in head else "classify"
    check(engine, texts, task, expected, use_activation=False)


def test_vectors_of_tokens_for_late_interaction(tmp_path: Path) -> None:
    """ColBERT's class for BERT, PyLate's modules, and those of sentence-transformers 6, whose mask leaves out words."""
    generator, texts = torch.Generator().manual_seed(0), texts_of("late")
    projection = torch.randn(24, 64, generator=generator) / 8  # its outputs are as large as its inputs
    for variant in ("bert", "modernbert"):
        model, directory = make_encoder(variant, tmp_path / variant), tmp_path / variant
        if variant == "bert":
            weights = {f"bert.{name}": tensor for name, tensor in model.state_dict().items()}
            save_file({**weights, "linear.weight": projection}, directory / "model.safetensors")
            path = directory / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["HF_ColBERT"]}))
        else:
            modules = [("", "sentence_transformers.models.Transformer"), ("1_Dense", "pylate.models.Dense.Dense")]
            modules += [("2_Mask", "x.multi_vector_mask.MultiVectorMask"), ("3_Normalize", "x.normalize.Normalize")]
            entries = [{"idx": place, "path": path, "type": kind} for place, (path, kind) in enumerate(modules)]
            (directory / "modules.json").write_text(json.dumps(entries))
            (directory / "1_Dense").mkdir()
            dense = {"out_features": 24, "bias": False, "activation_function": "torch.nn.modules.linear.Identity"}
            (directory / "1_Dense/config.json").write_text(json.dumps(dense))
            save_file({"linear.weight": projection}, directory / "1_Dense/model.safetensors")
            (directory / "2_Mask").mkdir()
            for fields, name in (
                ({"skiplist_words": ["."]}, "skiplist_words"),
                ({"keep_only_token_ids": [9]}, "keep_"),
            ):
                (directory / "2_Mask/config.json").write_text(json.dumps(fields))
                with pytest.raises(ModelError, match=f"2_Mask/config.json: {name}.* must be empty"):
                    make_engine(directory)
            mask = {"skiplist_words": [], "skiplist_tasks": ["document"], "keep_only_token_ids": None}
            (directory / "2_Mask/config.json").write_text(json.dumps(mask))
        engine = make_engine(directory)
        expected = [run(model, text) @ projection.numpy().T for text in texts]
        check(engine, texts, "token_embed", expected, use_activation=False)
        check(engine, texts, "token_embed", [unit(each) for each in expected])
        (refused,) = engine.pool(Pool(99, [9], "embed"))
        assert refused.error == "This model does not embed; its tasks are token_embed."


@pytest.mark.parametrize(
    ("head", "variant"),
    [("BertForMaskedLM", "bert"), ("RobertaForMaskedLM", "roberta"), ("DistilBertForMaskedLM", "distilbert")],
)
@pytest.mark.parametrize("is_tied", [True, False])
def test_weights_of_the_vocabulary(head: str, variant: str, is_tied: bool, tmp_path: Path) -> None:
    """SPLADE: of sentence-transformers' modules, and of vLLM's class. A head of its own has a bias of its own, too."""
    _, config = encoder_classes(variant)
    config.tie_word_embeddings = is_tied
    model, texts = randomised(getattr(transformers, head)(config)), texts_of(head)
    model.save_pretrained(tmp_path)
    expected = [np.log1p(np.maximum(run(model, text), 0)).max(0) for text in texts]
    if variant == "bert":
        engine = make_engine(tmp_path, hf_overrides={"architectures": ["BertSpladeSparseEmbeddingModel"]})
        check(engine, texts[:3], "embed", expected[:3])
        assert engine.runner.model.config.pooling is not None
        assert engine.runner.model.config.pooling.tasks == ("embed",)
    place = "sentence_transformers.sparse_encoder.models."
    modules = [("", "MLMTransformer"), ("1_SpladePooling", "SpladePooling")]
    entries = [{"idx": number, "path": path, "type": place + kind} for number, (path, kind) in enumerate(modules)]
    (tmp_path / "modules.json").write_text(json.dumps(entries))
    (tmp_path / "1_SpladePooling").mkdir()
    (tmp_path / "1_SpladePooling/config.json").write_text('{"pooling_strategy": "max", "activation_function": "relu"}')
    check(make_engine(tmp_path), texts, "embed", expected)


def test_a_gemma_that_sees_the_whole_text(tmp_path: Path) -> None:
    """EmbeddingGemma: windows reach in both directions."""
    fields = {"vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    fields |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 20}
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    config = transformers.Gemma3TextConfig(
        **fields, sliding_window=12, layer_types=layers, use_bidirectional_attention=True, pad_token_id=0
    )
    assert config.sliding_window == 7
    model = randomised(transformers.Gemma3TextModel(config))
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sliding_window": 12}))  # as files have it
    engine, texts = make_engine(tmp_path), texts_of("gemma")
    check(engine, texts, "embed", [unit(run(model, text)[-1]) for text in texts])


def test_an_encoder_does_not_generate(tmp_path: Path) -> None:
    make_encoder("bert", tmp_path)
    with pytest.raises(ModelError, match="has no head for tokens"):
        make_engine(tmp_path, runner="generate")
