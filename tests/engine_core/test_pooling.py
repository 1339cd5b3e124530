"""Pooling tasks of decoders: vectors and classes equal those of transformers, however the engine schedules the work."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ember.cli.quantize import quantize
from ember.engine.core.engine import Engine
from ember.engine.core.prediction import predict
from ember.engine.description.pooling import Modules, PoolingConfig, TaskSettings
from ember.engine.description.read_pooling import read_pooling
from ember.engine.description.sentence_transformers import read_modules
from ember.engine.errors import ModelError
from ember.engine.layers.pooler import Pooler
from ember.engine.loading.resolve import resolve_model
from ember.front.text.sentence_files import read_sentence_files
from ember.wire import Configure, Generate, Pool, Pooled, SequenceOutput
from tests.engine_core.inline import greedy, make_engine
from tests.engine_models.test_own_code_families import rewrite_as_internlm2
from tests.engine_models.tiny import VOCAB_SIZE, make_tiny, rewrite_config

LENGTHS = [1, 3, 9, 16, 24, 33, 50, 7]


def prompts(seed: str) -> list[list[int]]:
    rng = random.Random(seed)
    made = [[rng.randrange(9, VOCAB_SIZE) for _ in range(length)] for length in LENGTHS]
    made[5][:17] = made[4][:17]
    return made


def values(pooled: Pooled) -> np.ndarray:
    return np.frombuffer(pooled.data, "<f4").reshape(pooled.shape)


def answers(engine: Engine, requests: list[Pool]) -> list[SequenceOutput]:
    found: dict[int, SequenceOutput] = {}
    for request in requests:
        for output in engine.pool(request):
            found[output.request_id] = output
    while engine.has_work:
        for output in engine.step():
            assert output.request_id not in found
            found[output.request_id] = output
    return [found[request.request_id] for request in requests]


def pooled(engine: Engine, texts: list[list[int]], task: Any, **options: Any) -> list[np.ndarray]:
    outputs = answers(engine, [Pool(i, text, task, **options) for i, text in enumerate(texts)])
    return [values(output.pooled) for output in outputs if output.pooled is not None]


def hidden_states(directory: Path, texts: list[list[int]]) -> list[np.ndarray]:
    model = transformers.AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [model(torch.tensor([text])).last_hidden_state[0].numpy() for text in texts]


def check(engine: Engine, texts: list[list[int]], task: Any, expected: list[np.ndarray], **options: Any) -> None:
    """Alone, and in a mixed batch; the engine's budget says whether in chunks."""
    for found in (
        [pooled(engine, [text], task, **options)[0] for text in texts],
        pooled(engine, texts, task, **options),
    ):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector, axis=-1, keepdims=True)


@pytest.mark.parametrize("family", ["qwen3", "mistral_window", "gpt2", "opt_post_norm", "qwen3_5_moe"])
def test_embeddings_of_the_bare_class(family, tmp_path):
    directory = make_tiny(family, tmp_path, auto="AutoModel")
    texts = prompts(family)
    states = hidden_states(directory, texts)
    for budget in (2048, 11):
        engine = make_engine(directory, max_num_batched_tokens=budget)
        check(engine, texts, "embed", [unit(each[-1]) for each in states])
        check(engine, texts, "embed", [each[-1] for each in states], use_activation=False)
        check(engine, texts, "token_embed", [unit(each) for each in states])
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


@pytest.mark.parametrize("fields", [{"is_causal": False}, {"architectures": ["Qwen2BidirectionalModel"]}])
def test_a_decoder_that_sees_the_whole_text(fields, tmp_path):
    directory = make_tiny("qwen2", tmp_path, auto="AutoModel")
    texts = prompts("whole")
    rewrite_config(directory, is_causal=False)
    expected = [unit(each.mean(0)) for each in hidden_states(directory, texts)]
    overrides = {"is_causal": True, "pooling": "avg", **fields}
    pooler = {} if "architectures" in fields else {"pooling_type": "MEAN"}
    engine = make_engine(directory, hf_overrides=overrides, pooler_config=pooler, max_num_batched_tokens=11)
    check(engine, texts, "embed", expected)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe"])
def test_heads_that_classify(family, tmp_path):
    fields = {
        "num_labels": 3,
        "id2label": {0: "no", 1: "maybe", 2: "yes"},
        "problem_type": "multi_label_classification",
    }
    texts = prompts(family)
    for auto, task in (
        ("AutoModelForSequenceClassification", "classify"),
        ("AutoModelForTokenClassification", "token_classify"),
    ):
        directory = make_tiny(family, tmp_path / task, auto=auto, **fields)
        model = getattr(transformers, auto).from_pretrained(directory, dtype=torch.float32).eval()
        with torch.inference_mode():
            logits = [model(torch.tensor([text])).logits[0].numpy() for text in texts]
        for budget in (2048, 11):
            engine = make_engine(directory, max_num_batched_tokens=budget)
            check(engine, texts, task, logits, use_activation=False)
            check(engine, texts, task, [1 / (1 + np.exp(-each)) for each in logits])


def test_softmax_of_several_classes_and_sigmoid_of_one(tmp_path):
    texts = prompts("labels")
    for count, activate in ((2, lambda x: np.exp(x) / np.exp(x).sum()), (1, lambda x: 1 / (1 + np.exp(-x)))):
        directory = make_tiny(
            "qwen2", tmp_path / str(count), auto="AutoModelForSequenceClassification", num_labels=count
        )
        engine = make_engine(directory)
        raw = pooled(engine, texts, "classify", use_activation=False)
        check(engine, texts, "classify", [activate(each) for each in raw])
        if count == 1:
            check(engine, texts, "score", [activate(each) for each in raw])
        else:
            (refused,) = answers(engine, [Pool(0, [9], "score")])
            assert refused.error_param == "model" and "does not score" in refused.error


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    """A causal language model with the files of sentence-transformers."""
    directory = make_tiny("qwen3", tmp_path_factory.mktemp("embedder"))
    (directory / "modules.json").write_text(
        json.dumps(
            [
                {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
                for number, (kind, path) in enumerate(
                    [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Normalize", "3_Normalize")]
                )
            ]
        )
    )
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 60, "do_lower_case": False}))
    (directory / "2_Dense").mkdir()
    dense = {
        "in_features": 64,
        "out_features": 40,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    (directory / "2_Dense/config.json").write_text(json.dumps(dense))
    generator = torch.Generator().manual_seed(0)
    weights = {
        "linear.weight": torch.randn(40, 64, generator=generator) / 8,
        "linear.bias": torch.randn(40, generator=generator),
    }
    save_file(weights, directory / "2_Dense/model.safetensors")
    (directory / "1_Pooling").mkdir()
    return directory


def use_pooling(directory: Path, *modes: str, **fields: Any) -> None:
    modes_on = {f"pooling_mode_{mode}": True for mode in modes}
    config = {"word_embedding_dimension": 64, "pooling_mode_cls_token": False, **modes_on, **fields}
    (directory / "1_Pooling/config.json").write_text(json.dumps(config))


MODES = {
    "cls_token": lambda states: states[0],
    "mean_tokens": lambda states: states.mean(0),
    "max_tokens": lambda states: states.max(0),
    "mean_sqrt_len_tokens": lambda states: states.sum(0) / len(states) ** 0.5,
    "weightedmean_tokens": lambda states: np.average(states, axis=0, weights=np.arange(1, len(states) + 1)),
    "lasttoken": lambda states: states[-1],
}


@pytest.mark.parametrize("mode", MODES)
def test_the_files_of_sentence_transformers(embedder, mode):
    use_pooling(embedder, mode)
    texts = prompts(mode)
    dense = load_file(embedder / "2_Dense/model.safetensors")
    weight, bias = dense["linear.weight"].numpy(), dense["linear.bias"].numpy()
    expected = [unit(np.tanh(weight @ MODES[mode](each) + bias)) for each in hidden_states(embedder, texts)]
    for budget in (2048, 11):
        check(make_engine(embedder, max_num_batched_tokens=budget), texts, "embed", expected)


def test_kinds_of_pooling_are_joined_in_the_order_of_the_file():
    """Newer files have a list of kinds, older ones a flag for each; without any it is the mean."""

    def types(**config: Any) -> tuple[str, ...]:
        files = {
            "modules.json": [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "p"}],
            "p/config.json": {"embedding_dimension": 64, **config},
        }
        return read_modules(files.get).types

    assert types(pooling_mode=["mean", "max", "cls"]) == ("mean", "max", "cls")
    assert types(pooling_mode="lasttoken") == ("last",)
    assert types(pooling_mode_mean_tokens=True, pooling_mode_cls_token=True) == ("cls", "mean")
    assert types() == types(pooling_mode_cls_token=False) == ("mean",)
    for modes in ([], ["mean", "median"], ["mean", 1], 1):
        with pytest.raises(ModelError, match="pooling_mode must be one or several of cls, max"):
            types(pooling_mode=modes)


def test_a_dropout_needs_no_files():
    entries = [{"type": f"x.{kind}", "path": path} for kind, path in (("Transformer", ""), ("Dropout", "2_Dropout"))]
    assert read_modules({"modules.json": entries}.get).is_there


def test_modules_are_applied_in_their_order(embedder, tmp_path):
    use_pooling(embedder, "mean_tokens")
    shutil.copytree(embedder, tmp_path, dirs_exist_ok=True)
    first, pool, dense, normalize = json.loads((embedder / "modules.json").read_text())
    (tmp_path / "modules.json").write_text(json.dumps([first, pool, normalize, dense]))
    texts, layer = prompts("order"), load_file(embedder / "2_Dense/model.safetensors")
    weight, bias = layer["linear.weight"].numpy(), layer["linear.bias"].numpy()
    expected = [np.tanh(weight @ unit(each.mean(0)) + bias) for each in hidden_states(embedder, texts)]
    check(make_engine(tmp_path), texts, "embed", expected)
    for entries, error in (
        ([first, dense, pool], "the module Dense before Pooling"),
        ([first, normalize, pool], "the module Normalize before Pooling"),
        ([first, pool, dense, pool], "the module Pooling behind Transformer, Pooling, Dense"),
    ):
        (tmp_path / "modules.json").write_text(json.dumps(entries))
        with pytest.raises(ModelError, match=error):
            make_engine(tmp_path)


def test_an_instruction_may_be_left_out_of_the_mean(embedder):
    use_pooling(embedder, "mean_tokens", include_prompt=False)
    texts = [text for text in prompts("instruction") if len(text) > 8]
    dense = load_file(embedder / "2_Dense/model.safetensors")
    weight, bias = dense["linear.weight"].numpy(), dense["linear.bias"].numpy()
    expected = [unit(np.tanh(weight @ each[8:].mean(0) + bias)) for each in hidden_states(embedder, texts)]
    for budget in (2048, 5):
        engine = make_engine(embedder, max_num_batched_tokens=budget)
        check(engine, texts, "embed", expected, num_instruction_tokens=8)


def test_the_first_token_after_an_instruction_stands_for_the_text(embedder):
    """Where the instruction is all of the text, it is the instruction's first one."""
    use_pooling(embedder, "cls_token", include_prompt=False)
    texts = prompts("first")
    dense = load_file(embedder / "2_Dense/model.safetensors")
    weight, bias = dense["linear.weight"].numpy(), dense["linear.bias"].numpy()
    firsts = [each[8 if len(each) > 8 else 0] for each in hidden_states(embedder, texts)]
    expected = [unit(np.tanh(weight @ each + bias)) for each in firsts]
    for budget in (2048, 5):
        engine = make_engine(embedder, max_num_batched_tokens=budget)
        check(engine, texts, "embed", expected, num_instruction_tokens=8)


def test_labels_beyond_the_classes_name_none():
    """transformers serves such a file: the number of names is that of classes."""

    def config(**values: Any) -> PoolingConfig:
        found = read_pooling("sequence_classification", values, TaskSettings(), Modules())
        assert found is not None
        return found

    assert config(id2label={"0": "a", "2": "c", "3": "d"}).labels == ("a", "LABEL_1", "c")
    assert config(id2label={"0": "a", "1": "b"}, num_labels=1).labels == ("a",)
    assert config(problem_type="").activation == "softmax"
    for key in ("-1", "1.5", "a", ""):
        with pytest.raises(ModelError, match="id2label must be an object from the numbers 0 to 0 to labels"):
            config(id2label={key: "a"})


def test_a_cached_prefix_serves_the_last_token_alone(embedder):
    use_pooling(embedder, "lasttoken")
    text = prompts("prefix")[6]
    for pooler, cached in (({}, 48), ({"pooling_type": "MEAN"}, 0)):
        engine = make_engine(embedder, pooler_config=pooler)
        first, again = answers(engine, [Pool(1, text, "embed")]) + answers(engine, [Pool(2, text, "embed")])
        assert (first.num_cached_tokens, again.num_cached_tokens) == (0, cached)
        np.testing.assert_allclose(values(first.pooled), values(again.pooled), atol=1e-5)
        (every,) = answers(engine, [Pool(3, text, "token_embed")])
        assert every.num_cached_tokens == 0 and every.pooled.shape == [50, 40]


def test_what_is_refused_and_that_the_engine_goes_on(embedder):
    use_pooling(embedder, "lasttoken")
    engine = make_engine(embedder)
    (generating,) = engine.add(Generate(1, [9], greedy(3)))
    assert generating.error == "This model does not generate; its tasks are embed, token_embed."
    cases = [
        (Pool(1, [9], "classify"), "does not classify", "model"),
        (Pool(2, [9] * 61, "embed"), "61 tokens cannot run, 1 to 60", None),
        (Pool(3, [], "embed"), "0 tokens cannot run", None),
        (Pool(4, [VOCAB_SIZE], "embed"), "token id", "prompt"),
        (Pool(6, [9], "embed", token_type_ids=[0, 1]), "2 token types for 1 tokens", None),
        (Pool(5, [9], "embed", token_type_ids=[1]), "type 1 (type_id of the post_processor", "input"),
        (Pool(7, [9], "embed", adapter="other"), "'other' is not loaded", "model"),
    ]
    for request, error, param in cases:
        (output,) = engine.pool(request)
        assert output.finish_reason == "error" and error in output.error and output.error_param == param
    engine.pool(Pool(8, [9] * 20, "embed"))
    engine.abort(8)
    assert not engine.has_work and engine.stats().num_free_blocks == engine.stats().num_blocks
    assert pooled(engine, [[9, 10]], "embed")[0].shape == (40,)


def test_nan_and_lack_of_memory_end_single_requests(embedder, monkeypatch):
    use_pooling(embedder, "mean_tokens")
    engine = make_engine(embedder)
    texts = prompts("faults")
    expected = pooled(engine, texts, "embed")
    forward = engine.runner.model.states

    def broken(batch: Any, cache: Any) -> torch.Tensor:
        states = forward(batch, cache)
        states[batch.query_starts[2]] = torch.nan
        return states

    monkeypatch.setattr(engine.runner.model, "states", broken)
    outputs = answers(engine, [Pool(i, text, "embed") for i, text in enumerate(texts)])
    assert [output.finish_reason for output in outputs] == ["stop", "stop", "error", *["stop"] * 5]
    assert "not a number" in outputs[2].error
    calls = []

    def full(batch: Any, cache: Any) -> torch.Tensor:
        calls.append(len(batch.token_ids))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no memory")
        return forward(batch, cache)

    monkeypatch.setattr(engine.runner.model, "states", full)
    outputs = answers(engine, [Pool(i, text, "embed") for i, text in enumerate(texts)])
    assert [i for i, output in enumerate(outputs) if output.finish_reason == "error"] == [6]  # the longest one
    for i, output in enumerate(outputs):
        if i != 6:
            np.testing.assert_allclose(values(output.pooled), expected[i], atol=1e-5)


def test_preempted_texts_begin_again(embedder):
    use_pooling(embedder, "mean_tokens", "max_tokens")
    (embedder / "modules.json").rename(embedder / "aside.json")
    try:
        texts = prompts("preempted")
        settings = {"runner": "pooling", "pooler_config": {"seq_pooling_type": "mean"}, "max_num_batched_tokens": 13}
        expected = pooled(make_engine(embedder, **settings), texts, "embed")
        engine = make_engine(embedder, num_blocks=9, **settings)
        found = pooled(engine, texts, "embed")
    finally:
        (embedder / "aside.json").rename(embedder / "modules.json")
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_dimensions_of_matryoshka_embeddings(embedder):
    use_pooling(embedder, "lasttoken")
    engine = make_engine(embedder, hf_overrides={"matryoshka_dimensions": [16, 8]})
    raw = pooled(engine, [[9, 10, 11]], "embed", use_activation=False)[0]
    np.testing.assert_allclose(pooled(engine, [[9, 10, 11]], "embed", dimensions=8)[0], unit(raw[:8]), atol=1e-5)
    for own in (engine, make_engine(embedder)):  # clients send the model's own number too
        assert pooled(own, [[9]], "embed", dimensions=40)[0].shape == (40,)


def test_what_newer_files_of_sentence_transformers_say(embedder, tmp_path):
    """An activation and a number of dimensions in config_sentence_transformers.json, and the module LogitScore."""
    use_pooling(embedder, "lasttoken")
    (embedder / "config_sentence_transformers.json").write_text('{"truncate_dim": 8}')
    text = [9, 10, 11]
    engine = make_engine(embedder)
    raw = pooled(engine, [text], "embed", dimensions=40, use_activation=False)[0]
    np.testing.assert_allclose(pooled(engine, [text], "embed")[0], unit(raw[:8]), atol=1e-5)
    (embedder / "config_sentence_transformers.json").unlink()

    directory = make_tiny("qwen3", tmp_path, architectures=["Qwen3ForCausalLM"])
    module = {"idx": 1, "name": "1", "path": "1_LogitScore", "type": "sentence_transformers.cross_encoder.LogitScore"}
    (directory / "modules.json").write_text(json.dumps([module]))
    (directory / "1_LogitScore").mkdir()
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.inference_mode():
        yes, no = model(torch.tensor([text])).logits[0, -1, [77, 30]].double().numpy()
    (directory / "tokenizer_config.json").write_text('{"model_max_length": 33}')
    for ids, name, expected in (
        ({"true_token_id": 77, "false_token_id": 30}, "Identity", yes - no),
        ({"true_token_id": 77, "false_token_id": None}, "Sigmoid", 1 / (1 + np.exp(-yes))),
    ):
        (directory / "1_LogitScore/config.json").write_text(json.dumps(ids))
        whole = {"model_type": "CrossEncoder", "activation_fn": f"torch.nn.modules.linear.{name}"}
        (directory / "config_sentence_transformers.json").write_text(json.dumps(whole))
        engine = make_engine(directory)
        np.testing.assert_allclose(pooled(engine, [text], "score")[0], [expected], atol=1e-4)
        (refused,) = engine.pool(Pool(1, [9] * 34, "score"))
        assert refused.error is not None and "33" in refused.error


@pytest.mark.parametrize("method", ["from_2_way_softmax", "no_post_processing"])
def test_a_head_of_tokens(method, tmp_path):
    directory = make_tiny("qwen3", tmp_path, architectures=["Qwen3ForCausalLM"])
    tokenizer = {"model": {"type": "BPE", "vocab": {"no": 30, "other": 31}, "merges": []}}
    tokenizer["added_tokens"] = [{"id": 77, "content": "yes"}]
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    overrides = {
        "architectures": ["Qwen3ForSequenceClassification"],
        "classifier_from_token": ["no", "yes"],
        **({"is_original_qwen3_reranker": True} if method == "from_2_way_softmax" else {"method": method}),
    }
    texts = prompts(method)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = [model(torch.tensor([text])).logits[0, -1, [30, 77]] for text in texts]
    probabilities = [torch.softmax(each, 0).numpy() for each in logits]
    engine = make_engine(directory, hf_overrides=overrides)
    if method == "from_2_way_softmax":
        check(engine, texts, "score", [each[1:] for each in probabilities])
    else:
        check(engine, texts, "classify", probabilities)


def add_head(directory: Path, sizes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Add the random weights of a head to a checkpoint. Returns them."""
    file, generator = directory / "model.safetensors", torch.Generator().manual_seed(0)
    head = {name: torch.randn(size, generator=generator) / 4 for name, size in sizes.items()}
    save_file(load_file(file) | head, file)
    return head


def test_a_reward_of_each_token(tmp_path):
    """InternLM 2 has one layer, Qwen 2.5 two."""
    texts = prompts("rewards")
    directory = make_tiny("llama", tmp_path / "internlm2")
    states = hidden_states(directory, texts)
    rewrite_as_internlm2(directory)
    weight = add_head(directory, {"v_head.weight": (1, 64)})["v_head.weight"].numpy()
    engine = make_engine(
        directory, hf_overrides={"architectures": ["InternLM2ForRewardModel"]}, max_num_batched_tokens=11
    )
    check(engine, texts, "token_classify", [each @ weight.T for each in states])

    directory = make_tiny("qwen2", tmp_path / "qwen2")
    states = hidden_states(directory, texts)
    sizes = {"score.0.weight": (64, 64), "score.0.bias": (64,), "score.2.weight": (1, 64), "score.2.bias": (1,)}
    first, shift, last, end = (tensor.numpy() for tensor in add_head(directory, sizes).values())
    engine = make_engine(directory, hf_overrides={"architectures": ["Qwen2ForRewardModel"]})
    expected = [np.maximum(each @ first.T + shift, 0) @ last.T + end for each in states]
    check(engine, texts, "token_classify", expected)


def test_a_reward_of_each_step(tmp_path):
    directory = make_tiny("qwen2", tmp_path, auto="AutoModel", num_labels=2)
    texts = prompts("reward")
    states = [torch.tensor(each) for each in hidden_states(directory, texts)]
    file = directory / "model.safetensors"
    save_file({f"model.{name}": tensor for name, tensor in load_file(file).items()}, file)
    sizes = {"score.0.weight": (64, 64), "score.0.bias": (64,), "score.2.weight": (2, 64), "score.2.bias": (2,)}
    head = add_head(directory, sizes)
    hidden = [torch.relu(each @ head["score.0.weight"].T + head["score.0.bias"]) for each in states]
    logits = [each @ head["score.2.weight"].T + head["score.2.bias"] for each in hidden]
    overrides = {"architectures": ["Qwen2ForProcessRewardModel"]}
    engine = make_engine(directory, hf_overrides=overrides, max_num_batched_tokens=11)
    check(engine, texts, "token_classify", [torch.softmax(each, -1).numpy() for each in logits])
    engine = make_engine(directory, hf_overrides=overrides, pooler_config={"step_tag_id": texts[6][20]})
    (found,) = pooled(engine, [texts[6]], "token_classify")
    rows = [i for i, token_id in enumerate(texts[6]) if token_id == texts[6][20]]
    np.testing.assert_allclose(found, torch.softmax(logits[6], -1).numpy()[rows], atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"convert": "classify"}, "has no score.weight or classifier.weight for Qwen3ForCausalLM: its head is missing"),
        ({"runner": "generate", "convert": "embed"}, "RUNNER=generate and CONVERT=embed contradict"),
        ({"runner": "pooling", "convert": "none"}, "set CONVERT=embed"),
        ({"pooler_config": {"pooling": "MEAN"}}, "POOLER_CONFIG: 'pooling' is not a field of it"),
        ({"pooler_config": {"pooling_type": "MIDDLE"}}, "POOLER_CONFIG: pooling_type must be one of CLS, MAX, MEAN"),
        ({"pooler_config": {"normalize": True, "use_activation": False}}, "contradict"),
        ({"pooler_config": {"task": "classify"}}, "task 'classify' is not one of the model's: embed, token_embed"),
        ({"pooler_config": {"dimensions": 8}}, "no matryoshka_dimensions"),
        ({"runner": "generate", "pooler_config": {"dimensions": 8}}, "POOLER_CONFIG is set, but the model generates"),
        ({"hf_overrides": {"architectures": ["Qwen3Model"]}, "runner": "generate"}, "no head for tokens"),
        ({"hf_overrides": {"classifier_from_token": ["a"], "method": "x"}, "convert": "classify"}, "method must be"),
        ({"hf_overrides": {"is_causal": False}, "runner": "generate"}, "only causal models generate"),
        ({"pooler_config": {"enable_chunked_processing": True}}, "enable_chunked_processing must be false"),
        ({"pooler_config": {"max_embed_len": 9}}, "max_embed_len must be absent"),
        (
            {"hf_overrides": {"num_labels": 2, "id2label": {"9" * 5000: "a"}}, "convert": "classify"},
            "numbers 0 to 1 to labels",
        ),
    ],
)
def test_settings_that_contradict(embedder, settings, error):
    use_pooling(embedder, "lasttoken")
    with pytest.raises(ModelError, match=".*") as raised:
        make_engine(embedder, **settings)
    assert error in str(raised.value)


def test_texts_of_the_configuration_can_be_written_again(embedder, tmp_path):
    fields = json.loads((embedder / "config.json").read_text()) | {"id2label": {"0": "\ud800"}}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ModelError, match=r"config.json: id2label.0 holds a lone surrogate"):
        make_engine(tmp_path)


def test_logits_are_shifted_and_scaled():
    def finished(**asked: Any) -> float:
        config = read_pooling("sequence_classification", {"num_labels": 1}, TaskSettings(pooler=asked), Modules())
        assert config is not None
        pooler = Pooler(config, [], 1, torch.device("cpu"))
        return float(pooler._finished(torch.tensor([[5.0]]), None, "none"))

    assert finished(logit_mean=2.0, logit_sigma=1.5, enable_chunked_processing=False) == 2.0
    assert finished(logit_bias=1.0) == 4.0
    assert finished(logit_bias=1.0, logit_scale=2.0) == 8.0
    with pytest.raises(ModelError, match="logit_scale is the older name of 1 / logit_sigma"):
        finished(logit_scale=2.0, logit_sigma=1.0)


@pytest.mark.parametrize("name", ["task", "pooling_task", "pooling_target"])
def test_the_task_has_the_names_of_several_versions(name: str) -> None:
    settings = TaskSettings(pooler={name: "token_classify"})
    config = read_pooling("sequence_classification", {"num_labels": 1}, settings, Modules())
    assert config is not None and config.tasks == ("token_classify",)
    both = TaskSettings(pooler={name: "classify", "task" if name != "task" else "pooling_task": "token_classify"})
    with pytest.raises(ModelError, match="task, pooling_task, pooling_target are names of one field"):
        read_pooling("sequence_classification", {"num_labels": 1}, both, Modules())


def test_the_prediction_is_what_the_boot_says(embedder, tmp_path):
    use_pooling(embedder, "mean_tokens", "max_tokens")
    with pytest.raises(
        ModelError,
        match=r"\[40, 64\] in model.safetensors, not \[40, 128\] of floats: out_features in .*2_Dense/config",
    ):
        predict(Configure(model=str(embedder), device="cpu"))
    add_head(make_tiny("qwen3", tmp_path), {"score.weight": (3, 64)})
    with pytest.raises(
        ModelError, match=r"number of classes \(2, num_labels or id2label in config.json\) does not fit"
    ):
        predict(Configure(model=str(tmp_path), device="cpu", convert="classify"))
    use_pooling(embedder, "mean_tokens")
    predicted = predict(Configure(model=str(embedder), device="cpu"))
    assert predicted.tasks == ["embed", "token_embed"] and predicted.pooling is not None
    assert (predicted.pooling.types, predicted.pooling.layers, predicted.pooling.dimensions) == (["mean"], 1, 40)
    assert predicted.devices[0].max_model_len == 60
    with pytest.raises(ModelError, match="its head is missing"):
        predict(Configure(model=str(embedder), device="cpu", convert="classify"))


def test_modules_are_copied_with_a_quantised_model(embedder, tmp_path):
    use_pooling(embedder, "mean_tokens")
    quantize(str(embedder), tmp_path / "quantised", "w8a16", None, print)
    texts = prompts("quantised")
    expected = pooled(make_engine(embedder), texts, "embed")
    for one, other in zip(pooled(make_engine(tmp_path / "quantised"), texts, "embed"), expected, strict=True):
        assert one @ other > 0.99


def test_the_model_may_be_in_a_directory_of_its_own(embedder, tmp_path):
    """Older versions of sentence-transformers wrote the model to a directory beside the other modules."""
    use_pooling(embedder, "mean_tokens")
    root, texts = tmp_path / "root", [[9, 10, 11]]
    shutil.copytree(embedder, root)
    inner = root / "0_Transformer"
    inner.mkdir()
    for file in root.iterdir():
        if file.is_file() and file.name != "modules.json":
            file.rename(inner / file.name)
    modules = json.loads((root / "modules.json").read_text())
    modules[0]["path"] = inner.name
    (root / "modules.json").write_text(json.dumps(modules))
    (root / "config_sentence_transformers.json").write_text('{"prompts": {"query": "q: "}}')
    expected = pooled(make_engine(embedder), texts, "embed")[0]
    engine = make_engine(root)
    assert engine.limits.max_model_len == 60 and resolve_model(str(root)) == inner
    np.testing.assert_array_equal(pooled(engine, texts, "embed")[0], expected)
    assert read_sentence_files(inner).prompts == {"query": "q: "}
    quantize(str(root), tmp_path / "quantised", "w8a16", None, print)
    assert pooled(make_engine(tmp_path / "quantised"), texts, "embed")[0] @ expected > 0.99


def test_the_settings_decide_what_a_causal_model_does(embedder):
    use_pooling(embedder, "lasttoken")
    assert make_engine(embedder, runner="generate").runner.model.config.pooling is None
    assert make_engine(embedder, pooler_config={"task": "token_embed"}).runner.model.config.pooling.tasks == (
        "token_embed",
    )
    reward = make_engine(embedder, convert="reward")
    assert pooled(reward, [[9, 10]], "token_classify")[0].shape == (2, 64)
